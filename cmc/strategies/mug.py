"""MUG: unimodal labels corrected by a network that is itself taught by bi-level optimisation.

After *Meta-Learn Unimodal Signals with Weak Supervision for Multimodal Sentiment Analysis* (Mai, Zhao, Zeng, Yao, Hu;
arXiv 2408.16029), whose text leaves the networks open: they, and all that is marked (design), are ours, so this is no
reproduction. Three phases, on labels y that are class distributions or numbers (see labels.py):

1. Pretrain: task(f(x_M), y) + Σ_m task(f_m(x_m), y) + λ·Σ_m InfoNCE(P_m(x_M), x_m). P_m takes the fusion x_M into the
   space of x_m, the negatives are the other clips of the batch.
2. Meta-learn: everything but the corrector MUCN_φ(h, ỹ) stands still. Multimodal denoising, where the clean label is
   known: L_md = Σ_m |MUCN_φ(P_m(x_M), ỹ) − y| with ỹ = y of another clip on a share of the clips. Unimodal denoising,
   where it is not: with ŷ_m = MUCN_φ(x_m, y),

       θ'_m = θ_m − η·∇_θ task(f_m(x_m; θ_m), ŷ_m)                            inner step, on training clips
       φ ← φ − β·∇_φ [ L_md + Σ_m task(f_m(P_m(x_M); θ'_m), y) ]              outer step, on held-out training clips

   The gradient goes through the inner step (`meta_loss`): a corrected label is as good as what it teaches.
3. Joint: task(f(x_M), y) + μ·Σ_m task(f_m(x_m), ŷ_m) with the labels that MUCN gives, and φ frozen.

The rest is (design):

* θ_m are the weights of the unimodal head f_m alone, as the formula has it: x_m is what f_m is given. So encoders do
  not change in phase 2, their output is computed once, in evaluation mode, and no attention is differentiated twice.
* For numbers the inner step descends half the squared error. The absolute error's gradient, a sign, has no derivative
  by ŷ_m: through it the outer step would teach φ nothing (and it did: of planted labels it lost more than it found).
* The held-out clips are a fifth of the training split, never validation clips; held out of the inner step, that is:
  in phases 1 and 3 they are trained on like all others. ỹ is another clip's label on half of
  the clips: so sure a label is, and so much must a representation say against it.
* Labels are made once, at the end of phase 2, for validation clips as well: MUCN was taught with encoders as they
  were then. Phases 1 and 2 take a given number of steps; in phase 3 a modality is kept at the epoch of its
  lowest validation loss against its corrected labels, which do not move.
* Stage 2 wants classes: of a distribution the likeliest, of a number the class whose mean training label is nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from cmc.config import Config
from cmc.data import Batch, Split, Task
from cmc.pretrain import Given, Pretrained, Stage, live_state, restore_live, run
from cmc.strategies.labels import Target, target_of
from cmc.training import Means, optimizer
from cmc.unimodal import Unimodal

STEPS, EPOCHS = 150, 5
"""Of each of the first two phases, at least: a small corpus has few steps in an epoch."""
LAMBDA = 0.1
"""Weight of InfoNCE."""
MU = 1.0
"""Weight of the unimodal tasks in phase 3."""
INNER_RATE = 1.0
"""η."""
OUTER_RATE = 3e-3
"""β, of Adam."""
CORRUPT = 0.5
"""Share of clips whose ỹ is another clip's label."""
HELD_OUT = 0.2
"""Share of the training clips whose labels judge the inner step."""


def pretrain(given: Given) -> Pretrained:
    return run(MUG(given.models, given.train, given.valid, given.config, given.task), given.report, given.journal)


def _epochs(clips: int, batch_size: int) -> int:
    return max(EPOCHS, math.ceil(STEPS / math.ceil(clips / batch_size)))


def info_nce(projected: Tensor, h: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a clip's own h (B, d) among the batch's by its projection (B, d); rows are unit."""
    own = torch.arange(len(h), device=h.device)
    return functional.cross_entropy(projected @ h.T / temperature, own)


def meta_loss(
    head: nn.Module,
    inner_task: Callable[[Tensor, Tensor], Tensor],
    task: Callable[[Tensor, Tensor], Tensor],
    taught: tuple[Tensor, Tensor],
    judged: tuple[Tensor, Tensor],
    rate: float,
) -> Tensor:
    """task on the `judged` inputs and labels after one step of gradient descent of `head` on the `taught` ones.

    Differentiable by the labels that taught, and all that they depend on; the head itself stays as it is.
    """
    theta = {name: value.detach().requires_grad_() for name, value in head.named_parameters()}
    inner = inner_task(functional_call(head, theta, (taught[0],)), taught[1])
    steps = torch.autograd.grad(inner, list(theta.values()), create_graph=True, allow_unused=True)
    moved = {name: v if g is None else v - rate * g for (name, v), g in zip(theta.items(), steps, strict=True)}
    return task(functional_call(head, moved, (judged[0],)), judged[1])


class Corrector(nn.Module):
    """MUCN: a representation and a label → the label that it should be. One for all modalities."""

    def __init__(self, width: int, target: Target):
        super().__init__()
        self.target = target
        self.layers = nn.Sequential(
            nn.Linear(width + target.columns, 4 * width), nn.ReLU(), nn.Linear(4 * width, target.columns)
        )

    def forward(self, h: Tensor, label: Tensor) -> Tensor:
        """h (B, d), label (B, C) → (B, C)."""
        return self.target.label(self.layers(torch.cat([h, label], 1)))


class Networks(nn.Module):
    """Unimodal models, their fusion x_M, its head f and the projections P_m."""

    def __init__(self, models: Mapping[str, Unimodal], config: Config, target: Target):
        super().__init__()
        width = config.width
        self.models = nn.ModuleDict(models)
        self.heads = nn.ModuleDict({m: target.head(model.head) for m, model in models.items()})
        self.join = nn.Sequential(nn.Linear(len(models) * width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(config.out_dropout), nn.Linear(width, target.columns))
        self.project = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for m in models}
        )

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """x_m of each modality and x_M, all (B, d)."""
        h = {m: cast(Unimodal, model).branch(batch) for m, model in self.models.items()}
        return h, self.join(torch.cat(list(h.values()), 1))

    def projected(self, modality: str, x: Tensor) -> Tensor:
        """P_m(x_M), unit rows as x_m has."""
        return functional.normalize(self.project[modality](x), dim=1)


class MUG(Stage):
    """The three phases, one after the other."""

    def __init__(self, models: Mapping[str, Unimodal], train: Split, valid: Split, config: Config, task: Task):
        super().__init__(models, train, valid, config, task)
        device = train.label("M").device
        self.target = target_of(train, config, task)
        self.own = {name: self.target.labels(split) for name, split in self.splits.items()}
        self.networks = Networks(self.models, config, self.target).to(device)
        self.optimizer = optimizer([self.networks], config)
        self.corrector = Corrector(config.width, self.target).to(device)
        self.corrector_optimizer = torch.optim.Adam(self.corrector.parameters(), OUTER_RATE)
        self.corrected: dict[str, dict[str, Tensor]] = {}
        """Split → modality → labels (N, C), from the end of phase 2 on."""
        shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed)).to(device)
        held_out = max(1, round(HELD_OUT * len(train)))
        self.held_out, self.taught = shuffled[:held_out], shuffled[held_out:]
        self.first = _epochs(len(train), config.batch_size)
        """Epochs of phase 1."""
        self.warmup = self.first + _epochs(len(self.taught), config.batch_size)
        self._found: dict[str, tuple[Tensor, Tensor, Tensor]] | None = None

    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        if self.first < epoch <= self.warmup:
            return self._meta_epoch()
        self.networks.train()
        means = Means()
        for batch in batches:
            losses = self._losses("train", batch)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            means.add(losses, len(batch.index))
        return means.over(len(self.splits["train"]))

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Mean losses of the tasks; at the end of phase 2 labels are corrected."""
        if epoch == self.warmup:
            self.corrected = {name: self._correct(split) for name, split in self.splits.items()}
        self.networks.eval()
        means = Means()
        for batch in self.splits["valid"].batches(self.config.batch_size):
            means.add(self._losses("valid", batch), len(batch.index))
        return means.over(len(self.splits["valid"]))

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        return {m: losses[m] for m in self.models}

    def states(self, split: str) -> dict[str, Tensor]:
        if not self.corrected:
            return super().states(split)
        return {m: self.target.states(made) for m, made in self.corrected[split].items()}

    def values(self, split: str) -> dict[str, Tensor]:
        return self.target.values(self.corrected[split]) if self.corrected else {}

    def state(self) -> dict[str, Any]:
        return {
            "networks": live_state({"networks": self.networks}, self.optimizer),
            "corrector": live_state({"corrector": self.corrector}, self.corrector_optimizer),
            "corrected": self.corrected,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_live({"networks": self.networks}, self.optimizer, state["networks"])
        restore_live({"corrector": self.corrector}, self.corrector_optimizer, state["corrector"])
        device = self.held_out.device
        self.corrected = {
            split: {m: made.to(device) for m, made in per.items()} for split, per in state["corrected"].items()
        }

    def _losses(self, split: str, batch: Batch) -> dict[str, Tensor]:
        """Those of phase 3 where labels are corrected, else of phase 1."""
        h, x = self.networks(batch)
        own = self.own[split][batch.index]
        losses = {"M": self.target.loss(self.networks.head(x), own)}
        contrast = []
        for m, found in h.items():
            there = batch.present(m)
            if not there.any():
                losses[m] = found.sum() * 0.0
                continue
            labels = self.corrected[split][m][batch.index] if self.corrected else own
            losses[m] = MU * self.target.loss(self.networks.heads[m](found[there]), labels[there])
            if not self.corrected:
                contrast.append(info_nce(self.networks.projected(m, x[there]), found[there], self.config.temperature))
        if contrast:
            losses["contrast"] = LAMBDA * torch.stack(contrast).sum()
        return losses

    def _meta_epoch(self) -> dict[str, float]:
        """Phase 2: one pass over the clips that are not held out."""
        self.networks.eval()
        if self._found is None:
            self._found = self._representations(self.splits["train"])
        sums, steps = dict.fromkeys(("denoise", "meta"), 0.0), 0
        for rows in self._taught_rows():
            judged = self.held_out[self._drawn(len(self.held_out))[: len(rows)]]
            losses = self._meta_losses(rows, judged)
            self.corrector_optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            self.corrector_optimizer.step()
            steps += 1
            for name, loss in losses.items():
                sums[name] += float(loss.detach())
        return {name: total / steps for name, total in sums.items()}

    def _meta_losses(self, rows: Tensor, judged: Tensor) -> dict[str, Tensor]:
        """L_md on both groups' clips, and the outer task on those that judge, rows (B,) and (J,)."""
        assert self._found is not None
        own, both = self.own["train"], torch.cat([rows, judged])
        noisy = self._noisy(own[both])
        denoise, meta = [], []
        for m, (h, projected, there) in self._found.items():
            taught, known, all_known = rows[there[rows]], judged[there[judged]], there[both]
            if not len(taught) or not len(known):
                continue
            cleaned = self.corrector(projected[both[all_known]], noisy[all_known])
            denoise.append(self.target.distance(cleaned, own[both[all_known]]))
            labels = self.corrector(h[taught], own[taught])
            of_inner, of_outer = (h[taught], labels), (projected[known], own[known])
            tasks = self.target.inner_loss, self.target.loss
            meta.append(meta_loss(self.networks.heads[m], *tasks, of_inner, of_outer, INNER_RATE))
        zero = torch.stack([parameter.sum() * 0.0 for parameter in self.corrector.parameters()]).sum()
        return {"denoise": torch.stack([zero, *denoise]).sum(), "meta": torch.stack([zero, *meta]).sum()}

    def _noisy(self, labels: Tensor) -> Tensor:
        """Labels (B, C), each with a probability of `CORRUPT` another clip's."""
        others = labels[self._drawn(len(labels))]
        swapped = (torch.rand(len(labels)) < CORRUPT).to(labels.device)
        return others.where(swapped[:, None], labels)

    def _taught_rows(self) -> Iterator[Tensor]:
        return iter(self.taught[self._drawn(len(self.taught))].split(self.config.batch_size))

    def _drawn(self, number: int) -> Tensor:
        return torch.randperm(number).to(self.held_out.device)

    @torch.no_grad()
    def _representations(self, split: Split) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Modality → x_m (N, d), P_m(x_M) (N, d) and which clips have it (N,), in evaluation mode."""
        self.networks.eval()
        found = [self.networks(batch) for batch in split.batches(4 * self.config.batch_size)]
        x = torch.cat([joined for _, joined in found])
        return {
            m: (torch.cat([h[m] for h, _ in found]), self.networks.projected(m, x), split.present(m))
            for m in self.models
        }

    def _correct(self, split: Split) -> dict[str, Tensor]:
        """MUCN(x_m, y); a clip that lacks the modality keeps y."""
        own = self.target.labels(split)
        return {
            m: self.corrector(h, own).where(there[:, None], own)
            for m, (h, _, there) in self._representations(split).items()
        }
