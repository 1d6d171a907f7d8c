"""`image`: vectors of the followed face from any transformers image encoder (CLIP, DINOv2, ViT, …)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mmfeat import models
from mmfeat.extractors import MissingBackendError, find, register
from mmfeat.extractors.face_crops import FaceCropConfig, Image, encode_faces
from mmfeat.extractors.face_nets import FaceNets
from mmfeat.extractors.face_people import Sound
from mmfeat.extractors.hub import load_encoder, loading
from mmfeat.track import Floats, Frame, Track

if TYPE_CHECKING:
    import torch

Pooling = Literal["cls", "mean", "pooler", "projection"]


class ImageConfig(FaceCropConfig):
    model: str = Field("openai/clip-vit-base-patch32", description="hub name or local folder of an image encoder")
    pooling: Pooling = Field(
        "pooler",
        description="one vector of a picture: the class token as the last layer leaves it, the mean of all patches, "
        "the model's own pooled output, or CLIP's projection into the space that it shares with text",
    )


@register(
    "image",
    ImageConfig,
    version=f"1 {find('facemesh').version}",  # which follows the same faces
    models=lambda config: (*config.face_models, config.model),
    hears=lambda config: config.hears,
)
class ImageEncoder:
    """One row per picture, `hidden_k`.

    A crop is prepared as the model's own image processor says: size, interpolation, centre crop, mean and standard
    deviation. Raises MissingModelError, and MissingBackendError where the model has no such pooling.
    """

    def __init__(self, config: ImageConfig):
        self.config = config
        self._nets = FaceNets()
        self._encoder = _Transformers(config.model, config.pooling)
        self.names = config.names(self._encoder.columns)

    def __call__(self, frames: Iterable[Frame], sound: Sound | None = None) -> Track:
        """One row per picture that is encoded; valid where there was a face."""
        return encode_faces(frames, sound, self._nets, self._encoder, self.config, self._encoder.columns)


class _Transformers:
    """An image encoder with its preprocessing; call it with RGB pictures of one size."""

    def __init__(self, name: str, pooling: Pooling):
        # Imported here, so that a client that only needs the config does not load a gigabyte of libraries.
        import torch
        import transformers
        from transformers import AutoImageProcessor

        folder = models.resolve(name)
        # Pillow's resizing, also where torchvision is installed: that one's differs in the last digits.
        pillow = {"backend": "pil"} if int(transformers.__version__.partition(".")[0]) >= 5 else {"use_fast": False}
        with loading(name, "has no image processor that can be loaded"):
            self._prepare = AutoImageProcessor.from_pretrained(folder, local_files_only=True, **pillow)
        model = load_encoder(name, needs_pooler=pooling == "pooler")
        self._model = getattr(model, "vision_model", model)  # of CLIP and its like, the tower that sees
        self._project = getattr(model, "visual_projection", None)
        self._name, self._pooling = name, pooling
        self._no_gradients = torch.inference_mode
        with loading(name, "is no image encoder"):
            self.columns = self([np.zeros((32, 32, 3), np.uint8)]).shape[1]

    def __call__(self, crops: list[Image]) -> Floats:
        """Shape (N, columns)."""
        pixels = self._prepare(images=crops, return_tensors="pt")["pixel_values"]
        with self._no_gradients():
            return self._pool(self._model(pixel_values=pixels), pixels).numpy()

    def _pool(self, output: object, pixels: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
        if self._pooling == "pooler" and pooled is not None:
            return pooled.flatten(1)
        if self._pooling == "projection" and self._project is not None:
            return self._project(pooled)
        if hidden.ndim == 4:  # a convolutional net's map, (N, D, height, width)
            hidden, special = hidden.flatten(2).transpose(1, 2), 0
        else:
            special = self._special_tokens(hidden, pixels)
        if self._pooling == "mean":
            return hidden[:, special:].mean(dim=1)
        if self._pooling == "cls" and special:
            return hidden[:, 0]
        raise MissingBackendError(f"model {self._name!r} has no {self._pooling!r} output; choose another `pooling`")

    def _special_tokens(self, hidden: torch.Tensor, pixels: torch.Tensor) -> int:
        """Class token and registers come before the patches."""
        patch = getattr(self._model.config, "patch_size", None)
        if not isinstance(patch, int):
            return 0
        patches = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
        return max(hidden.shape[1] - patches, 0)
