"""`timm`: vectors of the followed face from any timm image encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field

from mmfeat import models
from mmfeat.extractors import MissingBackendError, find, register
from mmfeat.extractors.face_crops import FaceCropConfig, Image, encode_faces
from mmfeat.extractors.face_nets import FaceNets
from mmfeat.extractors.face_people import Sound
from mmfeat.extractors.hub import loading
from mmfeat.track import Floats, Frame, Track

Pooling = Literal["cls", "mean", "pooler"]


class TimmConfig(FaceCropConfig):
    model: str = Field(
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", description="hub name or local folder of a timm model"
    )
    pooling: Pooling = Field(
        "pooler",
        description="one vector of a picture: the class token as the last layer leaves it, the mean of all patches, or "
        "what the model's own classifier is given",
    )


@register(
    "timm",
    TimmConfig,
    version=f"2 {find('facemesh').version}",  # which follows the same faces
    models=lambda config: (*config.face_models, config.model),
    hears=lambda config: config.hears,
)
class TimmEncoder:
    """One row per picture, `hidden_k`.

    A crop is resized as the model's data config states, whole, without its centre crop, and normalised with its mean
    and standard deviation. Raises MissingModelError, and MissingBackendError where the folder is no timm
    model or has no such pooling.
    """

    def __init__(self, config: TimmConfig):
        import timm
        import torch
        from PIL import Image as Pillow

        self.config = config
        self._nets = FaceNets()
        folder = models.resolve(config.model)
        with loading(config.model, "is none that timm loads"):
            self._model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        data = timm.data.resolve_model_data_config(self._model)
        height, width = data["input_size"][1:]
        how = Pillow.Resampling[data["interpolation"].upper()]
        self._resize = lambda crop: np.asarray(Pillow.fromarray(crop).resize((width, height), how))
        self._mean, self._std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
        self._tensor, self._no_gradients = torch.from_numpy, torch.inference_mode
        self._columns = self._encode([np.zeros((32, 32, 3), np.uint8)]).shape[1]
        self.names = config.names(self._columns)

    def __call__(self, frames: Iterable[Frame], sound: Sound | None = None) -> Track:
        """One row per picture that is encoded; valid where there was a face."""
        return encode_faces(frames, sound, self._nets, self._encode, self.config, self._columns)

    def _encode(self, crops: list[Image]) -> Floats:
        """Shape (N, columns)."""
        pixels = self._tensor(np.stack([self._resize(crop) for crop in crops])).permute(0, 3, 1, 2).float() / 255
        with self._no_gradients():
            hidden = self._model.forward_features((pixels - self._mean) / self._std)
            return self._pool(hidden).numpy()

    def _pool(self, hidden):  # type: ignore[no-untyped-def]
        if self.config.pooling == "pooler":
            return self._model.forward_head(hidden, pre_logits=True).flatten(1)
        special = getattr(self._model, "num_prefix_tokens", 0)
        if hidden.ndim == 3 and self.config.pooling == "mean":
            return hidden[:, special:].mean(dim=1)
        if hidden.ndim == 4 and self.config.pooling == "mean":
            channels_last = getattr(self._model, "output_fmt", "NCHW") == "NHWC"  # of Swin and its like
            return hidden.mean(dim=(1, 2) if channels_last else (2, 3))
        if hidden.ndim == 3 and special:
            return hidden[:, 0]
        raise MissingBackendError(
            f"model {self.config.model!r} has no {self.config.pooling!r} output; choose another `pooling`"
        )
