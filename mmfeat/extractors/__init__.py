"""The extractors: one file each, config above class, listed even where their packages are missing.

An extractor is a class made from its config; making it loads its models, calling it computes:

* vision: `(Iterable[Frame]) -> Track`
* audio:  `(Waveform) -> Track`
* text:   `(str) -> Wordpieces`

It has `names`, one per column, known before the first call.
"""

from __future__ import annotations

from pydantic import Field

from mmfeat.registry import Config, Entry, MissingBackendError, Registered, Registry

__all__ = ["ENTRIES", "Config", "Entry", "MissingBackendError", "Registered", "TextConfig", "find", "register"]


class TextConfig(Config):
    """Base of every text extractor's config."""

    max_wordpieces: int = Field(50, ge=3, description="longer transcripts are cut to this length; [SEP] is kept")


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
    ),
)
ENTRIES, register, find = _registry.entries, _registry.register, _registry.find
