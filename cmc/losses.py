"""Supervised contrastive loss over the modalities' representations, and cross-entropy over clips that have a label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def supcon(features: Tensor, groups: Tensor, temperature: float = 0.07, known: Tensor | None = None) -> Tensor:
    """Mean over anchors of −log of the share of similarity that falls on the anchor's own group.

    Args:
        features: (R, D), L2-normalised rows.
        groups: (R,) int; rows of equal group are positives of each other.
        temperature: τ.
        known: (R,) bool, rows that count; None: all.

    Returns: scalar; 0 when no row has a positive. The log of each sum is taken by logsumexp over a mask, so that
    similar rows at a small τ neither overflow nor cancel. CMC, section on unimodal pretraining; the sum over positives
    stands inside the logarithm (`L_in` of Khosla et al. 2020, arXiv 2004.11362, up to a constant per anchor).
    """
    similarity = features @ features.T / temperature
    others = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    if known is not None:
        others = others & known[:, None] & known
    positives = (groups[:, None] == groups) & others
    anchors = positives.any(1)
    # Rows without a positive are computed too, with nothing masked out, and not counted: to select the others, a GPU
    # would have to be asked how many these are.
    idle = ~anchors[:, None]
    same = similarity.masked_fill(~(positives | idle), -torch.inf).logsumexp(1)
    all_others = similarity.masked_fill(~(others | idle), -torch.inf).logsumexp(1)
    return (all_others - same).where(anchors, 0.0).sum() / anchors.sum().clamp_min(1)


def supcon_published(features: Tensor, groups: Tensor, temperature: float = 0.07) -> Tensor:
    """The same loss with the published rounding, for reference mode only.

    There the denominator is the sum over all rows minus the row itself, whose e^(1/τ) ≈ 1.6·10⁶ swallows the last
    digits of the others: about 3·10⁻⁵ off in float32, and its gradients accordingly.
    """
    powers = (features @ features.T / temperature).exp()
    positives = groups[:, None] == groups[None, :]
    positives = positives & ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    anchors = positives.any(1)
    if not anchors.any():
        return features.sum() * 0.0
    share = (powers * positives).sum(1) / (powers.sum(1) - powers.diagonal())
    return -share[anchors].log().mean()


def contrast_groups(classes: Tensor, question: str | None) -> Tensor:
    """What SupCon compares: the binary question's answer for polarity classes, the class itself for named ones.

    `question`: `positive` gives [c > 1], `negative` gives [c ≥ 1], None the classes.
    """
    if question is None:
        return classes
    return (classes > 1 if question == "positive" else classes >= 1).long()


def cross_entropy(logits: Tensor, classes: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the rows of logits (B, K) whose class (B,) is not −1; 0 when there is none.

    With a `weight` (K,) per class it is the weighted mean, as torch has it.
    """
    known = classes >= 0
    counts = known.float() if weight is None else weight[classes.clamp_min(0)] * known
    total = functional.cross_entropy(logits, classes, weight=weight, ignore_index=-1, reduction="sum")
    # Not torch's mean, which is 0/0 where there is none: to ask whether there is makes a GPU wait.
    return total / counts.sum().clamp_min(torch.finfo(counts.dtype).tiny)


def balanced_weights(classes: Tensor, count: int) -> Tensor:
    """Weights (K,) under which every class of the training labels (N,) counts alike: N/(K·n_k).

    As scikit-learn's `class_weight="balanced"`. A class without clips weighs as if it had one.
    """
    counts = torch.bincount(classes, minlength=count)
    return len(classes) / (count * counts.clamp_min(1).float())
