from __future__ import annotations

import argparse
from pathlib import Path

from cmc.commands.exits import OK
from cmc.commands.flags import add_device

SUMMARY = "figures of a run on the test split"
DESCRIPTION = """\
Evaluate a run, once, on the test split, which it has not seen. Writes metrics.json into the run folder, and pictures:
the confusion matrix, reliability, the router's weights and, of the training clips, what became of the pseudo labels."""
EXAMPLES = (
    "cmc evaluate runs/first features.h5",
    "cmc evaluate runs/first features.h5 --truth planted.csv      consistent and conflicting clips apart",
    "cmc evaluate runs/first features.h5 --drop audio             as if no clip had sound",
    "cmc evaluate runs/first features.h5 --drop audio --complete  … and its features made up from text and vision",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5), or MMSA's (.pkl)")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"), help="(test)")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="unimodal labels that the file does not have")
    parser.add_argument(
        "--drop", action="append", default=[], choices=("text", "audio", "vision"), help="hide it (repeatable)"
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="make up what clips lack, dropped or not, from what they have (runs of --pretrain generation)",
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of tables")


def run(args: argparse.Namespace) -> int:
    from cmc import seeds
    from cmc.evaluate import evaluate, to_json, write
    from cmc.report import show_evaluation

    folders = seeds.folders(args.folder)
    drop = tuple(args.drop)
    results = [evaluate(f, args.features, args.split, args.truth, drop, args.complete, args.device) for f in folders]
    if len(results) > 1:
        for folder, result in zip(folders, results, strict=True):
            write(folder, result)
    result = results[0] if len(results) == 1 else seeds.together(results)
    written = write(args.folder, result)
    if args.json:
        print(to_json(result))
    else:
        show_evaluation(result)
        print(f"written: {', '.join(map(str, written))}")
    return OK
