"""One modality → one unit vector → class logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.attention import attend, dropout
from cmc.config import Config
from cmc.data import Batch

# What bucketing weighs, in pairs of steps that attend to each other.
_PAIRS = 1 << 18  # at most in a bucket: with 4 heads, 4 MB of attention weights
_BUCKET = 40_000  # what the calls of a further bucket cost
_STEP = 64  # what a step costs in the layers besides attention


class Output(NamedTuple):
    logits: Tensor
    """Shape (B, K)."""
    h: Tensor
    """Shape (B, d), unit rows; zero where the clip lacks the modality."""


class RowNorm(nn.BatchNorm1d):
    """BatchNorm that takes one row for what it is: without a variance, and normalised by what was seen so far.

    The last batch of an epoch may be one clip, of one step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, D) or (B, D, L) → the same shape."""
        if self.training and x.numel() == self.num_features:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)

    def of_steps(self, x: Tensor, mask: Tensor) -> Tensor:
        """What `forward` makes of the rows of x (B, L, D) in mask (B, L), without looking how many these are."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return torch.addcmul(self.bias, x - mean, self.weight * (var + self.eps).rsqrt())
        counts = mask[:, :, None].to(x.dtype)
        n = counts.sum()
        enough = n > 1
        mean = torch.where(enough, (x * counts).sum((0, 1)) / n.clamp_min(1), mean)
        centred = x - mean
        var = torch.where(enough, (centred.square() * counts).sum((0, 1)) / n.clamp_min(1), var)
        with torch.no_grad():
            rate = self.momentum * enough
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(torch.where(enough, var * n / (n - 1).clamp_min(1), var), rate)
            self.num_batches_tracked += enough  # type: ignore[operator]
        return torch.addcmul(self.bias, centred, self.weight * (var + self.eps).rsqrt())


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


def runs_encoder(*models: nn.Module) -> bool:
    """Whether a text encoder is part of a model, and its padding worth avoiding."""
    return any(isinstance(module, TextModel) for model in models for module in model.modules())


class Branch(nn.Module):
    """A modality's steps → its representation h.

    With `text_model` the input is the batch's tokens, else the batch's array of that modality.
    """

    def __init__(self, modality: str, columns: int, config: Config, text_model: TextModel | None = None):
        super().__init__()
        self.modality = modality
        self.text_model = text_model
        self.bf16 = config.precision == "bf16"
        self.norm = None if modality == "text" else RowNorm(columns)
        self.proj = nn.Conv1d(columns, config.width, 1, bias=False)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, config.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        for parameter in self.encoder.parameters():  # the layers start as copies of one
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, batch: Batch) -> Tensor:
        """h of shape (B, d)."""
        device = batch.index.device
        if not (self.bf16 and has_bf16(device)):
            return self._forward(batch)
        with torch.autocast(device.type, torch.bfloat16):
            return self._forward(batch).float()

    def _forward(self, batch: Batch) -> Tensor:
        x = self.text_model(batch.tokens) if self.text_model is not None else batch.inputs[self.modality]
        mask = batch.masks[self.modality]
        if mask is not None:
            return self._of_steps(x, mask)
        x = x.transpose(1, 2)
        x = self.proj(x if self.norm is None else self.norm(x)).transpose(1, 2)
        return functional.normalize(self.encoder(x).mean(1), dim=1)

    def _of_steps(self, x: Tensor, mask: Tensor) -> Tensor:
        """h (B, d) of the steps of x (B, L, D) in mask (B, L) alone; 0 for a clip that has none."""
        return self._of_packed(x, mask) if packs(x.device) else self._of_padded(x, mask)

    def _of_padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """All padding is computed, so that the shapes of what is to be done do not depend on the mask's values."""
        if self.norm is not None:
            x = self.norm.of_steps(x, mask)
        x = functional.linear(x, self.proj.weight.squeeze(2)).float()  # what layers add to, in bf16 too
        # A clip without any step attends to all of its padding: to nothing would be 0/0.
        made = encode(self.encoder, x, mask | ~mask.any(1, keepdim=True))
        # The mean's length is nothing to its direction.
        return functional.normalize((made * mask[:, :, None]).sum(1), dim=1)

    def _of_packed(self, x: Tensor, mask: Tensor) -> Tensor:
        """Steps have no order here, so they are packed: rows of clips from the shortest to the longest."""
        h = x.new_zeros(len(x), self.proj.out_channels)
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        order = order[lengths[order] > 0]
        if not len(order):
            return h
        clip, step = mask[order].nonzero(as_tuple=True)
        rows = x.flatten(0, 1).index_select(0, order[clip] * x.shape[1] + step)
        if self.norm is not None:
            rows = self.norm(rows)
        rows = functional.linear(rows, self.proj.weight.squeeze(2))
        means = [
            (encode(self.encoder, padded, there) * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)
            for padded, there in buckets(rows, lengths[order])
        ]
        return h.index_copy(0, order, functional.normalize(torch.cat(means), dim=1).to(h.dtype))


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 pay."""
    return device.type != "cpu"


def packs(device: torch.device) -> bool:
    """Whether to compute only the steps that there are: to count them, a GPU is waited for; padding costs it less."""
    return device.type == "cpu"


def buckets(rows: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Packed clips (rows, d) with ascending lengths (B,) as batches (b, L, d) and masks (b, L), padded as little.

    On a CPU a bucket ends where its padding costs more than another bucket would, or its attention outgrows the cache;
    elsewhere there is just one.
    """
    sizes = bucket_sizes(lengths.tolist()) if rows.device.type == "cpu" else [len(lengths)]
    groups = lengths.split(sizes)
    for packed, group in zip(rows.split([int(group.sum()) for group in groups]), groups, strict=True):
        step = torch.arange(int(group[-1]), device=rows.device)
        there = step < group[:, None]
        place = ((group.cumsum(0) - group)[:, None] + step).where(there, 0)
        yield packed.index_select(0, place.flatten()).unflatten(0, place.shape), there


def bucket_sizes(lengths: list[int]) -> list[int]:
    """How many clips of these ascending lengths go into each bucket."""
    sizes, wasted, shorter = [0], 0, 0
    for length in lengths:
        wasted += sizes[-1] * (length * (length + _STEP) - shorter * (shorter + _STEP))
        if sizes[-1] and (wasted > _BUCKET or (sizes[-1] + 1) * length**2 > _PAIRS):
            sizes.append(0)
            wasted = 0
        sizes[-1] += 1
        shorter = length
    return sizes


def encode(encoder: nn.TransformerEncoder, x: Tensor, mask: Tensor) -> Tensor:
    """What `encoder` does to x (B, L, d) where each clip attends to its steps in mask (B, L), but for one thing:
    attention weights are not dropped, which fast attention cannot do, for next to nothing."""
    for made in encoder.layers:
        layer = cast(nn.TransformerEncoderLayer, made)
        attention, training = layer.self_attn, layer.training
        qkv = functional.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
        x = x + dropout(attention.out_proj(attend(qkv, attention.num_heads, mask)), layer.dropout1.p, training)
        inner = dropout(layer.linear1(layer.norm2(x)).relu(), layer.dropout.p, training)
        x = x + dropout(layer.linear2(inner), layer.dropout2.p, training)
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
        return self.out_layer(self.hidden(h))

    def hidden(self, h: Tensor) -> Tensor:
        """h (B, d) → z (B, d)."""
        return self.proj2(self.out_dropout(functional.relu(self.proj1(h)))) + h


class Unimodal(nn.Module):
    """The classifier of one modality that stage 1 trains."""

    def __init__(self, modality: str, columns: int, classes: int, config: Config, text_model: TextModel | None = None):
        super().__init__()
        self.branch = Branch(modality, columns, config, text_model)
        self.head = Head(classes, config)

    def forward(self, batch: Batch) -> Output:
        h = self.branch(batch)
        return Output(self.head(h), h)
