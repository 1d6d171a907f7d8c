"""The extractors: one file each, config above class, listed even where their packages are missing.

An extractor is a class made from its config; making it loads its models, calling it computes:

* vision: `(Iterable[Frame]) -> Track`; registered with `by_clip`, `(Iterable[Frame], Clip) -> Track`
* audio:  `(Waveform) -> Track`
* text:   `(str) -> Wordpieces`

It has `names`, one per column, known before the first call. Other distributions add extractors through the entry point
group `mmfeat.extractors`; docs/extractors.md holds the whole contract and an example.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mmfeat.backends import BACKENDS
from mmfeat.registry import Config, Entry, MissingBackendError, Program, Registered, Registry, each_once

__all__ = [
    "BROKEN",
    "ENTRIES",
    "OPENFACE",
    "Config",
    "Entry",
    "MissingBackendError",
    "Registered",
    "TextConfig",
    "each_once",
    "entry",
    "find",
    "register",
]


class TextConfig(Config):
    """Base of every text extractor's config."""

    max_wordpieces: int = Field(50, ge=3, description="longer transcripts are cut to this length; [SEP] is kept")


OPENFACE = Program(
    "FeatureExtraction",
    "OPENFACE_DIR",
    ("", "bin", "build/bin"),
    "docker pull algebr/openface, and set `container`; or build OpenFace 2",
)

_registry = Registry(
    "extractor",
    (
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
            "image",
            "vision",
            "mmfeat.extractors.vision_image",
            "face crops through a transformers image encoder: CLIP, DINOv2, ViT, by hub name or local folder",
            "Apache-2.0 (code and face models); each encoder has its own",
            ("transformers", "torch", "ai_edge_litert", "cv2"),
            "pip install transformers torch ai-edge-litert opencv-python-headless",
        ),
        Entry(
            "timm",
            "vision",
            "mmfeat.extractors.vision_timm",
            "face crops through a timm image encoder, by hub name or local folder",
            "Apache-2.0 (code and face models); each encoder has its own",
            ("timm", "torch", "ai_edge_litert", "cv2"),
            "pip install 'mmfeat[timm]'",
        ),
        Entry(
            "openface3",
            "vision",
            "mmfeat.extractors.vision_openface3",
            "OpenFace 3: 68 or 98 landmarks, gaze, emotions, scores of 8 action units",
            BACKENDS["openface3"].licence,
            install="mmfeat backends install openface3",
            backend="openface3",
        ),
        Entry(
            "pyfaceau",
            "vision",
            "mmfeat.extractors.vision_pyfaceau",
            "OpenFace 2.2's pipeline in Python: pose, 68 landmarks, shape, 17 action unit intensities",
            BACKENDS["pyfaceau"].licence,
            install="mmfeat backends install pyfaceau",
            backend="pyfaceau",
        ),
        Entry(
            "pyfeat",
            "vision",
            "mmfeat.extractors.vision_pyfeat",
            "py-feat 2: 68 or 478 points, 20 action units, head, gaze, emotions, valence and arousal",
            BACKENDS["pyfeat"].licence,
            install="mmfeat backends install pyfeat",
            backend="pyfeat",
        ),
        Entry(
            "mediapipe",
            "vision",
            "mmfeat.extractors.vision_mediapipe",
            "MediaPipe's FaceLandmarker: head pose, 68 or 478 points, 52 blendshapes",
            "Apache-2.0 (code and model)",
            install="mmfeat backends install mediapipe",
            backend="mediapipe",
        ),
        Entry(
            "openface2",
            "vision",
            "mmfeat.extractors.vision_openface2",
            "OpenFace 2 itself, or CSV files that it wrote: 709 columns of gaze, pose, landmarks, shape, action units",
            "OpenFace's own: academic, non-commercial",
            program=OPENFACE,
        ),
        Entry(
            "librosa",
            "audio",
            "mmfeat.extractors.audio_librosa",
            "all feature functions of librosa: MFCC, mel, RMS, spectral shape, chroma, tempograms, …; F0 with voicing",
            "ISC",
            ("librosa",),
            "pip install librosa",
        ),
        Entry(
            "opensmile",
            "audio",
            "mmfeat.extractors.audio_opensmile",
            "openSMILE's eGeMAPS, GeMAPS and ComParE: low-level descriptors or functionals",
            "openSMILE: research and teaching only, no commercial use",
            ("opensmile",),
            "pip install 'mmfeat[opensmile]'",
        ),
        Entry(
            "ssl",
            "audio",
            "mmfeat.extractors.audio_ssl",
            "speech encoders: wav2vec2, HuBERT, WavLM, Whisper, by hub name or local folder",
            "Apache-2.0 (code); each model has its own",
            ("transformers", "torch"),
            "pip install transformers torch",
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
        Entry(
            "glove",
            "text",
            "mmfeat.extractors.text_glove",
            "one vector per word from a text file of GloVe, word2vec or fastText vectors",
            "MIT; GloVe's vectors PDDL",
        ),
    ),
    group="mmfeat.extractors",
    modalities=("vision", "audio", "text"),
)
register, find, entry = _registry.register, _registry.find, _registry.entry
ENTRIES: dict[str, Entry]
"""Name → what is known of each extractor; every plugin is imported for it, see `entry`."""
BROKEN: dict[str, str]
"""Name → why a plugin's extractor cannot be used."""


def __getattr__(name: str) -> Any:
    """ENTRIES and BROKEN, at first use: plugins import this module, so it must be whole before they are looked up."""
    if name not in ("ENTRIES", "BROKEN"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _registry.entries if name == "ENTRIES" else _registry.broken
