"""Features as targets: in units of the training clips' scatter, and a loss over the steps that were measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.data import Batch, Split

_CONSTANT = 1e-6
"""Scatter below this share of a column's mean is rounding: such a column is no target."""
_BATCH = 256


class Targets(nn.Module):
    """A modality's columns, normalised with the mean and standard deviation of the training clips' measured steps.

    Always answering the training mean is an answer of 0. A column that never changes in training has nothing to be
    learnt: its target is 0 everywhere.
    """

    mean: Tensor
    std: Tensor
    steps: Tensor

    def __init__(self, columns: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.zeros(columns))
        self.register_buffer("steps", torch.ones((), dtype=torch.int64))
        """Median length of the training clips that have the modality: how much is made where a clip has none."""

    @classmethod
    def of(cls, splits: Sequence[Split], modality: str) -> Targets:
        """Fitted to the clips that are trained on; their rows are read batch by batch, in float64."""
        made = cls(int(splits[0].inputs[modality].shape[2]))
        count, mean = 0, torch.zeros(len(made.mean), dtype=torch.float64)
        squares, lengths = torch.zeros_like(mean), []
        for batch in (batch for split in splits for batch in split.batches(_BATCH)):
            mask = mask_of(batch, modality)
            rows = batch.inputs[modality][mask].double().cpu()
            lengths.append(mask.sum(1).cpu())
            if not len(rows):
                continue
            # Chan et al. 1983: sums of squares around each batch's own mean do not cancel.
            shift, total = rows.mean(0) - mean, count + len(rows)
            squares += ((rows - rows.mean(0)) ** 2).sum(0) + shift**2 * (count * len(rows) / total)
            mean += shift * (len(rows) / total)
            count = total
        std = (squares / max(count, 1)).sqrt()
        made.mean.copy_(mean)
        made.std.copy_(std.where(std > _CONSTANT * mean.abs(), 0.0))
        if len(there := torch.cat(lengths)[torch.cat(lengths) > 0]):
            made.steps.copy_(there.median())
        return made.to(splits[0].tokens.device)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., D) → targets (..., D)."""
        varies = self.std > 0
        return ((features - self.mean) / self.std.where(varies, 1.0)).where(varies, 0.0)

    def features(self, targets: Tensor) -> Tensor:
        """Back to the units of the features, shape (..., D)."""
        return targets * self.std + self.mean


def mask_of(batch: Batch, modality: str) -> Tensor:
    """Shape (B, L) bool: the steps that were measured, as a tensor in any case."""
    mask = batch.masks[modality]
    if mask is not None:
        return mask
    values = batch.inputs[modality]
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def times(mask: Tensor) -> Tensor:
    """Where in its clip a step lies, from 0 to 1, shape (B, L) of mask (B, L): a clock that modalities share.

    A clip ends with its last measured step.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    lengths = ((steps + 1) * mask).amax(1, keepdim=True).clamp_min(1)
    return (steps + 0.5) / lengths


def clock(time: Tensor, width: int) -> Tensor:
    """Sines and cosines (..., width) of a time from 0 to 1, with half a turn to 128 turns a clip."""
    turns = torch.logspace(-1, 7, (width + 1) // 2, 2.0, device=time.device)
    angle = 2 * torch.pi * time[..., None] * turns
    return torch.cat([angle.sin(), angle.cos()], -1)[..., :width]


def smooth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over all values; 0 with gradient where there are none."""
    return functional.smooth_l1_loss(predicted, target) if target.numel() else predicted.sum() * 0.0


def answers(width: int, columns: int, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer that starts by saying `bias`, 0 by default, whatever it reads.

    0 is the training mean, which is hard to beat where features are mostly noise: a random start would have to
    unlearn its answers before anything can be learnt.
    """
    layer = nn.Linear(width, columns)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.zeros(columns) if bias is None else bias)
    return layer
