"""Exponential moving average of a model's weights.

The published code averages parameters only, so that its averaged audio and vision models keep BatchNorm's mean 0 and
variance 1 for ever, and its momentum reaches 0.9999 within a few epochs, which freezes the average at early weights.
Calibrated mode averages floating-point buffers with the parameters and spans a fixed number of epochs: per step
m = exp(−1/(steps · ema_epochs)), at most (1 + t)/(10 + t) at step t so that the random start is forgotten quickly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """An averaged copy of `model`, equal at the start and always in evaluation mode.

    `shared` names modules that are not trained: they are not copied, the average uses the model's own.
    """

    def __init__(self, model: M, buffers: bool, shared: Iterable[nn.Module] = ()):
        memo = {id(module): module for module in shared}
        self.model = copy.deepcopy(model, memo).eval()
        fixed = {id(tensor) for module in shared for tensor in module.state_dict(keep_vars=True).values()}
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.model.parameters(), model.parameters(), strict=True))
        if buffers:
            pairs += list(zip(self.model.buffers(), model.buffers(), strict=True))
        pairs = [pair for pair in pairs if id(pair[1]) not in fixed]
        self._floats = [pair for pair in pairs if pair[1].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def update(self, m: float) -> None:
        """θ_ema ← m·θ_ema + (1 − m)·θ; counters are copied."""
        averaged, live = zip(*self._floats, strict=True)
        torch._foreach_mul_(averaged, m)
        torch._foreach_add_(averaged, live, alpha=1.0 - m)
        for mean, now in self._counts:
            mean.copy_(now)


def span_momentum(step: int, steps_per_epoch: int, epochs: float) -> float:
    """The calibrated momentum at step t = 0, 1, …: an average that spans `epochs` epochs."""
    return min(math.exp(-1.0 / (steps_per_epoch * epochs)), (1 + step) / (10 + step))
