"""The text encoder: by name or folder from transformers, rebuilt from a run, or its frozen output cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cmc.config import UsageError
from cmc.data import Split
from cmc.rows import zeros_on_disk
from cmc.unimodal import TextModel

CPU = torch.device("cpu")


def encoder_name(recipe: Mapping[str, Any]) -> str:
    """The transformers model that made the file's text. Raises UsageError where the recipe names none."""
    if not names_encoder(recipe):
        raise UsageError(
            "the feature file's recipe names no transformers text encoder, so there is none to finetune: "
            "train with --text freeze"
        )
    return str(recipe["text"]["model"])


def names_encoder(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe names the transformers model that made the file's text."""
    section = recipe.get("text") or {}
    return section.get("extractor") == "transformers" and bool(section.get("model"))


def is_cached(recipe: Mapping[str, Any]) -> bool:
    """Whether the file's `text` is the encoder's last layer, or no encoder is known whose output could replace it."""
    section = recipe.get("text") or {}
    return section.get("extractor") != "transformers" or section.get("layer", -1) == -1


def load_encoder(name: str, frozen: bool = False) -> TextModel:
    """A text encoder with its pretrained weights. Raises mmfeat.models.MissingModelError, which says how to get it."""
    from transformers import AutoModel

    from mmfeat.models import resolve

    model = AutoModel.from_pretrained(resolve(name), local_files_only=True, dtype=torch.float32)
    return TextModel(model, frozen)


def rebuild_encoder(config: Mapping[str, Any]) -> TextModel:
    """A text encoder without its weights, from the transformers configuration that a run stores."""
    from transformers import AutoConfig, AutoModel

    settings = dict(config)
    return TextModel(AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)))


def with_arrays(recipe: Mapping[str, Any], *splits: Split, device: torch.device = CPU) -> list[Split]:
    """The splits with text arrays that branches can read: the file's own, or else what its encoder gives on `device`.

    The splits, and the arrays, are on the CPU.
    """
    if is_cached(recipe):
        return list(splits)
    encoder = load_encoder(encoder_name(recipe), frozen=True).to(device)
    return [cache(split, encoder) for split in splits]


@torch.no_grad()
def cache(split: Split, encoder: TextModel, batch_size: int = 64) -> Split:
    """The split with the encoder's output, in evaluation mode, as its text array (N, L, D) on the CPU.

    The encoder may be on another device. Clips go through sorted by length, so that little padding is computed. Of a
    split that is streamed, the array lies in a temporary file.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    read = split.tokens[:, 1].cpu()
    lengths = (read * torch.arange(1, read.shape[1] + 1, device=read.device)).amax(1)
    hidden: torch.Tensor | None = None
    for rows in lengths.argsort(stable=True).split(batch_size):
        longest = int(lengths[rows].max())
        output = encoder(split.tokens[rows, :, :longest].to(device)).cpu()
        if hidden is None:
            shape = (len(split), split.tokens.shape[2], output.shape[2])
            hidden = zeros_on_disk(shape) if split.streamed else torch.zeros(shape)
        hidden[rows, :longest] = output
    assert hidden is not None, "a split has at least one clip"
    return replace(split, inputs={**split.inputs, "text": hidden})
