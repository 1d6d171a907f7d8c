"""A feature file's clips for a torch DataLoader: one row at a time, from any number of forked or spawned workers.

>>> data = FeatureDataset("features.h5", "train")
>>> for batch in DataLoader(data, batch_size=16, shuffle=True, num_workers=2, collate_fn=collate):
...     batch["audio"], batch["audio_mask"]  # (16, T, D) and (16, T), T the longest of these 16 clips
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mmfeat.layout import LABELS, MODALITIES, STRINGS, TIMED, FeatureFile, LayoutError

_STEPS = (*MODALITIES, *(f"{modality}_{part}" for modality in TIMED for part in ("mask", "times")))
"""Keys that have the steps of a modality along a clip's first axis; `text_bert` has them along its last."""
_MODALITY = {key: key.partition("_")[0] for key in (*_STEPS, "text_bert")}

Sample = dict[str, Any]


class FeatureDataset(Dataset[Sample]):
    """One split of a feature file as a map-style dataset; features are in memory for the row asked for only.

    The file is opened by the process that reads, when it first reads: a handle from before a fork is not used, and
    none is pickled. So an instance may have been read from before workers start, under any start method.

    Args:
        path: the feature file.
        split: `train`, `valid` or `test`.
        keys: arrays of the file that a sample shall hold; None for all of features, masks, tokens and labels.

    Raises FileNotFoundError, and LayoutError for a file, a split or a key that is not there.
    """

    def __init__(self, path: str | Path, split: str, keys: Collection[str] | None = None):
        self.path, self.split = Path(path).absolute(), split
        with FeatureFile(self.path) as file:
            self._clips = len(file.dataset(split, "id"))
            there = [key for key in (*_STEPS, "text_bert", *LABELS) if (split, key) in file]
            self.keys = tuple(there if keys is None else keys)
            for key in self.keys:
                dataset = file.dataset(split, key)
                if dataset.dtype.names or dataset.shape[:1] != (self._clips,):
                    raise LayoutError(f"{self.path}: {key!r} of split {split!r} has no row per clip")
                if modality := _MODALITY.get(key):
                    file.dataset(split, f"{modality}_lengths")
        self._open: _Open | None = None

    def __len__(self) -> int:
        return self._clips

    def __getitem__(self, index: int) -> Sample:
        """One clip without padding: `id`, `index` (its row), and per key a tensor.

        `text`, `audio`, `vision` (L, D), `…_mask` (L,), `…_times` (L, 2), `text_bert` (3, L), with L the clip's own
        number of steps; labels are numbers, strings stay strings.
        """
        row = index + self._clips if index < 0 else index
        if not 0 <= row < self._clips:
            raise IndexError(f"clip {index} of {self._clips} in split {self.split!r}")
        if self._open is None or self._open.process != os.getpid():
            # Opened before the handle that came through a fork is let go, so that HDF5 gives up nothing that the
            # parent process still uses.
            self._open = _Open(self.path, self.split, self.keys)
        return self._open.clip(row)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}


class _Open:
    """The file as one process has it open. What is one value per clip is in memory: looking it up costs as much as a
    row of features."""

    def __init__(self, path: Path, split: str, keys: Sequence[str]):
        self.process, self.keys = os.getpid(), keys
        self._file = FeatureFile(path)
        self._rows: dict[str, Any] = {}
        for key in {"id", *keys, *(f"{_MODALITY[key]}_lengths" for key in keys if key in _MODALITY)}:
            rows = self._file.dataset(split, key)
            self._rows[key] = self._file.read(split, key) if rows.ndim == 1 else rows

    def clip(self, row: int) -> Sample:
        sample: Sample = {"id": self._rows["id"][row], "index": row}
        for key in self.keys:
            value = self._rows[key][row]
            if modality := _MODALITY.get(key):
                steps = self._rows[f"{modality}_lengths"][row]
                value = value[:steps] if key in _STEPS else value[:, :steps]
            sample[key] = value if key in STRINGS else torch.as_tensor(value)
        return sample


def collate(samples: Sequence[Sample]) -> Sample:
    """A batch: every modality padded with zeros to the longest of these clips, at least one step.

    `text`, `audio`, `vision` become (B, L, D), each with `…_mask` (B, L) bool: true where something was measured;
    `text_bert` (B, 3, L), labels and `index` (B,); strings become lists.
    """
    batch: Sample = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if isinstance(values[0], str):
            batch[key] = values
        elif key == "text_bert":
            batch[key] = _pad([value.T for value in values]).transpose(1, 2)
        elif key in _STEPS:
            batch[key] = _pad(values)
        else:
            batch[key] = torch.stack([torch.as_tensor(value) for value in values])
    for modality in MODALITIES:
        if modality in batch and f"{modality}_mask" not in batch:
            batch[f"{modality}_mask"] = _pad(
                [torch.ones(len(sample[modality]), dtype=torch.bool) for sample in samples]
            )
    return batch


def _pad(values: list[Tensor]) -> Tensor:
    """(B, L, …) from B tensors (L_i, …)."""
    padded = pad_sequence(values, batch_first=True)
    return padded if padded.shape[1] else padded.new_zeros((len(values), 1, *padded.shape[2:]))
