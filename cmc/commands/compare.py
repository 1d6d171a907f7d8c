from __future__ import annotations

import argparse
from pathlib import Path

from cmc.commands.exits import OK, USAGE
from cmc.commands.flags import add_device, add_threads, add_workers, as_flags, config_of, given_settings, positive
from cmc.strategies import STRATEGIES

SUMMARY = "which way to pretrain serves a corpus best"
DESCRIPTION = """\
Train with every strategy of stage 1 and several seeds, evaluate, print tables and draw them: DIR/comparison.png, and
with --labelled DIR/curve.png. Which strategy is best is said by the validation split.

Every result is a file in DIR; a call that is repeated, or was interrupted, continues where it stopped."""
EXAMPLES = (
    "cmc compare features.h5 -o comparison --text freeze",
    "cmc compare features.h5 -o comparison --text freeze --labelled 10% --unlabelled more.h5 --workers 2",
    "cmc compare features.h5 -o comparison --text freeze --strategies plgm mug none --truth planted.csv",
)
CONFIG = True
WITHOUT = ("mode", "pretrain")  # reference mode has three strategies


def share(text: str) -> float:
    """`10%` and `0.1` alike."""
    value = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of labels: say 10% or 0.1")
    return value


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5), or MMSA's (.pkl)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--seeds", type=positive, default=5, metavar="N", help="runs with seeds SEED, SEED+1, … (5)")
    parser.add_argument(
        "--strategies", nargs="+", metavar="NAME", help=f"some of {', '.join(STRATEGIES)} only (all but copy)"
    )
    parser.add_argument(
        "--labelled",
        type=share,
        nargs="+",
        metavar="SHARE",
        help="learning curve: train with these shares of the training clips' labels, such as 10%%; one share stands "
        "for three, from it to all. The other clips count as unlabelled; validation clips keep their labels",
    )
    parser.add_argument("--truth", type=Path, metavar="CSV", help="unimodal labels that the file does not have")
    parser.add_argument(
        "--unlabelled",
        type=Path,
        metavar="FEATURES",
        help="feature file of further clips, for strategies that use them",
    )
    add_workers(parser)
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    import json
    from contextlib import nullcontext

    from cmc.cluster import pool
    from cmc.compare import COMPARED, Plan, compare, curve
    from cmc.pictures import draw_comparison
    from cmc.report import progress, show_comparison
    from cmc.training import find_device
    from mmfeat.files import atomic

    config, shares = config_of(args), args.labelled or [1.0]
    if not args.scheduler:  # whose workers are elsewhere
        find_device(args.device, config)
    plan = Plan(
        args.features.resolve(),
        config,
        args.strategies or COMPARED,
        args.seeds,
        curve(shares[0]) if len(shares) == 1 else shares,
        args.truth and args.truth.resolve(),
        args.unlabelled and args.unlabelled.resolve(),
        args.threads,
        args.device,
    )
    parallel = args.workers > 1 or args.scheduler
    with pool(args.workers, args.scheduler) if parallel else nullcontext() as workers:
        found = compare(plan, args.out, progress, workers)
    for name, reason in found.left_out.items():
        print(f"left out: {name}: {reason}")
    if not found.table:
        return USAGE
    summary = found.summary()
    with atomic(args.out / "comparison.json") as path:
        path.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    show_comparison(summary)
    best = summary["best_on_validation"]
    if best:
        also = f"; no worse, as far as {args.seeds} seeds can tell: {', '.join(best[1:])}" if best[1:] else ""
        print(f"best on validation: {best[0]}{also}")
    for name in summary["bound"]:
        if name in found.table:
            print(f"{name} learnt from --truth, which is not in the file: it is what could be reached, not a choice")
    for picture in draw_comparison(summary, args.out):
        print(f"picture: {picture}")
    if best:
        more = [as_flags(given_settings(args) | {"pretrain": best[0]})]
        if args.unlabelled and STRATEGIES[best[0]].unlabelled:
            more.append(f"--unlabelled {args.unlabelled}")
        print(f"next: cmc train {args.given} -o RUN {' '.join(more)}")
    return OK
