from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.exits import Exit, UsageError
from pipelines.progress import progress

SUMMARY = "make a small labelled corpus of real mp4 files, on the spot"
EXAMPLES = ("mmfeat demo demo/corpus", "mmfeat demo /tmp/tiny --clips 12 --seed 1")
RECORD = ".made.json"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="corpus folder to make")
    parser.add_argument("--clips", type=int, default=120, metavar="N", help="how many clips")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed makes the same corpus")


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.demo import make_demo
    from pipelines.stages import Stages, source_digest

    folder: Path = args.folder
    stages = Stages(folder / RECORD)
    if not stages.path.exists() and (folder / "label.csv").exists():
        raise UsageError(f"{folder} holds a corpus that this command did not make; name another folder")
    inputs = {"clips": args.clips, "seed": args.seed, "code": source_digest("mmfeat.demo", "mmfeat.espeak")}

    def make() -> None:
        # Written first, so that a corpus that was cut short is known as ours and made again.
        folder.mkdir(parents=True, exist_ok=True)
        stages.path.touch()
        with progress("Making the demo corpus") as report:
            make_demo(folder, clips=args.clips, seed=args.seed, report=report)

    made = stages.run("demo", inputs, [folder / "label.csv", folder / "Raw"], make)
    print(f"{folder}: {args.clips} clips {'made' if made else 'are there already'} (seed {args.seed})")
    return Exit.OK
