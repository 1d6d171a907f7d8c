"""One training and its evaluation, as the commands that compare trainings need it: `cmc ablate` and others.

The test split is read once, after training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmc import run as runs
from cmc.config import LETTERS, Config
from cmc.data import Split, Task, load, open_features, task_of
from cmc.evaluate import figures, predict_split, read_truth
from cmc.strategies import STRATEGIES
from cmc.text_encoder import with_arrays
from cmc.train import Material, fit, open_material
from cmc.training import Report, seed_everything, silent
from mmfeat.layout import FeatureFile


def trial(
    features: Path,
    config: Config,
    truth: Path | None = None,
    report: Report = silent,
    unlabelled: Path | None = None,
    labelled: float = 1.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train on a feature file, in memory, and evaluate on its test split.

    Args:
        features: the file.
        config: settings, strategy and seed.
        truth: csv of unimodal labels (see cmc.evaluate.read_truth): they then teach `gt`, tell consistent from
            conflicting clips, and count the unimodal labels that are found.
        report: called after every epoch.
        unlabelled: feature file of further clips.
        labelled: share of the training clips that keep their labels, see `keep_labels`.
        device: where to train.

    Returns:
        clips: group (`overall` and, with unimodal labels, `consistent`, `conflicting`) → test clips.
        cmc, majority: group → figures.
        validation: figures on the validation split.
        labelled: training clips that have labels.
        recovered: see `recovered`; empty where the strategy makes no labels.
        seconds: CPU seconds of `pretrain` and `finetune`, and of their slowest epochs (`slowest pretrain` …).

    Raises DivergedError, and KeyboardInterrupt on Ctrl-C: half a training is no result.
    """
    material = open_annotated(features, config, truth, unlabelled, device)
    if labelled < 1:
        material = keep_labels(material, labelled, config.seed, STRATEGIES[config.pretrain].unlabelled)
    seed_everything(config.seed, device)
    clock = Clock(report)
    fitted = fit(material, config, clock)
    if fitted.record.status == "interrupted":
        raise KeyboardInterrupt
    made = STRATEGIES[config.pretrain].makes_labels
    found = recovered(material.train, fitted.states["train"]) if made else {}
    result = evaluated(features, material, fitted.model, fitted.record, truth)
    return result | {"recovered": found, "seconds": clock.seconds()}


class Clock:
    """A report that passes on what it is told, and measures the CPU time of epochs."""

    def __init__(self, report: Report):
        self._report, self._last = report, time.process_time()
        self._taken: dict[str, list[float]] = {}

    def __call__(self, stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        now = time.process_time()
        self._taken.setdefault(stage, []).append(now - self._last)
        self._report(stage, epoch, epochs, figures)
        self._last = time.process_time()

    def seconds(self) -> dict[str, float]:
        """Of each stage, and of its slowest epoch: a strategy's phases may differ, and the dearest is what counts."""
        whole = {stage: sum(taken) for stage, taken in self._taken.items()}
        return whole | {f"slowest {stage}": max(taken) for stage, taken in self._taken.items()}


def open_annotated(
    features: Path, config: Config, truth: Path | None, unlabelled: Path | None = None, device: str = "cpu"
) -> Material:
    """A file's training and validation split with the unimodal labels of `truth`, if any is given."""
    material = open_material(features, config, unlabelled=unlabelled, device=device)
    train, valid = (_annotated(split, truth, material.task) for split in (material.train, material.valid))
    return replace(material, train=train, valid=valid)


def keep_labels(material: Material, share: float, seed: int, rest: bool) -> Material:
    """The material as if only a share of the training clips had labels.

    Every class keeps its share, rounded up, so that none is lost; of two shares with the same seed the smaller is part
    of the larger. The other clips are unlabelled ones with `rest`, else left out. Validation clips keep their labels:
    they decide when training ends.
    """
    train = material.train
    classes, draw = train.label("M"), torch.Generator().manual_seed(seed)
    kept = torch.zeros(len(train), dtype=torch.bool)
    for k in classes.unique().tolist():
        members = (classes == k).nonzero().squeeze(1)
        order = members[torch.randperm(len(members), generator=draw)]
        kept[order[: math.ceil(share * len(members) - 1e-9)]] = True
    others = (replace(train.select(~kept), labels=None, values=None),) if rest and not kept.all() else ()
    return replace(material, train=train.select(kept), unlabelled=(*material.unlabelled, *others))


def evaluated(
    features: Path, material: Material, model: nn.Module, record: runs.Record, truth: Path | None
) -> dict[str, Any]:
    """What `trial` says of a model on the test split of the file that it was trained on."""
    config = record.config
    with FeatureFile(features) as file:
        test = _annotated(load(file, "test", material.task, config.calibrated, config.steps), truth, material.task)
        if "text" in config.use and record.text_encoder is None:
            [test] = with_arrays(file.recipe, test)
    unimodal = {key: test.label(key).numpy() for key in "TAV"}
    result = figures(record, test.label("M").numpy(), unimodal, predict_split(model, test))
    said = {name: result[name] for name in ("clips", "cmc", "majority")}
    return said | {"validation": record.validation, "labelled": len(material.train)}


def _annotated(split: Split, truth: Path | None, task: Task) -> Split:
    if truth is None:
        return split
    labels = {key: torch.from_numpy(values) for key, values in read_truth(truth, split.ids, task).items()}
    return replace(split, labels={"M": split.label("M")} | labels)


def lacks_annotation(features: Path) -> str:
    """Why `gt` has nothing to learn from in a file; empty where its training clips have unimodal labels."""
    with open_features(features) as file:
        train = load(file, "train", task_of(file))
    if any((train.label(letter) >= 0).any() for letter in LETTERS.values()):
        return ""
    return f"{features} has no annotated unimodal labels (--truth names a csv of them)"


def recovered(train: Split, states: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Per modality: share of clips whose true unimodal label a copy of M has, and whose pseudo label is right."""
    shares = {}
    for m, state in states.items():
        true = train.label(LETTERS[m])
        known = (true >= 0) & train.present(m)
        if known.any():
            right, copied = (state.argmax(1) == true)[known], (train.label("M") == true)[known]
            shares[m] = {"copying M": float(copied.float().mean()), "pseudo labels": float(right.float().mean())}
    return shares
