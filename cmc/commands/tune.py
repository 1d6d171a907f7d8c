from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmc.commands.exits import INTERRUPTED, OK
from cmc.commands.flags import add_device, add_threads, add_workers, config_of, given_settings, positive

if TYPE_CHECKING:
    from cmc.tune import Tuning

SUMMARY = "better settings, found on the validation split"
DESCRIPTION = """\
Search for settings with Optuna: each trial is trained with several seeds and judged on the validation split, by a
figure that does not depend on how the loss is put together. The test split is not read.

Settings given by flags or by --config are fixed; --space names others to search, and the values to try. All trials are
kept in DIR: the same call goes on after an interruption, and more --trials add to those that are there."""
EXAMPLES = (
    "cmc tune features.h5 -o tuning --text freeze",
    "cmc tune features.h5 -o tuning --text freeze --trials 100 --workers 8",
    "cmc tune features.h5 -o tuning --space space.yaml --scheduler tcp://head:8786",
    "cmc train features.h5 -o runs/tuned --config tuning/best.json --seeds 5",
)
CONFIG = True


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5), or MMSA's (.pkl)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the trials")
    parser.add_argument("--trials", type=positive, default=40, metavar="N", help="in all (40)")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs per trial, less if poor (3)")
    parser.add_argument(
        "--figure",
        default="nll",
        choices=("nll", "accuracy", "f1"),
        help="what is best: the lowest mean negative log-likelihood of the clips' labels, or the highest of another",
    )
    parser.add_argument(
        "--space", type=Path, metavar="FILE", help="YAML: `layers: [1, 2]`, `lr: {low: 1e-4, high: 1e-2}`"
    )
    add_workers(parser)
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from cmc.cluster import pool
    from cmc.config import UsageError
    from cmc.space import default_space, plain_space, read_space, shown
    from cmc.train import open_material
    from cmc.training import find_device
    from cmc.tune import BEST, Goal, Tuning

    config, fixed = config_of(args), given_settings(args)
    if not args.scheduler:  # whose workers are elsewhere
        find_device(args.device, config)
    space = read_space(args.space) if args.space else default_space(config, list(fixed))
    if both := sorted(set(space) & set(fixed)):
        raise UsageError(f"{args.space} searches {', '.join(both)}, which the call fixes: name them once")
    open_material(args.features, config)  # what is wrong with the file is said before workers start
    goal = Goal(args.features, config, space, args.figure, args.seeds, args.threads, args.device)
    with Tuning(goal, args.out) as tuning:
        there = len(tuning.done())
        went_on = f", {there} of them done" if there else ""
        print(f"{args.trials} trials{went_on}; searching {', '.join(plain_space(space))}", file=sys.stderr)
        interrupted = False
        try:
            if there < args.trials:
                with pool(args.workers, args.scheduler) as workers:
                    tuning.run(args.trials, workers, _Progress(tuning, args.trials))
        except KeyboardInterrupt:
            interrupted = True
        tuning.write()
        if ranking := tuning.ranking():
            _show(tuning)
            best = tuning.study.user_attrs["goal"]["config"]
            changed = {n: v for n, v in goal.config_of(ranking[0]).model_dump(mode="json").items() if v != best[n]}
            print(f"best: {shown(changed) or 'as given'}")
            print("Its figure is the best of many on the same clips, so it flatters; cmc evaluate gives a fair one.")
        elif not interrupted:
            raise UsageError(
                "no trial could be finished: the settings in the space do not go together, or training diverges"
            )
    if interrupted:
        print(f"interrupted: the same call goes on with {args.out}", file=sys.stderr)
        return INTERRUPTED
    print(f"next: cmc train {args.given} -o RUN --config {args.out / BEST}")
    return OK


class _Progress:
    """A line on stderr per trial."""

    def __init__(self, tuning: Tuning, trials: int):
        self.tuning, self.trials = tuning, trials
        self.there, self.started = len(tuning.done()), time.monotonic()

    def __call__(self, trial: Any) -> None:
        from cmc.space import shown

        done, figure = len(self.tuning.done()), self.tuning.goal.figure
        left = (time.monotonic() - self.started) / (done - self.there) * (self.trials - done)
        ranking = self.tuning.ranking()
        best = f", best {ranking[0].value:.3f}" if ranking else ""
        value = (
            f"{figure} {_spread(trial, figure)}{'' if trial.value is not None and trial in ranking else ', given up'}"
        )
        print(f"{done} of {self.trials}: {value}{best}; {shown(trial.params)}; {_minutes(left)} left", file=sys.stderr)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _spread(trial: Any, name: str) -> str:
    from cmc.metrics import mean_std

    runs = trial.user_attrs.get("runs", [])
    mean, deviation = mean_std([{name: run[name]} for run in runs])[name]
    scale, digits = (1, 3) if name == "nll" else (100, 1)
    text = f"{scale * mean:.{digits}f}"
    return text if len(runs) < 2 else f"{text} ± {scale * deviation:.{digits}f}"


def _show(tuning: Tuning, most: int = 5) -> None:
    """The best trials, and how much each setting matters."""
    from rich.console import Console
    from rich.table import Table

    from cmc.space import shown

    console, ranking, done = Console(), tuning.ranking(), len(tuning.done())
    seeds = f"mean ± standard deviation of {tuning.goal.seeds} seeds" if tuning.goal.seeds > 1 else "one seed"
    console.print(
        f"Validation split, {seeds}; {len(ranking)} trials finished, {done - len(ranking)} given up", highlight=False
    )
    table = Table()
    for column in ("trial", "NLL", "Acc", "weighted F1", "settings"):
        table.add_column(column, justify="left" if column == "settings" else "right", no_wrap=column != "settings")
    for trial in ranking[:most]:
        figures = (_spread(trial, name) for name in ("nll", "accuracy", "f1"))
        table.add_row(str(trial.number), *figures, shown(trial.params))
    console.print(table)
    if importances := tuning.importances():
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in importances.items())
        console.print(f"What tells the better trials from the others: {shares}", highlight=False)
