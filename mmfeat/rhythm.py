"""How the frames of a speech encoder follow from samples, and how a long recording goes through it in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfeat.track import Floats


@dataclass(frozen=True)
class Rhythm:
    """How frames follow from samples."""

    stride: int
    field: int
    """Samples that one frame sees before the transformer."""
    layers: tuple[tuple[int, int], ...]
    """Kernel and stride of each convolution."""

    @classmethod
    def of(cls, kernels: Sequence[int], strides: Sequence[int]) -> Rhythm:
        field, stride = 1, 1
        for kernel, step in zip(kernels, strides, strict=True):
            field += (kernel - 1) * stride
            stride *= step
        return cls(stride, field, tuple(zip(kernels, strides, strict=True)))

    def frames(self, samples: int) -> int:
        for kernel, step in self.layers:
            samples = max((samples - kernel) // step + 1, 0)
        return samples

    def pieces(self, frames: int, core: int, side: int) -> Iterator[tuple[slice, slice]]:
        """Samples that go through the model, and those of its frames that are kept; together all frames, once."""
        for begin in range(0, frames, core):
            end = min(begin + core, frames)
            first, last = max(begin - side, 0), min(end + side, frames)
            heard = slice(first * self.stride, (last - 1) * self.stride + self.field)
            yield heard, slice(begin - first, end - first)


class ClipNorm:
    """A group norm after the first convolution that takes its statistics from the whole clip, not from a piece of it.

    They follow from the sound without running the convolution: over all places, a channel with weights w has the mean
    w·E[x] and the second moment wᵀE[xxᵀ]w, x being the samples under the kernel.
    """

    def __init__(self, convolution: Any, norm: Any):
        self._weights: NDArray[np.float64] = convolution.weight.detach().double().numpy()[:, 0]
        self._bias = 0.0 if convolution.bias is None else convolution.bias.detach().double().numpy()
        self._stride: int = convolution.stride[0]
        self._mean = self._variance = norm.weight
        norm.register_forward_hook(self._apply)

    @classmethod
    def of(cls, first: Any) -> ClipNorm | None:
        """For a model's first layer of convolution; None where that has no norm over time."""
        norm = getattr(first, "layer_norm", None)
        return cls(first.conv, norm) if type(norm).__name__ == "GroupNorm" else None

    def listen(self, samples: Floats) -> None:
        """Take the statistics of a clip of at least one frame."""
        width = self._weights.shape[1]
        places = np.lib.stride_tricks.sliding_window_view(samples, width)[:: self._stride]
        total, moment = np.zeros(width), np.zeros((width, width))
        for first in range(0, len(places), 1 << 16):
            some = places[first : first + (1 << 16)].astype(np.float64)
            total += some.sum(axis=0)
            moment += some.T @ some
        mean = self._weights @ (total / len(places))
        power = np.einsum("ck,kl,cl->c", self._weights, moment / len(places), self._weights)
        variance = np.maximum(power - mean**2, 0)
        self._mean, self._variance = (self._mean.new_tensor(v)[:, None] for v in (mean + self._bias, variance))

    def _apply(self, norm: Any, inputs: tuple[Any, ...], _: Any) -> Any:
        """In place of the norm's own output, shape (B, C, T)."""
        normed = (inputs[0] - self._mean) / (self._variance + norm.eps).sqrt()
        return normed * norm.weight[:, None] + norm.bias[:, None]
