"""Search for better settings on the validation split; the test split is not read.

A trial is one set of settings, trained with several seeds; its value is the mean of a figure that does not depend on
how the loss is put together: by default the negative log-likelihood (NLL) of the clips' labels. A trial that after some
of its seeds is worse than the median of the others so far gets no further ones.

The study lies in `study.db` (Optuna, SQLite) and only the calling process writes to it: workers get a config and send
back figures. So workers need no common disk but for the feature file, and a call that was stopped in any way goes on
where it was, with the seeds that were done. Every choice depends on the base seed and the trials before it alone: with
one worker the same call gives the same trials, interrupted or not; with several, the order in which they end matters.
"""

from __future__ import annotations

import csv
import fcntl
import json
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError
from sqlalchemy.exc import DatabaseError

from cmc.calibration import negative_log_likelihood
from cmc.cluster import Pool, alone
from cmc.config import Config, DivergedError, UsageError
from cmc.evaluate import predict_split
from cmc.metrics import class_metrics
from cmc.space import Space, plain_space, suggest
from cmc.train import content_digest, fit, open_material
from cmc.training import seed_everything
from mmfeat.files import atomic
from mmfeat.layout import FeatureFile

Figure = Literal["nll", "accuracy", "f1"]
BEST = "best.json"
_STARTUP_TRIALS = 5
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Goal:
    """What is searched, and what for."""

    features: Path
    config: Config
    """What every trial has but for the settings of `space`."""
    space: Space
    figure: Figure = "nll"
    seeds: int = 3
    threads: int = 1
    device: str = "cpu"

    def config_of(self, trial: FrozenTrial | Trial) -> Config:
        """Raises ValidationError where the settings do not go together."""
        if isinstance(trial, FrozenTrial):
            trial = optuna.trial.FixedTrial(trial.params)  # type: ignore[assignment]
        return Config(**(self.config.model_dump() | suggest(trial, self.space)))  # type: ignore[arg-type]


def validation_figures(features: Path, config: Config, threads: int, device: str = "cpu") -> dict[str, float]:
    """Train once, in memory; the validation figures of the model that is kept; NaN where training diverges."""
    with alone(threads, device) as own:
        started = time.monotonic()
        material = open_material(features, config, device=own)
        seed_everything(config.seed, own)
        try:
            fitted = fit(material, config)
        except DivergedError:
            return dict.fromkeys(("nll", "accuracy", "f1"), float("nan")) | {"seconds": time.monotonic() - started}
        if fitted.record.status == "interrupted":
            raise KeyboardInterrupt
        truth, logits = material.valid.label("M").numpy(), predict_split(fitted.model, material.valid).logits
        figures = {"nll": negative_log_likelihood(truth, logits)} | class_metrics(truth, logits, None)
        return figures | {"seconds": time.monotonic() - started}


class Tuning:
    """A study in a folder: `study.db`, `best.json`, `trials.csv`. Use as a context manager.

    Raises UsageError where the folder holds a study of something else or a damaged one, or another process works in it.
    """

    def __init__(self, goal: Goal, folder: Path):
        self.goal, self.folder = goal, folder

    def __enter__(self) -> Tuning:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"another cmc tune is at work in {folder}") from None
        try:
            self.study = self._open()
            self._same_goal()
        except DatabaseError as error:
            self._lock.close()
            raise UsageError(
                f"{folder / 'study.db'} is damaged ({error.orig}): without it the search starts anew"
            ) from None
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *of_error: object) -> None:
        self._lock.close()

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.create_study(
            study_name="cmc",
            storage=f"sqlite:///{(self.folder / 'study.db').resolve()}",
            direction="minimize" if self.goal.figure == "nll" else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
            load_if_exists=True,
        )

    def _same_goal(self) -> None:
        goal = self.goal
        with FeatureFile(goal.features) as file:
            digest = content_digest(file)
        wanted = {
            "feature file": digest,
            "config": goal.config.model_dump(mode="json"),
            "space": plain_space(goal.space),
            "figure": goal.figure,
            "number of seeds": goal.seeds,
        }
        stored = self.study.user_attrs.get("goal")
        if stored is None or not self.study.trials:
            self.study.set_user_attr("goal", wanted)
        elif differing := [name for name in wanted if stored.get(name) != json.loads(json.dumps(wanted[name]))]:
            raise UsageError(f"{self.folder} holds trials of another {', '.join(differing)}: choose another folder")

    def done(self) -> list[FrozenTrial]:
        """Trials that are finished or were given up as worse than others, in their order."""
        return self.study.get_trials(deepcopy=False, states=_DONE)

    def ranking(self) -> list[FrozenTrial]:
        """Trials with all their seeds, best first."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1 if self.goal.figure == "nll" else -1
        return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))

    def importances(self) -> dict[str, float]:
        """How much each setting matters for being among the better trials (PED-ANOVA), in shares; few trials: none."""
        if len(self.ranking()) < 2 * _STARTUP_TRIALS:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(self.study, evaluator=evaluator)

    def run(self, trials: int, pool: Pool, report: Callable[[FrozenTrial], None] = lambda trial: None) -> None:
        """Go on until there are `trials` finished ones; `report` is called with each. Ctrl-C keeps what is there.

        Errors of a training go through: they are of the data or the machine, and the same call goes on after them.
        """
        self._requeue()
        running: dict[Future[dict[str, float]], Trial] = {}
        while True:
            while len(running) < pool.slots and len(self.done()) + len(running) < trials:
                trial = self._ask()
                if trial is not None:
                    running[self._submit(trial, pool)] = trial
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=lambda future: running[future].number):
                trial = running.pop(future)
                if self._take(trial, future.result()):
                    report(self.study.trials[trial.number])
                else:
                    running[self._submit(trial, pool)] = trial

    def _requeue(self) -> None:
        """What a process that is gone was at is tried again, with the seeds that it had done."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params.keys() == self.goal.space.keys():
                runs = _runs(trial)[: self.goal.seeds - 1]  # one must be left to end the trial
                self.study.enqueue_trial(trial.params, {"runs": runs})

    def _ask(self) -> Trial | None:
        """The next trial; None where its settings do not go together, which is the end of it."""
        tried = sum(trial.state != TrialState.FAIL for trial in self.study.get_trials(deepcopy=False))
        # A generator that goes on is not stored with the study, and one that starts anew would repeat its first trials.
        self.study.sampler = optuna.samplers.TPESampler(seed=self.goal.config.seed + tried, constant_liar=True)
        trial = self.study.ask()
        try:
            self.goal.config_of(trial)
        except ValidationError as error:
            trial.set_user_attr("refused", "; ".join(problem["msg"] for problem in error.errors()))
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        runs = _runs(trial)
        for step in range(len(runs)):
            trial.report(self._value(runs[: step + 1]), step)
        return trial

    def _submit(self, trial: Trial, pool: Pool) -> Future[dict[str, float]]:
        config = self.goal.config_of(trial)
        one = config.model_copy(update={"seed": config.seed + len(_runs(trial))})
        goal = self.goal
        return pool.executor.submit(validation_figures, goal.features.resolve(), one, goal.threads, goal.device)

    def _take(self, trial: Trial, figures: dict[str, float]) -> bool:
        """Note one seed's figures; whether the trial is over."""
        runs = [*_runs(trial), figures]
        value = self._value(runs)
        trial.set_user_attr("runs", runs)
        trial.report(value, len(runs) - 1)
        if not np.isfinite(value) or (len(runs) < self.goal.seeds and trial.should_prune()):
            self.study.tell(trial, state=TrialState.PRUNED)
            return True
        if len(runs) < self.goal.seeds:
            return False
        self.study.tell(trial, value)
        self.write()
        return True

    def _value(self, runs: list[dict[str, float]]) -> float:
        return float(np.mean([run[self.goal.figure] for run in runs]))

    def write(self) -> None:
        """`best.json`, a config that `cmc train --config` takes, and `trials.csv`."""
        ranking = self.ranking()
        if ranking:
            config = self.goal.config_of(ranking[0]).model_dump(mode="json")
            with atomic(self.folder / BEST) as path:
                path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        with atomic(self.folder / "trials.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["trial", "state", "seeds", "nll", "accuracy", "f1", *self.goal.space])
            for trial in self.done():
                runs = _runs(trial)
                means = [np.mean([run[name] for run in runs]) if runs else "" for name in ("nll", "accuracy", "f1")]
                state = "finished" if trial.state == TrialState.COMPLETE else "given up"
                rows.writerow([trial.number, state, len(runs), *means, *(trial.params[n] for n in self.goal.space)])


def _runs(trial: FrozenTrial | Trial) -> list[dict[str, float]]:
    """Figures of the seeds that are done."""
    return trial.user_attrs.get("runs", [])
