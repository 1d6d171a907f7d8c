"""Three modalities → one prediction: parameter-free fusion (PFM), experts, and the consensus router (MCR).

A clip may lack modalities: theirs are neither mixed into others, nor routed to, nor trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmc.config import Config
from cmc.data import Batch
from cmc.unimodal import Branch, Head, TextModel


class Fused(NamedTuple):
    logits: Tensor
    """Shape (B, K)."""
    experts: dict[str, Tensor]
    """Modality → its expert's logits (B, K); zeros where the router did not select it."""
    h: dict[str, Tensor]
    """Modality → representation before fusion (B, d)."""
    gates: Tensor
    """Shape (B, modalities): router weights, rows sum to 1; 0 for an absent modality."""
    present: Tensor
    """Shape (B, modalities) bool."""


def fuse(X: Tensor, present: Tensor, temperature: float) -> Tensor:
    """PFM: X' = softmax over rows of (X·Xᵀ/τ) · X, for X (B, 3, d) and present (B, 3).

    An absent modality is not mixed into the others, and its own row stays 0.
    """
    similarity = X @ X.transpose(1, 2) / temperature
    similarity = similarity.masked_fill(~present[:, None, :], torch.finfo(X.dtype).min)
    return (similarity.softmax(2) @ X) * present[:, :, None]


class Router(nn.Module):
    """MCR: softmax over the k largest of Linear(Σ_m X'_m)."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.linear = nn.Linear(width, experts)

    def forward(self, fused: Tensor, present: Tensor, top_k: int) -> Tensor:
        """fused (B, 3, d), present (B, 3) → weights (B, 3), 0 for what is absent or not among the k largest."""
        scores = self.linear(fused.sum(1)).masked_fill(~present, -torch.inf)
        kept = scores.topk(min(top_k, scores.shape[1]), dim=1)
        scores = torch.full_like(scores, -torch.inf).scatter(1, kept.indices, kept.values)
        return masked_softmax(scores)


def masked_softmax(scores: Tensor) -> Tensor:
    """Softmax over dim 1 of (B, n) with −inf for what does not count; all 0 where nothing counts."""
    nothing = torch.isneginf(scores).all(1, keepdim=True)
    return scores.masked_fill(nothing, 0.0).softmax(1).masked_fill(nothing, 0.0)


class Multimodal(nn.Module):
    """The model of stage 2."""

    def __init__(self, columns: Mapping[str, int], classes: int, config: Config, text_model: TextModel | None = None):
        super().__init__()
        self.config = config
        self.modalities = config.modalities
        self.branches = nn.ModuleDict(
            {m: Branch(m, columns[m], config, text_model if m == "text" else None) for m in self.modalities}
        )
        self.heads = nn.ModuleDict({m: Head(classes, config) for m in self.modalities})
        self.router = Router(config.width, len(self.modalities)) if config.router else None

    def forward(self, batch: Batch) -> Fused:
        h = {m: self.branches[m](batch) for m in self.modalities}
        present = torch.stack([batch.present(m) for m in self.modalities], 1)
        X = torch.stack(list(h.values()), 1)
        fused = fuse(X, present, self.config.temperature) if self.config.fusion else X
        if self.router is not None:
            gates = self.router(fused, present, self.config.top_k)
        else:
            gates = present / present.sum(1, keepdim=True).clamp_min(1)
        selected = gates > 0
        experts = {m: self.heads[m](fused[:, k]) * selected[:, k, None] for k, m in enumerate(self.modalities)}
        logits = (gates[:, :, None] * torch.stack(list(experts.values()), 1)).sum(1)
        return Fused(logits, experts, h, gates, present)
