"""One modality → one unit vector → class logits."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.config import Config
from cmc.data import Batch


class Output(NamedTuple):
    logits: Tensor
    """Shape (B, K)."""
    h: Tensor
    """Shape (B, d), unit rows; zero where the clip lacks the modality."""


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the steps that exist: padding enters neither statistics nor output."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, D), mask (B, L) bool → (B, L, D), zero where masked."""
        if mask is None:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        rows = x[mask]
        if self.training and len(rows) < 2:
            # One step has no variance: normalise it by what was seen so far.
            rows = functional.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        elif len(rows):
            rows = super().forward(rows)
        return torch.zeros_like(x).masked_scatter(mask[:, :, None], rows)


class TextModel(nn.Module):
    """A transformers encoder under the name that published checkpoints give it."""

    def __init__(self, model: nn.Module, frozen: bool = False):
        super().__init__()
        self.model = model
        self.frozen = frozen

    @property
    def settings(self) -> dict[str, Any]:
        """Its transformers configuration, from which `rebuild_encoder` makes it again."""
        return self.model.config.to_dict()  # type: ignore[operator, union-attr]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, 3, L) → last hidden states (B, L, D)."""
        ids, mask, segments = tokens.unbind(1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
        return hidden


class Branch(nn.Module):
    """A modality's steps → its representation h.

    With `text_model` the input is the batch's tokens, else the batch's array of that modality.
    """

    def __init__(self, modality: str, columns: int, config: Config, text_model: TextModel | None = None):
        super().__init__()
        self.modality = modality
        self.text_model = text_model
        self.norm = None if modality == "text" else MaskedBatchNorm(columns)
        self.proj = nn.Conv1d(columns, config.width, 1, bias=False)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, config.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        for parameter in self.encoder.parameters():  # the layers start as copies of one
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, batch: Batch) -> Tensor:
        x = self.text_model(batch.tokens) if self.text_model is not None else batch.inputs[self.modality]
        mask = batch.masks[self.modality]
        if self.norm is not None:
            x = self.norm(x, mask)
        x = self.proj(x.transpose(1, 2)).transpose(1, 2)
        if mask is None:
            return functional.normalize(self.encoder(x).mean(1), dim=1)
        # Attention over nothing is NaN, so a clip that lacks the modality attends to its own padding; its h is zeroed.
        present = mask.any(1, keepdim=True)
        x = encode(self.encoder, x, mask | ~present)
        weights = mask.to(x.dtype)[:, :, None]
        mean = (x * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        return functional.normalize(mean, dim=1)


def encode(encoder: nn.TransformerEncoder, x: Tensor, mask: Tensor) -> Tensor:
    """What `encoder` does to x (B, L, d) where each clip attends to its steps in mask (B, L), but for two things.

    Attention weights are not dropped, for next to nothing, and torch's shortcut for inference, which stores the whole
    (L, L) matrix, is not taken: both would keep torch from its fused attention.
    """
    bias = None
    if not mask.all():
        bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -torch.inf)[:, None, None]
    for made in encoder.layers:
        layer = cast(nn.TransformerEncoderLayer, made)
        attention = layer.self_attn
        rows = functional.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = rows.unflatten(2, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        x = x + layer.dropout1(attention.out_proj(mixed))
        x = x + layer.dropout2(layer.linear2(layer.dropout(layer.linear1(layer.norm2(x)).relu())))
    return x


class Head(nn.Module):
    """z = W2·dropout(ReLU(W1·h + b1)) + b2 + h; logits = Wo·z + bo."""

    def __init__(self, classes: int, config: Config):
        super().__init__()
        self.proj1 = nn.Linear(config.width, config.width)
        self.proj2 = nn.Linear(config.width, config.width)
        self.out_layer = nn.Linear(config.width, classes)
        self.out_dropout = nn.Dropout(config.out_dropout)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, d) → logits (B, K)."""
        return self.out_layer(self.proj2(self.out_dropout(functional.relu(self.proj1(h)))) + h)


class Unimodal(nn.Module):
    """The classifier of one modality that stage 1 trains."""

    def __init__(self, modality: str, columns: int, classes: int, config: Config, text_model: TextModel | None = None):
        super().__init__()
        self.branch = Branch(modality, columns, config, text_model)
        self.head = Head(classes, config)

    def forward(self, batch: Batch) -> Output:
        h = self.branch(batch)
        return Output(self.head(h), h)
