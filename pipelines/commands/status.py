from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit, UsageError

if TYPE_CHECKING:
    from pipelines.journal import Run

SUMMARY = "say what is done, failed and left in a work folder, and how long it will take"
EXAMPLES = ("mmfeat status mmfeat-work", "mmfeat status mmfeat-work --json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="the work folder of `mmfeat extract` or `run`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


@dataclass
class Counts:
    """Clips of label.csv by what became of them, from the shards that are there."""

    clips: int = 0
    refused: int = 0
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Reason → clips."""
    left: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    """Part → clips that have a result."""


def run(args: argparse.Namespace) -> Exit:
    import json

    from pipelines.journal import NAME, runs

    found = runs(args.workdir)
    if not found:
        raise UsageError(f"{args.workdir} is no work folder: it has no {NAME}, which every extraction writes")
    latest = found[-1]
    counts = count(args.workdir, latest)
    rate = latest.clips_per_second
    seconds_left = counts.left / rate if latest.is_running and rate else None
    if args.json:
        plain = vars(counts) | {"running": latest.is_running, "seconds_left": seconds_left}
        print(json.dumps(plain, ensure_ascii=False, indent=1))
    else:
        _show(latest, counts, seconds_left)
    return Exit.SOME_FAILED if counts.failed or counts.refused else Exit.OK


def count(workdir: Path, run: Run) -> Counts:
    """What became of the clips of a run's corpus. Raises CorpusError where the corpus is gone."""
    from mmfeat import corpus
    from mmfeat.recipe import Recipe
    from mmfeat.shards import Store

    recipe, store = Recipe.model_validate(run.start["recipe"]), Store(workdir.resolve())
    fingerprints = recipe.fingerprints()
    counts = Counts()
    for clip in map(recipe.locate, corpus.load(run.start["corpus"]).clips):
        counts.clips += 1
        if clip.refused:
            counts.refused += 1
            continue
        missing = store.missing(clip, fingerprints, retry_failed=True)
        counts.parts.update(part for part in fingerprints if part not in missing)
        reasons = [store.failure(clip, part, fingerprints[part]) for part in missing]
        if not all(reasons):
            counts.left += 1
        elif reasons:
            counts.failed[reasons[0]] += 1
        else:
            counts.done += 1
    return counts


def _show(run: Run, counts: Counts, seconds_left: float | None) -> None:
    from pipelines.progress import duration
    from pipelines.show import plural, table

    state = "running" if run.is_running else "ended" if run.end else "was stopped, or runs on another machine"
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start["time"]))
    print(f"{run.start['corpus']} → {run.start['out']}\nlast run began {began}, {state}\n")
    rows: list[tuple[object, object]] = [
        ("done", counts.done),
        ("failed", counts.failed.total()),
        ("left", counts.left),
    ]
    if counts.refused:
        rows.append(("refused in label.csv (mmfeat check)", counts.refused))
    table(plural(counts.clips, "clip"), ("", "clips"), rows, numbers=("clips",))
    print()
    usable = counts.clips - counts.refused
    shares = [(part, n, f"{n / max(usable, 1):.0%}") for part, n in counts.parts.items()]
    table("Results", ("part", "clips", "share"), shares, numbers=("clips", "share"))
    if counts.failed:
        print()
        table("Failed", ("clips", "reason"), [(n, why) for why, n in counts.failed.most_common()], numbers=("clips",))
        print("The same command with --retry-failed tries them again.")
    if seconds_left is not None:
        print(f"\nAbout {duration(seconds_left)} left at {run.clips_per_second:.1f} clips a second.")
    elif counts.left and not run.is_running:
        print("\nThe same command goes on with what is left.")
