"""Stage 1: one classifier per modality, taught by labels that PLGM makes while they learn.

Epoch: train on the current hard labels, validate the averaged models on theirs, update the labels. In reference mode
labels are updated batch by batch from the live model, as published; in calibrated mode once at the end of the epoch
from the averaged model (see pseudo_labels). Models and labels are kept per modality, both of its best epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmc.config import LETTERS, Config, DivergedError, UsageError
from cmc.data import Batch, Split, Task
from cmc.ema import Average, span_momentum
from cmc.journal import Journal
from cmc.losses import cross_entropy
from cmc.pseudo_labels import PseudoLabels, momentum
from cmc.training import (
    Best,
    Report,
    class_weights,
    contrast,
    load_owned,
    only_present,
    optimizer,
    owned,
    silent,
    snapshot,
)
from cmc.unimodal import Output, Unimodal, runs_encoder


@dataclass
class Pretrained:
    """What stage 2 starts from."""

    weights: dict[str, dict[str, Tensor]]
    """Modality → weights of its (averaged) model."""
    states: dict[str, dict[str, Tensor]]
    """Split (`train`, `valid`) → modality → label states (N, K), made by those very weights' epoch."""
    best_epoch: dict[str, int]
    history: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False


class Pretraining:
    """The moving parts of stage 1. `pretrain` runs it; tests step it."""

    def __init__(self, models: Mapping[str, Unimodal], train: Split, valid: Split, config: Config, task: Task):
        self.models = dict(models)
        self.splits = {"train": train, "valid": valid}
        self.config, self.task = config, task
        self.weight = class_weights(train, config, task)
        self.optimizer = optimizer(self.models.values(), config)
        self.relabels = config.labels == "pseudo"
        # CMC-GT has no averaged models: there, the live ones are judged.
        self.averages = {} if config.labels == "annotated" else {m: self._average(model) for m, model in models.items()}
        self.labels = {
            name: {m: PseudoLabels(split.label("M"), task.classes) for m in models}
            for name, split in self.splits.items()
        }
        self.steps = 0

    def _average(self, model: Unimodal) -> Average[Unimodal]:
        text = model.branch.text_model
        return Average(model, self.config.calibrated, [text] if text is not None and text.frozen else [])

    def state(self) -> dict[str, Any]:
        """All that changes from step to step, but for the generators."""
        return {
            "live": {m: owned(model) for m, model in self.models.items()},
            "averaged": {m: owned(average.model) for m, average in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "labels": {name: {m: made.states for m, made in per.items()} for name, per in self.labels.items()},
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        for m, model in self.models.items():
            load_owned(model, state["live"][m])
        for m, average in self.averages.items():
            load_owned(average.model, state["averaged"][m])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, per in self.labels.items():
            for m, made in per.items():
                made.states = state["labels"][name][m]
        self.steps = state["steps"]

    def judged(self, modality: str) -> Unimodal:
        """The model that is validated, kept, and in calibrated mode asked for labels; in evaluation mode."""
        if modality in self.averages:
            return self.averages[modality].model
        return self.models[modality].eval()

    def targets(self, split: str, batch: Batch, modality: str) -> Tensor:
        if self.config.labels == "annotated":
            labels = self.splits[split].label(LETTERS[modality])[batch.index]
        else:
            labels = self.labels[split][modality].hard(batch.index)
        return only_present(labels, batch, modality)

    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        """One pass of `steps` batches; mean losses per clip, per modality and of the contrastive term."""
        for model in self.models.values():
            model.train()
            text = model.branch.text_model
            if text is not None and text.frozen and self.config.calibrated:
                text.eval()
        sums: dict[str, float] = {}
        for batch in batches:
            outputs, losses = self._losses("train", batch, self.models)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            for modality, average in self.averages.items():
                average.update(self._ema_momentum(modality, epoch, steps))
            self.steps += 1
            if not self.config.calibrated:
                self._visit("train", batch, outputs, epoch)
            _add(sums, losses, len(batch.index))
        return {name: value / len(self.splits["train"]) for name, value in sums.items()}

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Mean validation losses of the judged models, then new labels for validation (and training) clips."""
        batch_size, sums = self.config.batch_size, dict[str, float]()
        judged = {m: self.judged(m) for m in self.models}
        for batch in self.splits["valid"].batches(batch_size):
            outputs, losses = self._losses("valid", batch, judged)
            if not self.config.calibrated:
                outputs = {m: model.eval()(batch) for m, model in self.models.items()}
            self._visit("valid", batch, outputs, epoch)
            _add(sums, losses, len(batch.index))
        if self.config.calibrated and self.relabels and epoch > self.config.label_warmup:
            for batch in self.splits["train"].batches(4 * batch_size):
                self._visit("train", batch, {m: model(batch) for m, model in judged.items()}, epoch)
        return {name: value / len(self.splits["valid"]) for name, value in sums.items()}

    def _losses(
        self, split: str, batch: Batch, models: Mapping[str, Unimodal]
    ) -> tuple[dict[str, Output], dict[str, Tensor]]:
        outputs = {m: model(batch) for m, model in models.items()}
        targets = {m: self.targets(split, batch, m) for m in models}
        losses = {m: cross_entropy(output.logits, targets[m], self.weight) for m, output in outputs.items()}
        if self.config.contrastive:
            h = {m: output.h for m, output in outputs.items()}
            losses["contrast"] = contrast(h, targets, batch, self.config, self.task)
        return outputs, losses

    def _visit(self, split: str, batch: Batch, outputs: Mapping[str, Output], epoch: int) -> None:
        """Update the label states of a batch from its logits; clips that lack the modality keep theirs."""
        if not self.relabels or epoch <= self.config.label_warmup:
            return
        for m, start in zip(LETTERS, self.config.label_momentum, strict=True):
            if m in outputs:
                there = batch.present(m)
                rate = momentum(start, self.config.label_gamma, epoch)
                self.labels[split][m].update(batch.index[there], outputs[m].logits[there], rate)

    def _ema_momentum(self, modality: str, epoch: int, steps_per_epoch: int) -> float:
        if self.config.calibrated:
            return span_momentum(self.steps, steps_per_epoch, self.config.ema_epochs)
        k = list(LETTERS).index(modality)
        return momentum(self.config.ema_momentum[k], self.config.ema_gamma[k], epoch)


def pretrain(
    models: Mapping[str, Unimodal],
    train: Split,
    valid: Split,
    config: Config,
    task: Task,
    report: Report = silent,
    journal: Journal | None = None,
) -> Pretrained:
    """Run stage 1 until no modality has improved for `patience` epochs, from where `journal` says that it was.

    Ctrl-C ends it after at least one whole epoch with what is best so far. Raises UsageError where annotated labels
    are asked for and there are none, DivergedError where a modality's loss is not finite in any epoch.
    """
    if config.labels == "annotated" and not any((train.label(LETTERS[m]) >= 0).any() for m in models):
        raise UsageError("the training split has no annotated unimodal labels: train with --labels pseudo")
    journal = journal or Journal()
    stage = Pretraining(models, train, valid, config, task)
    order = torch.Generator().manual_seed(config.seed)
    steps = -(-len(train) // config.batch_size)
    best = {m: Best(config.gain) for m in models}
    kept = Pretrained({}, {"train": {}, "valid": {}}, {})
    epoch = 0

    def state() -> dict[str, Any]:
        return {
            "stage": stage.state(),
            "order": order.get_state(),
            "best": {m: (value.value, value.epoch) for m, value in best.items()},
            "weights": kept.weights,
            "states": kept.states,
            "best_epoch": kept.best_epoch,
            "history": kept.history,
        }

    def ended() -> bool:
        last = max(value.epoch for value in best.values())
        return epoch == config.pretrain_epochs or epoch - last >= config.patience

    if before := journal.restore("pretrain"):
        stage.restore(before["stage"])
        order.set_state(before["order"])
        for m, value in best.items():
            value.value, value.epoch = before["best"][m]
        kept = Pretrained(before["weights"], before["states"], before["best_epoch"], before["history"])
        epoch = len(kept.history)
    try:
        while not ended():
            epoch += 1
            by_length = config.calibrated and runs_encoder(*models.values())
            trained = stage.train_epoch(epoch, train.batches(config.batch_size, order, by_length), steps)
            losses = stage.validate(epoch)
            changed = {m: _changed(stage.labels["train"][m], train) for m in models}
            kept.history.append(_row(epoch, trained, losses, changed))
            rounded = {m: round(losses[m], 4) if config.labels == "pseudo" else losses[m] for m in models}
            improved = [m for m in models if best[m].improves(rounded[m], epoch)]
            for m in improved:
                kept.weights[m] = snapshot(stage.judged(m))
                kept.best_epoch[m] = epoch
            # The published code stores all labels whenever any modality improves.
            for m in improved if config.calibrated or not improved else models:
                for split in kept.states:
                    kept.states[split][m] = stage.labels[split][m].copy()
            journal.write("pretrain", kept.history[-1], state, ended())
            report(
                "pretrain", epoch, config.pretrain_epochs, losses | {"relabelled": sum(changed.values()) / len(models)}
            )
    except KeyboardInterrupt:
        if len(kept.weights) < len(models):
            raise
        kept.interrupted = True
    if lost := [m for m in models if m not in kept.weights]:
        raise DivergedError.of(1, f"the loss of {', '.join(lost)}", config)
    return kept


def _add(sums: dict[str, float], losses: Mapping[str, Tensor], clips: int) -> None:
    for name, loss in losses.items():
        sums[name] = sums.get(name, 0.0) + float(loss.detach()) * clips


def _changed(labels: PseudoLabels, split: Split) -> float:
    """Share of labels that differ from the clip's own."""
    return float((labels.hard() != split.label("M")).float().mean())


def _row(
    epoch: int, trained: Mapping[str, float], losses: Mapping[str, float], changed: Mapping[str, float]
) -> dict[str, float]:
    named = {f"train_{name}": value for name, value in trained.items()}
    named |= {f"valid_{name}": value for name, value in losses.items()}
    return {"epoch": epoch} | named | {f"relabelled_{name}": value for name, value in changed.items()}
