"""Parts that other distributions bring, found by their entry points; a broken one is named and breaks nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from mmfeat.registry import Entry


def discover(
    group: str, kind: str, built_in: Mapping[str, Entry], modalities: Collection[str]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """(name → Entry, name → why it cannot be used) of the entry points of a group.

    An entry point is named as the part and leads to its Entry. The module that holds the Entry is imported, the one
    that the Entry names is not. A name that two distributions claim belongs to neither, also where one is this package:
    which of them made a feature must not depend on what else is installed.
    """
    entries: dict[str, Entry] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        owner = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        if other := built_in.get(point.name) or entries.get(point.name):
            broken[point.name] = (
                f"{kind} {point.name!r} is in both {other.distribution or 'mmfeat'} and {owner}: uninstall one of them"
            )
            continue
        try:
            entries[point.name] = replace(_load(point, modalities), distribution=owner)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's module does when it is imported
            broken[point.name] = f"{kind} {point.name!r} of {owner} cannot be used: {type(error).__name__}: {error}"
    return entries, broken


def _load(point: EntryPoint, modalities: Collection[str]) -> Entry:
    entry = point.load()
    if not isinstance(entry, Entry):
        raise TypeError(f"{point.value} is no mmfeat.extractors.Entry but {type(entry).__name__}")
    if entry.name != point.name:
        raise ValueError(f"{point.value} is named {entry.name!r}")
    if entry.modality not in modalities:
        raise ValueError(f"modality {entry.modality!r} is none of {', '.join(modalities)}")
    return entry
