"""PLGM, the pseudo label generation module: a soft state per clip and modality that follows the model's doubts.

At each visit, with base label c = argmax of the state and the model's probabilities p, the update is

    α = (g_b − g_r) / (g_b + g_r),   g_b = ‖p − onehot(c)‖₂,   g_r = ‖p − onehot(argmax p)‖₂
    ỹ = (1 − α)·onehot(c) + α·onehot(argmax p),   s ← m·s + (1 − m)·ỹ

(arXiv 2510.20256, section on PLGM). A state's class changes once ỹ has given more than half of its mass to another.

**Why the calibrated schedule differs.** The published m(e) = 1 − (1 − m0)/e^0.5 with m0 = 0.99 leaves
Π m(e) ≥ 0.83 of the mass on the starting class after 100 epochs, even with α = 1 at every visit, and only the argmax is
used: audio and vision labels cannot change. A constant m = 0.8 lets a label turn after 4 visits of full contradiction
(0.8⁴ < 0.5), and since the stationary state is ỹ itself, it turns at all only where α > 0.5, that is where the
model is more than three times closer to the other class: the published rule's own measure decides, not the clock.

**Whose probabilities.** A model asked about clips it was trained on, with their present labels, in the end agrees with
any label: small networks fit clean patterns first and memorise wrong labels later (Arpit et al. 2017, arXiv
1706.05394; Liu et al. 2020, arXiv 2007.00151). Calibrated mode therefore asks the averaged (EMA) model in evaluation
mode, once at the end of each epoch, trains the heads with dropout and weight decay, and leaves the states alone for
the first `label_warmup` epochs, in which p is still close to uniform.

**What it gives.** `cmc ablate` says how many planted unimodal labels are found; docs/cmc.md has the table.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def momentum(start: float, gamma: float, epoch: int) -> float:
    """m(e) = 1 − (1 − m0)/e^γ for epoch e ≥ 1; constant where γ = 0."""
    return 1.0 - (1.0 - start) / epoch**gamma


def generate(base: Tensor, probabilities: Tensor) -> Tensor:
    """ỹ of shape (B, K) from base classes (B,) and probabilities (B, K).

    p nearest to onehot(k) is largest at k, so the reversed label is the argmax, ties to the lowest class. Where both
    distances are 0 (p is the base label exactly) α is 0.
    """
    classes = probabilities.shape[1]
    y_base = functional.one_hot(base, classes).to(probabilities)
    y_reversed = functional.one_hot(probabilities.argmax(1), classes).to(probabilities)
    gap_base = (probabilities - y_base).norm(dim=1, keepdim=True)
    gap_reversed = (probabilities - y_reversed).norm(dim=1, keepdim=True)
    total = gap_base + gap_reversed
    further = (gap_base - gap_reversed).clamp_min(0.0)  # no label is nearer than the reversed one, but for rounding
    alpha = torch.where(total > 0, further / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
    return (1.0 - alpha) * y_base + alpha * y_reversed


class PseudoLabels:
    """Soft states of one modality for all N clips of a split, starting at the clips' own labels."""

    def __init__(self, labels: Tensor, classes: int):
        self.states = functional.one_hot(labels, classes).float()
        """Shape (N, K), rows sum to 1."""

    def hard(self, index: Tensor | None = None) -> Tensor:
        """The labels that losses use, shape (B,): argmax of the states of rows `index` (all by default)."""
        states = self.states if index is None else self.states[index]
        return states.argmax(1)

    def update(self, index: Tensor, logits: Tensor, m: float, there: Tensor | None = None) -> None:
        """One visit of rows `index` (B,), each at most once, with the model's logits (B, K) and momentum m.

        Rows that are not `there` (B,) bool keep their states.
        """
        base, states = self.hard(index), self.states[index]
        made = m * states + (1.0 - m) * generate(base, logits.detach().to(states).softmax(1))
        self.states[index] = made if there is None else made.where(there[:, None], states)

    def copy(self) -> Tensor:
        return self.states.clone()
