"""`pyfaceau`: OpenFace 2.2's pipeline in Python, nothing to compile: pose, 68 landmarks, 17 action unit intensities.

It runs in an environment of its own: it needs the GUI build of OpenCV below 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mmfeat.backends import BACKENDS
from mmfeat.backends.extractor import BackendConfig, BackendExtractor
from mmfeat.extractors import openface_columns, register

Group = Literal["pose", "landmarks_2d", "shape_rigid", "shape_nonrigid", "au_intensity"]


class PyfaceauConfig(BackendConfig):
    columns: tuple[Group, ...] = Field(
        ("pose", "landmarks_2d", "au_intensity"),
        min_length=1,
        description="groups of columns, in their order, all as OpenFace 2's: pose; 68 landmarks in pixels; parameters "
        "of the face's shape; intensities of 17 action units, 0 to 5",
    )


# Its weights are OpenFace's, each with the sha256 that the pinned package knows: its version stands for them.
@register("pyfaceau", PyfaceauConfig, version=f"1 {BACKENDS['pyfaceau'].digest}")
class Pyfaceau(BackendExtractor):
    """A call raises MissingBackendError, with the command that gets them, where its weights are not there."""

    backend = "pyfaceau"
    groups: ClassVar[Mapping[Group, tuple[str, ...]]] = {
        group: openface_columns.COLUMNS[group]
        for group in ("pose", "landmarks_2d", "shape_rigid", "shape_nonrigid", "au_intensity")
    }
    served = tuple(name for columns in groups.values() for name in columns)
