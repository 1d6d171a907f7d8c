"""Stage 2: the multimodal model, started from stage 1, trained on the clips' labels and stage 1's pseudo labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cmc.config import LETTERS, Config, DivergedError
from cmc.data import Batch, Split, Task
from cmc.fusion import Fused, Multimodal
from cmc.journal import Journal
from cmc.losses import cross_entropy
from cmc.training import (
    Best,
    Means,
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
from cmc.unimodal import runs_encoder


@dataclass
class Finetuned:
    """The model of the best validation loss."""

    weights: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False


def transfer(model: Multimodal, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Unimodal weights to the branches and experts of the multimodal model; its router stays as it is."""
    for modality, state in weights.items():
        for part, module in (("branch", model.branches[modality]), ("head", model.heads[modality])):
            own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(part)}
            missing, unexpected = module.load_state_dict(own, strict=False)
            wrong = [name for name in missing if not name.startswith("text_model.")] + unexpected
            if wrong:
                raise ValueError(f"{modality}: weights do not fit: {', '.join(wrong)}")


class Finetuning:
    """The moving parts of stage 2. `finetune` runs it; tests step it."""

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        valid: Split,
        labels: Mapping[str, Mapping[str, Tensor]],
        config: Config,
        task: Task,
    ):
        """`model`: Batch → Fused. `labels`: split → modality → frozen hard labels (N,), −1 for none."""
        self.model, self.config, self.task = model, config, task
        self.splits = {"train": train, "valid": valid}
        self.weight = class_weights(train, config, task)
        self.labels = labels
        self.optimizer = optimizer([model], config)

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        """One pass; the mean loss per clip."""
        self.model.train()
        means = Means()
        for batch in batches:
            loss = self.loss("train", batch)[0]
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            means.add({"loss": loss}, len(batch.index))
        return means.over(len(self.splits["train"]))["loss"]

    def validate(self) -> float:
        """The mean loss per validation clip."""
        return self.figures()["valid"]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Mean loss and accuracy on the validation split."""
        self.model.eval()
        valid, means = self.splits["valid"], Means()
        right = []
        for batch in valid.batches(self.config.batch_size):
            loss, output = self.loss("valid", batch)
            means.add({"valid": loss}, len(batch.index))
            right.append(output.logits.argmax(1) == valid.label("M")[batch.index])
        return means.over(len(valid)) | {"valid_accuracy": int(torch.cat(right).sum()) / len(valid)}

    def loss(self, split: str, batch: Batch) -> tuple[Tensor, Fused]:
        """CE(pred, M) + Σ_m CE(o_m, c_m) + L_c(h before fusion, c), the cross-entropies with class weights if any."""
        output: Fused = self.model(batch)
        labels = {m: only_present(self.labels[split][m][batch.index], batch, m) for m in output.h}
        loss = cross_entropy(output.logits, self.splits[split].label("M")[batch.index], self.weight)
        for m, logits in output.experts.items():
            loss = loss + cross_entropy(logits, labels[m], self.weight)
        if self.config.contrastive:
            loss = loss + contrast(output.h, labels, batch, self.config, self.task)
        return loss, output


def frozen_labels(
    states: Mapping[str, Mapping[str, Tensor]], splits: Mapping[str, Split], config: Config
) -> dict[str, dict[str, Tensor]]:
    """Hard labels for stage 2: of the stored states, or annotated ones."""
    if config.pretrain == "gt":
        return {name: {m: split.label(LETTERS[m]) for m in config.modalities} for name, split in splits.items()}
    return {name: {m: state.argmax(1) for m, state in of_split.items()} for name, of_split in states.items()}


def finetune(
    model: nn.Module,
    train: Split,
    valid: Split,
    labels: Mapping[str, Mapping[str, Tensor]],
    config: Config,
    task: Task,
    report: Report = silent,
    journal: Journal | None = None,
) -> Finetuned:
    """Run stage 2 until validation loss has not improved for `patience` epochs, from where `journal` says that it was.

    Ctrl-C ends it with the best so far. Raises DivergedError where the loss is not finite in any epoch.
    """
    journal = journal or Journal()
    stage = Finetuning(model, train, valid, labels, config, task)
    order = torch.Generator().manual_seed(config.seed + 1)
    best, kept = Best(config.gain), Finetuned(snapshot(model), 0)
    epoch = 0

    def state() -> dict[str, Any]:
        return {
            "live": owned(model),
            "optimizer": stage.optimizer.state_dict(),
            "order": order.get_state(),
            "best": (best.value, best.epoch),
            "weights": kept.weights,
            "best_epoch": kept.best_epoch,
            "history": kept.history,
        }

    def ended() -> bool:
        return epoch == config.epochs or epoch - best.epoch >= config.patience

    if before := journal.restore("finetune"):
        load_owned(model, before["live"])
        stage.optimizer.load_state_dict(before["optimizer"])
        order.set_state(before["order"])
        best.value, best.epoch = before["best"]
        kept = Finetuned(before["weights"], before["best_epoch"], before["history"])
        epoch = len(kept.history)
    try:
        while not ended():
            epoch += 1
            by_length = config.calibrated and runs_encoder(model)
            trained = stage.train_epoch(train.batches(config.batch_size, order, by_length))
            figures = stage.figures()
            valid_loss = figures["valid"]
            kept.history.append({"epoch": epoch, "train": trained} | figures)
            if best.improves(valid_loss, epoch):
                kept.weights, kept.best_epoch = snapshot(model), epoch
            journal.write("finetune", kept.history[-1], state, ended())
            report("finetune", epoch, config.epochs, {"train": trained, "valid": valid_loss})
    except KeyboardInterrupt:
        kept.interrupted = True
    if not kept.best_epoch and not kept.interrupted:
        raise DivergedError.of(2, "the loss", config)
    return kept
