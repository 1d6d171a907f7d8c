"""How the frames of a speech encoder follow from samples, and how a long recording goes through it in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


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
