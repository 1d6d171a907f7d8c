"""The registry of extractors: one file each, config above class, listed even where its packages are missing.

An extractor is a class made from its config; making it loads its models, calling it computes:

* vision: `(Iterable[Frame]) -> Track`
* audio:  `(Waveform) -> Track`
* text:   `(str) -> Wordpieces`

It has `names`, one per column, known before the first call.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Modality = Literal["vision", "audio", "text"]


class Config(BaseModel):
    """Base of every config: immutable, hashable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextConfig(Config):
    """Base of every text extractor's config."""

    max_wordpieces: int = Field(50, ge=3, description="longer transcripts are cut to this length; [SEP] is kept")


@dataclass(frozen=True)
class Entry:
    """What is known of an extractor without importing it."""

    name: str
    modality: Modality
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
            "facemesh",
            "vision",
            "mmfeat.extractors.vision_facemesh",
            "468-point face mesh and iris: head pose, gaze, 68 landmarks, expression measures",
            "Apache-2.0 (code and models)",
            ("ai_edge_litert", "cv2"),
            "pip install ai-edge-litert opencv-python-headless",
        ),
        Entry(
            "librosa",
            "audio",
            "mmfeat.extractors.audio_librosa",
            "MFCC, zero-crossing rate, RMS, F0 with voicing, spectral shape, chroma",
            "ISC",
            ("librosa",),
            "pip install librosa",
        ),
        Entry(
            "transformers",
            "text",
            "mmfeat.extractors.text_transformers",
            "any transformers text encoder, by hub name or local folder",
            "Apache-2.0 (code); each model has its own",
            ("transformers", "torch"),
            "pip install transformers torch",
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
    """Class decorator: enter an extractor under its name. A second one of that name is an error."""

    def enter(make: type) -> type:
        if name in _registered:
            raise ValueError(f"extractor {name!r} is registered twice")
        _registered[name] = Registered(config, make, version, models)
        return make

    return enter


class MissingBackendError(RuntimeError):
    """A package or model that an extractor needs is not there; the message holds the command that gets it."""


def find(name: str) -> Registered:
    """The extractor `name`, its module imported.

    Raises KeyError for an unknown name, MissingBackendError where its packages are not installed.
    """
    if name not in ENTRIES:
        raise KeyError(f"no extractor {name!r}; there are: {', '.join(sorted(ENTRIES))}")
    entry = ENTRIES[name]
    if missing := entry.missing():
        raise MissingBackendError(f"extractor {name!r} needs {', '.join(missing)}: {entry.install}")
    importlib.import_module(entry.module)
    return _registered[name]
