"""CMC's own stage 1: one classifier per modality, taught by labels that PLGM makes while they learn.

Epoch: train on the current hard labels, validate the averaged models on theirs, update the labels. In reference mode
labels are updated batch by batch from the live model, as published; in calibrated mode once at the end of the epoch
from the averaged model (see pseudo_labels). Models and labels are kept per modality, both of its best epoch.

The same without the updates are `gt`, on annotated labels, and `copy`, on the clip's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cmc.config import LETTERS, Config, UsageError
from cmc.data import Batch, Split, Task
from cmc.ema import Average, span_momentum
from cmc.losses import cross_entropy
from cmc.pretrain import Given, Pretrained, Stage, live_state, restore_live, run
from cmc.pseudo_labels import PseudoLabels, momentum
from cmc.training import Means, class_weights, contrast, load_owned, only_present, optimizer, owned
from cmc.unimodal import Output, Unimodal


def pretrain(given: Given) -> Pretrained:
    """Raises UsageError where annotated labels are asked for and there are none."""
    annotated = any((given.train.label(LETTERS[m]) >= 0).any() for m in given.models)
    if given.config.pretrain == "gt" and not annotated:
        raise UsageError("the training split has no annotated unimodal labels: train with --pretrain plgm")
    stage = Pretraining(given.models, given.train, given.valid, given.config, given.task)
    return run(stage, given.report, given.journal)


class Pretraining(Stage):
    """The moving parts: live and averaged models, and the labels of both splits."""

    def __init__(self, models: Mapping[str, Unimodal], train: Split, valid: Split, config: Config, task: Task):
        super().__init__(models, train, valid, config, task)
        self.weight = class_weights(train, config, task)
        self.optimizer = optimizer(self.models.values(), config)
        self.relabels = config.pretrain == "plgm"
        # CMC-GT has no averaged models: there, the live ones are judged.
        self.averages = {} if config.pretrain == "gt" else {m: self._average(model) for m, model in models.items()}
        self.labels = {
            name: {m: PseudoLabels(split.label("M"), task.classes) for m in models}
            for name, split in self.splits.items()
        }
        self.steps = 0

    def _average(self, model: Unimodal) -> Average[Unimodal]:
        text = model.branch.text_model
        return Average(model, self.config.calibrated, [text] if text is not None and text.frozen else [])

    def state(self) -> dict[str, Any]:
        return live_state(self.models, self.optimizer) | {
            "averaged": {m: owned(average.model) for m, average in self.averages.items()},
            "labels": {name: {m: made.states for m, made in per.items()} for name, per in self.labels.items()},
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_live(self.models, self.optimizer, state)
        for m, average in self.averages.items():
            load_owned(average.model, state["averaged"][m])
        for name, per in self.labels.items():
            for m, made in per.items():
                made.states.copy_(state["labels"][name][m])
        self.steps = state["steps"]

    def judged(self, modality: str) -> Unimodal:
        """The model that is validated, kept, and in calibrated mode asked for labels; in evaluation mode."""
        if modality in self.averages:
            return self.averages[modality].model
        return self.models[modality].eval()

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Each modality's own loss; the published code rounds it, with pseudo labels."""
        return {m: round(losses[m], 4) if self.relabels else losses[m] for m in self.models}

    def states(self, split: str) -> dict[str, Tensor]:
        return {m: made.states for m, made in self.labels[split].items()}

    def targets(self, split: str, batch: Batch, modality: str) -> Tensor:
        if self.config.pretrain == "gt":
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
        means = Means()
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
            means.add(losses, len(batch.index))
        return means.over(len(self.splits["train"]))

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Mean validation losses of the judged models, then new labels for validation (and training) clips."""
        batch_size, means = self.config.batch_size, Means()
        judged = {m: self.judged(m) for m in self.models}
        for batch in self.splits["valid"].batches(batch_size):
            outputs, losses = self._losses("valid", batch, judged)
            if not self.config.calibrated:
                outputs = {m: model.eval()(batch) for m, model in self.models.items()}
            self._visit("valid", batch, outputs, epoch)
            means.add(losses, len(batch.index))
        if self.config.calibrated and self.relabels and epoch > self.config.label_warmup:
            for batch in self.splits["train"].batches(4 * batch_size):
                self._visit("train", batch, {m: model(batch) for m, model in judged.items()}, epoch)
        return means.over(len(self.splits["valid"]))

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
                rate = momentum(start, self.config.label_gamma, epoch)
                self.labels[split][m].update(batch.index, outputs[m].logits, rate, batch.present(m))

    def _ema_momentum(self, modality: str, epoch: int, steps_per_epoch: int) -> float:
        if self.config.calibrated:
            return span_momentum(self.steps, steps_per_epoch, self.config.ema_epochs)
        k = list(LETTERS).index(modality)
        return momentum(self.config.ema_momentum[k], self.config.ema_gamma[k], epoch)
