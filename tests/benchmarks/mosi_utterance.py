"""Real features: CMC as it is by default beside ridge regression, on 1447 utterances of CMU-MOSI's training set.

One vector per modality and utterance, so each clip is a single step and attention has nothing to do. Folds have no
video in common, nor have training and validation clips within one. Settings are the defaults; nothing was tuned to
this file. Ridge regression sees the three vectors side by side, standardised, of training and validation clips; its α
is chosen on those, by folds of videos, and the sign of what it predicts is the class.

Compare the columns with each other, not with papers: this is not the published test set, and ridge regression on text
alone gets 94 % of three classes right, on vision alone 87 %, which only vectors can give that were themselves learnt
from the labels of these utterances.

    python tests/benchmarks/mosi_utterance.py           # 5 folds, 1 seed: 3 minutes of one core
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmc.config import MODALITIES, Config
from cmc.evaluate import evaluate
from cmc.metrics import class_metrics, majority, mean_std, regression_metrics
from cmc.train import train
from mmfeat.layout import (
    REGRESSION,
    TIMED,
    ClipStatus,
    create_split,
    polarity,
    write_clips,
    write_head,
    write_train_stats,
    write_words,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "features" / "mosi_utterance_train.npz"
QUESTION = "negative"  # CMU-MOSI's: negative or not
FIGURES = {
    "accuracy": "Acc, 3 classes",
    "f1": "weighted F1, 3 classes",
    "has0_accuracy": "Has0 Acc, negative or not",
    "has0_f1": "Has0 F1",
    "non0_accuracy": "Non0 Acc, neutral left out",
    "non0_f1": "Non0 F1",
    "mae": "MAE",
    "r": "Pearson r",
}
Arrays = Mapping[str, NDArray[np.generic]]
Rows = Mapping[str, NDArray[np.int64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=DATA)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(args.file, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    videos = np.array([str(id).rpartition("_")[0] for id in data["id"]])
    started, found = time.monotonic(), {"CMC": [], "ridge": [], "majority": []}
    with tempfile.TemporaryDirectory() as folder:
        for fold, (rest, test) in enumerate(GroupKFold(args.folds).split(videos, groups=videos)):
            inner = GroupShuffleSplit(1, test_size=0.2, random_state=fold)
            train_rows, valid_rows = next(inner.split(rest, groups=videos[rest]))
            rows = {"train": rest[train_rows], "valid": rest[valid_rows], "test": test}
            disjoint(videos, rows)
            path = Path(folder) / f"fold{fold}.h5"
            write(path, data, videos, rows)
            found["ridge"].append(ridge(data, videos, rest, test))
            found["majority"].append(constant(data["label"][rest], data["label"][test]))
            for seed in range(args.seeds):
                run = Path(folder) / f"fold{fold}-{seed}"
                record = train(path, run, Config(seed=seed, text="freeze", polarity=QUESTION))
                result = evaluate(run, path)
                figures = result["cmc"]["overall"] | result["regression"]["overall"]
                found["CMC"].append(figures)
                clips = ", ".join(f"{len(of_split)} {split}" for split, of_split in rows.items())
                print(
                    f"fold {fold + 1}, seed {seed}: {clips}; Acc {figures['accuracy']:.3f}, {record.seconds:.0f} s",
                    flush=True,
                )
    table(found, len(data["id"]), len(set(videos)), args.folds, args.seeds)
    print(f"{time.monotonic() - started:.0f} s, {time.process_time():.0f} s of CPU time")


def disjoint(videos: NDArray[np.str_], rows: Rows) -> None:
    sets = [set(videos[of_split]) for of_split in rows.values()]
    assert all(not one & other for k, one in enumerate(sets) for other in sets[k + 1 :]), "a video is in two splits"


def write(path: Path, data: Arrays, videos: NDArray[np.str_], rows: Rows) -> None:
    """A feature file whose clips have a single step of each modality."""
    columns = {m: data[m].shape[1] for m in MODALITIES}
    with h5py.File(path, "w") as file:
        write_head(
            file,
            aligned=False,
            language="en",
            recipe={"name": "mosi-utterance", "text": {"extractor": "given"}},
            fingerprints=dict.fromkeys(MODALITIES, "mosi-utterance"),
            class_names=("negative", "neutral", "positive"),
            names={m: [f"{m}_{k}" for k in range(columns[m])] for m in TIMED},
            versions={},
            created="",
        )
        statuses = []
        for split, of_split in rows.items():
            group = create_split(file, split, len(of_split), {m: (1, columns[m]) for m in MODALITIES})
            ids = [
                f"{video}$_${str(id).rpartition('_')[2]}"
                for video, id in zip(videos[of_split], data["id"][of_split], strict=True)
            ]
            group["id"][:], group["raw_text"][:], group["annotations"][:] = ids, [""] * len(ids), [""] * len(ids)
            group[REGRESSION][:] = data["label"][of_split]
            for m in MODALITIES:
                group[m][:, 0] = data[m][of_split]
                group[f"{m}_lengths"][:] = 1
            for m in TIMED:
                group[f"{m}_mask"][:] = True
                if split == "train":
                    write_train_stats(file, m, data[m][of_split].mean(0), data[m][of_split].std(0))
            group["text_bert"][:, 1] = 1  # a step of text, whose wordpieces are not known
            write_words(group, [])
            statuses += [ClipStatus(id, split, "ok") for id in ids]
        write_clips(file, statuses)


def ridge(data: Arrays, videos: NDArray[np.str_], rest: NDArray[np.int64], test: NDArray[np.int64]) -> dict[str, float]:
    x, y = np.concatenate([data[m] for m in MODALITIES], 1), data["label"]
    model = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": np.logspace(0, 6, 13)},
        scoring="neg_mean_squared_error",
        cv=GroupKFold(5),
    )
    model.fit(x[rest], y[rest], groups=videos[rest])
    return of_values(y[test], model.predict(x[test]))


def constant(train: NDArray[np.float32], test: NDArray[np.float32]) -> dict[str, float]:
    """Always the most frequent class, and the mean label."""
    return majority(polarity(test), polarity(train), 3) | {"mae": float(np.abs(test - train.mean()).mean())}


def of_values(truth: NDArray[np.float32], predicted: NDArray[np.float64]) -> dict[str, float]:
    """The same figures of predicted labels: the class is the sign."""
    logits = np.stack([-predicted, np.full_like(predicted, -np.inf), predicted], 1)
    return class_metrics(polarity(truth), logits, QUESTION) | regression_metrics(truth, predicted)


def table(found: Mapping[str, list[dict[str, float]]], clips: int, videos: int, folds: int, seeds: int) -> None:
    print(
        f"\n{clips} utterances of {videos} videos; mean ± standard deviation over {folds} folds"
        + (f", CMC over {seeds} seeds of each" if seeds > 1 else "")
    )
    print(f"{'':28}{'CMC':>18}{'ridge regression':>18}{'constant':>18}")
    for name, shown in FIGURES.items():
        cells = []
        for rows in found.values():
            if name not in rows[0]:
                cells.append("")
                continue
            mean, deviation = mean_std([{name: row[name]} for row in rows])[name]
            scale, digits = (1, 2) if name in ("mae", "r") else (100, 1)
            cells.append(f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}")
        print(f"{shown:28}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
