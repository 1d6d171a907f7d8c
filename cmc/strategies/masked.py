"""Masked cross-modal pretraining: hidden wordpieces and frames from what is left of all modalities; no label is read.

About 15 % of each modality's steps are hidden: single wordpieces, but runs of frames, since a lone frame is the mean of
its neighbours. A branch encodes the steps that are left as if the hidden ones were not there; a cross-modal transformer
sees these and, in the hidden places, a vector that says no more than which modality and when (He et al. 2022, arXiv
2111.06377, for pictures). As no encoder ever meets a mask's vector, BERT's remedy for its absence in later use, leaving
20 % of the chosen pieces in sight, has nothing to remedy. Targets: wordpieces by cross entropy over those that occur in
training, divided by the log of their number so that ignorance costs about as much as a frame's; frames by SmoothL1 in
units of the training clips' scatter. Special wordpieces and padding are no targets. Branches go to stage 2, with heads
that are taught on them at the end (see heads). All but the loss is ours (design).

**The answer must not leak.** Text arrays are a text encoder's output, in which every vector has seen every word: to
hide one vector hides nothing. So the encoder reads the transcripts again without the hidden pieces (they are taken out
of its attention), once for each of `VERSIONS` ways to hide some, and epochs take turns in them: what an epoch costs
stays as it is. Where the features name no encoder, vectors are hidden as they are. That is right for vectors of single
words, as GloVe's; of an unknown contextual encoder it makes the task easier than it should be, and so does sound from
one (wav2vec 2.0 and its like), whose frames have heard their neighbours. Files of word vectors have no wordpieces:
there the vectors are targets, as frames are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.config import Config
from cmc.data import Batch, Split, Task
from cmc.pretrain import Given, Pretrained, Stage, live_state, restore_live, run
from cmc.strategies.heads import teach_heads
from cmc.strategies.steps import branch_steps, encode_steps, transformer
from cmc.strategies.targets import Targets, answers, clock, mask_of, smooth_l1, times
from cmc.text_encoder import cache, load_encoder
from cmc.training import optimizer
from cmc.unimodal import TextModel, Unimodal

SHARE = 0.15
"""Of steps that are hidden."""
SPAN = {"text": 1, "audio": 4, "vision": 4}
"""Steps of a run that is hidden as one."""
VERSIONS = 4
"""Ways to hide wordpieces that a text encoder reads; epochs take turns."""
_VALIDATION = 1 << 32  # the seed of what is hidden there, the same in every epoch, is beyond any epoch's


class Pieces(nn.Module):
    """The wordpieces that occur in training, numbered; all others are unknown."""

    numbers: Tensor
    log_share: Tensor

    def __init__(self, ids: Tensor):
        """ids (R,) of all of them, as often as they occur."""
        super().__init__()
        found, counts = ids.unique(return_counts=True)
        numbers = torch.full((int(found.max()) + 1,), -1, device=ids.device)
        numbers[found] = torch.arange(len(found), device=ids.device)
        self.register_buffer("numbers", numbers)
        self.register_buffer("log_share", (counts / counts.sum()).log())

    def __len__(self) -> int:
        return len(self.log_share)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids → numbers, −1 of unknown ones."""
        return self.numbers[ids.clamp(max=len(self.numbers) - 1)].where(ids < len(self.numbers), -1)


class Filler(nn.Module):
    """The cross-modal transformer: encoded steps with gaps → what belongs into the gaps."""

    def __init__(self, columns: Mapping[str, int], config: Config, pieces: Pieces | None):
        super().__init__()
        width = config.width
        self.kinds = nn.ParameterDict({m: nn.Parameter(torch.randn(width) / width**0.5) for m in columns})
        self.gap = nn.ParameterDict({m: nn.Parameter(torch.randn(width) / width**0.5) for m in columns})
        self.encoder = transformer(width, config.heads, 1, config.dropout)
        self.norm = nn.LayerNorm(width)
        self.pieces = pieces
        self.out = nn.ModuleDict({m: answers(width, number) for m, number in columns.items()})
        if pieces is not None:
            self.out["text"] = answers(width, len(pieces), pieces.log_share)
        self.targets = nn.ModuleDict({m: Targets(n) for m, n in columns.items() if m != "text" or pieces is None})

    def forward(
        self, encoded: Mapping[str, Tensor], masks: Mapping[str, Tensor], hidden: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Modality → answers (R, D or pieces) for its steps in hidden (B, L), clip by clip."""
        parts = [
            torch.where(hidden[m][:, :, None], self.gap[m], h) + clock(times(masks[m]), h.shape[2]) + self.kinds[m]
            for m, h in encoded.items()
        ]
        mixed = encode_steps(self.encoder, torch.cat(parts, 1), torch.cat([masks[m] for m in encoded], 1))
        back = mixed.split([part.shape[1] for part in parts], 1)
        return {m: self.out[m](self.norm(h[hidden[m]])) for m, h in zip(encoded, back, strict=True)}


class Masked(Stage):
    """The moving parts: a branch per modality, and one cross-modal transformer."""

    def __init__(
        self,
        models: Mapping[str, Unimodal],
        train: Split,
        valid: Split,
        config: Config,
        task: Task,
        unlabelled: Sequence[Split] = (),
        encoder: TextModel | None = None,
    ):
        super().__init__(models, train, valid, config, task)
        splits = (train, *unlabelled)
        columns = {m: int(train.inputs[m].shape[2]) for m in models}
        ids = torch.cat([split.tokens[:, 0][pieces_of(split.tokens, _text_mask(split))] for split in splits])
        words = "text" in models and bool(ids.any())
        self.filler = Filler(columns, config, Pieces(ids) if words else None).to(train.tokens.device)
        for m in self.filler.targets:
            self.filler.targets[m] = Targets.of(splits, m)
        self.read_again = words and encoder is not None
        self.versions, self.held_out = [splits], valid
        if words and encoder is not None:
            # What is hidden is drawn apart from all else, so that it does not depend on the models.
            draws = torch.Generator().manual_seed(config.seed)
            self.versions = [tuple(read(split, encoder, draws) for split in splits) for _ in range(VERSIONS)]
            self.held_out = read(valid, encoder, draws)
        self.epochs = 0
        self.optimizer = optimizer([*self.models.values(), self.filler], config)

    @property
    def sources(self) -> tuple[Split, ...]:
        """The clips of the next epoch, with what its turn hides from the text encoder."""
        return self.versions[self.epochs % len(self.versions)]

    @sources.setter
    def sources(self, given: tuple[Split, ...]) -> None:
        """The base class sets what it would be without versions."""

    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        self.epochs += 1
        for module in (*self.models.values(), self.filler):
            module.train()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for batch in batches:
            losses, found, _ = self.losses(batch, self.hidden(batch))
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            _add(sums, counts, losses, found)
        return {name: sums[name] / counts[name] for name in sums}

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Per modality the loss over all hidden steps, and that of the training clips' mean, or pieces' shares."""
        for module in (*self.models.values(), self.filler):
            module.eval()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        draws = torch.Generator(self.held_out.tokens.device).manual_seed(self.config.seed + _VALIDATION)
        for batch in self.held_out.batches(self.config.batch_size):
            losses, found, means = self.losses(batch, self.hidden(batch, draws))
            _add(sums, counts, losses, found)
            _add(
                sums,
                counts,
                {f"{m}_mean": loss for m, loss in means.items()},
                {f"{m}_mean": n for m, n in found.items()},
            )
        return {name: sums[name] / counts[name] for name in sums}

    def hidden(self, batch: Batch, draws: torch.Generator | None = None) -> dict[str, Tensor]:
        """Modality → steps (B, L) to hide: of text those that its encoder did not read, if it read again."""
        made = {}
        for m in self.models:
            mask = mask_of(batch, m)
            if m == "text" and self.read_again:
                made[m] = mask & (batch.tokens[:, 1] == 0)
            else:
                made[m] = hide(pieces_of(batch.tokens, mask) if m == "text" else mask, SPAN[m], draws)
        return made

    def losses(
        self, batch: Batch, hidden: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Tensor]]:
        """Modality → loss over its hidden steps, how many these are, and the loss of an answer that sees nothing."""
        masks = {m: mask_of(batch, m) for m in self.models}
        encoded = {
            m: branch_steps(model.branch, batch.inputs[m], masks[m] & ~hidden[m]) for m, model in self.models.items()
        }
        answers = self.filler(encoded, masks, hidden)
        losses, counts, means = {}, {}, {}
        for m, answer in answers.items():
            if m in self.filler.targets:
                target = self.filler.targets[m](batch.inputs[m][hidden[m]])
                losses[m], means[m] = smooth_l1(answer, target), smooth_l1(torch.zeros_like(target), target)
                counts[m] = len(target)
                continue
            pieces = self.filler.pieces
            assert pieces is not None, "text without targets has pieces"
            target = pieces(batch.tokens[:, 0][hidden[m]])
            known = target >= 0
            losses[m] = _piece_loss(answer[known], target[known])
            means[m] = _piece_loss(pieces.log_share.expand_as(answer)[known], target[known])
            counts[m] = int(known.sum())
        return losses, counts, means

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        # One transformer serves all branches, so they are kept together.
        return dict.fromkeys(self.models, sum(losses[m] for m in self.models if m in losses))

    def state(self) -> dict[str, Any]:
        return live_state({**self.models, "filler": self.filler}, self.optimizer) | {"epochs": self.epochs}

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_live({**self.models, "filler": self.filler}, self.optimizer, state)
        self.epochs = state["epochs"]


def hide(mask: Tensor, span: int, draws: torch.Generator | None = None) -> Tensor:
    """About `SHARE` of the steps in mask (B, L), in runs of `span`; what lies outside of the mask changes nothing."""
    clips, steps = mask.shape
    first = torch.randint(span, (clips, 1), generator=draws, device=mask.device)
    run = (torch.arange(steps, device=mask.device) + first) // span
    chosen = torch.rand(clips, steps // span + 2, generator=draws, device=mask.device) < SHARE
    return mask & chosen.gather(1, run)


def pieces_of(tokens: Tensor, mask: Tensor) -> Tensor:
    """The steps in mask (N, L) without the special pieces, a transcript's first and last, where ids are known."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = (steps * mask).amax(1, keepdim=True)
    known = (tokens[:, 0, : mask.shape[1]] != 0).any(1, keepdim=True)
    return mask & ~(known & ((steps == 0) | (steps == last)))


def read(split: Split, encoder: TextModel, draws: torch.Generator) -> Split:
    """The split with the text of an encoder that does not attend to hidden pieces; these are 0 in `tokens[:, 1]`."""
    mask = _text_mask(split)
    hidden = hide(pieces_of(split.tokens, mask).cpu(), SPAN["text"], draws).to(mask.device)
    tokens = split.tokens.clone()
    tokens[:, 1][hidden] = 0
    found = cache(replace(split, tokens=tokens), encoder.to(tokens.device)).to(tokens.device)
    return replace(found, masks={**split.masks, "text": mask})


def _text_mask(split: Split) -> Tensor:
    mask = split.masks["text"]
    return torch.ones_like(split.tokens[:, 0], dtype=torch.bool) if mask is None else mask


def _piece_loss(logits: Tensor, numbers: Tensor) -> Tensor:
    """Cross entropy in units of the log of how many pieces there are; 0 with gradient where there is none."""
    if not len(numbers):
        return logits.sum() * 0.0
    return functional.cross_entropy(logits, numbers) / math.log(max(logits.shape[1], 2))


def _add(
    sums: dict[str, float], counts: dict[str, int], losses: Mapping[str, Tensor], found: Mapping[str, int]
) -> None:
    for name, loss in losses.items():
        if found[name]:
            sums[name] = sums.get(name, 0.0) + float(loss.detach()) * found[name]
            counts[name] = counts.get(name, 0) + found[name]


def pretrain(given: Given) -> Pretrained:
    """Stage 1. Raises MissingModelError where the features' text encoder is not on this machine."""
    encoder = load_encoder(given.reader, frozen=True) if given.reader else None
    stage = Masked(given.models, given.train, given.valid, given.config, given.task, given.unlabelled, encoder)
    found = run(stage, given.report, given.journal)
    return replace(found, weights=teach_heads(given, found.weights))
