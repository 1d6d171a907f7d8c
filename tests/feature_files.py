"""Feature files that are right in every respect, made on the spot; a test then spoils one thing."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from mmfeat import layout

CLS, SEP = 101, 102
COLUMNS = {"text": 5, "audio": 3, "vision": 4}
LONGEST = {"text": 10, "audio": 12, "vision": 8}
FINGERPRINTS = {"text": "t0", "audio": "a0", "vision": "v0", "words": "w0"}
IDS = {
    "train": [f"film{n // 2}$_${n}" for n in range(6)],
    "valid": ["film8$_$0", "film8$_$1"],
    "test": ["film9$_$0", "film9$_$1", "film9$_$2"],
}


def write_features(
    path: Path,
    ids: Mapping[str, Sequence[str]] = IDS,
    *,
    aligned: bool = False,
    fingerprints: Mapping[str, str] = FINGERPRINTS,
    columns: Mapping[str, int] = COLUMNS,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """A clip's labels and transcript follow from its id; a modality's rows from its id and its fingerprint."""
    recipe = {
        "name": path.stem,
        "language": "en",
        **{part: {"extractor": f"{part}-{fingerprints[part]}"} for part in ("text", "audio", "vision")},
        "words": {"aligner": f"words-{fingerprints['words']}"},
        "padding": "max",
    }
    with h5py.File(path, "w") as file:
        layout.write_head(
            file,
            aligned=aligned,
            language="en",
            recipe=recipe,
            fingerprints=fingerprints,
            class_names=("negative", "neutral", "positive"),
            names={m: [f"{m}{k}" for k in range(columns[m])] for m in layout.TIMED},
            versions=versions or {"mmfeat": "0"},
            created="2024-01-01T00:00:00+00:00",
        )
        file.attrs["truncated"] = layout.canonical_json({"text": 0, "audio": 0, "vision": 0})
        clips = {split: [clip(id, columns, fingerprints, aligned) for id in members] for split, members in ids.items()}
        everything = [one for members in clips.values() for one in members]
        longest = {m: max((len(one[m]) for one in everything), default=1) for m in COLUMNS}
        if aligned:
            longest = dict.fromkeys(COLUMNS, LONGEST["text"])
        for split, members in clips.items():
            shapes = {m: (longest[m], columns[m]) for m in COLUMNS}
            write_split(file, split, ids[split], members, shapes)
        for modality in layout.TIMED if "train" in file else ():
            valid = file[f"train/{modality}"][:][file[f"train/{modality}_mask"][:]]
            layout.write_train_stats(file, modality, valid.mean(0, np.float64), valid.std(0, np.float64))
        layout.write_clips(file, [layout.ClipStatus(id, split, "ok") for split in ids for id in ids[split]])
    return path


def clip(id: str, columns: Mapping[str, int], fingerprints: Mapping[str, str], aligned: bool) -> dict[str, np.ndarray]:
    """Arrays of one clip, not padded."""
    rng = _rng(id, "words")
    pieces = int(rng.integers(4, LONGEST["text"] + 1))
    tokens = np.ones((3, pieces), np.int32)
    tokens[0], tokens[2] = [CLS, *rng.integers(1000, 2000, pieces - 2), SEP], 0
    rows = {"text_bert": tokens, "text": _rng(id, fingerprints["text"]).normal(size=(pieces, columns["text"]))}
    for modality in layout.TIMED:
        own = _rng(id, fingerprints[modality])
        steps = pieces if aligned else int(own.integers(3, LONGEST[modality] + 1))
        mask = np.ones(steps, bool)
        mask[[0, -1] if aligned else 1] = False
        starts = np.arange(steps) * 0.1
        rows[modality] = own.normal(2.0, 3.0, (steps, columns[modality])) * mask[:, None]
        rows[f"{modality}_mask"], rows[f"{modality}_times"] = mask, np.stack([starts, starts + 0.1], 1)
    return rows


def write_split(
    file: h5py.File,
    split: str,
    ids: Sequence[str],
    clips: Sequence[Mapping[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    group = layout.create_split(file, split, len(ids), shapes)
    words = []
    for row, (id, arrays) in enumerate(zip(ids, clips, strict=True)):
        label = round(float(_rng(id, "label").uniform(-1, 1)), 1)
        group["id"][row], group["raw_text"][row], group["annotations"][row] = id, f"said in {id}", ""
        group["regression_labels"][row] = label
        group["regression_labels_T"][row] = -label
        group["classification_labels"][row] = layout.polarity(np.array([label], np.float32))[0]
        for key, values in arrays.items():
            if key == "text_bert":
                group[key][row, :, : values.shape[1]] = values
            else:
                group[key][row, : len(values)] = values
            if key in COLUMNS:
                group[f"{key}_lengths"][row] = len(values)
        words.append((row, "said", 0.0, 0.2, 0.9, 0, 4))
    layout.write_words(group, words)


def _rng(*names: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("\0".join(names).encode()))
