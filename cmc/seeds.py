"""Several runs that differ in their seed: where they lie, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmc import run as runs
from cmc.metrics import mean_std

INDEX = "seeds.json"


def folders(run: Path) -> list[Path]:
    """The run folders within `run`: itself, or one per seed. Raises RunError where there is none."""
    index = run / INDEX
    if not index.is_file():
        runs.read(run)
        return [run]
    return [run / name for name in json.loads(index.read_text(encoding="utf-8"))["runs"]]


def write_index(run: Path, names: Sequence[str], records: Sequence[runs.Record]) -> None:
    """Note the runs of all seeds, with mean and standard deviation of their validation figures."""
    summary = {name: {"mean": m, "std": s} for name, (m, s) in mean_std([r.validation for r in records]).items()}
    text = json.dumps({"runs": list(names), "validation": summary}, indent=1)
    (run / INDEX).write_text(text, encoding="utf-8")


def best(run: Path) -> Path:
    """The run folder of lowest validation loss."""
    return min(folders(run), key=lambda folder: runs.read(folder).validation["loss"])


def together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations of several seeds as one: figures are [mean, sample standard deviation], counts those of one run."""
    first = results[0]
    spread: dict[str, Any] = {
        key: first[key] for key in ("clips", "class_names", "definitions", "features", "split", "dropped")
    }
    spread["majority"] = first["majority"]
    spread["cmc"] = {group: _pairs([r["cmc"][group] for r in results]) for group in first["cmc"]}
    spread["router"] = _pairs([r["router"] for r in results])
    spread["ece"] = list(mean_std([{"ece": r["ece"]} for r in results])["ece"])
    spread["experts"] = {}
    for m, figures in first["experts"].items():
        known = [name for name, value in figures.items() if value is not None]
        spread["experts"][m] = _pairs([{name: r["experts"][m][name] for name in known} for r in results])
    counts = [r["confusion"] for r in results]
    spread["confusion"] = [[sum(cell) for cell in zip(*rows, strict=True)] for rows in zip(*counts, strict=True)]
    spread["seeds"] = len(results)
    return spread


def _pairs(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: list(pair) for name, pair in mean_std(rows).items()}
