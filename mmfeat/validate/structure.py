"""Keys, shapes and types: what must be right before the content can be looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from mmfeat import layout
from mmfeat.validate.findings import Findings
from mmfeat.validate.source import Array, Source, is_text, steps

T = TypeVar("T")

# Key → shape of a clip's row and type; a name stands for the modality's padded length, None for any number of columns.
_Row = tuple[tuple[str | int | None, ...], str]
ROWS: dict[str, _Row] = {
    **dict.fromkeys(layout.STRINGS, ((), "text")),
    **{modality: ((modality, None), "f4") for modality in layout.MODALITIES},
    **{f"{modality}_lengths": ((), "i4") for modality in layout.MODALITIES},
    **{f"{modality}_mask": ((modality,), "?") for modality in layout.TIMED},
    **{f"{modality}_times": ((modality, 2), "f4") for modality in layout.TIMED},
    "text_bert": ((3, "text"), "i4"),
    **{key: ((), "f4" if key.startswith(layout.REGRESSION) else "i8") for key in layout.LABELS},
}
_OPTIONAL = {"annotations", *layout.UNIMODAL.values(), *layout.CLASSES.values()}
_PICKLE = ("raw_text", *layout.TIMED)


def check_head(source: Source, findings: Findings) -> None:
    """Attributes, column names and statistics of a feature file."""
    file = source.file
    if file is None:
        return
    for key in ("aligned", "language", "created", "recipe", "fingerprints", "class_names", "versions"):
        if key not in file.attrs:
            findings.add("head", what=key, detail="is missing")
        elif key == "aligned" and not isinstance(file.attrs[key], bool):
            findings.add("head", what=key, detail="is neither true nor false")
        elif key in ("recipe", "fingerprints", "class_names", "versions"):
            try:
                json.loads(file.attrs[key])
            except (TypeError, ValueError) as error:
                findings.add("head", what=key, detail=f"is no JSON: {error}")
    for modality in layout.TIMED:
        columns = {s: d[modality].shape[-1] for s, d in source.splits.items() if modality in d and d[modality].shape}
        names = stored(partial(file.feature_names, modality), f"/meta/feature_names/{modality}", findings)
        if names is None:
            continue
        if set(columns.values()) - {len(names)}:
            findings.add(
                "column-names", what=modality, detail=f"{len(names)} names for {max(columns.values())} columns"
            )
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            findings.add("column-names", what=modality, detail=f"{', '.join(twice[:3])} more than once")


def stored(read: Callable[[], T], what: str, findings: Findings) -> T | None:
    """What `read` gives; None, and a finding, where it is not there or of another kind."""
    try:
        return read()
    except KeyError:
        findings.add("missing-key", what=what)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        findings.add("shape", what=what, detail=f"cannot be read: {error}")
    return None


def check_splits(source: Source, findings: Findings) -> dict[str, set[str]]:
    """Split → keys whose content can be checked."""
    usable = {}
    for split in layout.SPLITS:
        if split not in source.splits:
            findings.add("missing-split", what=split)
        elif clips := _clips(source, split):
            usable[split] = _check_split(source, split, clips, findings)
        elif "id" in source.splits[split] or not source.splits[split]:
            findings.add("empty-split", split)
        else:
            findings.add("missing-key", split, "id")
    for modality in layout.MODALITIES:
        there = [split for split, keys in usable.items() if modality in keys]
        shapes = {split: (steps(source, split, modality), source.splits[split][modality].shape[-1]) for split in there}
        # Steps may differ in a pickle: MMSA pads nothing, and takes the training split's for its models.
        differing = {shape if not source.pickled else shape[1] for shape in shapes.values()}
        if len(differing) > 1:
            said = ", ".join(f"{split} {shape[0]} x {shape[1]}" for split, shape in shapes.items())
            findings.add("shape", what=modality, detail=f"the splits differ in steps x columns: {said}")
    if source.file is not None and source.file.attrs.get("aligned") is True:
        for split, keys in usable.items():
            lengths = {modality: steps(source, split, modality) for modality in layout.MODALITIES if modality in keys}
            if len(set(lengths.values())) > 1:
                said = ", ".join(f"{modality} {length}" for modality, length in lengths.items())
                findings.add("shape", split, "aligned", f"an aligned file has one row per wordpiece in each: {said}")
    return usable


def _clips(source: Source, split: str) -> int:
    arrays = source.splits[split]
    return arrays["id"].shape[0] if "id" in arrays and arrays["id"].shape else 0


def _check_split(source: Source, split: str, clips: int, findings: Findings) -> set[str]:
    arrays = source.splits[split]
    for key in _wanted(source, arrays):
        findings.add("missing-key", split, key)
    usable = set()
    sizes: dict[str | int | None, int] = {}
    # A modality's own array comes first in ROWS; it gives the length that masks and times must have.
    for key, (row, kind) in ROWS.items():
        if key not in arrays:
            continue
        array = arrays[key]
        if array.shape is None:  # HDF5 knows datasets without a shape
            findings.add("shape", split, key, "it holds nothing")
            continue
        wrong = _wrong_type(array, kind, source.pickled)
        if wrong:
            findings.add("dtype", split, key, wrong)
        if said := _wrong_shape(array, (clips, *row), sizes, source.pickled):
            findings.add("shape", split, key, said)
        elif not wrong:
            usable.add(key)
            if source.pickled and key in layout.MODALITIES and array.dtype == np.float64:
                findings.add("float64", split, key)
        if key in layout.MODALITIES and len(array.shape) == 3:
            sizes[key] = array.shape[1]
    return usable


def _wanted(source: Source, arrays: Mapping[str, Array]) -> list[str]:
    """Keys that are not there and should be."""
    if not source.pickled:
        return [key for key in (*ROWS, "words") if key not in arrays and key not in _OPTIONAL]
    wanted = [key for key in _PICKLE if key not in arrays]
    if "text" not in arrays and "text_bert" not in arrays:
        wanted.append("text or text_bert")
    if layout.REGRESSION not in arrays:
        wanted.append(layout.REGRESSION)
    series = [m for m in layout.MODALITIES if m in arrays and len(arrays[m].shape) == 3]
    if len({arrays[modality].shape[1] for modality in series}) > 1:  # MMSA asks for them in files that are not aligned
        wanted += [f"{m}_lengths" for m in layout.TIMED if m in series and f"{m}_lengths" not in arrays]
    return wanted


def _wrong_type(array: Array, kind: str, pickled: bool) -> str:
    if kind == "text":
        return "" if is_text(array) else f"{array.dtype}, not text"
    if array.dtype.kind not in ("iuf" if pickled else "biuf"):
        return f"{array.dtype}, not numbers"
    # MMSA casts whatever it finds.
    return "" if pickled or array.dtype == np.dtype(kind) else f"{array.dtype}, not {np.dtype(kind)}"


def _wrong_shape(
    array: Array, expected: tuple[str | int | None, ...], sizes: Mapping[str | int | None, int], pickled: bool
) -> str:
    shape = array.shape
    wanted = [sizes.get(n) if isinstance(n, str) else n for n in expected]
    forms = [wanted]
    if pickled and len(expected) == 3 and expected[2] is None:
        forms.append([wanted[0], None])  # one vector per clip
    if pickled and len(expected) == 1:
        forms.append([wanted[0], 1])
    for form in forms:
        if len(form) == len(shape) and all(n in (None, m) for n, m in zip(form, shape, strict=True)):
            return "" if all(shape) else f"shape {shape} has an empty axis"
    said = " x ".join(str(m) if m is not None else f"{n or 'columns'}" for m, n in zip(wanted, expected, strict=True))
    return f"shape {' x '.join(map(str, shape)) or 'of one number'} where {said} is due"
