"""What the arrays hold, one block of clips at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfeat import layout

Flags = NDArray[np.bool_]
Flagged = Iterator[tuple[str, str, str, Any]]
"""Check, key or modality, detail, and which clips of the block it applies to, (B,) bool."""


_LONGEST = 1 << 31
"""Steps: what is said to be longer is wrong, by how much does not matter."""


@dataclass(frozen=True, eq=False)
class Block:
    """B clips of one split: the keys that have the shape and type they should."""

    arrays: dict[str, NDArray]
    pickled: bool
    aligned: bool
    label_range: tuple[float, float]
    classes: int
    """Number of classes; 0 where the file does not say."""

    @property
    def tokens(self) -> NDArray | None:
        """`text_bert`, (B, 3, L); None where there are no token ids, only a mask."""
        tokens = self.arrays.get("text_bert")
        return tokens if tokens is not None and (tokens[:, 0] != 0).any() else None

    def values(self, modality: str) -> NDArray | None:
        """(B, T, D)."""
        values = self.arrays.get(modality)
        return values[:, None] if values is not None and values.ndim == 2 else values

    def lengths(self, modality: str) -> NDArray[np.int64] | None:
        """(B,), as stated, and for the text of a pickle as its attention mask says; None where not known."""
        stated, mask = self.arrays.get(f"{modality}_lengths"), self.arrays.get("text_bert")
        if stated is not None:
            return np.nan_to_num(stated.reshape(len(stated))).clip(-1, _LONGEST).astype(np.int64)
        if mask is not None and (modality == "text" or self.aligned):
            return (mask[:, 1] > 0).sum(1)
        return None

    def inside(self, modality: str, steps: int) -> Flags:
        """(B, T): within the clip's length; all true where that is not known."""
        lengths = self.lengths(modality)
        position = np.arange(steps)
        return position < (np.full(len(self), steps) if lengths is None else lengths)[:, None]

    def measured(self, modality: str, steps: int) -> Flags:
        """(B, T): what counts as data."""
        mask = self.arrays.get(f"{modality}_mask")
        if mask is not None:
            return mask
        inside = self.inside(modality, steps)
        if self.pickled and self.aligned and modality != "text":
            # [CLS] and [SEP] are neither heard nor seen.
            inside = inside & np.roll(inside, -1, 1)
            inside[:, 0] = inside[:, -1] = False
        return inside

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


def check(block: Block) -> Flagged:
    for look in _CHECKS:
        yield from look(block)


def _values(block: Block) -> Flagged:
    for modality in layout.MODALITIES:
        values = block.values(modality)
        if values is None:
            continue
        steps = values.shape[1]
        measured, inside = block.measured(modality, steps), block.inside(modality, steps)
        silence = np.zeros(values.shape, bool)
        if block.pickled and modality == "audio":
            silence = np.isneginf(values)
            yield "minus-infinity", modality, "", silence.any((1, 2))
        bad = ~(np.isfinite(values) | silence).all(2)
        yield "non-finite", modality, "", (bad & measured).any(1)
        yield "non-finite-masked", modality, "", (bad & ~measured).any(1)
        zero = (values == 0).all(2)
        nothing = zero.all(1)
        yield "all-zero", modality, "", nothing & measured.any(1)
        if modality != "text":
            yield "absent", modality, "", ~measured.any(1)
            last = steps - 1 - measured[:, ::-1].argmax(1)
            ends_in_zeros = zero[np.arange(len(zero)), last] & measured.any(1)
            if not (block.pickled and (block.aligned or block.lengths(modality) is None)):
                yield "trailing-zeros", modality, "", ends_in_zeros & ~nothing
        # Published pickles hold what BERT gives for padding: their text is not zero there.
        if not (block.pickled and modality == "text"):
            yield "padding-values", modality, "", (~zero & ~inside).any(1)


def _lengths(block: Block) -> Flagged:
    for modality in layout.MODALITIES:
        stated, values = block.arrays.get(f"{modality}_lengths"), block.values(modality)
        if stated is None or values is None:
            continue
        steps = values.shape[1]
        stated = stated.reshape(len(stated))
        yield "length-range", modality, "", ~((stated >= 0) & (stated <= steps) & (stated == np.round(stated)))
        if modality == "text" and (tokens := block.arrays.get("text_bert")) is not None:
            # To the last piece that is attended to: a mask with gaps is a finding of its own.
            attended = (tokens[:, 1] > 0) * np.arange(1, tokens.shape[2] + 1)
            yield "length-mask", modality, "", stated != attended.max(1)
        elif modality != "text" and (mask := block.arrays.get(f"{modality}_mask")) is not None:
            yield "length-mask", modality, "", (mask & ~block.inside(modality, steps)).any(1)


def _times(block: Block) -> Flagged:
    for modality in layout.TIMED:
        times, mask = block.arrays.get(f"{modality}_times"), block.arrays.get(f"{modality}_mask")
        if times is None or mask is None:
            continue
        start, end = times[..., 0], times[..., 1]
        with np.errstate(invalid="ignore"):
            backwards = ~((start >= 0) & (end >= start) & np.isfinite(end))
            # Steps that were not measured have no times in aligned files: each is compared with the last that was.
            latest = np.maximum.accumulate(np.where(mask, start, -np.inf), 1)
            backwards[:, 1:] |= start[:, 1:] < latest[:, :-1]
        yield "times", modality, "", (backwards & mask).any(1)


def _tokens(block: Block) -> Flagged:
    tokens = block.tokens
    if tokens is None:
        return
    ids, attended, segments = tokens[:, 0], tokens[:, 1], tokens[:, 2]
    whole = (ids >= 0) & (ids == np.round(ids)) & np.isin(attended, (0, 1)) & np.isin(segments, (0, 1))
    yield "tokens", "text_bert", "", ~whole.all(1)
    lengths = (attended > 0).sum(1)
    yield "attention-gap", "text_bert", "", ((attended > 0) != (np.arange(ids.shape[1]) < lengths[:, None])).any(1)
    yield "absent", "text", "", lengths <= 2  # at most [CLS] and [SEP]


def _labels(block: Block) -> Flagged:
    low, high = block.label_range
    labels = {key: values.reshape(len(values)) for key, values in block.arrays.items() if key in layout.LABELS}
    regression, classes = labels.get(layout.REGRESSION), labels.get("classification_labels")
    for key, values in labels.items():
        if key.startswith(layout.REGRESSION):
            within = (values >= low) & (values <= high) | np.isnan(values)
            yield "label-range", key, f"{low:g} to {high:g}", ~within
        else:
            top = block.classes or np.inf
            within = (values >= -1) & (values < top) & (values == np.round(values))
            yield "label-class", key, str(block.classes) if block.classes else "", ~within
    pairs = [(layout.REGRESSION, "classification_labels")]
    pairs += [(layout.UNIMODAL[modality], layout.CLASSES[modality]) for modality in layout.MODALITIES]
    for number, name in pairs:
        if number in labels and name in labels:
            known = np.isfinite(labels[number]) & (labels[name] >= 0)
            yield "label-contradiction", name, "", known & (labels[name] != layout.polarity(labels[number]))
    if regression is not None or classes is not None:
        unknown = np.ones(len(block), bool)
        if regression is not None:
            unknown &= np.isnan(regression)
        if classes is not None:
            unknown &= ~(classes >= 0)
        yield "label-missing", layout.REGRESSION, "", unknown


_CHECKS: tuple[Callable[[Block], Flagged], ...] = (_values, _lengths, _times, _tokens, _labels)
