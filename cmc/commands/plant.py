from __future__ import annotations

import argparse
from pathlib import Path

from cmc.commands.exits import OK
from cmc.commands.flags import positive

SUMMARY = "a feature file with known unimodal labels"
DESCRIPTION = """\
Write a feature file whose true unimodal labels are known, and conflict with the clip's label on a share of the clips.
The labels go into FILE_truth.csv beside it."""
EXAMPLES = (
    "cmc plant planted.h5",
    "cmc plant seven.h5 --classes 7 --clips 700 210 350",
    "cmc ablate planted.h5 -o ablation --truth planted_truth.csv --text freeze --layers 1",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FILE", help="feature file to write (.h5)")
    parser.add_argument("--clips", type=positive, nargs=3, default=(150, 60, 200), metavar=("TRAIN", "VALID", "TEST"))
    parser.add_argument(
        "--classes", type=int, default=3, metavar="K", help="3 (default): polarity; 2 or 4 to 8: named emotions"
    )
    parser.add_argument("--conflict", type=float, default=0.6, metavar="SHARE", help="of clips with one odd modality")
    parser.add_argument("--signal", type=float, default=3.0, help="distance of classes, in a clip's own scatter")
    parser.add_argument(
        "--missing", type=float, default=0.0, metavar="SHARE", help="of clips without sound; of those without face"
    )
    parser.add_argument(
        "--corrupt", type=float, default=0.0, metavar="SHARE", help="of training and validation clips labelled wrongly"
    )
    parser.add_argument(
        "--unlabelled", type=int, default=0, metavar="N", help="further clips without a label, into FILE_unlabelled.h5"
    )
    parser.add_argument("--annotated", action="store_true", help="write the unimodal labels into FILE too, for CMC-GT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE and its labels where they exist")


def run(args: argparse.Namespace) -> int:
    from cmc.config import UsageError
    from cmc.planted import Plan, plant

    splits = dict(zip(("train", "valid", "test"), args.clips, strict=True))
    shares = {"conflict": args.conflict, "signal": args.signal, "missing": args.missing, "corrupt": args.corrupt}
    plan = Plan(
        splits, **shares, annotated=args.annotated, seed=args.seed, classes=args.classes, unlabelled=args.unlabelled
    )
    if args.out.suffix != ".h5":
        raise UsageError(f"{args.out} must end in .h5, as feature files do")
    truth = args.out.with_name(f"{args.out.stem}_truth.csv")
    more = args.out.with_name(f"{args.out.stem}_unlabelled.h5")
    written = (args.out, truth, *([more] if plan.unlabelled else []))
    if not args.overwrite and (there := [str(path) for path in written if path.exists()]):
        raise UsageError(f"{' and '.join(there)} exists: choose another name, or --overwrite")
    plant(args.out, plan)
    print(f"{args.out}, true labels in {truth}" + (f", clips without a label in {more}" if plan.unlabelled else ""))
    return OK
