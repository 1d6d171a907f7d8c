"""What people see on the terminal: progress with an estimate, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cmc.training import Report

_PLAIN_EVERY = 5.0
_NO_GROUPS = "No unimodal labels: consistent and conflicting clips cannot be told apart (--truth names a csv)."
_NAMES = {"pretrain": "Stage 1, pretraining", "finetune": "Stage 2, consensus"}
_FIGURES = {
    "accuracy": "Acc",
    "f1": "weighted F1",
    "has0_accuracy": "Has0 Acc",
    "has0_f1": "Has0 F1",
    "non0_accuracy": "Non0 Acc",
    "non0_f1": "Non0 F1",
}
_VALUES = {
    ("regression", "mae"): "CMC, MAE",
    ("regression", "r"): "CMC, r",
    ("regression_baseline", "mae"): "training mean, MAE",
}


@contextmanager
def progress(label: str = "") -> Iterator[Report]:
    """A bar per stage on stderr; without a terminal a line every few seconds. Most stages end before their bar does."""
    if sys.stderr.isatty():
        with _bars(label) as report:
            yield report
    else:
        yield _lines(label)


@contextmanager
def _bars(label: str) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, at most"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{label}{_NAMES.get(stage, stage)}", total=epochs, note="")
            bars.update(tasks[stage], completed=epoch, note=_note(figures))

        yield report


def _lines(label: str) -> Report:
    shown, started = {"": 0.0}, time.monotonic()

    def report(stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - shown.get(stage, 0.0) >= _PLAIN_EVERY:
            shown[stage] = now
            name = f"{label}{_NAMES.get(stage, stage)}"
            print(
                f"{name}: epoch {epoch} of at most {epochs}, {now - started:.0f} s, {_note(figures)}", file=sys.stderr
            )

    return report


def _note(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def show_evaluation(result: Mapping[str, Any]) -> None:
    """The result of `cmc evaluate`, of one run or of several together, as tables on stdout."""
    console = Console()
    seeds = result.get("seeds", 1)
    spread = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    hidden = f", without {' and '.join(result['dropped'])}" if result["dropped"] else ""
    hidden += ", completed" if "completed" in result else ""
    console.print(f"Split {result['split']}{hidden}{spread}", highlight=False)
    for note in result["notes"]:
        console.print(f"Note: {note}.", highlight=False)
    table = Table()
    table.add_column("")
    for group, clips in result["clips"].items():
        table.add_column(f"{group}\n{clips} clips", justify="right")
    names = [name for name in _FIGURES if name in result["cmc"]["overall"]]
    for name in names:
        cells = (percent(result["cmc"][group][name]) for group in result["clips"])
        table.add_row(f"CMC, {_FIGURES[name]}", *cells, end_section=name == names[-1])
    alone = result.get("text_alone", {})
    for name in names if alone else ():
        cells = (percent(alone[group][name]) for group in result["clips"])
        table.add_row(f"text alone, {_FIGURES[name]}", *cells, end_section=name == names[-1])
    baseline = list(result["majority"]["overall"])
    for name in baseline:
        cells = (percent(result["majority"][group][name]) for group in result["clips"])
        table.add_row(f"majority class, {_FIGURES[name]}", *cells, end_section=name == baseline[-1])
    for (kind, name), title in _VALUES.items() if "regression" in result else ():
        table.add_row(title, *(number(result[kind][group][name]) for group in result["clips"]))
    console.print(table)
    _show_classes(console, result)
    experts = Table(title="Experts after fusion, on the clips they were selected for")
    for column in ("expert", "clips", "Acc, clip's label", "Acc, own label", "router weight"):
        experts.add_column(column, justify="left" if column == "expert" else "right")
    for m, figures in result["experts"].items():
        clips = figures["clips"][0] if isinstance(figures["clips"], list) else figures["clips"]
        own = "no labels" if clips and figures["accuracy_own_label"] is None else percent(figures["accuracy_own_label"])
        experts.add_row(m, f"{clips:.0f}", percent(figures["accuracy_clip_label"]), own, percent(result["router"][m]))
    console.print(experts)
    if "consistent" not in result["clips"]:
        console.print(_NO_GROUPS)
    for definition in result["definitions"]:
        console.print(f"{definition}.", highlight=False)
    _show_calibration(console, result)
    if "relabelled" in result:
        shares = ", ".join(
            f"{m} {percent(share)}{' %' if share is not None else ''}" for m, share in result["relabelled"].items()
        )
        console.print(f"Pseudo labels of training clips that differ from the clip's label: {shares}.", highlight=False)


def _show_classes(console: Console, result: Mapping[str, Any]) -> None:
    table = Table(title="Classes")
    for column in ("class", "training clips", "clips", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "class" else "right")
    clips = zip(result["class_clips"]["train"], result["class_clips"]["split"], strict=True)
    for (name, figures), (train, here) in zip(result["per_class"].items(), clips, strict=True):
        table.add_row(name, str(train), str(here), *(percent(figures[key]) for key in ("precision", "recall", "f1")))
    console.print(table)
    for note in unseen(result["class_names"], result["class_clips"]["train"]):
        console.print(f"{note}.", highlight=False)


def reconstruction(figures: Mapping[str, Sequence[float]]) -> str:
    """`audio 97.1 %, …` of modality → validation loss and that of an answer that sees nothing."""
    return ", ".join(f"{m} {percent(loss / mean)} %" for m, (loss, mean) in figures.items() if mean)


def unseen(class_names: Sequence[str], train_clips: Sequence[int]) -> list[str]:
    """What is to be said of classes that cannot have been learnt."""
    return [
        f"no training clip is {name!r}: it cannot be learnt, and is never right where it is true"
        for name, clips in zip(class_names, train_clips, strict=True)
        if not clips
    ]


def _show_calibration(console: Console, result: Mapping[str, Any]) -> None:
    def said(figures: Mapping[str, Any]) -> str:
        return f"ECE {percent(figures['ece'])} %, NLL {number(figures['nll'])}"

    calibration = result["calibration"]
    console.print(
        f"Calibration: {said(calibration['before'])}; at temperature {number(calibration['temperature'])} "
        f"{said(calibration['after'])}. Temperature: {result['calibration_note']}.",
        highlight=False,
    )


def number(value: float | list[float] | None) -> str:
    """Three digits, `0.312 ± 0.010` of a mean and its standard deviation, a dash for what is not defined."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"{value[0]:.3f} ± {value[1]:.3f}"
    return f"{value:.3f}"


def percent(value: float | list[float] | None) -> str:
    """`61.3` of 0.613, `61.3 ± 2.0` of a mean and its standard deviation, a dash for what is not defined."""
    if value is None or value != value:
        return "–"
    if isinstance(value, list):
        return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"
    return f"{100 * value:.1f}"


def show_prediction(prediction: Any) -> None:
    """A `cmc.predict.Prediction` as a table on stdout."""
    console = Console()
    table = Table(title=f"{prediction.label}")
    table.add_column("")
    for name in prediction.fused:
        table.add_column(name, justify="right")
    table.add_column("router weight", justify="right")
    for m, probabilities in prediction.modalities.items():
        cells = (
            [percent(p) for p in probabilities.values()]
            if probabilities
            else ["absent" if m in prediction.absent else "not selected"] + [""] * (len(prediction.fused) - 1)
        )
        name = f"{m} (made up)" if m in prediction.completed else m
        table.add_row(name, *cells, percent(prediction.router[m]), end_section=m == list(prediction.modalities)[-1])
    table.add_row("together", *(percent(p) for p in prediction.fused.values()), "")
    console.print(table)
    if prediction.value is not None:
        console.print(f"predicted label: {number(prediction.value)}", highlight=False)
    console.print(f"probabilities in per cent, at temperature {number(prediction.temperature)}", highlight=False)
    if prediction.status != "ok":
        console.print(f"clip: {prediction.status} {prediction.reason}", highlight=False)


def show_ablation(results: Mapping[str, list[dict[str, Any]]]) -> None:
    """The results of `cmc.ablate.ablate` as tables on stdout: accuracy and F1 per group, then recovered labels."""
    from cmc.metrics import mean_std

    def spread(rows: list[dict[str, float]], name: str) -> str:
        if len(rows) == 1:
            return percent(rows[0][name])  # one run has no spread
        return percent(list(mean_std([{name: row[name]} for row in rows])[name]))

    console = Console()
    first = next(iter(results.values()))[0]
    seeds = max(len(rows) for rows in results.values())
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    console.print(f"Test split, {over}: Acc and F1 weighted by class", highlight=False)
    table = Table()
    table.add_column("")
    for group, clips in first["clips"].items():
        table.add_column(f"{group}\n{clips} clips", justify="right")
    baseline = first["majority"]
    table.add_row("majority class", *(_two(percent(b["accuracy"]), percent(b["f1"])) for b in baseline.values()))
    for name, rows in results.items():
        per_group = ([row["cmc"][group] for row in rows] for group in first["clips"])
        table.add_row(name, *(_two(spread(figures, "accuracy"), spread(figures, "f1")) for figures in per_group))
    console.print(table)
    if "consistent" not in first["clips"]:
        console.print(_NO_GROUPS)
    recovered = {name: [row["recovered"] for row in rows] for name, rows in results.items() if rows[0]["recovered"]}
    if recovered:
        console.print("True unimodal labels of the training clips that are found", highlight=False)
        table = Table()
        modalities = list(next(iter(recovered.values()))[0])
        for column in ("", *modalities):
            table.add_column(column, justify="right" if column else "left")
        rows = next(iter(recovered.values()))
        table.add_row("copying the clip's label", *(spread([row[m] for row in rows], "copying M") for m in modalities))
        for name, rows in recovered.items():
            shares = (spread([row[m] for row in rows], "pseudo labels") for m in rows[0])
            table.add_row(f"pseudo labels, {name}", *shares)
        console.print(table)


def show_comparison(summary: Mapping[str, Any]) -> None:
    """The summary of a `cmc.compare.Comparison` as tables on stdout."""
    console = Console()
    largest = {name: max(per.items(), key=lambda item: float(item[0])) for name, per in summary["strategies"].items()}
    one = next(iter(largest.values()))[1]
    seeds = f"mean ± standard deviation of {one['seeds']} seeds" if one["seeds"] > 1 else "one seed"
    share = max(float(share) for share, _ in largest.values())
    labels = "" if share == 1 else f", {one['labelled']} training clips with a label"
    console.print(f"Accuracy, {seeds}{labels}; CPU seconds of stage 1, and of its slowest epoch", highlight=False)
    table = Table()
    groups = [f"test\n{group}" for group in one["test"]]
    for column in ("", "validation", *groups, "stage 1\n s", "epoch\n s"):
        table.add_column(column, justify="right" if column else "left")
    for name, (_, figures) in largest.items():
        tested = (_spread(group["accuracy"], figures["seeds"]) for group in figures["test"].values())
        taken = (figures["cpu_seconds"].get(key) for key in ("pretrain", "slowest pretrain"))
        seconds = (f"{mean_std[0]:.2f}" if mean_std else "–" for mean_std in taken)
        validation = _spread(figures["validation"]["accuracy"], figures["seeds"])
        shown = f"{name} (bound)" if name in summary["bound"] else name
        table.add_row(shown, validation, *tested, *seconds)
    console.print(table)
    if recovered := {name: figures for name, (_, figures) in largest.items() if figures["recovered"]}:
        console.print(
            "True unimodal labels of the training clips that are found, and p against copying", highlight=False
        )
        table = Table()
        first = next(iter(recovered.values()))["recovered"]
        for column in ("", *first):
            table.add_column(column, justify="right" if column else "left")
        copying = (_spread(found["copying"], one["seeds"]) for found in first.values())
        table.add_row("copying the clip's label", *copying)
        for name, figures in recovered.items():
            found = (f"{_spread(f['made'], figures['seeds'])}{_p(f['p'])}" for f in figures["recovered"].values())
            table.add_row(name, *found)
        console.print(table)
    if any(len(per_share) > 1 for per_share in summary["strategies"].values()):
        _show_curve(console, summary["strategies"])


def _show_curve(console: Console, strategies: Mapping[str, Mapping[str, Any]]) -> None:
    console.print("Test accuracy by the share of training clips that have a label", highlight=False)
    shares = sorted({share for per_share in strategies.values() for share in per_share}, key=float)
    table = Table()
    for column in ("", *(f"{100 * float(share):.3g} %" for share in shares)):
        table.add_column(column, justify="right" if column else "left")
    for name, per in strategies.items():
        cells = (_spread(per[s]["test"]["overall"]["accuracy"], per[s]["seeds"]) if s in per else "–" for s in shares)
        table.add_row(name, *cells)
    console.print(table)


def _spread(figure: Sequence[float], seeds: int) -> str:
    """A mean and standard deviation in per cent; one run has no spread."""
    return percent(list(figure) if seeds > 1 else figure[0])


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "\np < 0.001" if value < 0.001 else f"\np = {value:.3f}"


def _two(accuracy: str, f1: str) -> str:
    return f"{accuracy}\n{f1}"
