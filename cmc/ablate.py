"""The method, its parts taken away one by one, and plain baselines: one table, mean ± std over seeds.

Every variant is trained by the same loop with the same budget and selected on validation; the test split is read once
per variant and seed, after its training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cmc import run as runs
from cmc.cluster import Pool, alone
from cmc.config import MODALITIES, PRESETS, Config, UsageError
from cmc.data import Batch, open_features
from cmc.finetune import finetune
from cmc.fusion import Fused
from cmc.results import Progress, Results, Training, digest, gather, nothing_shown
from cmc.text_encoder import encoder_name, load_encoder
from cmc.train import Material
from cmc.training import Report, seed_everything
from cmc.trial import evaluated, lacks_annotation, open_annotated, trial
from cmc.unimodal import Branch, Head, TextModel

_PLAIN = {"pretrain": "copy", "fusion": False, "router": False, "contrastive": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "CMC": {},
    "CMC, reference mode": {"mode": "reference", "pretrain": "plgm"},
    "CMC-GT": {"pretrain": "gt"},
    "no PLGM": {"pretrain": "copy"},
    "no PFM": {"fusion": False},
    "no MCR": {"router": False},
    "no SupCon": {"contrastive": False},
    "text only": {"use": ("text",), "pretrain": "copy", "contrastive": False},
    "audio only": {"use": ("audio",), "pretrain": "copy", "contrastive": False},
    "vision only": {"use": ("vision",), "pretrain": "copy", "contrastive": False},
    "concatenation": _PLAIN,
    "late fusion": _PLAIN,
}
"""Name → what differs from the given settings. Late fusion is the mean of three unimodal classifiers' logits."""


class Concatenation(nn.Module):
    """One classifier on the three representations side by side; an absent modality's is zero."""

    def __init__(self, columns: Mapping[str, int], classes: int, config: Config, text_model: TextModel | None):
        super().__init__()
        self.modalities = config.modalities
        self.branches = nn.ModuleDict(
            {m: Branch(m, columns[m], config, text_model if m == "text" else None) for m in self.modalities}
        )
        self.join = nn.Linear(len(self.modalities) * config.width, config.width)
        self.head = Head(classes, config)

    def forward(self, batch: Batch) -> Fused:
        h = {m: self.branches[m](batch) for m in self.modalities}
        present = torch.stack([batch.present(m) for m in self.modalities], 1)
        logits = self.head(torch.relu(self.join(torch.cat(list(h.values()), 1))))
        return Fused(logits, {}, h, present.float(), present)


def ablate(
    features: Path,
    out: Path,
    settings: Mapping[str, Any],
    seeds: int,
    truth: Path | None = None,
    variants: Iterable[str] = tuple(VARIANTS),
    progress: Progress = nothing_shown,
    workers: Pool | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> Results:
    """Train and evaluate the variants; each result is also written to `out`, and read back instead of trained again.

    `settings` are those that were asked for, of a Config: all else is the preset of a variant's mode, so that a setting
    reaches reference mode where it was given, even where it is that of calibrated mode anyway. A variant for which that
    leaves nothing is left out.

    `truth` names a csv of unimodal labels (see cmc.evaluate.read_truth): they then teach CMC-GT, tell consistent from
    conflicting clips, and count how many unimodal labels PLGM gets right. Trainings run in `workers`, or else in this
    process, each with so many threads of torch and on this device.

    Raises UsageError for an unknown variant, and where there is no text encoder to finetune.
    """
    if unknown := set(variants) - set(VARIANTS):
        raise UsageError(f"no variant {', '.join(sorted(unknown))}; there are: {', '.join(VARIANTS)}")
    config = Config(**settings)
    digests = {"features": digest(features), "truth": digest(truth)}
    left_out = {name: reason for name in variants if (reason := _not_possible(name, features, settings, truth))}
    configs: dict[str, Config] = {}
    for name in variants:
        try:
            if name not in left_out:
                configs[name] = Config(**{**settings, **VARIANTS[name]})
        except ValidationError as error:  # a setting that only one of the modes has
            left_out[name] = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
    if any(one.text == "finetune" and "text" in one.use for one in configs.values()):
        with open_features(features) as file:
            encoder_name(file.recipe)  # raised now, not by one training after the other
    trainings = []
    for name, unseeded in configs.items():
        for seed in range(config.seed, config.seed + seeds):
            one = unseeded.model_copy(update={"seed": seed})
            what = {"config": one.model_dump(mode="json")} | digests
            trainings.append(Training(name, seed, what, partial(_one, name, features, one, truth, threads, device)))
    found = gather(trainings, out, progress, workers)
    return Results(found.results, left_out | found.left_out)


def _not_possible(name: str, features: Path, settings: Mapping[str, Any], truth: Path | None) -> str:
    """Why a variant cannot be trained; empty where it can."""
    config, differs = Config(**settings), VARIANTS[name]
    if differs.get("mode") == config.mode:
        return f"every variant is in {config.mode} mode already"
    if "mode" in differs and settings.keys() >= PRESETS[differs["mode"]].keys():
        return f"all settings that modes differ in are given for {config.mode} mode, so none would be its own"
    if unused := set(differs.get("use", ())) - set(config.use):
        return f"--use does not name {', '.join(unused)}"
    if differs.get("pretrain") == "gt" and truth is None:
        return lacks_annotation(features)
    return ""


def _one(
    name: str, features: Path, config: Config, truth: Path | None, threads: int, device: str, report: Report
) -> dict[str, Any]:
    """Train and evaluate a variant. Raises KeyboardInterrupt on Ctrl-C: half a training is no result."""
    with alone(threads, device) as own:
        if name != "concatenation":
            result = trial(features, config, truth, report, device=own)
            # Without times, so that it is repeatable.
            return {kind: result[kind] for kind in ("recovered", "clips", "cmc", "majority")}
        material = open_annotated(features, config, truth, device=own)
        seed_everything(config.seed, own)
        model, record = _concatenate(material, config, report)
        if record.status == "interrupted":
            raise KeyboardInterrupt
        return evaluated(features, material, model, record, truth) | {"recovered": {}}


def _concatenate(material: Material, config: Config, report: Report) -> tuple[Concatenation, runs.Record]:
    device = torch.device(material.device)
    encoder = load_encoder(material.encoder) if material.encoder else None
    model = Concatenation(material.columns, material.task.classes, config, encoder).to(device)
    splits = {"train": material.train.to(device), "valid": material.valid.to(device)}
    labels: dict[str, dict[str, Tensor]]
    labels = {name: {m: split.label("M") for m in MODALITIES} for name, split in splits.items()}
    best = finetune(model, splits["train"], splits["valid"], labels, config, material.task, report)
    model.load_state_dict(best.weights)
    model.cpu()
    status = "interrupted" if best.interrupted else "finished"
    counts = np.bincount(material.train.label("M").numpy(), minlength=material.task.classes).tolist()
    return model, runs.Record(config, material.task, material.columns, material.features, None, counts, status=status)
