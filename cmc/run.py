"""A run folder: `model.safetensors`, `unimodal.safetensors`, `pseudo_labels.npz`, and `run.json` that explains them.

What a strategy of stage 1 keeps besides lies in `extra.safetensors`. `run.json` is written last and whole: a folder
without it holds no usable run. No file is a pickle.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmc.calibration import Calibration
from cmc.config import LETTERS, MODALITIES, Config, UsageError
from cmc.data import Task
from cmc.fusion import Multimodal
from cmc.text_encoder import rebuild_encoder
from cmc.unimodal import Unimodal
from mmfeat.files import atomic

FORMAT_VERSION = 2
RECORD, MODEL, UNIMODAL, PSEUDO_LABELS = "run.json", "model.safetensors", "unimodal.safetensors", "pseudo_labels.npz"
EXTRA = "extra.safetensors"
_SUFFIX = rf"(_train|_valid)?(_without_({'|'.join(MODALITIES)}))*(_completed)?"
_FIGURES = re.compile(rf"metrics{_SUFFIX}\.json|(confusion|reliability|router){_SUFFIX}\.png|pseudo_labels\.png")
"""Names of the files that cmc.evaluate.write makes."""


class RunError(UsageError):
    """The folder holds no usable run, or one that cannot be overwritten."""


@dataclass(frozen=True)
class Record:
    """What `run.json` holds."""

    config: Config
    task: Task
    columns: dict[str, int]
    """Modality → number of feature columns."""
    features: dict[str, Any]
    """Of the feature file: `recipe`, `fingerprints`, `aligned`, `names` per modality, `content` (sha256)."""
    text_encoder: dict[str, Any] | None
    """transformers configuration of a finetuned encoder, whose weights are the run's own; None: frozen, not stored."""
    majority: list[int]
    """Training clips per class: what the baseline answers by."""
    class_weights: list[float] | None = None
    """Of each class in the cross-entropies; None: all count alike."""
    status: str = "finished"
    """`finished`, or `interrupted` by Ctrl-C: usable, but trained less than was asked for."""
    streamed: bool = False
    """Whether rows were read from the feature file batch by batch."""
    validation: dict[str, float] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    relabelled: dict[str, list[list[int]]] = field(default_factory=dict)
    """Modality → training clips that have it, counted by their own class (row) and pseudo label (column)."""
    reconstruction: dict[str, list[float]] = field(default_factory=dict)
    """Where stage 1 learns to reconstruct features: modality → validation loss, and that of an answer that sees nothing
    (the training mean; of wordpieces their shares in training)."""
    best_epochs: dict[str, int] = field(default_factory=dict)
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    format_version: int = FORMAT_VERSION


def write(
    folder: Path,
    record: Record,
    model: Mapping[str, Tensor],
    unimodal: Mapping[str, Mapping[str, Tensor]],
    states: Mapping[str, Mapping[str, Tensor]],
    ids: Mapping[str, tuple[str, ...]],
    values: Mapping[str, Mapping[str, Tensor]] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a run. An older one in the folder is no longer one before its files are replaced.

    Args: the record; weights of the multimodal and, per modality, the unimodal models; label states, ids and labels as
    numbers per split; further tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    forget(folder)
    with atomic(folder / MODEL) as path:
        save_file(_contiguous(model), path)
    stacked = {f"{m}.{name}": tensor for m, weights in unimodal.items() for name, tensor in weights.items()}
    with atomic(folder / UNIMODAL) as path:
        save_file(_contiguous(stacked), path)
    arrays = {f"{split}_id": np.array(of_split) for split, of_split in ids.items()}
    arrays |= {f"{split}_{LETTERS[m]}": s.numpy() for split, per in states.items() for m, s in per.items()}
    for split, per in (values or {}).items():
        arrays |= {f"{split}_{LETTERS[m]}_value": numbers.numpy() for m, numbers in per.items()}
    if extra:
        with atomic(folder / EXTRA) as path:
            save_file(_contiguous(extra), path)
    with atomic(folder / PSEUDO_LABELS) as path:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    values = asdict(replace(record)) | {"config": record.config.model_dump(mode="json")}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    with atomic(folder / RECORD) as path:
        path.write_text(text, encoding="utf-8")


def forget(folder: Path) -> None:
    """Remove a run and the figures of it, and no other file; where there is no run, nothing."""
    if not (folder / RECORD).is_file():
        return
    forget_figures(folder)
    for name in (RECORD, MODEL, UNIMODAL, PSEUDO_LABELS, EXTRA):
        (folder / name).unlink(missing_ok=True)


def forget_figures(folder: Path) -> None:
    """Remove what `cmc evaluate` wrote into the folder of a run, or of several."""
    for path in folder.iterdir():
        if _FIGURES.fullmatch(path.name):
            path.unlink()


def read(folder: Path) -> Record:
    """The record of a run. Raises RunError, naming what is wrong."""
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"{folder} holds no finished run (no run.json): train one with `cmc train FEATURES -o {folder}`")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it holds no object")
        if values.get("format_version") == FORMAT_VERSION:
            return _record(values)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RunError(f"{path} is damaged: {reason}") from None
    raise RunError(
        f"{path} is of version {values.get('format_version')}, not {FORMAT_VERSION}: it was written by another version "
        "of cmc; train again with --overwrite"
    )


def _record(values: dict[str, Any]) -> Record:
    """Raises KeyError, TypeError, and ValueError for a config that is refused."""
    values["config"] = Config.model_validate(values["config"])
    task = values["task"]
    values["task"] = Task(tuple(task["class_names"]), task["is_polarity"])
    values["calibration"] = Calibration(**values.get("calibration", {}))
    return Record(**values)


def load_model(folder: Path, record: Record) -> Multimodal:
    """The run's model in evaluation mode. Raises RunError where its weights are damaged or another model's."""
    encoder = rebuild_encoder(record.text_encoder) if record.text_encoder else None
    model = Multimodal(record.columns, record.task.classes, _as_stored(record.config), encoder)
    fill(model, _load(folder / MODEL), folder / MODEL)
    return model.eval()


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load all of a model's weights. Raises RunError where some are missing, or of another model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"{path} does not belong to {path.with_name(RECORD)}: {reason}") from None


def _as_stored(config: Config) -> Config:
    """Weights are float32 whatever they were trained in, and what they say is not to depend on where they are run."""
    return config.model_copy(update={"precision": "float32"})


def load_unimodal(folder: Path, record: Record) -> dict[str, Unimodal]:
    """Stage 1's models in evaluation mode; a finetuned text encoder is not among them, only a frozen one's reader.

    Raises RunError as `load_model` does.
    """
    weights = _load(folder / UNIMODAL)
    models = {}
    for m in record.config.modalities:
        models[m] = Unimodal(m, record.columns[m], record.task.classes, _as_stored(record.config))
        own = {name.removeprefix(f"{m}."): tensor for name, tensor in weights.items() if name.startswith(f"{m}.")}
        own = {name: tensor for name, tensor in own.items() if "text_model." not in name}
        fill(models[m].eval(), own, folder / UNIMODAL)
    return models


def load_pseudo_labels(folder: Path) -> dict[str, np.ndarray]:
    """`{split}_id`, `{split}_{T,A,V}` → soft states (N, K), of the training and validation split, and where a strategy
    makes labels that are numbers `{split}_{T,A,V}_value` (N,).

    Raises RunError where the file is damaged.
    """
    path = folder / PSEUDO_LABELS
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if missing := {"train_id", "valid_id"} - arrays.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    return arrays


def load_extra(folder: Path) -> dict[str, Tensor]:
    """What a strategy kept besides; empty where it kept nothing. Raises RunError where the file is damaged."""
    return _load(folder / EXTRA) if (folder / EXTRA).is_file() else {}


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises RunError where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged ({error}): restore it, or train again with --overwrite")


def _contiguous(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
