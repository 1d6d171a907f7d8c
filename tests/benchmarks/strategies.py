"""The strategies of stage 1 side by side. Each part prints its table; docs/pretraining.md has them.

    python -m tests.benchmarks.strategies planted     # labels known, a tenth of M corrupted: cmc compare
    python -m tests.benchmarks.strategies labels      # the same with few labels and many unlabelled clips
    python -m tests.benchmarks.strategies demo        # features of the demo corpus's footage
    python -m tests.benchmarks.strategies mosi        # real utterance features, a fold with videos of its own
    python -m tests.benchmarks.strategies choices     # what two choices of design do to validation accuracy
    python -m tests.benchmarks.strategies epochs      # CPU time per epoch at CH-SIMS's shapes, over PLGM's

Settings are the defaults; nothing was tuned to these data.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cmc.cli import main as cmc
from cmc.compare import COMPARED
from cmc.config import MODALITIES, Config
from cmc.data import shorten
from cmc.planted import Plan, plant
from cmc.pretrain import Given, Pretrained, pretrain
from cmc.strategies import cyclic, generation, masked
from cmc.text_encoder import cache
from cmc.train import fit, open_material
from cmc.training import seed_everything, snapshot
from cmc.unimodal import Unimodal


def compared(features: Path, out: Path | None, *more: str) -> None:
    cmc(["compare", str(features), "-o", str(out or features.parent / "comparison"), "--text", "freeze", *more])


def planted(folder: Path, out: Path | None, more: list[str]) -> None:
    path = folder / "planted.h5"
    plant(path, Plan({"train": 300, "valid": 100, "test": 400}, corrupt=0.1))
    compared(path, out, "--truth", str(path.with_name("planted_truth.csv")), *more)


def labels(folder: Path, out: Path | None, more: list[str]) -> None:
    path = folder / "planted.h5"
    plant(path, Plan({"train": 900, "valid": 100, "test": 400}))
    strategies = ("--strategies", *(name for name in COMPARED if name != "gt"))
    compared(path, out, *strategies, "--labelled", "3%", "10%", "30%", *more)


def demo(folder: Path, out: Path | None, more: list[str]) -> None:
    corpus, features = str(folder / "corpus"), folder / "features.h5"
    for call in (["demo", corpus, "--clips", "120"], ["extract", corpus, "-o", str(features), "--workers", "2"]):
        subprocess.run([sys.executable, "-m", "pipelines.cli", *call], check=True, stdout=subprocess.DEVNULL)
    compared(features, out, *more)


def mosi(folder: Path, out: Path | None, more: list[str]) -> None:
    from sklearn.model_selection import GroupShuffleSplit

    from tests.benchmarks.mosi_utterance import DATA, QUESTION, disjoint, write

    with np.load(DATA, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    videos = np.array([str(id).rpartition("_")[0] for id in data["id"]])
    rest, test = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(videos, groups=videos))
    train, valid = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(rest, groups=videos[rest]))
    rows = {"train": rest[train], "valid": rest[valid], "test": test}
    disjoint(videos, rows)
    path = folder / "mosi.h5"
    write(path, data, videos, rows)
    compared(path, out, "--polarity", QUESTION, *more)


def epochs(folder: Path, out: Path | None, more: list[str], number: int = 128, count: int = 4) -> None:
    """CPU seconds of each strategy's epochs on one thread, those of its preparing phases included."""
    from tests.benchmarks.sims import COLUMNS, TASK, bert, clips

    torch.set_num_threads(1)
    split = shorten(cache(clips(number + 32, "sims"), bert(1, frozen=True)), Config().steps)
    own = split.label("M")
    split = replace(split, labels={"M": own} | dict.fromkeys("TAV", own), values=own.float() - 1)
    rows = torch.arange(len(split)) < number
    base = 0.0
    for name in (name for name in COMPARED if name != "none"):
        config = Config(pretrain=name, pretrain_epochs=count)
        seed_everything(config.seed)
        models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in MODALITIES}
        marks = [time.process_time()]

        def report(stage: str, epoch: int, epochs: int, figures: object, marks: list[float] = marks) -> None:
            marks.append(time.process_time())

        pretrain(Given(models, split.select(rows), split.select(~rows), config, TASK, report=report))
        taken = np.diff(marks)[1:]  # the first warms up
        base = base or float(np.median(taken))
        shown = f"median {np.median(taken):5.2f}, slowest {taken.max():5.2f} s of CPU"
        print(
            f"{name:12}{shown}: {np.median(taken) / base:4.1f} and {taken.max() / base:4.1f} times plgm's", flush=True
        )


def choices(folder: Path, out: Path | None, more: list[str], files: int = 5) -> None:
    """Heads taught after `generation` and `masked`, and branches of sound and sight taught the task by `cyclic`: each
    with and without, on planted files of other seeds than anywhere else. The test split is not read."""
    heads, whole = {module: module.teach_heads for module in (generation, masked)}, cyclic.pretrain

    def untaught(given: Given) -> Pretrained:
        start = {m: snapshot(given.models[m]) for m in ("audio", "vision")}
        found = whole(given)
        return replace(found, weights=found.weights | start)

    torch.set_num_threads(1)
    accuracies: dict[tuple[str, bool], list[float]] = {}
    for seed in range(21, 21 + files):
        path = folder / f"{seed}.h5"
        plant(path, Plan({"train": 150, "valid": 200, "test": 10}, seed=seed))
        for name, taught in itertools.product(("generation", "masked", "cyclic"), (True, False)):
            for module, teach in heads.items():
                module.teach_heads = teach if taught else lambda given, weights: weights
            cyclic.pretrain = whole if taught else untaught
            config = Config(pretrain=name, text="freeze", layers=1, seed=seed)
            material = open_material(path, config)
            seed_everything(seed)
            found = fit(material, config).record.validation["accuracy"]
            accuracies.setdefault((name, taught), []).append(found)
    for (name, taught), found in accuracies.items():
        say = "taught" if taught else "not taught"
        print(f"{name:12}{say:12}{100 * np.mean(found):5.1f} ± {100 * np.std(found, ddof=1):.1f} % of validation clips")


PARTS = {part.__name__: part for part in (planted, labels, demo, mosi, choices, epochs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, help="where results are kept, to go on from (default: nowhere)")
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        PARTS[args.part](Path(folder), args.out and args.out.resolve(), more)


if __name__ == "__main__":
    main()
