"""Feature files with planted truth: T, A and V labels that disagree with the clip's label on a known share of clips.

Each modality's features show its own label, and training sees only M, the majority of the three. So it is known which
unimodal labels a copy of M gets wrong, and whether PLGM finds them. Labels are written beside the file, not into it.
A share of the M labels that are trained and selected on may be corrupted; the test split's are always the true ones.
Three classes are polarity, with numbers for labels; any other number of classes is named.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cmc.config import LETTERS, UsageError
from cmc.data import POLARITIES
from mmfeat.files import atomic
from mmfeat.layout import (
    CLASSES,
    REGRESSION,
    UNIMODAL,
    ClipStatus,
    create_split,
    create_unimodal_classes,
    write_clips,
    write_head,
    write_train_stats,
    write_words,
)

VALUES = np.array([-0.8, 0.0, 0.8], np.float32)
"""Regression label of each polarity."""
NAMES = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise", "trust")
COLUMNS = {"text": 16, "audio": 8, "vision": 10}
STEPS = {"text": 12, "audio": 24, "vision": 16}
"""Longest clip, in steps."""
MORE = "more"
"""The clips without a label."""
_CLS, _SEP, _FIRST_WORD, _WORDS = 2, 3, 4, 20


@dataclass(frozen=True)
class Plan:
    """What to plant."""

    clips: Mapping[str, int]
    """Split → number of clips."""
    conflict: float = 0.5
    """Share of clips in which one modality, drawn at random, has another label than M."""
    signal: float = 2.0
    """Distance between two classes' means in units of a clip's own scatter."""
    missing: float = 0.0
    """Share of clips without sound, and as many without a face."""
    annotated: bool = False
    """Write the unimodal labels into the file as well, for CMC-GT."""
    seed: int = 0
    classes: int = 3
    corrupt: float = 0.0
    """Share of training and validation clips whose M label in the file is another than the true one."""
    unlabelled: int = 0
    """Further clips, without any label, in a file of their own."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(NAMES):
            raise UsageError(f"{self.classes} classes cannot be planted: 2 to {len(NAMES)}")
        for name in ("conflict", "missing", "corrupt"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UsageError(f"{name} {share:g} is not a share of the clips: 0 to 1")
        if not 0 <= self.signal < np.inf:
            raise UsageError(f"signal {self.signal:g} is not a distance: a finite number, 0 or more")
        for name in ("seed", "unlabelled"):
            if (number := getattr(self, name)) < 0:
                raise UsageError(f"{name} {number} is below 0")

    @property
    def fingerprint(self) -> str:
        """What decides where the classes lie: a model of one such plan cannot answer for features of another."""
        return f"planted: {self.classes} classes, signal {self.signal:g}, seed {self.seed}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return POLARITIES if self.classes == len(POLARITIES) else NAMES[: self.classes]


def plant(path: Path, plan: Plan, text_encoder: Path | None = None) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Write a feature file, and beside it `<stem>_truth.csv` with the planted labels, and `<stem>_unlabelled.h5` with
    further clips where the plan has such.

    Args:
        path: of the .h5 file.
        plan: sizes, shares and seed.
        text_encoder: folder of a transformers encoder; its output for planted words then is the text. By default
            text is drawn like the other modalities, and there is no encoder to finetune.

    Returns: split → `M`, `T`, `A`, `V` → true classes (N,).

    Files of these names are replaced; folders above are made.
    """
    rng = np.random.default_rng(plan.seed)
    means = {m: _means(rng, columns, plan.classes, plan.signal) for m, columns in COLUMNS.items()}
    encode = _Encoder(text_encoder) if text_encoder else None
    truth = _write(path, plan, plan.clips, rng, means, encode)
    if plan.unlabelled:
        further = {MORE: plan.unlabelled}
        _write(path.with_name(f"{path.stem}_unlabelled.h5"), plan, further, rng, means, encode)
    _write_truth(path.with_name(f"{path.stem}_truth.csv"), truth, plan)
    return truth


def _write(
    path: Path,
    plan: Plan,
    clips_of: Mapping[str, int],
    rng: np.random.Generator,
    means: Mapping[str, NDArray[np.float64]],
    encode: _Encoder | None,
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """One file; returns its true classes. Clips of split `MORE` are written as training clips without a label."""
    columns = COLUMNS | ({"text": encode.columns} if encode else {})
    truth, statuses = {}, []
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        write_head(
            file,
            aligned=False,
            language="en",
            recipe={"name": "planted", "text": encode.section if encode else {"extractor": "planted"}},
            fingerprints=dict.fromkeys(("text", "audio", "vision"), plan.fingerprint),
            class_names=plan.class_names,
            names={m: [f"{m}_{k}" for k in range(columns[m])] for m in ("audio", "vision")},
            versions={},
            created="",
        )
        for split, clips in clips_of.items():
            labels = truth[split] = _labels(rng, clips, plan)
            written = "train" if split == MORE else split
            group = create_split(file, written, clips, {m: (STEPS[m], columns[m]) for m in COLUMNS})
            ids = [f"{split}$_${row:04d}" for row in range(clips)]
            group["id"][:] = ids
            group["raw_text"][:] = [""] * clips
            group["annotations"][:] = ["" for _ in ids]
            if split != MORE:
                _write_labels(group, labels | {"M": _corrupted(labels["M"], split, plan)}, plan)
            for modality in ("audio", "vision"):
                gone = rng.random(clips) < plan.missing
                values, mask = _series(rng, means[modality], labels[modality[0].upper()], STEPS[modality], gone)
                group[modality][:], group[f"{modality}_mask"][:] = values, mask
                group[f"{modality}_lengths"][:] = (np.arange(1, mask.shape[1] + 1) * mask).max(1)
                if written == "train":
                    measured = values[mask] if mask.any() else np.zeros_like(values[0])  # no clip has it
                    write_train_stats(file, modality, measured.mean(0), measured.std(0))
            tokens = _tokens(rng, labels["T"], STEPS["text"], plan.classes)
            text = encode(tokens) if encode else _text(rng, means["text"], labels["T"], tokens)
            group["text"][:], group["text_bert"][:] = text, tokens
            group["text_lengths"][:] = tokens[:, 1].sum(1)
            write_words(group, [])
            statuses += [ClipStatus(id, written, "ok") for id in ids]
        write_clips(file, statuses)
    return truth


def _labels(rng: np.random.Generator, clips: int, plan: Plan) -> dict[str, NDArray[np.int64]]:
    """M is drawn; where the clip is in conflict, one modality shows one of the other classes."""
    M = rng.integers(0, plan.classes, clips)
    unimodal = np.repeat(M[:, None], 3, 1)
    rows = np.flatnonzero(rng.random(clips) < plan.conflict)
    which = rng.integers(0, 3, len(rows))
    unimodal[rows, which] = (M[rows] + rng.integers(1, plan.classes, len(rows))) % plan.classes
    return {"M": M, "T": unimodal[:, 0], "A": unimodal[:, 1], "V": unimodal[:, 2]}


def _corrupted(M: NDArray[np.int64], split: str, plan: Plan) -> NDArray[np.int64]:
    """M with one of the other classes on a share of the clips, drawn apart: the rest of the file does not change."""
    if split not in ("train", "valid"):
        return M
    rng = np.random.default_rng([plan.seed, ("train", "valid").index(split)])
    rows = rng.random(len(M)) < plan.corrupt
    return np.where(rows, (M + rng.integers(1, plan.classes, len(M))) % plan.classes, M)


def _write_labels(group: h5py.Group, labels: Mapping[str, NDArray[np.int64]], plan: Plan) -> None:
    named = plan.class_names != POLARITIES
    if named:
        create_unimodal_classes(group)
        group["classification_labels"][:] = labels["M"]
    else:
        group[REGRESSION][:] = VALUES[labels["M"]]
    if plan.annotated:
        for modality, key in (CLASSES if named else UNIMODAL).items():
            own = labels[LETTERS[modality]]
            group[key][:] = own if named else VALUES[own]


def _means(rng: np.random.Generator, columns: int, classes: int, signal: float) -> NDArray[np.float64]:
    """The classes' means, `signal` apart, shape (K, D)."""
    basis, _ = np.linalg.qr(rng.standard_normal((columns, classes)))
    return basis.T * signal / np.sqrt(2)


def _series(
    rng: np.random.Generator,
    means: NDArray[np.float64],
    labels: NDArray[np.int64],
    steps: int,
    gone: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Steps around a clip's own mean, which scatters around its class's; about 1 step in 10 was not measured."""
    clips, columns = len(labels), means.shape[1]
    lengths = rng.integers(steps // 2, steps + 1, clips)
    mask = (np.arange(steps) < lengths[:, None]) & (rng.random((clips, steps)) > 0.1) & ~gone[:, None]
    own = means[labels] + rng.standard_normal((clips, columns)) / np.sqrt(columns)
    values = own[:, None] + 1.5 * rng.standard_normal((clips, steps, columns))
    scale, offset = np.geomspace(0.1, 100, columns), np.linspace(-5, 5, columns)  # as different as real columns are
    return np.where(mask[:, :, None], values * scale + offset, 0).astype(np.float32), mask


def _tokens(rng: np.random.Generator, labels: NDArray[np.int64], steps: int, classes: int) -> NDArray[np.int32]:
    """text_bert (N, 3, L): words of the label's class among words of any."""
    tokens = np.zeros((len(labels), 3, steps), np.int32)
    for row, label in enumerate(labels):
        words = rng.integers(4, steps - 1)
        own = rng.random(words) < 0.6
        shown = np.where(own, label, rng.integers(0, classes, words))
        ids = _FIRST_WORD + _WORDS * shown + rng.integers(0, _WORDS, words)
        tokens[row, 0, : words + 2] = [_CLS, *ids, _SEP]
        tokens[row, 1, : words + 2] = 1
    return tokens


def _text(
    rng: np.random.Generator, means: NDArray[np.float64], labels: NDArray[np.int64], tokens: NDArray[np.int32]
) -> NDArray[np.float32]:
    clips, columns = len(labels), means.shape[1]
    own = means[labels] + rng.standard_normal((clips, columns)) / np.sqrt(columns)
    values = own[:, None] + 1.5 * rng.standard_normal((clips, tokens.shape[2], columns))
    return np.where(tokens[:, 1, :, None] > 0, values, 0).astype(np.float32)


class _Encoder:
    """A frozen transformers encoder, as mmfeat's text extractor runs it."""

    def __init__(self, folder: Path):
        from cmc.text_encoder import load_encoder

        self.section: dict[str, Any] = {"extractor": "transformers", "model": str(folder), "layer": -1}
        self._model = load_encoder(str(folder)).eval()
        self.columns = int(self._model.settings["hidden_size"])

    def __call__(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            hidden = self._model(torch.from_numpy(tokens).long()).numpy()
        return np.where(tokens[:, 1, :, None] > 0, hidden, 0)


def _write_truth(path: Path, truth: Mapping[str, Mapping[str, NDArray[np.int64]]], plan: Plan) -> None:
    names = plan.class_names
    written = [f"{value:g}" for value in VALUES] if names == POLARITIES else names
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["video_id", "clip_id", "label_T", "label_A", "label_V", "label_M"])
        for split, labels in truth.items():
            for row in range(len(labels["M"])):
                rows.writerow([split, f"{row:04d}", *(written[labels[key][row]] for key in "TAVM")])
