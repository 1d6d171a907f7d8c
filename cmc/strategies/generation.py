"""Cross-modal generation: each modality's features from those of the others; no label is read.

A branch encodes each modality's steps. For every step of a target modality a query, which knows nothing but the
modality and the step's place within its clip, attends to the encoded steps of the *other* modalities, and a linear
layer makes the features from what it found. All steps are made at once: none is fed back, so training and use are the
same. Targets are in units of the training clips' scatter (see targets), the loss is SmoothL1 over measured steps of
clips that have something to generate from. The branches go to stage 2, with heads that are taught on them at the end
(see heads). The decoder is ours (design).

**Completion.** The decoder stays with the run, and makes up a modality that a clip lacks (`--complete`). What is made
are features, not the representation h: stage 2 moves the encoders on, so an h from stage 1's would no longer be one of
theirs, while features are what they were before. A clip gets as many steps as the median training clip has; what is
made is in no training figure, and is marked wherever it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.config import Config, UsageError
from cmc.data import Batch, Split, Task
from cmc.pretrain import Given, Pretrained, Stage, live_state, restore_live, run
from cmc.strategies.heads import teach_heads
from cmc.strategies.steps import CrossAttention, branch_steps
from cmc.strategies.targets import Targets, answers, clock, mask_of, smooth_l1, times
from cmc.training import optimizer
from cmc.unimodal import Unimodal


class Decoder(nn.Module):
    """Encoded steps of some modalities → features of another, normalised."""

    def __init__(self, columns: Mapping[str, int], config: Config):
        super().__init__()
        width = config.width
        self.kinds = nn.ParameterDict({m: nn.Parameter(torch.randn(width) / width**0.5) for m in columns})
        self.wanted = nn.ParameterDict({m: nn.Parameter(torch.randn(width) / width**0.5) for m in columns})
        self.layer = CrossAttention(width, config.heads, config.dropout)
        self.norm = nn.LayerNorm(width)
        self.out = nn.ModuleDict({m: answers(width, number) for m, number in columns.items()})
        self.targets = nn.ModuleDict({m: Targets(number) for m, number in columns.items()})

    def target(self, modality: str) -> Targets:
        return cast(Targets, self.targets[modality])

    def sources(self, encoded: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality → its encoded steps (B, L, d) with their place in the clip and their kind."""
        return {m: h + clock(times(masks[m]), h.shape[2]) + self.kinds[m] for m, h in encoded.items()}

    def forward(
        self, target: str, wanted: Tensor, sources: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> Tensor:
        """Normalised features (R, D) of the steps of modality `target` in wanted (B, Q), clip by clip.

        Each clip needs a step of another modality in `masks`; the target's own steps are not looked at.
        """
        others = [m for m in sources if m != target]
        steps, mask = torch.cat([sources[m] for m in others], 1), torch.cat([masks[m] for m in others], 1)
        query = clock(times(wanted), steps.shape[2]) + self.wanted[target]
        return self.out[target](self.norm(self.layer(query, steps, mask)[wanted]))


class Generation(Stage):
    """The moving parts: a branch per modality, and one decoder."""

    def __init__(
        self,
        models: Mapping[str, Unimodal],
        train: Split,
        valid: Split,
        config: Config,
        task: Task,
        unlabelled: Sequence[Split] = (),
    ):
        super().__init__(models, train, valid, config, task)
        if len(models) < 2:
            raise UsageError("generation makes one modality from the others: --use names just one")
        self.sources = (train, *unlabelled)
        columns = {m: int(train.inputs[m].shape[2]) for m in models}
        self.decoder = Decoder(columns, config).to(train.tokens.device)
        for m in columns:
            self.decoder.targets[m] = Targets.of(self.sources, m)
        self.optimizer = optimizer([*self.models.values(), self.decoder], config)

    def train_epoch(self, epoch: int, batches: Iterable[Batch], steps: int) -> dict[str, float]:
        for module in (*self.models.values(), self.decoder):
            module.train()
        sums, counts = dict.fromkeys(self.models, 0.0), dict.fromkeys(self.models, 0)
        for batch in batches:
            made = reconstruct(self.models, self.decoder, batch)
            if not made:
                continue
            losses = {m: smooth_l1(*pair) for m, pair in made.items()}
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            for m, loss in losses.items():
                sums[m] += float(loss.detach()) * len(made[m][0])
                counts[m] += len(made[m][0])
        return {m: sums[m] / max(counts[m], 1) for m in sums}

    @torch.no_grad()
    def validate(self, epoch: int) -> dict[str, float]:
        """Per modality the loss over all measured values, and that of always answering the training mean."""
        for module in (*self.models.values(), self.decoder):
            module.eval()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for batch in self.splits["valid"].batches(self.config.batch_size):
            for m, (made, target) in reconstruct(self.models, self.decoder, batch).items():
                for name, answer in ((m, made), (f"{m}_mean", torch.zeros_like(target))):
                    sums[name] = sums.get(name, 0.0) + float(smooth_l1(answer, target)) * len(target)
                    counts[name] = counts.get(name, 0) + len(target)
        return {name: sums[name] / counts[name] for name in sums}

    def figures(self, losses: Mapping[str, float]) -> dict[str, float]:
        # One decoder serves all branches, so they are kept together.
        return dict.fromkeys(self.models, sum(losses[m] for m in self.models if m in losses))

    def state(self) -> dict[str, Any]:
        return live_state({**self.models, "decoder": self.decoder}, self.optimizer)

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_live({**self.models, "decoder": self.decoder}, self.optimizer, state)

    def extra(self) -> dict[str, Tensor]:
        return self.decoder.state_dict()


def reconstruct(models: Mapping[str, Unimodal], decoder: Decoder, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Modality → what is made of its measured steps from the others, and what they are: both (R, D), normalised.

    Only of clips that have another modality; a modality that no clip has is left out.
    """
    masks = {m: mask_of(batch, m) for m in models}
    sources = decoder.sources({m: branch_steps(models[m].branch, batch.inputs[m], masks[m]) for m in models}, masks)
    found = {}
    for m in models:
        clips = masks[m].any(1) & torch.cat([masks[other] for other in models if other != m], 1).any(1)
        if clips.any():
            made = decoder(m, masks[m][clips], _of(sources, clips), _of(masks, clips))
            found[m] = made, decoder.target(m)(batch.inputs[m][clips][masks[m][clips]])
    return found


@torch.no_grad()
def complete(
    models: Mapping[str, Unimodal], decoder: Decoder, batch: Batch, fill: Sequence[str] | None = None
) -> Batch:
    """The batch with features for modalities that clips lack, made from those that they have.

    `fill` names the modalities that may be made; None: all. A clip without any stays as it is.
    """
    masks = {m: mask_of(batch, m) for m in models}
    sources = decoder.sources({m: branch_steps(models[m].branch, batch.inputs[m], masks[m]) for m in models}, masks)
    inputs, filled = dict(batch.inputs), dict(batch.masks)
    for m, clips in lacking({m: masks[m].any(1) for m in models}).items():
        if not clips.any() or (fill is not None and m not in fill):
            continue
        target = decoder.target(m)
        wanted = torch.ones(int(clips.sum()), int(target.steps), dtype=torch.bool, device=clips.device)
        made = target.features(decoder(m, wanted, _of(sources, clips), _of(masks, clips))).unflatten(0, wanted.shape)
        longest = max(masks[m].shape[1], wanted.shape[1])
        values = functional.pad(inputs[m], (0, 0, 0, longest - inputs[m].shape[1]))
        mask = functional.pad(masks[m], (0, longest - masks[m].shape[1]))
        values[clips, : wanted.shape[1]], mask[clips, : wanted.shape[1]] = made, True
        inputs[m], filled[m] = values, mask
    return replace(batch, inputs=inputs, masks=filled)


def lacking(present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Modality → clips (B,) that lack it and have another, from who has what."""
    anything = torch.stack(list(present.values())).any(0)
    return {m: ~there & anything for m, there in present.items()}


def _of(tensors: Mapping[str, Tensor], clips: Tensor) -> dict[str, Tensor]:
    return {m: tensor[clips] for m, tensor in tensors.items()}


def pretrain(given: Given) -> Pretrained:
    """Stage 1. Raises UsageError where there is just one modality."""
    stage = Generation(given.models, given.train, given.valid, given.config, given.task, given.unlabelled)
    found = run(stage, given.report, given.journal)
    return replace(found, weights=teach_heads(given, found.weights))
