"""Two workers against one, with the default recipe and its models.

    python -m tests.benchmarks.speedup [--clips 60] [--turns 3] [--folder DIR]

Beside it what this machine gives at best: two processes against one that do the same clips, and know nothing of Dask or
of each other. One and two take turns, since a machine that is shared with others changes from minute to minute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

from mmfeat import corpus as corpora
from mmfeat.clip import extract_to_store
from mmfeat.dask_client import WORKER_ENVIRONMENT
from mmfeat.demo.corpus import make_demo
from mmfeat.recipe import load_recipe
from mmfeat.shards import Store
from pipelines.extract import extract_corpus

COUNTS = (1, 2)

_together: Barrier
"""In a process of `alone`: where it waits for the others."""


def with_dask(root: Path, work: Path, workers: int) -> float:
    """Clips per second, once models are loaded and until one worker may be idle."""
    corpus = corpora.load(root)
    ends: dict[int, float] = {}

    def report(done: int, total: int, note: str = "") -> None:
        ends.setdefault(done, time.monotonic())  # now and then nothing new is done

    extract_corpus(corpus, load_recipe("default"), work, workers=workers, report=report)
    first, last = len(corpus.usable) // 4, len(corpus.usable) - 1
    return (last - first) / (ends[last] - ends[first])


def alone(root: Path, work: Path, processes: int) -> float:
    """Clips per second of processes that each do them all, once models are loaded."""
    os.environ.update(WORKER_ENVIRONMENT)
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(processes)
    with ProcessPoolExecutor(processes, spawn, initializer=_meet, initargs=(together,)) as pool:
        return sum(pool.map(_alone, [root] * processes, [work / str(k) for k in range(processes)]))


def _meet(together: Barrier) -> None:
    global _together
    _together = together


def _alone(root: Path, work: Path) -> float:
    recipe, store, clips = load_recipe("default"), Store(work), corpora.load(root).usable
    skipped = len(clips) // 4
    for clip in clips[:skipped]:
        extract_to_store(clip, recipe, store)
    _together.wait(600)
    began = time.monotonic()
    for clip in clips[skipped:]:
        extract_to_store(clip, recipe, store)
    rate = (len(clips) - skipped) / (time.monotonic() - began)
    _together.wait(600)  # nobody is alone before all are timed
    return rate


WAYS = {"two workers of Dask": with_dask, "two processes that share nothing": alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    args = parser.parse_args()
    print(f"load of this machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name) / "corpus"
        make_demo(root, args.clips)
        rates = defaultdict[tuple[str, int], list[float]](list)
        for turn in range(args.turns):
            for said, rate in WAYS.items():
                for count in COUNTS:
                    rates[said, count].append(rate(root, Path(name) / f"{rate.__name__}-{count}-{turn}", count))
    for said in WAYS:
        one, two = (sum(rates[said, count]) / args.turns for count in COUNTS)
        turns = ", ".join(f"{b / a:.2f}" for a, b in zip(rates[said, 1], rates[said, 2], strict=True))
        print(f"{said}: {two / one:.2f} times one ({one:.2f} and {two:.2f} clips/s; by turns {turns})")


if __name__ == "__main__":
    main()
