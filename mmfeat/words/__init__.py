"""The registry of aligners: from a transcript and its sound to word times.

An aligner is a class made from its config; making it loads its model, calling it aligns:
`(Waveform, str) -> list[Word]`. It returns the transcript's own words in their order, none left out; times are in
seconds from the start of the waveform. It raises AlignmentError where the words cannot be found. It keeps no memory of
earlier calls: same sound and text, same words.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmfeat.extractors import Config, MissingBackendError


class AlignmentError(RuntimeError):
    """The transcript's words were not found in the sound; `reason` says why."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Entry:
    """What is known of an aligner without importing it."""

    name: str
    module: str
    summary: str
    licence: str
    packages: tuple[str, ...] = ()
    """Import names that must be there."""
    install: str = ""
    """The one command that gets what is missing."""

    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


@dataclass(frozen=True)
class Registered:
    config: type[Config]
    make: Callable[[Any], Any]
    version: int
    """Raised whenever the output for the same input may change; part of the fingerprint."""
    models: Callable[[Any], tuple[str, ...]]
    """The model files a config uses, by name, so that their hashes enter the fingerprint."""


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "pocketsphinx",
            "mmfeat.words.pocketsphinx",
            "English, offline: PocketSphinx with CMUdict, espeak-ng for words that CMUdict lacks",
            "MIT and BSD-2-Clause (code and model); espeak-ng GPL-3.0",
            ("pocketsphinx", "espeakng_loader", "num2words"),
            "pip install pocketsphinx espeakng-loader num2words",
        ),
    )
}

_registered: dict[str, Registered] = {}


def register(
    name: str,
    config: type[Config],
    version: int,
    models: Callable[[Any], tuple[str, ...]] = lambda config: (),
) -> Callable[[type], type]:
    """Class decorator: enter an aligner under its name. A second one of that name is an error."""

    def enter(make: type) -> type:
        if name in _registered:
            raise ValueError(f"aligner {name!r} is registered twice")
        _registered[name] = Registered(config, make, version, models)
        return make

    return enter


def find(name: str) -> Registered:
    """The aligner `name`, its module imported.

    Raises KeyError for an unknown name, MissingBackendError where its packages are not installed.
    """
    if name not in ENTRIES:
        raise KeyError(f"no aligner {name!r}; there are: {', '.join(sorted(ENTRIES))}")
    entry = ENTRIES[name]
    if missing := entry.missing():
        raise MissingBackendError(f"aligner {name!r} needs {', '.join(missing)}: {entry.install}")
    importlib.import_module(entry.module)
    return _registered[name]


def make_aligner(name: str, config: Config | None = None) -> Any:
    """The aligner `name` made from `config`, by default its own; raises as `find` does."""
    registered = find(name)
    return registered.make(config if config is not None else registered.config())
