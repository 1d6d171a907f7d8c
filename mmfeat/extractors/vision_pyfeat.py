"""`pyfeat`: py-feat 2's multitask detector: 478 points, 20 action units, emotions, valence and arousal, gaze.

It runs in an environment of its own: it brings torchvision, torchcodec, xgboost and their like, whose builds must fit
one torch.
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
from mmfeat.extractors.vision_mediapipe import BLENDSHAPES
from mmfeat.models import MissingModelError

Group = Literal["landmarks_2d", "au_presence", "head", "gaze", "emotions", "valence_arousal", "mesh", "blendshapes"]
WEIGHTS = ("model.safetensors", "face_multitask_v28.safetensors")
_ACTION_UNITS = (
    "01", "02", "04", "05", "06", "07", "09", "10", "11", "12", "14", "15", "17", "20", "23", "24", "25", "26", "28",
    "43",
)  # fmt: skip
_EMOTIONS = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")
_MESH = tuple(f"mesh_{axis}_{point}" for axis in "xyz" for point in range(478))
# Our name → py-feat's.
_COLUMNS: dict[Group, dict[str, str]] = {
    "landmarks_2d": {name: name for name in openface_columns.COLUMNS["landmarks_2d"]},
    "au_presence": {f"AU{unit}_c": f"AU{unit}" for unit in _ACTION_UNITS},
    "head": {f"head_{name.lower()}": name for name in ("Pitch", "Roll", "Yaw")},
    "gaze": {"gaze_yaw": "gaze_yaw", "gaze_pitch": "gaze_pitch"},
    "emotions": {f"emotion_{name.lower()}": name for name in _EMOTIONS},
    "valence_arousal": {"valence": "valence", "arousal": "arousal"},
    "mesh": {name: name for name in _MESH},
    "blendshapes": {f"blendshape_{name}": name for name in BLENDSHAPES},
}
_THEIRS = {ours: theirs for columns in _COLUMNS.values() for ours, theirs in columns.items()}


class PyfeatConfig(BackendConfig):
    # The content of the weights has the effect, and is told by `_models`.
    without_effect = frozenset({"weights"})

    columns: tuple[Group, ...] = Field(
        ("landmarks_2d", "au_presence", "head", "gaze", "emotions"),
        min_length=1,
        description="groups of columns, in their order: 68 landmarks in pixels, as OpenFace's; probabilities of 20 "
        "action units, where OpenFace has 0 or 1; head's pitch, roll and yaw and gaze as py-feat's; probabilities of 7 "
        "emotions; valence and arousal, -1 to 1; all 478 points; 52 blendshape weights",
    )
    weights: str = Field("", description="folder of its two files of weights; empty: `weights` beside its environment")
    detection: float = Field(0.5, gt=0, le=1, description="score from which the detector's answer counts as a face")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where its nets run")


def _models(config: PyfeatConfig) -> tuple[str, ...]:
    """Raises MissingModelError, with the commands that get them, where weights are not there."""
    folder = Path(config.weights).expanduser().absolute() if config.weights else weights_folder("pyfeat")
    if missing := [name for name in WEIGHTS if not (folder / name).is_file()]:
        backend = BACKENDS["pyfeat"]
        raise MissingModelError(
            f"py-feat has no weights {', '.join(missing)} in {folder}; get them with: "
            f"{backend.weights(environments.environment(backend))}"
        )
    return tuple(str(folder / name) for name in WEIGHTS)


@register("pyfeat", PyfeatConfig, version=f"1 {BACKENDS['pyfeat'].digest}", models=_models)
class Pyfeat(BackendExtractor):
    backend = "pyfeat"
    groups: ClassVar[Mapping[Group, tuple[str, ...]]] = {group: tuple(columns) for group, columns in _COLUMNS.items()}
    served = tuple(_THEIRS.values())

    def __init__(self, config: PyfeatConfig):
        _models(config)
        super().__init__(config)

    def settings(self) -> dict[str, Any]:
        chosen = {name: getattr(self.config, name) for name in ("detection", "device")}
        return {**chosen, "weights": _models(self.config), "names": self.served}

    def derived(self, column: Mapping[str, Any], valid: Any) -> Mapping[str, Any]:
        return {ours: column[theirs] for ours, theirs in _THEIRS.items()}
