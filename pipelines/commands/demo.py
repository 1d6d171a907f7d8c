from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.extract import positive
from pipelines.exits import Exit, UsageError
from pipelines.progress import progress

SUMMARY = "make a small labelled corpus of real mp4 files, on the spot"
EXAMPLES = ("mmfeat demo demo/corpus", "mmfeat demo tiny/corpus --clips 12 --seed 1")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="corpus folder to make")
    parser.add_argument("--clips", type=positive, default=120, metavar="N", help="how many clips")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed makes the same corpus")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.demo import make_demo

    if args.clips < 3:
        raise UsageError("--clips: a corpus has three splits, so it needs at least 3 clips")
    with progress("Making the demo corpus") as report:
        demo = make_demo(args.folder, args.clips, args.seed, report, args.workers)
    print(f"{demo.folder}: {demo.clips} clips, {demo.made} of them made now. Their planted labels: {demo.truth}")
    return Exit.OK
