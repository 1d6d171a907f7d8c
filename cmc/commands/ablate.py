from __future__ import annotations

import argparse
from pathlib import Path

from cmc.commands.exits import OK, USAGE
from cmc.commands.flags import add_device, add_threads, add_workers, given_settings, positive

SUMMARY = "what each part of the method is worth"
DESCRIPTION = """\
Train CMC, CMC without each of its parts, and plain baselines; print one table, mean ± std over seeds.

Every result is a file in DIR; a call that is repeated, or was interrupted, continues where it stopped."""
EXAMPLES = (
    "cmc ablate features.h5 -o ablation --seeds 5",
    'cmc ablate features.h5 -o ablation --truth planted.csv --text freeze --variants CMC "no PLGM" "late fusion"',
)
CONFIG = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5), or MMSA's (.pkl)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--seeds", type=positive, default=5, metavar="N", help="runs with seeds SEED, SEED+1, …")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="unimodal labels that the file does not have")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="some of the variants only")
    add_workers(parser)
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from cmc.ablate import VARIANTS, ablate
    from cmc.cluster import pool
    from cmc.config import Config
    from cmc.report import progress, show_ablation
    from cmc.training import find_device

    settings, truth = given_settings(args), args.truth and args.truth.resolve()
    config = Config(**settings)
    if not args.scheduler:  # whose workers are elsewhere
        find_device(args.device, config)
    features, variants = args.features.resolve(), args.variants or tuple(VARIANTS)
    parallel = args.workers > 1 or args.scheduler
    with pool(args.workers, args.scheduler) if parallel else nullcontext() as workers:
        found = ablate(
            features, args.out, settings, args.seeds, truth, variants, progress, workers, args.threads, args.device
        )
    if found.results:
        show_ablation(found.results)
    for reason in dict.fromkeys(found.left_out.values()):
        print(f"left out: {'; '.join(name for name, why in found.left_out.items() if why == reason)}: {reason}")
    return OK if found.results else USAGE
