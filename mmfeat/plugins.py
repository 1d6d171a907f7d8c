"""Parts that other distributions bring, found by their entry points; a broken one is named and breaks nothing else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from mmfeat.registry import Entry

PATIENCE = 5.0
"""Seconds that an import may take before the user is told what is waited for."""


class PluginError(Exception):
    """A plugin cannot be used; the message names its distribution and says why."""


def claims(group: str) -> dict[str, list[EntryPoint]]:
    """Name → the entry points of a group that are called so. Nothing is imported: only metadata are read."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        found.setdefault(point.name, []).append(point)
    return found


def load(points: Sequence[EntryPoint], kind: str, is_built_in: bool, modalities: Collection[str]) -> Entry:
    """The Entry that the entry points of one name lead to, its module imported; not the one that the Entry names.

    Raises PluginError. A name that two distributions claim belongs to neither, also where one is this package: which of
    them made a feature must not depend on what else is installed.
    """
    point, owners = points[0], [*(["mmfeat"] if is_built_in else []), *map(_owner, points)]
    if len(owners) > 1:
        raise PluginError(f"{kind} {point.name!r} is in both {owners[0]} and {owners[1]}: uninstall one of them")
    try:
        with said_if_slow(f"{kind} {point.name!r} of {owners[0]}: importing {point.module}"):
            return replace(_entry(point, modalities), distribution=owners[0])
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{kind} {point.name!r} of {owners[0]} cannot be used: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def said_if_slow(what: str) -> Iterator[None]:
    """Say on standard error what is being done if it takes long: a stranger's module may wait for a network."""
    seconds = PATIENCE
    message = f"mmfeat: {what} takes more than {seconds:g} s; uninstall what it belongs to if it hangs\n"
    timer = threading.Timer(seconds, lambda: sys.stderr.write(message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _entry(point: EntryPoint, modalities: Collection[str]) -> Entry:
    entry = point.load()
    if not isinstance(entry, Entry):
        raise TypeError(f"{point.value} is no mmfeat.extractors.Entry but {type(entry).__name__}")
    if entry.name != point.name:
        raise ValueError(f"{point.value} is named {entry.name!r}")
    if entry.modality not in modalities:
        raise ValueError(f"modality {entry.modality!r} is none of {', '.join(modalities)}")
    return entry
