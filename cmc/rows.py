"""A modality's steps, clip by clip: what counts as measured, averages of long clips, and rows read as they are needed.

An array that is larger than memory stays in its feature file: `Streamed` reads the clips of a batch and gives the very
values that an array in memory would have. What it keeps are the masks, one byte a step.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfeat.layout import FeatureFile

Stream = Literal["auto", "always", "never"]
"""Whether arrays stay in the file: where they take more than a share of the memory there is, always, never."""
SHARE = 0.25
"""Of the available memory: preparing an array takes 2.7 times its size (tests/benchmarks/memory.py)."""
SHARE_OF_DEVICE = 0.5
"""Of the memory that a GPU has left; the rest is for what is computed."""
_BLOCK = 8 * 2**20


def measured(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Steps (N, L, D) and mask (N, L): a step with a value that is not finite was not measured, and such values are 0.

    Without a mask only the values become 0.
    """
    good = torch.isfinite(values)
    if mask is not None:
        mask = mask & good.all(2)
        # What is masked must not even meet the arithmetic: 0 · inf is NaN.
        good = good & mask[:, :, None]
    return values.where(good, 0.0), mask


def averaged(x: Tensor, mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """At most `steps` steps per clip of x (N, L, D), mask (N, L): means over windows of equal length.

    A clip's window depends on its own length alone, and is 1 for a clip that is short enough; steps that were not
    measured are left out of the means.
    """
    clips, longest = mask.shape
    position = torch.arange(longest, device=x.device)
    lengths = ((position + 1) * mask).amax(1)
    windows = (-(-lengths // steps)).clamp_min(1)
    slot = (position // windows[:, None] + torch.arange(clips, device=x.device)[:, None] * steps)[mask]
    counts = torch.bincount(slot, minlength=clips * steps)
    sums = x.new_zeros(clips * steps, x.shape[2]).index_add_(0, slot, x[mask])
    return (sums / counts.clamp_min(1)[:, None]).view(clips, steps, -1), counts.view(clips, steps) > 0


class Streamed:
    """One array (N, L, D) of a feature file, indexed as the tensor would be, and read only then.

    The file is opened by the process that reads: no handle goes through a fork.

    Args:
        path: of the feature file.
        split, key: which array.
        mask: (N, L) of all its rows, or None; `scan` gives it.
        steps: average clips longer than this, see `averaged`; 0 does not.
    """

    def __init__(self, path: Path, split: str, key: str, mask: Tensor | None, steps: int = 0):
        self.path, self.split, self.key = path.absolute(), split, key
        self._mask, self._steps = mask, steps
        self._file: FeatureFile | None = None
        self._process = 0
        clips, self._longest, columns = self._open().dataset(split, key).shape
        self._rows = torch.arange(clips)
        self.shape = (clips, steps or self._longest, columns)

    @overload
    def __getitem__(self, key: Tensor) -> Streamed: ...
    @overload
    def __getitem__(self, key: tuple[Tensor, slice]) -> Tensor: ...
    def __getitem__(self, key: Tensor | tuple[Tensor, slice]) -> Streamed | Tensor:
        """Clips (N,) bool to keep, not read yet; or clips (B,) and a slice of their steps, read now."""
        if isinstance(key, Tensor):
            kept = Streamed(self.path, self.split, self.key, self._mask, self._steps)
            kept._rows = self._rows[key]
            kept.shape = (len(kept._rows), *self.shape[1:])
            return kept
        index, steps = key
        rows = self._rows[index]
        stop = self._longest if self._steps else steps.indices(self._longest)[1]
        mask = None if self._mask is None else self._mask[rows, :stop]
        values, mask = measured(self._read(rows, stop), mask)
        if self._steps and mask is not None:
            values = averaged(values, mask, self._steps)[0]
        return values[:, steps]

    def _read(self, rows: Tensor, stop: int) -> Tensor:
        dataset = self._open().dataset(self.split, self.key)
        found = np.empty((len(rows), stop, self.shape[2]), np.float32)
        for k in rows.argsort().tolist():  # in the order in which they lie on the disk
            dataset.read_direct(found, np.s_[int(rows[k]), :stop], np.s_[k])
        return torch.from_numpy(found)

    def _open(self) -> FeatureFile:
        if self._file is None or self._process != os.getpid():
            self._file, self._process = FeatureFile(self.path), os.getpid()
        return self._file


def blocks(file: FeatureFile, split: str, key: str) -> Iterator[NDArray[Any]]:
    """An array of a feature file in order, some rows at a time."""
    dataset = file.dataset(split, key)
    rows = max(1, _BLOCK // max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))))
    for start in range(0, len(dataset), rows):
        yield dataset[start : start + rows]


def scan(file: FeatureFile, split: str, key: str, mask: Tensor, steps: int = 0) -> tuple[Tensor, Tensor]:
    """The mask (N, L) of what was measured in an array, and that of the averages (the same without `steps`)."""
    # Written in place: small tensors that stay, made among large ones that go, would keep the heap from being reused.
    found = mask.clone()
    short = found.new_zeros(len(mask), steps) if steps else found
    start = 0
    for block in blocks(file, split, key):
        rows = slice(start, start + len(block))
        values, there = measured(torch.from_numpy(block), mask[rows])
        assert there is not None
        found[rows] = there
        if steps:
            short[rows] = averaged(values, there, steps)[1]
        start = rows.stop
    return found, short


def fits(bytes_: int, stream: Stream) -> bool:
    """Whether arrays of this size are to be in memory."""
    return stream == "never" or (stream == "auto" and bytes_ <= SHARE * available_memory())


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or what the control group leaves."""
    import psutil

    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or `max`: no limit
        pass
    return available


def free_memory(device: torch.device) -> float:
    """Bytes that a GPU has left; of any other device no limit, since arrays come from the same memory."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values from this machine's memory on a device. A GPU gets them while it computes: from memory that stays put."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def zeros_on_disk(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor of zeros in a file without a name below $TMPDIR, which is gone with the tensor."""
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
