"""MMSA's pickle → feature file."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Any

import h5py

from mmfeat import __version__, layout
from mmfeat.files import atomic
from mmfeat.layout import ClipStatus
from mmfeat.mmsa import UNKNOWN, MMSAError
from mmfeat.mmsa.original import Original
from mmfeat.mmsa.rows import Rows, columns
from mmfeat.mmsa.unpickle import load
from mmfeat.moments import Moments

VERSION = 1
"""Raised when the same pickle gives another feature file than before."""
_CLASSES = ("negative", "neutral", "positive")


def load_splits(path: Path) -> tuple[dict[Any, Any], dict[str, dict[Any, Any]]]:
    """All that a pickle holds, and its splits. Raises MMSAError where it has none, or as `unpickle.load` does."""
    whole = load(path)
    splits = {name: whole[name] for name in layout.SPLITS if name in whole} if isinstance(whole, dict) else {}
    if not splits or not all(isinstance(split, dict) for split in splits.values()):
        raise MMSAError(f"{path} is no feature file of MMSA: it has none of the splits {', '.join(layout.SPLITS)}")
    return whole, splits


def convert(path: Path, out: Path, text_model: str = "", language: str = "") -> Path:
    """Write the feature file of an MMSA pickle. In memory are the pickle and one split.

    Args:
        path: the pickle.
        out: .h5 file to write.
        text_model: transformers model whose token ids `text_bert` holds and whose last layer `text` is. Where it is
            not known, training takes `text` as it is.
        language: ISO 639-1 code of the transcripts.

    Raises MMSAError, naming split and key, where the pickle does not hold what MMSA would load.
    """
    whole, splits = load_splits(path)
    if text_model and not all("text_bert" in split for split in splits.values() if split):
        raise MMSAError(f"{path} has no text_bert, so there are no token ids of {text_model} in it")
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    widths = columns(splits, str(path))
    moments = {modality: Moments() for modality in layout.TIMED}
    statuses: list[ClipStatus] = []
    aligned, labelled, classes = [], False, 0
    with atomic(out) as temporary, h5py.File(temporary, "w") as file:
        original = Original(file)
        for name, content in whole.items():
            if name not in splits:
                original.add(name, content)
                continue
            rows = Rows(content, f"{path}, {name}", widths)
            original.add_split(name, content, rows.arrays)
            _write(file, name, rows)
            statuses += [ClipStatus(id, name, "ok") for id in rows.arrays["id"]]
            aligned += [rows.aligned] if rows.clips else []
            labelled = labelled or rows.labelled
            classes = max(classes, int(rows.arrays["classification_labels"].max(initial=-1)) + 1)
            for modality in layout.TIMED if name == "train" else ():
                for values, mask in zip(rows.arrays[modality], rows.arrays[f"{modality}_mask"], strict=True):
                    moments[modality].add(values[mask])
        original.close()
        text = {"extractor": "transformers", "model": text_model, "layer": -1} if text_model else {"extractor": "mmsa"}
        layout.write_head(
            file,
            aligned=bool(aligned) and all(aligned),
            language=language or UNKNOWN,
            # No section for audio and vision: no clip can be extracted in the same way.
            recipe={
                "name": "mmsa",
                "language": language or UNKNOWN,
                "text": text,
                "source": {"format": "MMSA pickle", "file": path.name, "sha256": digest},
            },
            fingerprints=dict.fromkeys(layout.MODALITIES, digest[:16]),
            class_names=_CLASSES if labelled else [str(k) for k in range(classes)],
            names={modality: [f"{modality}_{k}" for k in range(widths[modality])] for modality in layout.TIMED},
            versions={"mmfeat": __version__},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        layout.write_clips(file, statuses)
        for modality, seen in moments.items():
            layout.write_train_stats(file, modality, *seen.result(widths[modality]))
    return out


def _write(file: h5py.File, name: str, rows: Rows) -> None:
    shapes = {modality: (rows.arrays[modality].shape[1], rows.columns[modality]) for modality in layout.MODALITIES}
    group = layout.create_split(file, name, rows.clips, shapes)
    if rows.clips:
        for key, values in rows.arrays.items():
            group[key][:] = values
    layout.write_words(group, [])
