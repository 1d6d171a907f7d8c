"""Self-MM's unimodal label generation (Yu, Xu, Yuan, Wu, AAAI 2021), for labels that are numbers.

Four streams, the fusion M and the modalities, each predict a number. All start with the clip's label y_M; M keeps it.
Per batch the loss is Σ_s mean(w_s·|ŷ_s − l_s|), w_M = 1, w_s = tanh|l_s − y_M|: a modality is taught as far as its
label is its own. From the second epoch on, the batch's labels are then moved. With the distances d_pos, d_neg of a
stream's feature to its centres, the means of the stored features of training clips whose label in that stream is > 0
and < 0,

    Δ_s = (d_neg − d_pos) / (d_pos + ε),   r = Δ_s / (Δ_M + ε)
    new = clip(½·r·y_M + ½·(y_M + Δ_s − Δ_M), ±H),   l_s ← (n − 1)/(n + 1)·l_s + 2/(n + 1)·new   in epoch n.

A stream without a positive or without a negative clip has no Δ: then its labels (M: all labels) stay as they are. H is
the range of labels: the largest |y_M| of training clips, rounded up (1 for CH-SIMS and v2, 3 for MOSI and MOSEI).

What the formulas leave open (design):

* M is the three h side by side, 0 where absent, through one hidden layer, as in Self-MM. A modality's number is a
  linear layer on z of its classifier's head; all but that layer goes to stage 2.
* The features that are measured are the h, and for M all three side by side: the rule subtracts Δ_M from Δ_s and
  divides one by the other, which says something only where both are distances of one kind.
* Validation clips get labels by the same rule, against the training clips' centres, once an epoch.
* A modality is kept at the epoch in which its number comes closest to the *clip's* label on validation clips. That
  label does not move, and most modalities agree with it; an error against moving labels falls as they move.
* Stage 2 wants classes: a clip leaves M's class once its label has gone as far as another class's mean training label.
  Half the way would make a polar clip of many a neutral one. The numbers are in pseudo_labels.npz too.

What to expect: there are two centres, so a clip that is neither positive nor negative drifts to one of them, becomes
part of it, and draws others along. Labels are best after few epochs; with many neutral clips PLGM finds more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.config import Config, UsageError
from cmc.data import Batch, Split, Task
from cmc.pretrain import Given, Pretrained, Stage, live_state, restore_live, run
from cmc.strategies.labels import class_values
from cmc.training import Means, optimizer
from cmc.unimodal import Unimodal

EPSILON = 1e-6


def pretrain(given: Given) -> Pretrained:
    """Raises UsageError where labels are named classes: they have no sign."""
    return run(ULGM(given.models, given.train, given.valid, given.config, given.task), given.report, given.journal)


def lean(features: Tensor, centres: tuple[Tensor, Tensor]) -> Tensor:
    """Δ (N,) of features (N, d) between the (positive, negative) centres (d,)."""
    positive, negative = ((features - centre).norm(dim=1) for centre in centres)
    return (negative - positive) / (positive + EPSILON)


def moved(labels: Tensor, own: Tensor, of_stream: Tensor, of_M: Tensor, epoch: int, limit: float) -> Tensor:
    """The labels (N,) after epoch n, from the clips' own (N,), Δ_s and Δ_M (N,); new ones lie within ±limit."""
    divisor = of_M + EPSILON
    ratio = of_stream / divisor.where(divisor != 0, EPSILON)
    new = (0.5 * ratio * own + 0.5 * (own + of_stream - of_M)).clamp(-limit, limit)
    return (epoch - 1) / (epoch + 1) * labels + 2 / (epoch + 1) * new


def reached(labels: Tensor, own: Tensor, classes: Tensor, means: Tensor) -> Tensor:
    """Classes (N,) of labels (N,) that started at `own` (N,) in `classes` (N,).

    It is the furthest class whose value, of means (K,), the label has reached on its way; without one, its own.
    """
    way = means - own[:, None]
    passed = way * (labels[:, None] - means) >= 0
    distance = way.abs().where(passed, 0.0)
    return distance.argmax(1).where(distance.amax(1) > 0, classes)


class Streams(nn.Module):
    """Unimodal models and their fusion → features and a number per stream."""

    def __init__(self, models: Mapping[str, Unimodal], config: Config):
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.join = nn.Linear(len(models) * config.width, config.width)
        self.dropout = nn.Dropout(config.out_dropout)
        self.numbers = nn.ModuleDict({stream: nn.Linear(config.width, 1) for stream in ("M", *models)})

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stream → features (B, d) and predicted labels (B,)."""
        models = cast(Mapping[str, Unimodal], self.models)
        h = {m: model.branch(batch) for m, model in models.items()}
        joint = torch.cat(list(h.values()), 1)
        z = {"M": functional.relu(self.join(self.dropout(joint)))}
        z |= {m: model.head.hidden(h[m]) for m, model in models.items()}
        numbers = {stream: self.numbers[stream](hidden).squeeze(1) for stream, hidden in z.items()}
        return {"M": joint} | h, numbers


class ULGM(Stage):
    """The streams, and per split and modality the labels as they are now."""

    def __init__(self, models: Mapping[str, Unimodal], train: Split, valid: Split, config: Config, task: Task):
        super().__init__(models, train, valid, config, task)
        own = {name: split.values for name, split in self.splits.items()}
        if not task.is_polarity or own["train"] is None or own["valid"] is None:
            raise UsageError("--pretrain ulgm needs labels that are numbers: named classes have no sign")
        self.own: dict[str, Tensor] = own  # type: ignore[assignment]
        device = own["train"].device
        self.streams = Streams(self.models, config).to(device)
        self.optimizer = optimizer([self.streams], config)
        self.labels = {name: {m: values.clone() for m in models} for name, values in self.own.items()}
        self.limit = float(math.ceil(self.own["train"].abs().max()))
        self.present = {m: train.present(m) for m in models} | {"M": torch.ones_like(own["train"], dtype=torch.bool)}
        widths = {"M": len(models) * config.width} | dict.fromkeys(models, config.width)
        self.features = {name: torch.full((len(train), width), torch.nan) for name, width in widths.items()}
        self.features = {name: values.to(device) for name, values in self.features.items()}
        self.class_values = class_values(train, task)

    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        self.streams.train()
        means = Means()
        for batch in batches:
            features, numbers = self.streams(batch)
            losses = self._losses("train", batch, numbers)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            found = {stream: values.detach() for stream, values in features.items()}
            for stream, values in found.items():
                self.features[stream][batch.index] = values
            self._move("train", batch, found, epoch)
            means.add(losses, len(batch.index))
        return means.over(len(self.splits["train"]))

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Mean distances of the streams' numbers to the clips' own labels; then validation clips' labels are moved."""
        self.streams.eval()
        valid, sums = self.splits["valid"], dict.fromkeys(self.streams.numbers, 0.0)
        for batch in valid.batches(self.config.batch_size):
            features, numbers = self.streams(batch)
            for stream, found in numbers.items():
                error = (found - self.own["valid"][batch.index]).abs()
                sums[stream] += float(error.sum() if stream == "M" else error[batch.present(stream)].sum())
            self._move("valid", batch, features, epoch)
        clips = {stream: len(valid) if stream == "M" else int(valid.present(stream).sum()) for stream in sums}
        return {stream: total / max(clips[stream], 1) for stream, total in sums.items()}

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        return {m: losses[m] for m in self.models}

    def states(self, split: str) -> dict[str, Tensor]:
        clips, classes = self.splits[split], self.task.classes
        return {
            m: functional.one_hot(
                reached(labels, self.own[split], clips.label("M"), self.class_values), classes
            ).float()
            for m, labels in self.labels[split].items()
        }

    def values(self, split: str) -> dict[str, Tensor]:
        return self.labels[split]

    def state(self) -> dict[str, Any]:
        return live_state({"streams": self.streams}, self.optimizer) | {
            "labels": self.labels,
            "features": self.features,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_live({"streams": self.streams}, self.optimizer, state)
        for split, per in state["labels"].items():
            for m, labels in per.items():
                self.labels[split][m].copy_(labels)
        for stream, features in state["features"].items():
            self.features[stream].copy_(features)

    def _losses(self, split: str, batch: Batch, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stream → mean of w_s·|ŷ_s − l_s| over the batch's clips that have it."""
        own = self.own[split][batch.index]
        losses = {"M": (numbers["M"] - own).abs().mean()}
        for m in self.models:
            labels, there = self.labels[split][m][batch.index], batch.present(m)
            errors = (labels - own).abs().tanh() * (numbers[m] - labels).abs()
            losses[m] = (errors * there).sum() / there.sum().clamp_min(1)
        return losses

    def _move(self, split: str, batch: Batch, features: Mapping[str, Tensor], epoch: int) -> None:
        """New labels for a batch, of the streams that have both centres, where the clip has the modality."""
        centres = self._centres() if epoch > 1 else {}
        if "M" not in centres:
            return
        own, of_M = self.own[split][batch.index], lean(features["M"], centres["M"])
        for m in centres.keys() - {"M"}:
            labels = self.labels[split][m][batch.index]
            new = moved(labels, own, lean(features[m], centres[m]), of_M, epoch, self.limit)
            self.labels[split][m][batch.index] = new.where(batch.present(m), labels)

    def _centres(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Stream → means (d,) of the stored features of its positive and of its negative training clips."""
        found = {}
        labels = {"M": self.own["train"]} | self.labels["train"]
        for stream, values in labels.items():
            features = self.features[stream]
            there = self.present[stream] & ~features.isnan().any(1)
            positive, negative = there & (values > 0), there & (values < 0)
            if positive.any() and negative.any():
                found[stream] = features[positive].mean(0), features[negative].mean(0)
        return found
