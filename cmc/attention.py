"""Self-attention and dropout for narrow Transformer layers, fast on a CPU.

With 8 columns a head, nearly all time goes into what is done per pair of steps. The usual kernels, made for 64 columns
and more, spend 4 to 5 ns on a pair, forward and backward; here everything per pair is a matrix product with long rows
or one pass of exp2, and takes half of that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_MASKED = -1e30  # finite: minus infinity times 0 would be NaN
_LONGEST = 1024  # steps; beyond, torch's attention, which never holds an (L, L) matrix
_DRAWS = 1 << 16


def attend(qkv: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Multi-head self-attention: queries, keys and values side by side in qkv (B, L, 3·d) → (B, L, d).

    Each clip attends to its steps in mask (B, L) bool, of which it must have one.
    """
    if qkv.device.type == "cpu" and qkv.shape[1] <= _LONGEST:
        return _Attention.apply(qkv, heads, mask)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).transpose(1, 2).flatten(2)


class _Attention(torch.autograd.Function):
    """Softmax in powers of 2. The backward pass makes the weights anew, so that no (L, L) matrix is kept.

    What is added to the scores per query or per key is done by the very product that makes them: one side has a
    further row with the terms, the other a row of ones. A row of ones in v sums up the weights.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, mask: Tensor) -> Tensor:
        clips, steps, _ = qkv.shape
        rows = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 4, 1)  # (3, B, H, columns, L)
        scale = rows.shape[3] ** -0.5
        ones = qkv.new_ones(clips, heads, 1, steps)
        bias = qkv.new_zeros(mask.shape).masked_fill_(~mask, _MASKED)[:, None, None].expand_as(ones)
        q = torch.cat([rows[0] * (scale * math.log2(math.e)), ones, ones], 2).flatten(0, 1)
        k = torch.cat([rows[1], bias, ones], 2).flatten(0, 1)
        v = torch.cat([rows[2], ones], 2).flatten(0, 1)
        weights = torch.bmm(q[:, :-1].transpose(1, 2), k[:, :-1])
        largest = weights.amax(2, keepdim=True)
        weights.sub_(largest).exp2_()
        mixed = torch.bmm(v, weights.transpose(1, 2))
        total = mixed[:, -1]
        mixed = mixed[:, :-1] / total[:, None]
        q[:, -1] = -(largest[:, :, 0] + total.log2())  # from here on the product of q and k is the log of the weights
        ctx.save_for_backward(q, k, v, mixed)
        ctx.heads, ctx.scale = heads, scale
        return mixed.unflatten(0, (clips, heads)).permute(0, 3, 1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        q, k, v, mixed = ctx.saved_tensors
        columns = mixed.shape[1]
        g = grad.unflatten(2, (ctx.heads, columns)).permute(0, 2, 3, 1).flatten(0, 1)
        g = torch.cat([g, -(g * mixed).sum(1, keepdim=True)], 1)
        weights = torch.bmm(q.transpose(1, 2), k).exp2_()
        scores = torch.bmm(g.transpose(1, 2), v).mul_(weights)  # the gradient of q·k·scale
        of_q = torch.bmm(k[:, :columns], scores.transpose(1, 2)) * ctx.scale
        of_k = torch.bmm(q[:, :columns], scores) * math.log(2)
        of_v = torch.bmm(g[:, :columns], weights)
        made = torch.stack([of_q, of_k, of_v]).unflatten(1, (-1, ctx.heads))  # (3, B, H, columns, L)
        return made.permute(1, 4, 0, 2, 3).flatten(2), None, None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """What torch's dropout does, with 16 random bits for an element: on a CPU, drawing them is what takes time.

    p is rounded to 1/65536 and the scale with it, so that the mean stays exact.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, p)
    dropped = round(p * _DRAWS)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _DRAWS // 2
    return x * kept.to(x.dtype).mul_(_DRAWS / (_DRAWS - dropped))
