"""Feature file → the pickle that MMSA loads, and the part of MMSA's configuration that describes it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmfeat import layout
from mmfeat.files import atomic
from mmfeat.layout import FeatureFile
from mmfeat.mmsa import UNKNOWN, MMSAError
from mmfeat.mmsa.original import came_from_pickle, restore

DIALECTS = {"sims": "sims", "simsv2": "sims", "mosi": "mosi", "mosei": "mosei"}
"""Dialect → data set as which MMSA 2.2.1 loads it. It reads unimodal labels for `sims` only, and knows no SIMS v2."""


def export(path: Path, out: Path, dialect: str = "") -> Path | None:
    """Write a feature file's pickle, and MMSA's configuration for it beside it, as `<name>.mmsa.json`.

    Args:
        path: feature file.
        out: pickle to write.
        dialect: one of DIALECTS. Without one, a file that was made of a pickle gives that pickle again, bit for bit,
            and any other is written as `sims` where every clip has unimodal labels, else as `mosi`.

    Returns: the configuration; None for a restored pickle that MMSA cannot load.
    Raises MMSAError where a split, or labels that the dialect needs, are missing, naming what to use instead.
    """
    with FeatureFile(path) as file:
        if came_from_pickle(file) and not dialect:
            data: dict[Any, Any] = restore(file)
            settings = config(file, _suited(file), out) if not _lacking(file) and _is_loadable(data) else None
            if settings and "audio_lengths" not in data["train"]:
                settings["need_data_aligned"] = True  # or MMSA asks for lengths
        else:
            if lacking := _lacking(file):
                raise MMSAError(f"{path} has no clips in split {lacking[0]!r}; MMSA loads train, valid and test")
            dialect = dialect or _suited(file)
            data, settings = dialect_data(file, dialect), config(file, dialect, out)
    with atomic(out) as temporary, temporary.open("wb") as pickled:
        pickler = _Pickler(pickled, protocol=4)
        pickler.fast = _is_tree(data, set())
        pickler.dump(data)
    beside = config_of(out)
    if settings is None:
        beside.unlink(missing_ok=True)  # it would describe the pickle that was replaced
        return None
    with atomic(beside) as temporary:
        temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return beside


def config_of(pickled: Path) -> Path:
    """Where the configuration for a pickle lies."""
    return pickled.with_suffix(".mmsa.json")


class _Pickler(pickle.Pickler):
    """Arrays as calls of `numpy.ndarray`, a name that every numpy has: what numpy 2 writes is unknown before 1.26.

    It also keeps the byte order, where numpy's reader of its own form makes big-endian arrays native.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and not obj.dtype.hasobject:
            order: Literal["F", "C"] = "F" if obj.flags.fnc else "C"
            return np.ndarray, (obj.shape, obj.dtype, bytearray(obj.tobytes(order)), 0, None, order)
        return NotImplemented


def _is_tree(value: Any, seen: set[int]) -> bool:
    """Whether no container is there twice. Then the pickler need not remember, and so hold, every array's bytes."""
    if not isinstance(value, dict | list | tuple):
        return True
    if id(value) in seen:
        return not value
    seen.add(id(value))
    return all(_is_tree(part, seen) for part in (value.values() if isinstance(value, dict) else value))


def dialect_data(file: FeatureFile, dialect: str) -> dict[str, dict[str, Any]]:
    """Split → key → array or list as MMSA loads it."""
    if unlabelled := _count(file, layout.REGRESSION):
        raise MMSAError(
            f"{file.path}: {unlabelled} of {len(file)} clips have no regression label, which is what MMSA trains on"
        )
    unimodal = DIALECTS[dialect] == "sims"
    if unimodal and (unannotated := _count(file, *layout.UNIMODAL.values())):
        raise MMSAError(
            f"{file.path}: dialect {dialect!r} needs a label for text, audio and vision, and {unannotated} of "
            f"{len(file)} clips lack one: use --dialect mosi or --dialect mosei"
        )
    return {split: _split(file, split, unimodal) for split in file.splits}


def _split(file: FeatureFile, split: str, unimodal: bool) -> dict[str, Any]:
    data: dict[str, Any] = {key: file.read(split, key).tolist() for key in layout.STRINGS}
    data |= {modality: _measured(file, split, modality) for modality in layout.MODALITIES}
    tokens = file.read(split, "text_bert")
    if tokens[:, 0].any():  # else no token ids are known
        data["text_bert"] = tokens.astype(np.float32)  # as in MMSA's own files, which not every reader casts
    for modality in layout.TIMED:
        # At least 1: MMSA packs sequences, and packing refuses an empty one. The first row is zero then.
        data[f"{modality}_lengths"] = np.maximum(file.read(split, f"{modality}_lengths"), 1).tolist()
    for key in (layout.REGRESSION, *(layout.UNIMODAL.values() if unimodal else ()), "classification_labels"):
        data[key] = file.read(split, key)
    return data


def _measured(file: FeatureFile, split: str, modality: str) -> NDArray[np.float32]:
    """(N, T, D) with 0 for what was not measured: MMSA has no masks, and makes a number of −inf only."""
    values = np.nan_to_num(file.read(split, modality), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if modality in layout.TIMED:
        values[~file.read(split, f"{modality}_mask")] = 0.0
    return values


def config(file: FeatureFile, dialect: str, out: Path) -> dict[str, Any]:
    """What `MMSA_run(model, dataset_name, config=…)` must be told of the file; it overrides MMSA's own settings."""
    shapes = [file.dataset("train", modality).shape for modality in layout.MODALITIES]
    settings = {
        "dataset_name": DIALECTS[dialect],
        "featurePath": str(out.resolve()),
        "need_data_aligned": file.aligned,
        "seq_lens": [steps for _, steps, _ in shapes],
        "feature_dims": [columns for _, _, columns in shapes],
        "train_samples": shapes[0][0],  # sizes Self-MM's memory of labels; MMSA does not take it from the arrays
        "num_classes": len(json.loads(file.attrs["class_names"])),
    }
    if (language := file.attrs["language"]) != UNKNOWN:
        settings["language"] = {"zh": "cn"}.get(language, language)
    if model := (file.recipe.get("text") or {}).get("model"):
        settings["pretrained"] = model  # whose token ids text_bert holds; MMSA's own would be its data set's
    return settings


def _lacking(file: FeatureFile) -> list[str]:
    return [split for split in layout.SPLITS if split not in file.splits or not len(file.dataset(split, "id"))]


def _is_loadable(data: dict[Any, Any]) -> bool:
    """Whether MMSA finds what it indexes, in every split."""
    splits = [data[split] for split in layout.SPLITS]
    arrays = [split.get(modality) for split in splits for modality in layout.MODALITIES]
    has_keys = all({"id", "raw_text", layout.REGRESSION} <= set(split) for split in splits)
    return has_keys and all(isinstance(array, np.ndarray) and array.ndim == 3 for array in arrays)


def _suited(file: FeatureFile) -> str:
    return "mosi" if _count(file, *layout.UNIMODAL.values()) else "sims"


def _count(file: FeatureFile, *keys: str) -> int:
    """How many clips lack at least one of these labels."""

    def lacks(split: str, key: str) -> NDArray[np.bool_]:
        if (split, key) not in file:
            return np.ones(len(file.dataset(split, "id")), bool)
        return np.isnan(file.read(split, key))

    return sum(int(np.any([lacks(split, key) for key in keys], axis=0).sum()) for split in file.splits)
