"""What the vision extractors over a backend have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from mmfeat.backends import BACKENDS
from mmfeat.backends.process import Server
from mmfeat.registry import Config, each_once
from mmfeat.track import Frame, Track


class BackendConfig(Config):
    columns: tuple[str, ...] = Field((), min_length=1)

    _no_group_twice = field_validator("columns")(each_once)


class BackendExtractor:
    """Groups of a backend's columns, one row per frame, valid where it found a face.

    Its process starts at the first frame of the first clip. A failure of it is a BackendError, and the clip's alone.
    """

    backend: ClassVar[str]
    groups: ClassVar[Mapping[Any, tuple[str, ...]]]
    """Group → names of its columns."""
    served: ClassVar[tuple[str, ...]]
    """The columns that the backend's process gives."""

    def __init__(self, config: Any):
        self.config = config
        self.names = tuple(name for group in config.columns for name in self.groups[group])
        self._server = Server(BACKENDS[self.backend], self.settings(), self.served)

    def __call__(self, frames: Iterable[Frame]) -> Track:
        track = self._server(frames)
        column = dict(zip(track.names, track.values.T, strict=True))
        column |= self.derived(column, track.valid)
        values = np.stack([column[name] for name in self.names], axis=1).astype(np.float32)
        return Track(track.times, np.where(track.valid[:, None], values, np.float32(0)), track.valid, self.names)

    def settings(self) -> dict[str, Any]:
        """What its process is told: JSON."""
        return {}

    def derived(self, column: Mapping[str, Any], valid: Any) -> Mapping[str, Any]:
        """Columns (T,) that are computed from those of the process."""
        return {}
