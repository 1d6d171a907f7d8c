"""Heads for branches that were pretrained without labels.

Stage 2 would start with heads that know nothing, whose first gradients spoil what the branches have learnt. So heads
are taught first, on the clips' own labels and what the branches make of them as they are (Kumar et al. 2022, arXiv
2202.10054, on probing before finetuning).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cmc.config import Config
from cmc.data import Split
from cmc.losses import cross_entropy
from cmc.pretrain import Given
from cmc.training import Best, class_weights, optimizer, snapshot
from cmc.unimodal import Unimodal

_BATCH = 64


def teach_heads(given: Given, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Modality → the weights with a head that was taught on the training clips; its best epoch by validation loss."""
    weight = class_weights(given.train, given.config, given.task)
    taught = {}
    for m, model in given.models.items():
        model.load_state_dict(weights[m])
        train, valid = (_represented(split, m, model) for split in (given.train, given.valid))
        if len(train[1]) and len(valid[1]):
            _teach(model, train, valid, given.config, weight)
        taught[m] = snapshot(model)
    return taught


@torch.no_grad()
def _represented(split: Split, modality: str, model: Unimodal) -> tuple[Tensor, Tensor]:
    """h (n, d) and own labels (n,) of the clips that have the modality."""
    h = torch.cat([model.eval().branch(batch) for batch in split.batches(_BATCH)])
    there = split.present(modality)
    return h[there], split.label("M")[there]


def _teach(
    model: Unimodal,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    config: Config,
    weight: Tensor | None,
) -> None:
    head, adam = model.head, optimizer([model.head], config)
    order = torch.Generator().manual_seed(config.seed)
    best, kept = Best(config.gain), snapshot(head)
    h, labels = train
    for epoch in range(1, config.pretrain_epochs + 1):
        head.train()
        for rows in torch.randperm(len(h), generator=order).split(config.batch_size):
            loss = cross_entropy(head(h[rows]), labels[rows], weight)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
        with torch.no_grad():
            held_out = float(cross_entropy(head.eval()(valid[0]), valid[1], weight))
        if best.improves(held_out, epoch):
            kept = snapshot(head)
        if epoch - best.epoch >= config.patience:
            break
    head.load_state_dict(kept)
