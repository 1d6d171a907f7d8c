"""What strategies that look at single steps share: a branch's steps, and attention from one modality to others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.unimodal import Branch, buckets, encode


def branch_steps(branch: Branch, x: Tensor, mask: Tensor) -> Tensor:
    """A branch's encoder output (B, L, d) at the steps of x (B, L, D) in mask (B, L), which see only each other.

    0 elsewhere. The branch's own h is the normalised mean of these.
    """
    rows = x[mask]
    if branch.norm is not None and len(rows):
        rows = branch.norm(rows)
    rows = functional.linear(rows, branch.proj.weight.squeeze(2))
    return encode_steps(branch.encoder, _scattered(rows, mask), mask)


def encode_steps(encoder: nn.TransformerEncoder, x: Tensor, mask: Tensor) -> Tensor:
    """`encode` for clips of any length, packed by length: x (B, L, d), mask (B, L) → (B, L, d), 0 elsewhere."""
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)
    order = order[lengths[order] > 0]
    if not len(order):
        return torch.zeros_like(x)
    clip, step = mask[order].nonzero(as_tuple=True)
    place = order[clip] * x.shape[1] + step
    rows = x.flatten(0, 1).index_select(0, place)
    made = [encode(encoder, padded, there)[there] for padded, there in buckets(rows, lengths[order])]
    return torch.zeros_like(x).flatten(0, 1).index_copy(0, place, torch.cat(made)).view_as(x)


def _scattered(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows (R, d) at the R places of mask (B, L), 0 elsewhere: (B, L, d)."""
    places = mask.flatten().nonzero().squeeze(1)
    made = rows.new_zeros(mask.numel(), rows.shape[1]).index_copy(0, places, rows)
    return made.unflatten(0, tuple(mask.shape))


def transformer(width: int, heads: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    """Layers as a branch has them."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return encoder


class CrossAttention(nn.Module):
    """A pre-norm layer: queries attend to other steps, then to nothing but themselves."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_query, self.norm_steps, self.norm_inner = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.inner = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, query: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
        """query (B, Q, d), steps (B, L, d) of which mask (B, L) are there, one at least → (B, Q, d)."""
        q = self.query(self.norm_query(query)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(self.norm_steps(steps)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        query = query + functional.dropout(self.out(found.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return query + functional.dropout(self.inner(self.norm_inner(query)), self.dropout, self.training)
