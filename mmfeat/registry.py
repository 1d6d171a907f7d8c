"""Named parts that can be chosen in a recipe: listed without importing them, also where their packages are missing."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

    from mmfeat.corpus import Clip


class Config(BaseModel):
    """Base of every config: immutable, hashable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MissingBackendError(RuntimeError):
    """A package or model that is needed is not there; the message holds the command that gets it."""


@dataclass(frozen=True)
class Entry:
    """What is known of a part without importing it."""

    name: str
    modality: str
    module: str
    summary: str
    licence: str
    packages: tuple[str, ...] = ()
    """Import names that must be there."""
    install: str = ""
    """The one command that gets what is missing."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes; empty: any."""

    def speaks(self, language: str) -> bool:
        return not self.languages or language in self.languages

    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


@dataclass(frozen=True)
class Registered:
    config: type[Config]
    make: Callable[..., Any]
    version: int
    """Raised whenever the output for the same input may change; part of the fingerprint."""
    models: Callable[[Any], tuple[str, ...]]
    """The model files a config uses, by name, so that their hashes enter the fingerprint."""
    word_file: Callable[[Any, Clip], Path] | None = None
    """Of an aligner that takes word times from files: that of a clip, by its config. Such an aligner is called with the
    clip as a third argument."""
    by_language: bool = False
    """Whether `make` takes the language of the transcripts after the config."""


class Registry:
    """Parts of one kind by name. A part enters itself when its module is imported, which `find` does."""

    def __init__(self, kind: str, entries: Iterable[Entry]):
        self._kind = kind
        self._registered: dict[str, Registered] = {}
        self.entries = {entry.name: entry for entry in entries}

    def register(
        self,
        name: str,
        config: type[Config],
        version: int,
        models: Callable[[Any], tuple[str, ...]] = lambda config: (),
        word_file: Callable[[Any, Clip], Path] | None = None,
        by_language: bool = False,
    ) -> Callable[[type], type]:
        """Class decorator: enter a part under its name. A second one of that name is an error."""

        def enter(make: type) -> type:
            if name in self._registered:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            self._registered[name] = Registered(config, make, version, models, word_file, by_language)
            return make

        return enter

    def find(self, name: str) -> Registered:
        """The part `name`, its module imported.

        Raises KeyError for an unknown name, MissingBackendError where its packages are not installed.
        """
        if name not in self.entries:
            raise KeyError(f"no {self._kind} {name!r}; there are: {', '.join(sorted(self.entries))}")
        entry = self.entries[name]
        if missing := entry.missing():
            raise MissingBackendError(f"{self._kind} {name!r} needs {', '.join(missing)}: {entry.install}")
        importlib.import_module(entry.module)
        return self._registered[name]
