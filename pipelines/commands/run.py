from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.extract import add_options, options_of, positive, recipe_of
from pipelines.exits import Exit

SUMMARY = "go the whole way: check, extract, train, evaluate, predict one clip"
EXAMPLES = (
    "mmfeat run demo/corpus -o demo/results",
    "mmfeat run CORPUS -o RESULTS --recipe my.yaml --seeds 5 --workers 8",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with label.csv and Raw/")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for all results")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="training runs; figures are their means")
    add_options(parser)


def run(args: argparse.Namespace) -> Exit:
    from pipelines.footage_to_model import footage_to_model

    return footage_to_model(
        args.corpus,
        args.out,
        seeds=args.seeds,
        recipe=recipe_of(args),
        options=options_of(args),
    )
