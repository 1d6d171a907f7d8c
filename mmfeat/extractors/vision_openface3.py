"""`openface3`: OpenFace 3's landmarks, gaze, emotions and action unit scores.

It runs in an environment of its own: openface-test pins numpy 1.26, Pillow 9 and the GUI build of OpenCV.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mmfeat.backends import BACKENDS, weights_folder
from mmfeat.backends import environment as environments
from mmfeat.backends.extractor import BackendConfig, BackendExtractor
from mmfeat.extractors import openface_columns, register
from mmfeat.models import MissingModelError

Group = Literal["landmarks_2d", "wflw_2d", "gaze", "emotions", "au_scores"]
POINTS = 98
WEIGHTS = ("Alignment_RetinaFace.pth", "Landmark_98.pkl", "MTL_backbone.pth")
# The points of iBUG's 68 among WFLW's 98 (Wu et al. 2018): every second one of the jaw, brows' upper edges, nose, lids
# without their middle, lips.
IBUG_68 = (
    *range(0, 33, 2),
    *(*range(33, 38), *range(42, 47)),
    *range(51, 60),
    *(60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75),
    *range(76, 96),
)
_WFLW = openface_columns.numbered(POINTS, "wflw_x", "wflw_y")


class Openface3Config(BackendConfig):
    # The content of the weights has the effect, and is told by `_models`.
    without_effect = frozenset({"weights"})

    columns: tuple[Group, ...] = Field(
        ("landmarks_2d", "gaze", "au_scores"),
        min_length=1,
        description="groups of columns, in their order: 68 landmarks in pixels, as OpenFace 2's; all 98 of WFLW; gaze "
        "as yaw and pitch; probabilities of 8 emotions; scores of 8 action units. Its makers do not say which units",
    )
    weights: str = Field(
        "", description="folder of its three files of weights; empty: `weights` beside its environment"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where its nets run")


def _folder(config: Openface3Config) -> Path:
    return Path(config.weights).expanduser().absolute() if config.weights else weights_folder("openface3")


def _models(config: Openface3Config) -> tuple[str, ...]:
    """Raises MissingModelError, with the command that gets them, where weights are not there."""
    folder = _folder(config)
    if missing := [name for name in WEIGHTS if not (folder / name).is_file()]:
        backend = BACKENDS["openface3"]
        raise MissingModelError(
            f"OpenFace 3 has no weights {', '.join(missing)} in {folder}; get them with: "
            f"{backend.weights(environments.environment(backend))}"
        )
    return tuple(str(folder / name) for name in WEIGHTS)


@register("openface3", Openface3Config, version=f"1 {BACKENDS['openface3'].digest}", models=_models)
class Openface3(BackendExtractor):
    backend = "openface3"
    groups: ClassVar[Mapping[Group, tuple[str, ...]]] = {
        "landmarks_2d": openface_columns.COLUMNS["landmarks_2d"],
        "wflw_2d": _WFLW,
        "gaze": ("gaze_yaw", "gaze_pitch"),
        "emotions": openface_columns.numbered(8, "emotion"),
        "au_scores": openface_columns.numbered(8, "au_score"),
    }
    served = (*_WFLW, *groups["gaze"], *groups["emotions"], *groups["au_scores"])

    def __init__(self, config: Openface3Config):
        _models(config)
        super().__init__(config)

    def settings(self) -> dict[str, Any]:
        return {"weights": _models(self.config), "device": self.config.device}

    def derived(self, column: Mapping[str, Any], valid: Any) -> Mapping[str, Any]:
        chosen = [*IBUG_68, *(POINTS + point for point in IBUG_68)]
        names = self.groups["landmarks_2d"]
        return {name: column[_WFLW[point]] for name, point in zip(names, chosen, strict=True)}


assert len(IBUG_68) == openface_columns.LANDMARKS
