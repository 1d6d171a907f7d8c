"""The text encoder: by name or folder from transformers, rebuilt from a run, or its frozen output cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cmc.config import UsageError
from cmc.data import Split
from cmc.rows import zeros_on_disk
from cmc.unimodal import TextModel
from mmfeat.models import MODELS, MissingModelError, resolve

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


def folder_of(name: str) -> Path:
    """Where an encoder's files are. Raises MissingModelError: which encoder, why, and the command that gets it."""
    try:
        folder = resolve(name)
    except MissingModelError as error:
        cause = f"there is no {name}" if _is_path(name) else str(error.__cause__ or error).strip().partition("\n")[0]
        raise _missing(name, f"is not on this machine ({cause})") from None
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise _missing(name, f"has no weights: {folder} holds neither *.safetensors nor pytorch_model*.bin")
    return folder


def load_encoder(name: str, frozen: bool = False) -> TextModel:
    """A text encoder with its pretrained weights, all of them: transformers draws those that a file lacks at random.

    Raises MissingModelError as `folder_of` does, also for files that are damaged or of another model.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    folder = folder_of(name)
    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing or left over is a table otherwise
    try:
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # of safetensors, torch and transformers, of any kind
        raise _missing(name, f"cannot be loaded from {folder} ({' '.join(str(error).split())})") from error
    finally:
        logging.set_verbosity(said)
    # The pooler comes after the last hidden states, and is not used.
    if absent := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise _missing(name, f"is not whole: {folder} lacks {len(absent)} of its weights, {absent[0]} among them")
    return TextModel(model, frozen)


def _missing(name: str, why: str) -> MissingModelError:
    if _is_path(name):
        command = f"cp -r FOLDER {name}, of the machine that the features were extracted on"
    else:
        command = f"mmfeat models pull {name}" if name in MODELS else f"hf download {name}"
    return MissingModelError(f"text encoder {name!r} {why}; get it with: {command}")


def _is_path(name: str) -> bool:
    """Whether it names a folder, there or not, and not a model of the hub or of mmfeat's."""
    return name not in MODELS and (name.startswith((".", "~")) or Path(name).is_absolute() or Path(name).is_dir())


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
