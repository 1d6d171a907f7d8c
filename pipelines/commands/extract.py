from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit, UsageError
from pipelines.progress import duration, progress
from pipelines.show import plural, table

if TYPE_CHECKING:
    from mmfeat.pack import PackReport
    from pipelines.extract import Extraction

SUMMARY = "extract the features of a corpus into one HDF5 file"
EXAMPLES = (
    "mmfeat extract demo/corpus -o features.h5",
    "mmfeat extract CORPUS -o aligned.h5 --aligned --recipe my.yaml --workers 8",
    "mmfeat extract CORPUS -o features.h5 --scheduler tcp://head:8786 --workdir /shared/work",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with label.csv and Raw/")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.h5", help="feature file to write")
    parser.add_argument(
        "--aligned", action="store_true", help="one row per wordpiece in every modality, instead of per frame"
    )
    add_options(parser)
    parser.add_argument(
        "--workdir",
        type=Path,
        help="where results per clip are kept, so that a run can continue (default: FILE.work beside FILE.h5)",
    )
    parser.add_argument("--retry-failed", action="store_true", help="try clips again that failed before")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `mmfeat run` takes as well."""
    parser.add_argument("--recipe", default="default", metavar="NAME|FILE.yaml", help="what to extract, and how")
    parser.add_argument("--workers", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler, such as tcp://host:8786, instead"
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


@dataclass
class Extracted:
    status: Exit
    extraction: Extraction
    packed: PackReport | None = None


def run(args: argparse.Namespace) -> Exit:
    return extract(
        args.corpus,
        args.out,
        recipe=args.recipe,
        aligned=args.aligned,
        workers=args.workers,
        scheduler=args.scheduler,
        workdir=args.workdir,
        retry_failed=args.retry_failed,
    )


def extract(
    corpus_folder: Path,
    out: Path,
    *,
    recipe: str = "default",
    aligned: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    workdir: Path | None = None,
    retry_failed: bool = False,
) -> Exit:
    """Check, extract and pack a corpus, and say what became of it."""
    from mmfeat import corpus, pack
    from mmfeat.recipe import load_recipe
    from mmfeat.shards import Store
    from pipelines.commands.check import show_problems
    from pipelines.extract import extract_corpus
    from pipelines.schedule import stop_on_interrupt

    if workers and scheduler:
        raise UsageError("--workers starts processes here, --scheduler uses those of a cluster: give one of them")
    if out.is_dir():
        raise UsageError(f"{out} is a folder; -o names the file to write, such as {out / 'features.h5'}")
    typed = load_recipe(recipe)
    workdir = (workdir or out.with_suffix(".work")).resolve()
    loaded = corpus.load(corpus_folder.resolve())
    show_problems(loaded)
    with stop_on_interrupt(_announce) as stop, progress("Extracting") as report:
        extraction = extract_corpus(
            loaded,
            typed,
            workdir,
            workers=workers,
            scheduler=scheduler,
            retry_failed=retry_failed,
            stop=stop,
            report=report,
        )
    if extraction.reused:
        print(f"{plural(extraction.reused, 'clip')} of {len(loaded.clips)} had been extracted before.")
    if extraction.interrupted:
        left = extraction.todo - extraction.done
        print(f"Stopped with {plural(left, 'clip')} left. The same command continues there.", file=sys.stderr)
        return Exit.INTERRUPTED
    began = time.monotonic()
    with progress("Packing") as report:
        packed = pack.pack(loaded, typed, Store(workdir), out, aligned=aligned, report=report)
    show_result(extraction, packed, time.monotonic() - began)
    return Exit.SOME_FAILED if packed.failed else Exit.OK


def _announce() -> None:
    print("\nFinishing the clips that are running; Ctrl-C again stops at once.", file=sys.stderr)


def show_result(extraction: Extraction, packed: PackReport, packing: float) -> None:
    statuses = Counter((clip.status, clip.reason) for clip in packed.clips)
    rows = [(count, status, reason) for (status, reason), count in sorted(statuses.items(), key=lambda kv: -kv[1])]
    table("Clips", ("clips", "status", "reason"), rows, numbers=("clips",))
    if extraction.done:
        total = sum(extraction.stages.values()) or 1.0
        spent = [
            (stage, f"{seconds:.1f}", f"{seconds / total:.0%}") for stage, seconds in extraction.stages.most_common()
        ]
        print()
        table("Time, summed over workers", ("stage", "seconds", "share"), spent, numbers=("seconds", "share"))
        print(
            f"\n{plural(extraction.done, 'clip')}, {duration(extraction.footage)} of footage in "
            f"{duration(extraction.wall)}: {extraction.real_time_factor:.1f} times faster than real time."
        )
    print(f"\n{packed.path}: {packed.ok} clips packed in {duration(packing)}, {len(packed.failed)} failed.")
    for modality, count in packed.truncated.items():
        if count:
            print(f"{plural(count, 'clip')} longer than the padded length lost the end of their {modality}.")
