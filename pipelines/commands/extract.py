from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit, UsageError
from pipelines.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from mmfeat.recipe import Recipe
    from pipelines.features import Options

SUMMARY = "extract the features of a corpus into one HDF5 file"
EXAMPLES = (
    "mmfeat extract demo/corpus -o features.h5",
    "mmfeat extract CORPUS -o aligned.h5 --aligned --recipe my.yaml --workers 8",
    "mmfeat extract CORPUS -o grid.h5 --grid 10",
    "mmfeat extract CORPUS -o features.h5 --transcribe openai/whisper-small",
    "mmfeat extract CORPUS -o features.h5 --scheduler tcp://head:8786 --workdir /shared/work",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with label.csv and Raw/")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.h5", help="feature file to write")
    parser.add_argument(
        "--aligned", action="store_true", help="one row per wordpiece in every modality, instead of per frame"
    )
    parser.add_argument(
        "--grid",
        type=float,
        metavar="HZ",
        help="audio and vision on one clock of so many ticks per second; for corpora without word times",
    )
    add_options(parser)
    parser.add_argument(
        "--workdir",
        type=Path,
        help="where results per clip are kept: a run can continue, and the aligned and the unaligned form come from "
        "one extraction (default: mmfeat-work beside FILE.h5)",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `mmfeat run` takes as well."""
    parser.add_argument("--recipe", default="default", metavar="NAME|FILE.yaml", help="what to extract, and how")
    add_transcribe(parser)
    parser.add_argument("--workers", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler, such as tcp://host:8786, instead"
    )
    parser.add_argument(
        "--cluster", type=Path, metavar="FILE.yaml", help="jobs of SLURM or its like, instead; see `mmfeat cluster`"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try clips again that failed before")
    parser.add_argument(
        "--on-damage",
        choices=("keep", "fail"),
        default="keep",
        help="a file that breaks off: keep what decodes, marked `damaged`, or fail the clip",
    )
    parser.add_argument(
        "--time-limit",
        type=positive,
        default=round(DEFAULT.factor or 0),
        metavar="N",
        help=f"a clip fails that takes more than {DEFAULT.seconds:.0f} s and N times its own length",
    )
    parser.add_argument(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="a clip fails that needs more memory (default: the machine's, shared by the workers)",
    )
    parser.add_argument(
        "--log-json",
        action="store_true",
        help="one JSON line per clip on standard error instead of progress, as in the work folder's journal.jsonl",
    )


def add_transcribe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--transcribe",
        nargs="?",
        const="",
        metavar="MODEL",
        help="speech recognition for clips whose text is empty, by a Whisper or CTC model: hub name or folder "
        "(default: the recipe's, or openai/whisper-small)",
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the command line names, with speech recognition where it asks for that."""
    from mmfeat.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    return recipe if args.transcribe is None else recipe.transcribing(args.transcribe)


def options_of(args: argparse.Namespace) -> Options:
    """Raises UsageError where options contradict each other."""
    from pipelines.features import Options

    if sum(value is not None for value in (args.workers, args.scheduler, args.cluster)) > 1:
        raise UsageError("--workers, --scheduler and --cluster each say where the work is done: give one of them")
    batch = None
    if args.cluster:
        from pipelines.cluster.jobs import read

        batch = read(args.cluster)
    return Options(
        workers=args.workers,
        scheduler=args.scheduler,
        batch=batch,
        retry_failed=args.retry_failed,
        limits=Limits(factor=args.time_limit, memory=args.memory_limit * 2**30 if args.memory_limit else None),
        keep_damaged=args.on_damage == "keep",
        log_json=args.log_json,
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(args: argparse.Namespace) -> Exit:
    from mmfeat import corpus
    from pipelines.features import make_features

    if args.out.is_dir():
        raise UsageError(f"{args.out} is a folder; -o names the file to write: {args.out / 'features.h5'}")
    recipe = recipe_of(args)
    if args.grid is not None:
        recipe = recipe.changed(grid_hz=args.grid)
    return make_features(
        corpus.load(args.corpus.resolve()),  # workers may run in another folder
        recipe,
        args.out,
        workdir=args.workdir,
        aligned=args.aligned,
        options=options_of(args),
    )
