"""Feature file → tensors: labels as classes, one mask per modality, batches trimmed to their longest clip.

Stated policy for values that are not finite: such a step was not measured and is masked out. Reference mode does as
the published code does instead: the value becomes 0, and nothing is masked anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmc.config import LETTERS, MODALITIES
from cmc.rows import SHARE_OF_DEVICE, Stream, Streamed, averaged, fits, free_memory, measured, scan, sent
from mmfeat.layout import CLASSES, REGRESSION, TIMED, UNIMODAL, FeatureFile, polarity

POLARITIES = ("negative", "neutral", "positive")
_WINDOW = 8  # batches that are sorted by length together
_SPECIAL_PIECES = 2  # [CLS] and [SEP]: a transcript of these alone says nothing


class DataError(ValueError):
    """The feature file holds nothing that can be trained on or evaluated."""


@dataclass(frozen=True)
class Task:
    """What is to be predicted."""

    class_names: tuple[str, ...]
    is_polarity: bool
    """Three classes that are signs of a regression label; otherwise named classes."""

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Batch:
    """B clips. A mask of None stands for all true."""

    index: Tensor
    """Shape (B,): rows in the split."""
    inputs: dict[str, Tensor]
    """Modality → (B, L, D) float32. Text is there where the encoder's output is cached."""
    masks: dict[str, Tensor | None]
    """Modality → (B, L) bool."""
    tokens: Tensor
    """Shape (B, 3, L): token ids, attention mask, segment ids."""

    def present(self, modality: str) -> Tensor:
        """Shape (B,) bool: whether the clip has anything of this modality."""
        mask = self.masks[modality]
        return torch.ones_like(self.index, dtype=torch.bool) if mask is None else mask.any(1)


@dataclass(frozen=True, eq=False)
class Split:
    """A split in memory, but for arrays that are streamed. `labels` is None where they were not to be read."""

    ids: tuple[str, ...]
    inputs: Mapping[str, Tensor | Streamed]
    masks: dict[str, Tensor | None]
    tokens: Tensor
    labels: dict[str, Tensor] | None
    """`M`, `T`, `A`, `V` → (N,) int64 classes; −1 where not annotated."""
    values: Tensor | None = None
    """Shape (N,): the clips' own labels as numbers; None where they were not to be read or are named classes."""

    def __len__(self) -> int:
        return len(self.ids)

    def label(self, key: str) -> Tensor:
        if self.labels is None:
            raise DataError("the labels of this split were not read")
        return self.labels[key]

    @property
    def streamed(self) -> bool:
        """Whether rows are read from the file batch by batch."""
        return any(isinstance(values, Streamed) for values in self.inputs.values())

    def present(self, modality: str) -> Tensor:
        mask = self.masks[modality]
        return self.tokens.new_ones(len(self), dtype=torch.bool) if mask is None else mask.any(1)

    @cached_property
    def lengths(self) -> dict[str, NDArray[np.int64]]:
        """Modality that has a mask → steps up to the last that is in it, 1 at least: (N,)."""
        found = {}
        for modality, mask in self.masks.items():
            if mask is not None:
                steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
                found[modality] = (steps * mask).amax(1).clamp_min(1).cpu().numpy()
        return found

    def to(self, device: torch.device) -> Split:
        """The split on another device; arrays for which there is no room there stay, as what is streamed stays in the
        file, and go there batch by batch."""
        arrays = {m: values for m, values in self.inputs.items() if isinstance(values, Tensor)}
        roomy = sum(values.nbytes for values in arrays.values()) <= SHARE_OF_DEVICE * free_memory(device)
        return Split(
            self.ids,
            {**self.inputs, **({m: values.to(device) for m, values in arrays.items()} if roomy else {})},
            {m: None if mask is None else mask.to(device) for m, mask in self.masks.items()},
            self.tokens.to(device),
            None if self.labels is None else {key: values.to(device) for key, values in self.labels.items()},
            None if self.values is None else self.values.to(device),
        )

    def batch(self, index: Tensor) -> Batch:
        """The clips of rows `index`, each modality trimmed to its last step that any of them has."""
        return self._batch(index.cpu(), index.to(self.tokens.device))

    def _batch(self, rows: Tensor, index: Tensor) -> Batch:
        """`rows` are on the CPU, `index`, the same, where the split is. Nothing here waits for a GPU."""
        longest = {m: int(lengths[rows.numpy()].max()) if len(rows) else 1 for m, lengths in self.lengths.items()}
        masks = {m: None if mask is None else mask[index, : longest[m]] for m, mask in self.masks.items()}
        inputs: dict[str, Tensor] = {}
        for modality, values in self.inputs.items():
            kept = slice(longest.get(modality))
            if isinstance(values, Tensor) and values.device == index.device:
                inputs[modality] = values[index, kept]
            else:
                inputs[modality] = sent(values[rows, kept], index.device)
        return Batch(index, inputs, masks, self.tokens[index, :, : longest.get("text")])

    def batches(self, size: int, generator: torch.Generator | None = None, by_length: bool = False) -> Iterator[Batch]:
        """All clips once; shuffled where a generator is given, else in order.

        With `by_length`, clips of a batch have transcripts of similar length, so that a text encoder computes little
        padding: shuffled clips are sorted within windows of 8 batches, and the batches are shuffled. Which clips meet
        still differs from epoch to epoch, but a long and a short one meet less often than by chance.
        """
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        if by_length:
            lengths = self.tokens[:, 1].sum(1).cpu()
            windows = order.split(size * _WINDOW)
            order = torch.cat([window[lengths[window].argsort(stable=True)] for window in windows])
        batches = list(order.split(size))
        if by_length and generator is not None:
            batches = [batches[k] for k in torch.randperm(len(batches), generator=generator)]
        there = torch.cat(batches).to(self.tokens.device)  # once, not batch by batch
        for rows, index in zip(batches, there.split([len(rows) for rows in batches]), strict=True):
            yield self._batch(rows, index)

    def select(self, rows: Tensor) -> Split:
        """The clips of `rows` (N,) bool."""
        return Split(
            tuple(id for id, keep in zip(self.ids, rows.tolist(), strict=True) if keep),
            {modality: values[rows] for modality, values in self.inputs.items()},
            {modality: None if mask is None else mask[rows] for modality, mask in self.masks.items()},
            self.tokens[rows],
            None if self.labels is None else {key: values[rows] for key, values in self.labels.items()},
            None if self.values is None else self.values[rows],
        )

    def without(self, modality: str) -> Split:
        """The same clips as if they did not have `modality`."""
        shape = (len(self), self.tokens.shape[2]) if modality == "text" else self.inputs[modality].shape[:2]
        mask = torch.zeros(shape, dtype=torch.bool, device=self.tokens.device)
        return replace(self, masks={**self.masks, modality: mask})


def load(
    file: FeatureFile, split: str, task: Task | None, masked: bool = True, steps: int = 0, stream: Stream = "auto"
) -> Split:
    """One split of a feature file.

    Args:
        file: open feature file.
        split: `train`, `valid` or `test`.
        task: what the labels mean; None reads no label at all, and keeps every clip.
        masked: use masks; False is reference mode.
        steps: most steps of sound or sight per clip, see `shorten`; 0 keeps all.
        stream: whether the modalities' arrays stay in the file and are read batch by batch.

    With labels, clips whose own label is missing are left out. Raises DataError where no clip is left.
    """
    tokens = torch.from_numpy(file.read(split, "text_bert").astype(np.int64))
    masks: dict[str, Tensor | None] = dict.fromkeys(MODALITIES)
    if masked:
        masks = {modality: torch.from_numpy(file.read(split, f"{modality}_mask")) for modality in TIMED}
        masks["text"] = text_mask(tokens)
    in_memory = fits(sum(4 * int(np.prod(file.dataset(split, m).shape)) for m in MODALITIES), stream)
    inputs: dict[str, Tensor | Streamed] = {}
    for modality in MODALITIES:
        if in_memory:
            inputs[modality] = torch.from_numpy(file.read(split, modality))
            continue
        mask, short = masks[modality], 0
        if mask is not None:
            short = steps if modality in TIMED and 0 < steps < mask.shape[1] else 0
            mask, masks[modality] = scan(file, split, modality, mask, short)
        inputs[modality] = Streamed(file.path, split, modality, mask, short)
    labels = _labels(file, split, task) if task else None
    values = torch.from_numpy(file.read(split, REGRESSION).astype(np.float32)) if task and task.is_polarity else None
    loaded = finite(Split(tuple(file.read(split, "id")), inputs, masks, tokens, labels, values))
    if steps and masked:
        loaded = shorten(loaded, steps)
    if task is not None:
        loaded = loaded.select(loaded.label("M") >= 0)
    if not len(loaded):
        raise DataError(f"{file.path}: no {'labelled ' if task else ''}clip in split {split!r}")
    return loaded


def text_mask(tokens: Tensor) -> Tensor:
    """Shape (N, L) from tokens (N, 3, L): the encoder's attention mask, all false for an empty transcript.

    Where no token ids are known, as in files of word vectors, there are no special wordpieces either.
    """
    mask = tokens[:, 1] > 0
    special = _SPECIAL_PIECES * (tokens[:, 0] != 0).any(1, keepdim=True)
    return mask & (mask.sum(1, keepdim=True) > special)


def finite(split: Split) -> Split:
    """The module's policy for values that are not finite."""
    inputs, masks = dict(split.inputs), dict(split.masks)
    for modality, values in split.inputs.items():
        if isinstance(values, Tensor):
            inputs[modality], masks[modality] = measured(values, masks[modality])
    return replace(split, inputs=inputs, masks=masks)


def shorten(split: Split, steps: int) -> Split:
    """The split with at most `steps` steps of audio and of vision per clip, see `averaged`.

    Attention costs the square of the steps, and without positions it only sees them as a set.
    """
    inputs, masks = dict(split.inputs), dict(split.masks)
    for modality in TIMED:
        x, mask = inputs[modality], masks[modality]
        if isinstance(x, Tensor) and mask is not None and x.shape[1] > steps:
            inputs[modality], masks[modality] = averaged(x, mask, steps)
    return replace(split, inputs=inputs, masks=masks)


def task_of(file: FeatureFile) -> Task:
    """Polarity where the training split has regression labels, else the file's named classes.

    Raises DataError where there are neither.
    """
    names = tuple(json.loads(file.attrs.get("class_names", "[]")))
    if np.isfinite(file.read("train", REGRESSION)).any():
        return Task(names if len(names) == len(POLARITIES) else POLARITIES, True)
    if len(names) > 1 and (file.read("train", "classification_labels") >= 0).any():
        return Task(names, False)
    raise DataError(f"{file.path}: the training split has neither regression labels nor named classes")


def _labels(file: FeatureFile, split: str, task: Task) -> dict[str, Tensor]:
    clips = len(file.dataset(split, "id"))
    if task.is_polarity:
        keys = {"M": REGRESSION} | {LETTERS[modality]: key for modality, key in UNIMODAL.items()}
    else:
        keys = {"M": "classification_labels"} | {LETTERS[modality]: key for modality, key in CLASSES.items()}
    labels = {}
    for letter, key in keys.items():
        found = file.read(split, key) if (split, key) in file else np.full(clips, np.nan if task.is_polarity else -1)
        labels[letter] = torch.from_numpy(polarity(found) if task.is_polarity else _renumbered(file, found, task))
    return labels


def _renumbered(file: FeatureFile, classes: NDArray[np.int64], task: Task) -> NDArray[np.int64]:
    """The file's named classes (N,) by the numbers that the task has for them; −1 stays.

    Raises DataError naming a class that the task does not have.
    """
    numbers = {name: k for k, name in enumerate(task.class_names)}
    names = json.loads(file.attrs.get("class_names", "[]"))
    found = {k: names[k] if k < len(names) else f"class {k}" for k in np.unique(classes).tolist() if k >= 0}
    if unknown := sorted(set(found.values()) - set(numbers)):
        raise DataError(f"{file.path} has clips of {', '.join(unknown)}; the classes are {', '.join(task.class_names)}")
    return np.array([numbers[found[k]] if k >= 0 else -1 for k in classes.tolist()], np.int64)


def without_label(file: FeatureFile, split: str, task: Task) -> Tensor:
    """Shape (N,) bool: clips of a split that have no label of their own, which `load` leaves out."""
    return _labels(file, split, task)["M"] < 0


def unlabelled(file: FeatureFile, split: str, task: Task) -> int:
    """How many these are."""
    return int(without_label(file, split, task).sum())


def open_features(path: Path) -> FeatureFile:
    """The feature file, with the splits that training needs. Raises DataError, LayoutError, FileNotFoundError."""
    file = FeatureFile(path)
    if missing := {"train", "valid"} - set(file.splits):
        file.close()
        raise DataError(f"{path} has no split {' and no split '.join(sorted(missing))}")
    return file
