"""Stage 1, whatever the strategy: what it is given, what it gives, and the loop over epochs that strategies share.

A strategy (see cmc.strategies) is a module with `pretrain(given) -> Pretrained`. Most are a `Stage`, whose epochs
`run` turns into weights: per modality those of the best validation figure, and the label states of the same epoch.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cmc.config import Config, DivergedError
from cmc.data import Batch, Split, Task
from cmc.journal import Journal
from cmc.strategies import STRATEGIES
from cmc.training import Best, Report, load_owned, moved, owned, silent, snapshot
from cmc.unimodal import Unimodal, runs_encoder


@dataclass(frozen=True, eq=False)
class Given:
    """What a strategy works with, on the device that it is to work on."""

    models: Mapping[str, Unimodal]
    """Modality → an untrained classifier; what is pretrained are its branch and, where labels teach it, its head."""
    train: Split
    valid: Split
    config: Config
    task: Task
    unlabelled: tuple[Split, ...] = ()
    """Further clips, without any label."""
    report: Report = silent
    journal: Journal = field(default_factory=Journal)
    reader: str | None = None
    """The transformers encoder whose output the text arrays are, for strategies that have it read again."""

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "valid": self.valid}


@dataclass
class Pretrained:
    """What stage 2 starts from."""

    weights: dict[str, dict[str, Tensor]]
    """Modality → weights of its classifier; empty: stage 2 starts afresh."""
    states: dict[str, dict[str, Tensor]]
    """Split (`train`, `valid`) → modality → label states (N, K), of those very weights' epoch."""
    best_epoch: dict[str, int]
    history: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Split → modality → labels as numbers (N,), where the strategy makes such."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """What else the run is to keep, such as another network's weights."""


def copies(split: Split, modalities: Iterable[str], task: Task) -> dict[str, Tensor]:
    """Label states (N, K) that are the clip's own label for every modality."""
    own = functional.one_hot(split.label("M"), task.classes).float()
    return {m: own.clone() for m in modalities}


class Stage(ABC):
    """The moving parts of a strategy that learns in epochs. `run` runs it; tests step it."""

    warmup = 0
    """Epochs that prepare: none of them is judged or kept, and they do not count as epochs without improvement."""

    def __init__(self, models: Mapping[str, Unimodal], train: Split, valid: Split, config: Config, task: Task) -> None:
        self.models = dict(models)
        self.splits = {"train": train, "valid": valid}
        self.sources: tuple[Split, ...] = (train,)
        """The clips of an epoch."""
        self.config, self.task = config, task

    @abstractmethod
    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        """One pass of `steps` batches of `sources`; mean losses per clip by name."""

    @abstractmethod
    def validate(self, epoch: int) -> dict[str, float]:
        """Mean validation losses by name."""

    @abstractmethod
    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Modality → which of the validation losses decides whether it is kept; lower is better."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes from step to step, but for the generators. Its tensors need not be copies."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""

    def judged(self, modality: str) -> Unimodal:
        """The model that is validated and kept, in evaluation mode."""
        return self.models[modality].eval()

    def states(self, split: str) -> dict[str, Tensor]:
        """Modality → label states (N, K) as of now; by default copies of the clip's label."""
        return copies(self.splits[split], self.models, self.task)

    def values(self, split: str) -> dict[str, Tensor]:
        """Modality → labels as numbers (N,) as of now, where the strategy makes such."""
        return {}

    def extra(self) -> dict[str, Tensor]:
        """What else the run is to keep, as of now."""
        return {}


def live_state(models: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Of models and their optimiser, for `Stage.state`."""
    return {"live": {name: owned(model) for name, model in models.items()}, "optimizer": optimizer.state_dict()}


def restore_live(
    models: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Put back what `live_state` gave."""
    for name, model in models.items():
        load_owned(model, state["live"][name])
    optimizer.load_state_dict(state["optimizer"])


def run(stage: Stage, report: Report = silent, journal: Journal | None = None) -> Pretrained:
    """Run a stage until no modality has improved for `patience` epochs, from where `journal` says that it was.

    Ctrl-C ends it with what is best so far; before there is any, KeyboardInterrupt goes on. Raises DivergedError where
    a modality's figure is not finite in any epoch.
    """
    journal = journal or Journal()
    config, models = stage.config, stage.models
    order = torch.Generator().manual_seed(config.seed)
    steps = sum(-(-len(split) // config.batch_size) for split in stage.sources)
    most = stage.warmup + config.pretrain_epochs
    best = {m: Best(config.gain) for m in models}
    kept = Pretrained({}, {"train": {}, "valid": {}}, {}, values={"train": {}, "valid": {}})
    epoch = 0

    def state() -> dict[str, Any]:
        return {
            "stage": stage.state(),
            "order": order.get_state(),
            "best": {m: (value.value, value.epoch) for m, value in best.items()},
            "weights": kept.weights,
            "states": kept.states,
            "values": kept.values,
            "extra": kept.extra,
            "best_epoch": kept.best_epoch,
            "history": kept.history,
        }

    def ended() -> bool:
        last = max(stage.warmup, *(value.epoch for value in best.values()))
        return epoch == most or epoch - last >= config.patience

    if before := journal.restore("pretrain"):
        stage.restore(before["stage"])
        order.set_state(before["order"])
        for m, value in best.items():
            value.value, value.epoch = before["best"][m]
        names = ("weights", "states", "best_epoch", "history", "values", "extra")
        device = stage.splits["train"].tokens.device  # a journal gives everything back on the CPU
        kept = Pretrained(**{name: moved(before[name], device) for name in names})
        epoch = len(kept.history)
    try:
        while not ended():
            epoch += 1
            by_length = config.calibrated and runs_encoder(*models.values())
            trained = stage.train_epoch(epoch, _batches(stage.sources, config.batch_size, order, by_length), steps)
            losses = stage.validate(epoch)
            changed = _changed(stage)
            kept.history.append(_row(epoch, trained, losses, changed))
            figures = stage.figures(losses) if epoch > stage.warmup else {}
            improved = [m for m in figures if best[m].improves(figures[m], epoch)]
            for m in improved:
                kept.weights[m] = snapshot(stage.judged(m))
                kept.best_epoch[m] = epoch
            if improved:
                # The published code stores all labels whenever any modality improves.
                _keep_labels(kept, stage, improved if config.calibrated else list(models))
                kept.extra = {name: tensor.clone() for name, tensor in stage.extra().items()}
            journal.write("pretrain", kept.history[-1], state, ended())
            report("pretrain", epoch, most, losses | {"relabelled": sum(changed.values()) / len(models)})
    except KeyboardInterrupt:
        if len(kept.weights) < len(models):
            raise
        kept.interrupted = True
    if lost := [m for m in models if m not in kept.weights]:
        raise DivergedError.of(1, f"the loss of {', '.join(lost)}", config)
    return kept


def _batches(sources: tuple[Split, ...], size: int, order: torch.Generator, by_length: bool) -> Iterator[Batch]:
    """All clips once, shuffled; batches of several splits come in any order, each of one split."""
    found = [split.batches(size, order, by_length) for split in sources]
    if len(found) == 1:
        return found[0]
    turns = torch.cat([torch.full((-(-len(split) // size),), k) for k, split in enumerate(sources)])
    return (next(found[k]) for k in turns[torch.randperm(len(turns), generator=order)].tolist())


def _keep_labels(kept: Pretrained, stage: Stage, modalities: Iterable[str]) -> None:
    for split in kept.states:
        states, values = stage.states(split), stage.values(split)
        for m in modalities:
            kept.states[split][m] = states[m].clone()
            if m in values:
                kept.values[split][m] = values[m].clone()


def _changed(stage: Stage) -> dict[str, float]:
    """Modality → share of training clips whose label differs from their own."""
    own = stage.splits["train"].label("M")
    return {m: float((states.argmax(1) != own).float().mean()) for m, states in stage.states("train").items()}


def _row(
    epoch: int, trained: Mapping[str, float], losses: Mapping[str, float], changed: Mapping[str, float]
) -> dict[str, float]:
    named = {f"train_{name}": value for name, value in trained.items()}
    named |= {f"valid_{name}": value for name, value in losses.items()}
    return {"epoch": epoch} | named | {f"relabelled_{name}": value for name, value in changed.items()}


def pretrain(given: Given) -> Pretrained:
    """Stage 1 by the config's strategy. Raises UsageError where the data lacks what it learns from."""
    module = importlib.import_module(f"cmc.strategies.{STRATEGIES[given.config.pretrain].module}")
    return module.pretrain(given)
