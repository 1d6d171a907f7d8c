"""The one place that reads test labels: a finished run against a split, once."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cmc import run as runs
from cmc.config import LETTERS
from cmc.data import DataError, Split, Task, load, task_of
from cmc.fusion import Fused
from cmc.metrics import (
    DEFINITIONS,
    NON0,
    accuracy,
    calibration_error,
    class_metrics,
    confusion,
    consistency,
    majority,
)
from cmc.report import draw_confusion
from cmc.text_encoder import cache, encoder_name, is_cached, load_encoder
from mmfeat.files import atomic
from mmfeat.layout import FeatureFile, polarity


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about the clips of a split."""

    logits: NDArray[np.float32]
    """Shape (N, K)."""
    experts: dict[str, NDArray[np.float32]]
    gates: NDArray[np.float32]
    present: NDArray[np.bool_]


@torch.inference_mode()
def predict_split(model: nn.Module, split: Split, batch_size: int = 64) -> Predictions:
    """Run a model over a split in order."""
    outputs: list[Fused] = [model.eval()(batch) for batch in split.batches(batch_size)]
    return Predictions(
        torch.cat([o.logits for o in outputs]).numpy(),
        {m: torch.cat([o.experts[m] for o in outputs]).numpy() for m in outputs[0].experts},
        torch.cat([o.gates for o in outputs]).numpy(),
        torch.cat([o.present for o in outputs]).numpy(),
    )


def evaluate(
    folder: Path, features: Path, split: str = "test", truth: Path | None = None, drop: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Figures of a run on a split of a feature file, as plain values; also written to `metrics.json` in the folder.

    Args:
        folder: of the run.
        features: feature file, made by the recipe that the run was trained on.
        split: `test` by default.
        truth: csv with `video_id, clip_id, label_T, label_A, label_V`, where the file has no unimodal labels.
        drop: modalities to hide from the model.

    Raises RunError where the file's recipe differs from the run's, or where the run has seen clips of its test split;
    DataError where there is nothing to evaluate.
    """
    record = runs.read(folder)
    model = runs.load_model(folder, record)
    with FeatureFile(features) as file:
        check_same_features(record, file.fingerprints, file.aligned)
        config = record.config
        data = load(file, split, _same_task(file, record.task), config.calibrated, config.steps)
        if "text" in config.use and record.text_encoder is None and not is_cached(file.recipe):
            data = cache(data, load_encoder(encoder_name(file.recipe), frozen=True))
    if split == "test":
        _check_unseen(folder, data.ids)
    for modality in drop:
        data = data.without(modality)
    predictions = predict_split(model, data)
    unimodal = read_truth(truth, data.ids) if truth else {key: data.label(key).numpy() for key in "TAV"}
    return figures(record, data.label("M").numpy(), unimodal, predictions) | {
        "features": str(features),
        "split": split,
        "dropped": list(drop),
    }


def write(folder: Path, result: dict[str, Any]) -> tuple[Path, Path]:
    """Put figures, and their confusion matrix as a picture, into a run folder; returns the two files.

    Figures of another split, or with a modality dropped, do not replace those of the test split.
    """
    kind = [] if result["split"] == "test" else [result["split"]]
    suffix = "".join(f"_{part}" for part in [*kind, *(f"without_{modality}" for modality in result["dropped"])])
    metrics, confusion = folder / f"metrics{suffix}.json", folder / f"confusion{suffix}.png"
    with atomic(metrics) as path:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    with atomic(confusion) as path:
        draw_confusion(result, path)
    return metrics, confusion


def figures(
    record: runs.Record, truth: NDArray[np.int64], unimodal: dict[str, NDArray[np.int64]], predictions: Predictions
) -> dict[str, Any]:
    """Everything that `cmc evaluate` reports, for clips with classes `truth` (N,)."""
    task, question = record.task, record.config.polarity if record.task.is_polarity else None
    counts = np.array(record.majority)
    train = np.repeat(np.arange(task.classes), counts)
    groups = {"overall": np.ones(len(truth), bool)}
    consistent, conflicting = consistency(unimodal)
    if consistent.any() or conflicting.any():
        groups |= {"consistent": consistent, "conflicting": conflicting}
    result: dict[str, Any] = {
        "clips": {name: int(rows.sum()) for name, rows in groups.items()},
        "cmc": {name: class_metrics(truth[rows], predictions.logits[rows], question) for name, rows in groups.items()},
        "majority": {name: majority(truth[rows], train, task.classes) for name, rows in groups.items()},
        "experts": {},
        "router": {m: float(predictions.gates[:, k].mean()) for k, m in enumerate(predictions.experts)},
        "confusion": confusion(truth, predictions.logits.argmax(1), task.classes).tolist(),
        "class_names": list(task.class_names),
        "ece": calibration_error(truth, _softmax(predictions.logits)),
        "definitions": [DEFINITIONS[question], NON0] if question else [],
    }
    for k, (m, logits) in enumerate(predictions.experts.items()):
        there, own = predictions.present[:, k], unimodal[LETTERS[m]]
        known = there & (own >= 0)
        result["experts"][m] = {
            "clips": int(there.sum()),
            "accuracy_clip_label": accuracy(truth[there], logits[there].argmax(1)),
            "accuracy_own_label": accuracy(own[known], logits[known].argmax(1)) if known.any() else None,
        }
    return result


def read_truth(path: Path, ids: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """`T`, `A`, `V` → classes (N,) from a csv, in the order of `ids`. Raises DataError naming what is missing."""
    if not path.is_file():
        raise DataError(f"no file with unimodal labels at {path}")
    columns = [f"label_{letter}" for letter in "TAV"]
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := {"video_id", "clip_id", *columns} - set(reader.fieldnames or ()):
            raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}")
        try:
            rows = {f"{r['video_id']}$_${r['clip_id']}": [float(r[c] or "nan") for c in columns] for r in reader}
        except ValueError as error:
            raise DataError(f"{path}: a label is not a number: {error}") from None
    if absent := [id for id in ids if id not in rows]:
        raise DataError(f"{path} lacks {len(absent)} of {len(ids)} clips, {absent[0]} among them")
    values = np.array([rows[id] for id in ids])
    return {letter: polarity(values[:, k]) for k, letter in enumerate("TAV")}


def check_same_features(record: runs.Record, fingerprints: dict[str, str], aligned: bool) -> None:
    """Raises RunError where features were made otherwise than the run's, naming the parts that differ."""
    theirs = record.features["fingerprints"]
    parts = [part for part in theirs if part != "words" or record.features["aligned"]]
    if differing := [part for part in parts if fingerprints.get(part) != theirs[part]]:
        raise runs.RunError(
            f"the features of {', '.join(differing)} were made otherwise than those the run was trained on "
            f"(another recipe, model or version): extract again with the run's recipe, or train again"
        )
    if aligned != record.features["aligned"]:
        kind = "aligned" if record.features["aligned"] else "unaligned"
        raise runs.RunError(f"the run was trained on {kind} features")


def _check_unseen(folder: Path, ids: tuple[str, ...]) -> None:
    """Raises RunError where a clip that is to be tested was trained or validated on, naming some."""
    stored = runs.load_pseudo_labels(folder)
    seen = {str(id) for split in ("train", "valid") for id in stored[f"{split}_id"]}
    if known := [id for id in ids if id in seen]:
        raise runs.RunError(
            f"{len(known)} of {len(ids)} test clips were trained or validated on by {folder}: {', '.join(known[:3])}; "
            "the feature file was split anew, so train anew"
        )


def _same_task(file: FeatureFile, task: Task) -> Task:
    found = task_of(file)
    if found.class_names != task.class_names:
        raise runs.RunError(f"the run knows the classes {', '.join(task.class_names)}; {file.path} has others")
    return task


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
