"""A state dict of the published multimodal model → a run folder that `cmc evaluate` and `cmc predict` take.

Published checkpoints are pickles of whole modules: loading one runs whatever code it names, so they are refused. Their
weights alone are safe to load; `torch.save(model.state_dict(), "weights.pt")` writes them, in the published code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cmc import run as runs
from cmc.calibration import calibrate, negative_log_likelihood
from cmc.checkpoint import from_reference
from cmc.config import MODALITIES, Config, UsageError
from cmc.fusion import Multimodal
from cmc.metrics import class_metrics
from cmc.text_encoder import load_encoder
from cmc.train import open_material, validation_logits, versions

_WHOLE_MODULE = 'save its weights alone, in the published code: torch.save(model.state_dict(), "weights.pt")'


def import_weights(path: Path, features: Path, folder: Path, config: Config) -> runs.Record:
    """Write a run of published weights and of `config`, whose sizes are the weights' own.

    Args:
        path: file of a state dict, by torch.save or safetensors.
        features: file that tells what the columns are, and whose recipe names the text encoder that was finetuned.
        folder: of the run.
        config: what weights do not tell: heads, top k, τ, the dataset's question.

    Labels are read of training and validation clips alone, for the majority class and for validation figures. Raises
    UsageError where the file holds no such weights or they do not fit the features.
    """
    weights = from_weights_file(path)
    config = Config(**(config.model_dump() | _sizes(path, weights) | {"text": "finetune"}))
    material = open_material(features, config)
    assert material.encoder is not None, "its text is finetuned"
    columns: dict[str, int] = {m: weights[f"branches.{m}.proj.weight"].shape[1] for m in MODALITIES}
    for m in ("audio", "vision"):
        if columns[m] != material.columns[m]:
            raise UsageError(f"{path} is of {columns[m]} columns of {m}; {features} has {material.columns[m]}")
    encoder = load_encoder(material.encoder)
    model = Multimodal(columns, material.task.classes, config, encoder)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit text encoder {material.encoder}, or the classes: {error}") from None
    logits, own = validation_logits(model, material.valid, config), material.train.label("M").numpy()
    truth, question = material.valid.label("M").numpy(), config.polarity if material.task.is_polarity else None
    record = runs.Record(
        config=config,
        task=material.task,
        columns=columns,
        features=material.features,
        text_encoder=encoder.settings,
        majority=torch.bincount(material.train.label("M"), minlength=material.task.classes).tolist(),
        validation={"loss": negative_log_likelihood(truth, logits)} | class_metrics(truth, logits, question),
        calibration=calibrate(logits, truth, own, material.values),
        versions=versions(),
    )
    ids = {"train": material.train.ids, "valid": material.valid.ids}
    runs.write(folder, record, model.state_dict(), {}, {}, ids)
    return record


def from_weights_file(path: Path) -> dict[str, Tensor]:
    """The published multimodal weights of a file, under our names."""
    if not path.is_file():
        raise UsageError(f"no file at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} holds no safetensors: {error}") from None
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError):
            raise UsageError(f"{path} holds something else than weights, and is not loaded: {_WHOLE_MODULE}") from None
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise UsageError(f"{path} holds no state dict: {_WHOLE_MODULE}")
    try:
        # Older versions of transformers count this table of 0, 1, 2, … among a model's weights.
        named = from_reference({name: value for name, value in found.items() if not name.endswith(".position_ids")})
    except KeyError as error:
        raise UsageError(f"{path}: {error.args[0]}") from None
    needed = [f"branches.{m}.proj.weight" for m in MODALITIES] + ["router.linear.weight"]
    if any(name not in named for name in needed) or not any("text_model." in name for name in named):
        raise UsageError(f"{path} is not of the multimodal model with its text encoder: a unimodal model's weights?")
    if flat := [f"{m}'s" for m in MODALITIES if named[f"branches.{m}.proj.weight"].dim() != 3]:
        raise UsageError(f"{path}: {', '.join(flat)} projection is not of a convolution's shape (width, columns, 1)")
    return named


def _sizes(path: Path, weights: Mapping[str, Tensor]) -> dict[str, int]:
    layers = [
        int(found[1]) for name in weights if (found := re.match(r"branches\.audio\.encoder\.layers\.(\d+)", name))
    ]
    if not layers:
        raise UsageError(f"{path} has no encoder layers")
    return {"layers": max(layers) + 1, "width": weights["branches.audio.proj.weight"].shape[0]}
