"""Which way to pretrain serves a corpus: every strategy trained with several seeds, side by side.

All share one config, stage 2 and the splits. Which is best is said by the validation split; test figures stand beside
it and decide nothing. They are read once per training, at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmc.cluster import Pool, alone
from cmc.config import Config, UsageError
from cmc.metrics import mean_std
from cmc.results import Progress, Result, Results, Training, digest, gather, nothing_shown
from cmc.strategies import STRATEGIES
from cmc.train import open_material
from cmc.training import Report
from cmc.trial import lacks_annotation, trial

COMPARED = tuple(name for name in STRATEGIES if name != "copy")


@dataclass(frozen=True)
class Plan:
    """What is compared, and on what."""

    features: Path
    config: Config
    """Of every training, but for the strategy and the seed; the first seed is its own."""
    strategies: Sequence[str] = COMPARED
    seeds: int = 5
    shares: Sequence[float] = (1.0,)
    """Shares of the training clips that keep their labels, each compared anew; see cmc.trial.keep_labels."""
    truth: Path | None = None
    """csv of unimodal labels, see cmc.trial.trial."""
    unlabelled: Path | None = None
    """Feature file of further clips, for the strategies that learn from such."""
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    table: dict[str, dict[float, list[Result]]]
    """Strategy → share of labels → one result per seed."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Strategy, or strategy and share → why there is no result."""
    bound: tuple[str, ...] = ()
    """Strategies that were told what is not in the feature file: nobody can train with them, so none is best."""

    def best(self) -> list[str]:
        """The strategy with the highest mean accuracy on validation with most labels, and those that are as good: a
        paired t-test over seeds finds no difference (p ≥ 0.05). One seed tells nothing of the kind."""
        most = max(share for per_share in self.table.values() for share in per_share)
        accuracies = {
            name: [result["validation"]["accuracy"] for result in per_share[most]]
            for name, per_share in self.table.items()
            if most in per_share and name not in self.bound
        }
        if not accuracies:
            return []
        ranking = sorted(accuracies, key=lambda name: -float(np.mean(accuracies[name])))
        first = accuracies[ranking[0]]
        return [n for n in ranking if n == ranking[0] or (p_value(first, accuracies[n]) or 0.0) >= 0.05]

    def summary(self) -> dict[str, Any]:
        """Means and standard deviations of everything, as JSON."""
        return {
            "best_on_validation": self.best(),
            "bound": list(self.bound),
            "left_out": self.left_out,
            "strategies": {
                name: {f"{share:g}": _summary(results) for share, results in per_share.items()}
                for name, per_share in self.table.items()
            },
        }


def compare(plan: Plan, out: Path, progress: Progress = nothing_shown, workers: Pool | None = None) -> Comparison:
    """Run the plan; what `out` holds already is not trained again.

    Strategies that cannot learn from the corpus are left out, saying why. Raises UsageError for an unknown strategy,
    for a share that is none, and for unlabelled clips that do not fit.
    """
    if unknown := [name for name in plan.strategies if name not in STRATEGIES]:
        raise UsageError(f"no strategy {', '.join(unknown)}; there are: {', '.join(STRATEGIES)}")
    if wrong := [share for share in plan.shares if not 0 < share <= 1]:
        raise UsageError(f"a share of labels must be more than 0 % and at most 100 %, not {100 * wrong[0]:g} %")
    left_out, bound = {}, tuple[str, ...]()
    if "gt" in plan.strategies and (reason := lacks_annotation(plan.features)):
        bound = ("gt",)
        if plan.truth is None:
            left_out["gt"] = reason
    able = [name for name in plan.strategies if STRATEGIES[name].unlabelled]
    if plan.unlabelled is not None:  # what is wrong with it is said before anything is trained
        if not able:
            raise UsageError(f"none of {', '.join(plan.strategies)} learns from --unlabelled clips")
        open_material(
            plan.features, Config(**(plan.config.model_dump() | {"pretrain": able[0]})), "auto", plan.unlabelled
        )
    names = [name for name in dict.fromkeys(plan.strategies) if name not in left_out]
    rows = {(name, share): _row(name, share) for name in names for share in sorted(set(plan.shares))}
    trainings = _trainings(plan, rows)
    found: Results = gather(trainings, out, progress, workers)
    table: dict[str, dict[float, list[Result]]] = {}
    for (name, share), row in rows.items():
        if row in found.results:
            table.setdefault(name, {})[share] = found.results[row]
    return Comparison(table, left_out | found.left_out, bound)


def _row(name: str, share: float) -> str:
    return name if share == 1 else f"{name}, {100 * share:g} %"


def _trainings(plan: Plan, rows: Mapping[tuple[str, float], str]) -> list[Training]:
    digests = {"features": digest(plan.features), "truth": digest(plan.truth)}
    more = digest(plan.unlabelled)
    trainings = []
    for (name, share), row in rows.items():
        able = STRATEGIES[name].unlabelled
        for seed in range(plan.config.seed, plan.config.seed + plan.seeds):
            config = Config(**(plan.config.model_dump() | {"pretrain": name, "seed": seed}))
            what = {"config": config.model_dump(mode="json"), "share": share, "unlabelled": more if able else None}
            one = partial(_train, plan, config, share, plan.unlabelled if able else None)
            trainings.append(Training(row, seed, what | digests, one))
    return trainings


def _train(plan: Plan, config: Config, share: float, unlabelled: Path | None, report: Report) -> Result:
    with alone(plan.threads, plan.device) as device:
        return trial(plan.features, config, plan.truth, report, unlabelled, share, device)


def curve(first: float, points: int = 3) -> list[float]:
    """Shares from `first` to all, evenly spaced on a logarithmic scale but for rounding to two digits."""
    between = (float(f"{first ** (1 - k / (points - 1)):.2g}") for k in range(1, points))
    return [first, *between] if first < 1 else [1.0]


def p_value(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Of a two-sided t-test, paired over seeds; None for fewer than two. Where all pairs differ by the same, 0 or 1."""
    if len(one) < 2:
        return None
    differences = np.subtract(one, other)
    if np.ptp(differences) < 1e-12:
        return 1.0 if abs(differences[0]) < 1e-12 else 0.0
    from scipy.stats import ttest_rel

    p = float(ttest_rel(one, other).pvalue)
    return None if math.isnan(p) else p


def recovery(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Modality, and `mean` over them → share of labels that are right: `made` and `copying` the clip's own, each
    (mean, standard deviation), and `p` of their difference. Empty where no labels are made or none are known."""
    per_seed = [result["recovered"] for result in results]
    if not per_seed or not per_seed[0]:
        return {}
    ways = {"made": "pseudo labels", "copying": "copying M"}
    found = {}
    for m in (*per_seed[0], "mean"):
        shares = {
            way: [float(np.mean([r[k][key] for k in (r if m == "mean" else (m,))])) for r in per_seed]
            for way, key in ways.items()
        }
        spread = {way: mean_std([{"": value} for value in values])[""] for way, values in shares.items()}
        found[m] = spread | {"p": p_value(shares["made"], shares["copying"])}
    return found


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    first = results[0]
    return {
        "seeds": len(results),
        "labelled": first["labelled"],
        "validation": mean_std([result["validation"] for result in results]),
        "test": {group: mean_std([result["cmc"][group] for result in results]) for group in first["cmc"]},
        "recovered": recovery(results),
        "cpu_seconds": mean_std([result["seconds"] for result in results]),
    }
