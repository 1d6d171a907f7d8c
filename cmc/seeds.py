"""Several runs that differ in their seed: where they lie, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmc import run as runs
from cmc.metrics import mean_std

INDEX = "seeds.json"
_SPREAD = (
    "cmc",
    "text_alone",
    "per_class",
    "regression",
    "experts",
    "router",
    "router_means",
    "calibration",
    "relabelled",
)
_POOLED = ("confusion", "router_histogram", "reliability", "pseudo_labels")


def folders(run: Path) -> list[Path]:
    """The run folders within `run`: itself, or one per seed. Raises RunError where there is none."""
    if (names := index(run)) is None:
        runs.read(run)
        return [run]
    return [run / name for name in names]


def index(run: Path) -> list[str] | None:
    """Names of the folders of several runs within `run`; None where it is a single one. Raises RunError."""
    path = run / INDEX
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["runs"]
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no runs")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise runs.RunError(f"{path} is damaged ({reason}): `cmc train` with the same --seeds writes it anew") from None
    return names


def write_index(run: Path, names: Sequence[str], records: Sequence[runs.Record]) -> None:
    """Note the runs of all seeds, with mean and standard deviation of their validation figures."""
    summary = {name: {"mean": m, "std": s} for name, (m, s) in mean_std([r.validation for r in records]).items()}
    text = json.dumps({"runs": list(names), "validation": summary}, indent=1)
    if (run / INDEX).is_file() and (run / INDEX).read_bytes() != text.encode():
        runs.forget_figures(run)  # of other runs
    (run / INDEX).write_text(text, encoding="utf-8")


def forget(run: Path) -> None:
    """Remove the index, the figures of all seeds together, and the folders of theirs that are empty."""
    if (names := index(run)) is None:
        return
    runs.forget_figures(run)
    (run / INDEX).unlink()
    for folder in (run / name for name in names):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def best(run: Path) -> Path:
    """The run folder of highest validation accuracy, and of those the one of lowest loss.

    Not of lowest loss alone: that has terms with the seed's own pseudo labels.
    """

    def rank(folder: Path) -> tuple[float, float]:
        found = runs.read(folder).validation
        return -found["accuracy"], found["loss"]

    return min(folders(run), key=rank)


def together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations of several seeds as one: figures are [mean, sample standard deviation], what pictures are drawn from
    is summed, and what is the same for all is that of the first."""
    first = results[0]
    joined = {key: value for key, value in first.items() if key not in (*_SPREAD, *_POOLED)}
    joined |= {key: _spread([r[key] for r in results]) for key in _SPREAD if key in first}
    joined |= {key: _pooled([r[key] for r in results]) for key in _POOLED if key in first}
    joined["calibration_note"] = "; ".join(dict.fromkeys(r["calibration_note"] for r in results))
    joined["notes"] = list(dict.fromkeys(note for r in results for note in r["notes"]))
    joined["status"] = "finished" if all(r["status"] == "finished" for r in results) else "interrupted"
    return joined | {"seeds": len(results)}


def _spread(values: Sequence[Any]) -> Any:
    """Figures, however deep in dicts, as [mean, standard deviation]; None where a seed has none."""
    if isinstance(values[0], dict):
        return {name: _spread([value[name] for value in values]) for name in values[0]}
    if any(value is None for value in values):
        return None
    return list(mean_std([{"": value} for value in values])[""])


def _pooled(values: Sequence[Any]) -> Any:
    """The sums of counts, however deep in dicts and lists."""
    if isinstance(values[0], dict):
        return {name: _pooled([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], list):
        return [_pooled(cells) for cells in zip(*values, strict=True)]
    return sum(values)
