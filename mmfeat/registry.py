"""Named parts that can be chosen in a recipe: listed without importing them, also where their packages are missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from mmfeat.corpus import Clip


class Config(BaseModel):
    """Base of every config: immutable, hashable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    without_effect: ClassVar[frozenset[str]] = frozenset()
    """Settings that never change the output, such as a time limit; the fingerprint leaves them out."""

    def identity(self) -> dict[str, Any]:
        """Everything in the config that the output depends on."""
        return self.model_dump(mode="json", exclude=set(self.without_effect))


def each_once(columns: tuple[str, ...]) -> tuple[str, ...]:
    """For a field_validator: the groups of columns themselves. Raises ValueError where one is named twice."""
    if len(set(columns)) < len(columns):
        raise ValueError("a group is named twice")
    return columns


class MissingBackendError(RuntimeError):
    """A package or model that is needed is not there; the message holds the command that gets it."""


@dataclass(frozen=True)
class Program:
    """A program of other makers. A part may do without it, by its settings."""

    name: str
    variable: str
    """Environment variable that names the folder it lies in; without it, the PATH is searched."""
    folders: tuple[str, ...]
    """Below that folder, those that it may lie in."""
    install: str

    def find(self) -> Path | None:
        if (folder := os.environ.get(self.variable)) is None:
            found = shutil.which(self.name)
        else:
            places = [Path(folder).expanduser() / below for below in self.folders]
            found = shutil.which(self.name, path=os.pathsep.join(map(str, places)))
        return Path(found).absolute() if found else None

    def missing(self) -> str:
        """That it is not there, and how to get it; empty where it is."""
        if self.find():
            return ""
        folder = os.environ.get(self.variable)
        where = f"on the PATH, {self.variable} not set" if folder is None else f"in {self.variable}={folder}"
        return f"{self.name} (not {where}): {self.install}"


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
    backend: str = ""
    """The environment of its own that it runs in; see `mmfeat.backends`."""
    program: Program | None = None
    """What most of its configs run."""
    distribution: str = ""
    """Name and version of the distribution that brings it; empty for what comes with mmfeat. Set by mmfeat."""

    def speaks(self, language: str) -> bool:
        return not self.languages or language in self.languages

    def missing(self) -> list[str]:
        missing = [package for package in self.packages if not _is_there(package)]
        if self.backend:
            from mmfeat.backends import environment

            if why := environment.state(environment.find(self.backend)):
                missing.append(f"an environment of its own ({why})")
        return missing


def _is_there(package: str) -> bool:
    """Whether a package can be found. That of a submodule is imported for it, whatever that ends in."""
    try:
        return importlib.util.find_spec(package) is not None
    except (Exception, SystemExit):  # noqa: BLE001 - not there, or broken: neither can be used
        return False


@dataclass(frozen=True)
class Registered:
    config: type[Config]
    make: Callable[..., Any]
    version: int | str
    """Raised whenever the output for the same input may change; part of the fingerprint."""
    models: Callable[[Any], tuple[str, ...]]
    """The model files a config uses, by name, so that their hashes enter the fingerprint."""
    given_file: Callable[[Any, Clip], Path | None] | None = None
    """Of a part that takes its result from files made earlier: that of a clip, by its config; None where the config
    asks for none. An aligner that is given a file is called with the clip as a third argument."""
    by_language: bool = False
    """Whether `make` takes the language of the transcripts after the config."""
    by_clip: bool = False
    """Whether a vision extractor is called with the Clip after its frames, which are then decoded only where it asks
    for them."""
    hears: Callable[[Any], bool] = lambda config: False
    """Whether, by its config, a vision extractor is called with a function after its frames; once they are used up, it
    gives the clip's Waveform, or None."""
    check: Callable[[Any], None] = lambda config: None
    """Raises MissingBackendError where this machine lacks what a config needs besides packages and model files, such as
    a program. Loads nothing."""


class Registry:
    """Parts of one kind by name. A part enters itself when its module is imported, which `find` does.

    With an entry point `group`, other distributions may bring parts for `modalities`; see `mmfeat.plugins`. They are
    looked up at first use, not on import, since their modules import this one; and one by one where a name is asked
    for, so that nobody waits for the import of what nobody uses.
    """

    def __init__(self, kind: str, entries: Iterable[Entry], group: str = "", modalities: tuple[str, ...] = ()):
        self._kind, self._group, self._modalities = kind, group, modalities
        self._registered: dict[str, Registered] = {}
        self._entries = {entry.name: entry for entry in entries}
        self._broken: dict[str, str] = {}
        self._claims: dict[str, list[EntryPoint]] | None = None if group else {}

    @property
    def entries(self) -> dict[str, Entry]:
        """Name → what is known of each part, plugins included, of which all are imported."""
        self._discover()
        return self._entries

    @property
    def broken(self) -> dict[str, str]:
        """Name → why a plugin of that name cannot be used; all are imported."""
        self._discover()
        return self._broken

    def entry(self, name: str) -> Entry | None:
        """What is known of one part, None where there is none. Of plugins, only that one is imported.

        Raises MissingBackendError where it is a broken plugin.
        """
        self._discover(name)
        if name in self._broken:
            raise MissingBackendError(self._broken[name])
        return self._entries.get(name)

    def _discover(self, only: str | None = None) -> None:
        """Look up the plugins that nobody has looked up yet, or one of them."""
        from mmfeat.plugins import PluginError, claims, load

        if self._claims is None:
            self._claims = claims(self._group)
        for name in [only] if only is not None else list(self._claims):
            # Taken out first: a plugin that looks here while it is imported sees what comes with mmfeat.
            if points := self._claims.pop(name, None):
                try:
                    self._entries[name] = load(points, self._kind, name in self._entries, self._modalities)
                except PluginError as error:
                    self._broken[name] = str(error)

    def register(
        self,
        name: str,
        config: type[Config],
        version: int | str,
        models: Callable[[Any], tuple[str, ...]] = lambda config: (),
        given_file: Callable[[Any, Clip], Path | None] | None = None,
        by_language: bool = False,
        by_clip: bool = False,
        hears: Callable[[Any], bool] = lambda config: False,
        check: Callable[[Any], None] = lambda config: None,
    ) -> Callable[[type], type]:
        """Class decorator: enter a part under its name. A second one of that name is an error."""

        def enter(make: type) -> type:
            if name in self._registered:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            ours = self._entries.get(name)
            if ours and not ours.distribution and make.__module__ != ours.module:
                raise ValueError(f"{make.__module__} registers {self._kind} {name!r}, which comes with mmfeat")
            self._registered[name] = Registered(
                config, make, version, models, given_file, by_language, by_clip, hears, check
            )
            return make

        return enter

    def find(self, name: str) -> Registered:
        """The part `name`, its module imported.

        Raises KeyError for an unknown name, MissingBackendError where its packages are not installed or a plugin is
        broken.
        """
        entry = self.entry(name)
        if entry is None:
            raise KeyError(f"no {self._kind} {name!r}; there are: {', '.join(sorted(self.entries))}")
        if missing := entry.missing():
            raise MissingBackendError(f"{self._kind} {name!r} needs {', '.join(missing)}: {entry.install}")
        if entry.distribution:
            self._import_plugin(entry)
        else:
            importlib.import_module(entry.module)
        return self._registered[name]

    def _import_plugin(self, entry: Entry) -> None:
        from mmfeat.plugins import said_if_slow

        try:
            with said_if_slow(f"{self._kind} {entry.name!r} of {entry.distribution}: importing {entry.module}"):
                importlib.import_module(entry.module)
            if entry.name not in self._registered:
                raise LookupError(f"module {entry.module} does not register {entry.name!r}")
        except (Exception, SystemExit) as error:
            raise MissingBackendError(
                f"{self._kind} {entry.name!r} of {entry.distribution} cannot be used: {type(error).__name__}: {error}"
            ) from error
