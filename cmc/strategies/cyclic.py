"""Cyclic translation, after MCTN (Pham et al. 2019, arXiv 1812.07809): text is translated into sight and sound.

First level: text is encoded, decoded into vision, and what was decoded is encoded and decoded back into text by the
same encoder and decoder (the cycle). Second level: the first encoding is encoded again and decoded into audio. The
head reads that last encoding. Loss = 0.1·MSE(vision) + 0.1·MSE(cycle) + 0.1·MSE(audio) + task. Translation is only ever
a target, so text alone is enough to predict from, and `cmc evaluate` shows how well that goes.

Ours (design):

* Encoders and decoders are GRUs over a clip's steps, each after what it reads has been brought to the common width: by
  text's branch where that is text, by a linear layer where it is decoded vision. Their outputs are added to what they
  read, so the last encoding stays in the space of the branch's own h, and branch and head go to stage 2 together.
  Sight and sound have no encoder in this, but stage 2 needs one of each: theirs are taught the task beside it, on
  copies of the clip's label. Left untaught, they would have nothing to say against a text that is.
* A decoder is fed neither the truth nor what it said before. Its input at a step is what attention, asked for that
  moment of the clip, finds in the encoding. What it said before is a linear function of the state that it has anyway;
  and training and use are then the same.
* Targets are in units of the training clips' scatter, and long clips are averaged in windows of equal length to at most
  `STEPS` steps (400 of them one after the other would take most of the time). Padding is no target, and a clip that
  lacks a modality adds nothing to its term.
* Without vision in use, the first level is between text and audio, and there is no second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.config import Config, UsageError
from cmc.data import Batch, Split, Task
from cmc.losses import cross_entropy
from cmc.pretrain import Given, Pretrained, Stage, live_state, restore_live, run
from cmc.rows import averaged
from cmc.strategies.steps import CrossAttention, branch_steps
from cmc.strategies.targets import Targets, answers, clock, mask_of, times
from cmc.training import Means, class_weights, only_present, optimizer
from cmc.unimodal import Output, Unimodal

WEIGHT = 0.1
"""Of each translation's error."""
INTO, CYCLE = "to_", "cycle"
"""Names of losses: into a modality, and back into text."""
STEPS = 32
"""Most steps of a target."""


class Level(nn.Module):
    """A sequence-to-sequence network at the common width: (B, L, d) → encoding (B, L, d) → decoding (B, T, d)."""

    def __init__(self, config: Config):
        super().__init__()
        self.reader = nn.GRU(config.width, config.width, batch_first=True)
        self.attention = CrossAttention(config.width, config.heads, config.dropout)
        self.writer = nn.GRU(config.width, config.width, batch_first=True)
        self.norm = nn.LayerNorm(config.width)

    def encode(self, x: Tensor) -> Tensor:
        """A step's encoding depends on it and on those before it: padding, which comes last, reaches none."""
        return x + self.reader(x)[0]

    def decode(self, encoding: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Steps wanted (B, T) of a translation of the encoding's steps in mask (B, L), one at least."""
        moment = clock(times(wanted), encoding.shape[2])
        found = self.attention(moment, encoding + clock(times(mask), encoding.shape[2]), mask)
        return self.norm(found + self.writer(found)[0])


class Cyclic(nn.Module):
    """All but the branch and the head of text."""

    def __init__(self, columns: Mapping[str, int], config: Config):
        super().__init__()
        if "text" not in columns:
            raise UsageError("cyclic translates text: --use does not name it")
        self.into = [m for m in ("vision", "audio") if m in columns]
        if not self.into:
            raise UsageError("cyclic translates text into vision and audio: --use names neither")
        self.first = Level(config)
        self.second = Level(config) if len(self.into) > 1 else None
        self.back = nn.Linear(columns[self.into[0]], config.width)
        self.out = nn.ModuleDict({m: answers(config.width, number) for m, number in columns.items()})
        self.targets = nn.ModuleDict({m: Targets(number) for m, number in columns.items()})

    def encode(self, text: Unimodal, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """First and last encoding (B, L, d), and which of their steps are there (B, L)."""
        mask = mask_of(batch, "text")
        x, mask = leftmost(branch_steps(text.branch, batch.inputs["text"], mask), mask)
        first = self.first.encode(x)
        return first, first if self.second is None else self.second.encode(first), mask

    def forward(self, text: Unimodal, batch: Batch) -> tuple[Output, dict[str, tuple[Tensor, Tensor]]]:
        """The prediction, from text alone; and by name translations and what they should be, (R, D), normalised.

        `to_vision`, `to_audio`; `cycle`: text, back from the first of them. Only of clips that have both modalities.
        """
        first, last, mask = self.encode(text, batch)
        return _answer(text, last, mask), self._translate(first, last, mask, batch)

    def predict(self, text: Unimodal, batch: Batch) -> Output:
        """From text alone; of clips without text nothing is known: h is 0."""
        _, last, mask = self.encode(text, batch)
        return _answer(text, last, mask)

    def _translate(self, first: Tensor, last: Tensor, mask: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for m, level, encoding in zip(self.into, (self.first, self.second), (first, last), strict=False):
            assert level is not None
            clips = mask.any(1) & batch.present(m)
            if not clips.any():
                continue
            target, wanted = self._target(batch, m, clips)
            made = self.out[m](level.decode(encoding[clips], mask[clips], wanted))
            pairs[f"{INTO}{m}"] = made[wanted], target[wanted]
            if level is self.first:
                target, asked = self._target(batch, "text", clips)
                returned = level.decode(level.encode(self.back(made)), wanted, asked)
                pairs[CYCLE] = self.out["text"](returned[asked]), target[asked]
        return pairs

    def _target(self, batch: Batch, modality: str, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised steps (B, T, D) of some clips, leftmost and averaged to at most `STEPS`, and their mask."""
        x, mask = leftmost(batch.inputs[modality][clips], mask_of(batch, modality)[clips])
        if x.shape[1] > STEPS:
            x, mask = averaged(x, mask, STEPS)
        return self.targets[modality](x), mask


def _answer(text: Unimodal, last: Tensor, mask: Tensor) -> Output:
    total = (last * mask[:, :, None]).sum(1)
    h = functional.normalize(total / mask.sum(1, keepdim=True).clamp_min(1), dim=1)
    return Output(text.head(h), h)


def leftmost(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of x (B, L, D) in mask (B, L) moved to the front in their order, the others cut off or 0."""
    lengths = mask.sum(1)
    there = torch.arange(max(int(lengths.max()), 1), device=mask.device) < lengths[:, None]
    made = x.new_zeros(*there.shape, x.shape[2])
    made[there] = x[mask]
    return made, there


class Cycle(Stage):
    """The moving parts: the networks that translate, and each modality's branch and head."""

    def __init__(self, models: Mapping[str, Unimodal], train: Split, valid: Split, config: Config, task: Task):
        super().__init__(models, train, valid, config, task)
        columns = {m: int(train.inputs[m].shape[2]) for m in models}
        self.network = Cyclic(columns, config).to(train.tokens.device)
        for m in columns:
            self.network.targets[m] = Targets.of([train], m)
        self.weight = class_weights(train, config, task)
        self.taught = {**self.models, "network": self.network}
        self.optimizer = optimizer(self.taught.values(), config)

    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        for module in self.taught.values():
            module.train()
        means = Means()
        for batch in batches:
            losses = self.losses("train", batch)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack([loss * weight_of(name) for name, loss in losses.items()]).sum().backward()
            self.optimizer.step()
            means.add(losses, len(batch.index))
        return means.over(len(self.splits["train"]))

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        for module in self.taught.values():
            module.eval()
        means = Means()
        for batch in self.splits["valid"].batches(self.config.batch_size):
            means.add(self.losses("valid", batch), len(batch.index))
        return means.over(len(self.splits["valid"]))

    def losses(self, split: str, batch: Batch) -> dict[str, Tensor]:
        """Modality → its task loss; `to_vision`, `to_audio`, `cycle` → mean squared errors, without those of none."""
        output, translations = self.network(self.models["text"], batch)
        logits = {m: output.logits if m == "text" else model(batch).logits for m, model in self.models.items()}
        labels = self.splits[split].label("M")[batch.index]
        losses = {m: cross_entropy(said, only_present(labels, batch, m), self.weight) for m, said in logits.items()}
        return losses | {name: functional.mse_loss(*pair) for name, pair in translations.items()}

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        # Text's branch and the network are of use together only, so all are kept together.
        return dict.fromkeys(self.models, sum(value * weight_of(name) for name, value in losses.items()))

    def state(self) -> dict[str, Any]:
        return live_state(self.taught, self.optimizer)

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_live(self.taught, self.optimizer, state)

    def extra(self) -> dict[str, Tensor]:
        return self.network.state_dict()


def weight_of(loss: str) -> float:
    """Errors of translation count a tenth."""
    return WEIGHT if loss == CYCLE or loss.startswith(INTO) else 1.0


def pretrain(given: Given) -> Pretrained:
    """Stage 1. Raises UsageError where text, or both of the others, are not in use."""
    return run(Cycle(given.models, given.train, given.valid, given.config, given.task), given.report, given.journal)
