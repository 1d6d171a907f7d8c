"""The one place that reads test labels: a finished run against a split, once."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cmc import run as runs
from cmc.calibration import expected_values, negative_log_likelihood, probabilities
from cmc.config import LETTERS, MODALITIES, UsageError
from cmc.data import DataError, Split, Task, load, unlabelled
from cmc.fusion import Fused
from cmc.kept import Completed, completed, reads_stage_1, text_logits
from cmc.metrics import (
    DEFINITIONS,
    NON0,
    VALUE,
    accuracy,
    calibration_error,
    class_metrics,
    confusion,
    consistency,
    majority,
    per_class,
    regression_metrics,
    reliability,
)
from cmc.pictures import draw
from cmc.text_encoder import with_arrays
from cmc.training import find_device
from mmfeat.files import atomic
from mmfeat.layout import REGRESSION, FeatureFile, polarity

CLASS = "classification_labels"
ROUTER_BINS = 20
"""Of router weights, over 0 to 1."""
_SEEN = {
    "train": "the run was trained on this split: the figures say nothing of other clips",
    "valid": "weights and temperature were selected on this split: the figures flatter",
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about the clips of a split."""

    logits: NDArray[np.float32]
    """Shape (N, K)."""
    experts: dict[str, NDArray[np.float32]]
    gates: NDArray[np.float32]
    present: NDArray[np.bool_]

    def select(self, rows: NDArray[np.bool_]) -> Predictions:
        """Of the clips of `rows` (N,)."""
        experts = {m: logits[rows] for m, logits in self.experts.items()}
        return Predictions(self.logits[rows], experts, self.gates[rows], self.present[rows])


@torch.inference_mode()
def predict_split(model: nn.Module, split: Split | Completed, batch_size: int = 64) -> Predictions:
    """Run a model over a split in order, both on the same device."""
    outputs: list[Fused] = [model.eval()(batch) for batch in split.batches(batch_size)]
    return Predictions(
        torch.cat([o.logits for o in outputs]).cpu().numpy(),
        {m: torch.cat([o.experts[m] for o in outputs]).cpu().numpy() for m in outputs[0].experts},
        torch.cat([o.gates for o in outputs]).cpu().numpy(),
        torch.cat([o.present for o in outputs]).cpu().numpy(),
    )


def evaluate(
    folder: Path,
    features: Path,
    split: str = "test",
    truth: Path | None = None,
    drop: tuple[str, ...] = (),
    complete: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Figures of a run on a split of a feature file, as plain values; `write` puts them into the run's folder.

    Args:
        folder: of the run.
        features: feature file, made by the recipe that the run was trained on.
        split: `test` by default.
        truth: csv with `video_id, clip_id, label_T, label_A, label_V`, where the file has no unimodal labels.
        drop: modalities to hide from the model.
        complete: make up what clips lack, dropped or not; for runs pretrained by `generation`.
        device: where to compute, in float32, whatever the run was trained on.

    Raises RunError where the file's recipe or labels differ from the run's, or where the run has seen clips of its
    test split; UsageError where no modality is left; DataError where there is nothing to evaluate.
    """
    where = find_device(device)
    record = runs.read(folder)
    drop = _dropped(record, drop)
    model = runs.load_model(folder, record).to(where)
    with FeatureFile(features) as file:
        check_same_features(record, file.fingerprints, file.aligned)
        config = record.config
        _check_same_labels(record.task, file, split)
        data = load(file, split, record.task, config.calibrated, config.steps)
        without_label = unlabelled(file, split, record.task)
        values = data.values.numpy() if data.values is not None else None
        arrays = record.text_encoder is None or reads_stage_1(record, complete)
        if "text" in config.use and arrays:
            [data] = with_arrays(file.recipe, data, device=where)
    if split == "test":
        _check_unseen(folder, data.ids)
    for modality in drop:
        data = data.without(modality)
    there = data.to(where)
    filled = completed(folder, record, there, drop) if complete else None
    predictions = predict_split(model, filled or there)
    unimodal = read_truth(truth, data.ids, record.task) if truth else {key: data.label(key).numpy() for key in "TAV"}
    result = figures(record, data.label("M").numpy(), unimodal, predictions, values)
    result["left_out"]["without_label"] = without_label
    if (logits := text_logits(folder, record, there)) is not None:
        result["text_alone"] = _text_alone(record, data.label("M").numpy(), unimodal, logits)
    about: dict[str, Any] = {"features": str(features), "split": split, "dropped": list(drop), "status": record.status}
    if filled is not None:
        about["completed"] = {m: int(clips.sum()) for m, clips in filled.made().items()}
    return result | about | {"notes": _notes(record, split, result["left_out"], about.get("completed", {}))}


def _text_alone(
    record: runs.Record,
    truth: NDArray[np.int64],
    unimodal: dict[str, NDArray[np.int64]],
    logits: NDArray[np.float32],
) -> dict[str, Any]:
    """Per group, figures of logits (N, K) over the clips that have text."""
    question = record.config.polarity if record.task.is_polarity else None
    there = np.isfinite(logits).all(1)
    groups = _groups(truth, unimodal)
    return {name: class_metrics(truth[rows & there], logits[rows & there], question) for name, rows in groups.items()}


def _groups(truth: NDArray[np.int64], unimodal: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.bool_]]:
    """Group → clips (N,) bool; consistent and conflicting ones where unimodal labels tell."""
    groups = {"overall": np.ones(len(truth), bool)}
    consistent, conflicting = consistency(unimodal)
    if consistent.any() or conflicting.any():
        groups |= {"consistent": consistent, "conflicting": conflicting}
    return groups


def _notes(record: runs.Record, split: str, left_out: dict[str, int], made: dict[str, int]) -> list[str]:
    """What a reader of the figures must know."""
    notes = []
    if record.status == "interrupted":
        trained = record.history.get("finetune")
        when = f"after epoch {len(trained)} of stage 2" if trained else "before stage 2: its router is untrained"
        notes.append(f"the run was interrupted {when}; `cmc train --resume` goes on")
    if split in _SEEN:
        notes.append(_SEEN[split])
    if made:
        told = ", ".join(f"{m} of {clips} {'clip' if clips == 1 else 'clips'}" for m, clips in made.items())
        notes.append(f"made up from what else the clips have: {told}")
    for kind, clips in left_out.items():
        if clips:
            notes.append(f"left out: {clips} {'clip' if clips == 1 else 'clips'} {kind.replace('_', ' ')}")
    return notes


def write(folder: Path, result: dict[str, Any]) -> list[Path]:
    """Put figures, and their pictures, into a run folder; returns the files.

    Figures of another split, or with a modality dropped or completed, do not replace those of the test split.
    """
    kind = [] if result["split"] == "test" else [result["split"]]
    kind += [f"without_{modality}" for modality in result["dropped"]]
    suffix = "".join(f"_{part}" for part in [*kind, *(["completed"] if "completed" in result else [])])
    metrics = folder / f"metrics{suffix}.json"
    with atomic(metrics) as path:
        path.write_text(to_json(result), encoding="utf-8")
    return [metrics, *draw(result, folder, suffix)]


def to_json(result: dict[str, Any]) -> str:
    """The figures as text; those of no clip at all, which JSON has no number for, are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(member) for key, member in value.items()}
        if isinstance(value, list):
            return [plain(member) for member in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False)


def figures(
    record: runs.Record,
    truth: NDArray[np.int64],
    unimodal: dict[str, NDArray[np.int64]],
    predictions: Predictions,
    values: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Everything that `cmc evaluate` reports, for clips with classes `truth` (N,) and, of polarity, labels `values`.

    Clips that have nothing to predict from are left out, and counted. Raises DataError where that leaves none.
    """
    known = predictions.present.sum(1) > 0
    if not known.any():
        raise DataError(f"none of {len(known)} clips has any of {', '.join(record.config.modalities)}")
    truth, predictions = truth[known], predictions.select(known)
    unimodal = {key: classes[known] for key, classes in unimodal.items()}
    values = None if values is None else values[known]
    task, question = record.task, record.config.polarity if record.task.is_polarity else None
    counts = np.array(record.majority)
    train = np.repeat(np.arange(task.classes), counts)
    groups = _groups(truth, unimodal)
    matrix = confusion(truth, predictions.logits.argmax(1), task.classes)
    result: dict[str, Any] = {
        "clips": {name: int(rows.sum()) for name, rows in groups.items()},
        "cmc": {name: class_metrics(truth[rows], predictions.logits[rows], question) for name, rows in groups.items()},
        "majority": {name: majority(truth[rows], train, task.classes) for name, rows in groups.items()},
        "class_names": list(task.class_names),
        "class_clips": {"train": counts.tolist(), "split": matrix.sum(1).tolist()},
        "per_class": dict(zip(task.class_names, per_class(matrix), strict=True)),
        "confusion": matrix.tolist(),
        "experts": _experts(truth, unimodal, predictions),
        "definitions": [DEFINITIONS[question], NON0] if question else [],
        "left_out": {"without_any_modality": int((~known).sum())},
    }
    result |= _routing(task, truth, groups, predictions) | _calibration(record, truth, predictions.logits)
    if values is not None and record.calibration.class_values is not None:
        result |= _regression(record, groups, predictions.logits, values)
        result["definitions"].append(VALUE)
    if record.relabelled:
        result["pseudo_labels"] = record.relabelled
        result["relabelled"] = {
            m: 1 - float(np.trace(moved) / np.sum(moved)) if np.sum(moved) else None
            for m, moved in record.relabelled.items()
        }
    return result


def _experts(
    truth: NDArray[np.int64], unimodal: dict[str, NDArray[np.int64]], predictions: Predictions
) -> dict[str, dict[str, float | None]]:
    """Accuracy of each expert on the clips that the router selected it for; of others it says nothing, all zeros."""
    experts: dict[str, dict[str, float | None]] = {}
    for k, (m, logits) in enumerate(predictions.experts.items()):
        there, own = predictions.gates[:, k] > 0, unimodal[LETTERS[m]]
        known = there & (own >= 0)
        experts[m] = {
            "clips": int(there.sum()),
            "accuracy_clip_label": accuracy(truth[there], logits[there].argmax(1)) if there.any() else None,
            "accuracy_own_label": accuracy(own[known], logits[known].argmax(1)) if known.any() else None,
        }
    return experts


def _routing(
    task: Task, truth: NDArray[np.int64], groups: dict[str, NDArray[np.bool_]], predictions: Predictions
) -> dict[str, Any]:
    """Mean router weight per modality over all clips, and, per group and true class over those that have the modality,
    the mean and how weights spread."""
    groups = groups | {name: truth == k for k, name in enumerate(task.class_names)}
    spread: dict[str, dict[str, list[int]]] = {}
    means: dict[str, dict[str, float | None]] = {}
    for name, rows in groups.items():
        if rows.any():
            gates = {
                m: predictions.gates[rows & predictions.present[:, k], k] for k, m in enumerate(predictions.experts)
            }
            spread[name] = {m: np.histogram(found, ROUTER_BINS, (0, 1))[0].tolist() for m, found in gates.items()}
            means[name] = {m: float(found.mean()) if len(found) else None for m, found in gates.items()}
    overall = {m: float(predictions.gates[:, k].mean()) for k, m in enumerate(predictions.experts)}
    return {"router": overall, "router_means": means, "router_histogram": spread}


def _calibration(record: runs.Record, truth: NDArray[np.int64], logits: NDArray[np.float32]) -> dict[str, Any]:
    """ECE and NLL, and the bins of the reliability diagram, before and after temperature scaling."""
    result: dict[str, Any] = {"temperature": record.calibration.temperature}
    bins: dict[str, list[list[float]]] = {}
    for name, temperature in (("before", 1.0), ("after", record.calibration.temperature)):
        found = reliability(truth, probabilities(logits, temperature))
        bins[name] = found.tolist()
        result[name] = {
            "ece": calibration_error(found),
            "nll": negative_log_likelihood(truth, logits, temperature),
        }
    return {"calibration": result, "calibration_note": record.calibration.note, "reliability": bins}


def _regression(
    record: runs.Record,
    groups: dict[str, NDArray[np.bool_]],
    logits: NDArray[np.float32],
    values: NDArray[np.float32],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Per group, MAE and r of the predicted labels, and of always answering the training clips' mean."""
    calibration = record.calibration
    assert calibration.class_values is not None and calibration.mean_value is not None
    predicted = expected_values(probabilities(logits, calibration.temperature), calibration.class_values)
    mean = np.full(len(values), calibration.mean_value)
    answers = {"regression": predicted, "regression_baseline": mean}
    return {
        kind: {name: regression_metrics(values[rows], answer[rows]) for name, rows in groups.items()}
        for kind, answer in answers.items()
    }


def read_truth(path: Path, ids: tuple[str, ...], task: Task) -> dict[str, NDArray[np.int64]]:
    """`T`, `A`, `V` → classes (N,) from a csv, in the order of `ids`.

    Raises UsageError where there is no file, or none of text; DataError naming what it lacks.
    """
    if not path.is_file():
        raise UsageError(f"no file with unimodal labels at {path}")
    columns = [f"label_{letter}" for letter in "TAV"]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no csv: it is not text in UTF-8") from None
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"video_id", "clip_id", *columns} - set(reader.fieldnames or ()):
            raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}")
        try:
            rows = {f"{r['video_id']}$_${r['clip_id']}": [_class(r[c] or "", task) for c in columns] for r in reader}
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path}: {error}") from None
    if absent := [id for id in ids if id not in rows]:
        raise DataError(f"{path} lacks {len(absent)} of {len(ids)} clips, {absent[0]} among them")
    classes = np.array([rows[id] for id in ids], np.int64)
    return {letter: classes[:, k] for k, letter in enumerate("TAV")}


def _class(written: str, task: Task) -> int:
    """The class of a label in a csv, −1 of an empty one. Raises ValueError."""
    written = written.strip()
    if not written:
        return -1
    if not task.is_polarity:
        if written not in task.class_names:
            raise ValueError(f"{written!r} is none of the classes {', '.join(task.class_names)}")
        return task.class_names.index(written)
    try:
        return int(polarity(np.array([float(written)]))[0])
    except ValueError:
        raise ValueError(f"a label is not a number: {written!r}") from None


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


def _check_same_labels(task: Task, file: FeatureFile, split: str) -> None:
    """Raises RunError where a run of polarity meets named classes, or the other way round."""
    known = np.isfinite(file.read(split, REGRESSION)) if task.is_polarity else file.read(split, CLASS) >= 0
    if not known.any():
        kind = "numbers" if task.is_polarity else "classes"
        raise runs.RunError(
            f"the run predicts {', '.join(task.class_names)}; split {split!r} of {file.path} has no {kind} for labels"
        )


def _dropped(record: runs.Record, drop: tuple[str, ...]) -> tuple[str, ...]:
    """Each modality once and in order. Raises UsageError where that leaves none, or one is not in use anyway."""
    used = record.config.modalities
    if unused := set(drop) - set(used):
        raise UsageError(f"--drop {' '.join(sorted(unused))}: the run does not use it; it uses {', '.join(used)}")
    if set(drop) == set(used):
        raise UsageError(f"--drop leaves nothing to predict from: the run uses {', '.join(used)}")
    return tuple(m for m in MODALITIES if m in drop)
