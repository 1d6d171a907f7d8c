"""One clip and its words → probabilities per modality and together, with the features made as the run's were."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmc import run as runs
from cmc.calibration import expected_values, probabilities
from cmc.config import MODALITIES, UsageError
from cmc.data import DataError, Split, finite, shorten, text_mask
from cmc.evaluate import check_same_features
from cmc.kept import Completed, completed, reads_stage_1
from cmc.text_encoder import with_arrays
from cmc.training import find_device


@dataclass(frozen=True)
class Prediction:
    """Probabilities by class name."""

    label: str
    fused: dict[str, float]
    modalities: dict[str, dict[str, float] | None]
    """Per modality its expert's probabilities; None where the clip lacks it or the router did not select it."""
    router: dict[str, float]
    """Weight of each modality, 0 where it is absent or not selected."""
    status: str
    """What extraction says of the clip: `ok`, `no_face`, …"""
    reason: str = ""
    temperature: float = 1.0
    """What logits were divided by. It was fitted to the fused ones."""
    absent: tuple[str, ...] = ()
    """Modalities that the run uses and the clip lacks."""
    completed: tuple[str, ...] = ()
    """Those of them whose features were made up from the others, and then used as if they were there."""
    value: float | None = None
    """The label as a number: Σ probability · the class's mean training label; None for named classes."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def predict(
    folder: Path,
    path: Path,
    text: str,
    start: float | None = None,
    end: float | None = None,
    complete: bool = False,
    device: str = "cpu",
) -> Prediction:
    """Extract a clip with the recipe that the run stores, and classify it; `complete` makes up what it lacks.

    `device` is where the run's model computes. Raises UsageError where there is no such device, file or span; RunError
    where today's extraction would not give what the run was trained on, naming the parts that differ; MediaError where
    the clip cannot be read; MissingBackendError, with the command that helps, for a missing model.
    """
    from mmfeat.clip import extract
    from mmfeat.recipe import Recipe

    find_device(device)
    if not path.is_file():
        raise UsageError(f"no file {path}")
    if end is not None and end <= (start or 0.0):
        raise UsageError(f"a clip cannot end at {end:g} s when it starts at {start or 0.0:g} s")
    record = runs.read(folder)
    if "vision" not in record.features["recipe"]:
        raise runs.RunError("the run's features were not extracted from clips: there is no recipe to extract one with")
    recipe = Recipe.model_validate(record.features["recipe"])
    aligned = record.features["aligned"]
    check_same_features(record, recipe.row_fingerprints(aligned), aligned)
    features = extract(path, text=text, recipe=recipe, start=start, end=end)
    prediction = classify(folder, record, features.rows(aligned=aligned), complete, device)
    return replace(prediction, status=features.status, reason=features.reason)


def classify(
    folder: Path, record: runs.Record, rows: dict[str, NDArray[Any]], complete: bool = False, device: str = "cpu"
) -> Prediction:
    """Classify one clip from its rows, as the feature file holds them: `text` (L, D), `text_bert` (3, L), `audio`
    (T, D), `audio_mask` (T,), and the same for vision. Raises DataError where the clip has no modality."""
    where, split = find_device(device), one_clip(rows, record)
    arrays = "text" in record.config.use and (record.text_encoder is None or reads_stage_1(record, complete))
    if arrays:
        [split] = with_arrays(record.features["recipe"], split, device=where)
    model, split = runs.load_model(folder, record).to(where), split.to(where)
    source = completed(folder, record, split) if complete else split
    with torch.inference_mode():
        output = model(source.batch(torch.tensor([0])))
    if not output.present.any():
        raise DataError(f"the clip has nothing to predict from: none of {', '.join(model.modalities)}")
    names, calibration = record.task.class_names, record.calibration
    fused = probabilities(output.logits.cpu().numpy(), calibration.temperature)
    gates = dict(zip(model.modalities, output.gates[0].tolist(), strict=True))
    return Prediction(
        label=names[int(output.logits[0].argmax())],
        fused=_named(fused, names),
        modalities={
            m: _named(probabilities(logits.cpu().numpy(), calibration.temperature), names) if gates[m] > 0 else None
            for m, logits in output.experts.items()
        },
        router=gates,
        status="ok",
        temperature=calibration.temperature,
        absent=tuple(m for m in model.modalities if not split.present(m)[0]),
        completed=tuple(source.made()) if isinstance(source, Completed) else (),
        value=float(expected_values(fused, calibration.class_values)[0]) if calibration.class_values else None,
    )


def one_clip(rows: dict[str, NDArray[Any]], record: runs.Record) -> Split:
    """A split of one clip; a modality without any step gets one that is masked."""
    tokens = torch.from_numpy(rows["text_bert"].astype(np.int64))[None]
    inputs: dict[str, Tensor] = {}
    masks: dict[str, Tensor | None] = {"text": text_mask(tokens)}
    for modality in MODALITIES:
        values = torch.from_numpy(np.asarray(rows[modality], np.float32))[None]
        if values.shape[2] != record.columns[modality]:
            raise runs.RunError(f"{modality} has {values.shape[2]} columns, not {record.columns[modality]}")
        if modality != "text":
            masks[modality] = torch.from_numpy(np.asarray(rows[f"{modality}_mask"], bool))[None]
            if not values.shape[1]:
                values, masks[modality] = values.new_zeros(1, 1, values.shape[2]), torch.zeros(1, 1, dtype=torch.bool)
        inputs[modality] = values
    if not record.config.calibrated:
        masks = dict.fromkeys(MODALITIES)
    split = finite(Split(("clip",), inputs, masks, tokens, None))
    return shorten(split, record.config.steps) if record.config.calibrated and record.config.steps else split


def _named(found: NDArray[np.floating], names: tuple[str, ...]) -> dict[str, float]:
    """Class name → probability, of the one row of `found`."""
    return {name: round(p, 6) for name, p in zip(names, found[0].tolist(), strict=True)}
