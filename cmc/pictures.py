"""The pictures of an evaluation: confusion matrix, reliability, router weights and pseudo labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmfeat.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _ORANGE = "#3b75af", "#9a9a9a", "#d9822b"


def draw(result: Mapping[str, Any], folder: Path, suffix: str) -> list[Path]:
    """Write the PNGs of the figures that `cmc.evaluate.figures` made, of one run or of several together.

    There is no router with one modality and, without PLGM, no pseudo labels. Those are of the training split, whatever
    split is evaluated, so that their file has no suffix.
    """
    wanted: list[tuple[str, Callable[[Mapping[str, Any]], Figure]]] = [
        (f"confusion{suffix}.png", _confusion),
        (f"reliability{suffix}.png", _reliability),
    ]
    if len(result["router"]) > 1:
        wanted.append((f"router{suffix}.png", _router))
    if "pseudo_labels" in result:
        wanted.append(("pseudo_labels.png", _pseudo_labels))
    for name, make in wanted:
        with atomic(folder / name) as path:
            make(result).savefig(path, dpi=150, format="png")
    return [folder / name for name, _ in wanted]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(result: Mapping[str, Any]) -> str:
    hidden = f" without {' and '.join(result['dropped'])}" if result["dropped"] else ""
    return f"{result['split']} split{hidden}{_seeds(result)}"


def _seeds(result: Mapping[str, Any]) -> str:
    return f", {result['seeds']} seeds together" if result.get("seeds", 1) > 1 else ""


def _confusion(result: Mapping[str, Any]) -> Figure:
    counts, names = np.array(result["confusion"]), result["class_names"]
    figure = _figure(2 + 0.8 * len(names), 1.8 + 0.7 * len(names))
    axes = figure.add_subplot()
    _matrix(axes, counts, names, "predicted", "true")
    axes.set_title(f"Confusion, {_title(result)}", fontsize="medium")
    return figure


def _matrix(axes: Axes, counts: NDArray[np.int64], names: Sequence[str], columns: str, rows: str) -> None:
    """Counts, shaded by their share of the row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    tilt: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 3 else {}
    axes.set_xticks(range(len(names)), names, **tilt)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    for row, column in np.ndindex(counts.shape):
        color = "white" if shares[row, column] > 0.5 else "black" if counts[row, column] else _GREY
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)


def _reliability(result: Mapping[str, Any]) -> Figure:
    """Share of correct clips per bin of confidence; the diagonal is what a calibrated model has."""
    figures = result["calibration"]
    names = ["before"] if figures["temperature"] == 1 else ["before", "after"]
    figure = _figure(0.6 + 3.6 * len(names), 4.2)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        clips, confidence, right = np.array(result["reliability"][name]).T
        edges, some = np.linspace(0, 1, len(clips) + 1), clips > 0
        shares = right[some] / clips[some]
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        axes.bar(edges[:-1][some], shares, 1 / len(clips), align="edge", color=_BLUE, alpha=0.75, edgecolor="white")
        axes.plot(confidence[some] / clips[some], shares, "o", color=_ORANGE, markersize=4)
        for left, share, count in zip(edges[:-1][some], shares, clips[some], strict=True):
            axes.text(left + 0.5 / len(clips), share + 0.01, f"{count:.0f}", ha="center", fontsize="x-small")
        temperature = f"T = {_number(figures['temperature'], 2)}" if name == "after" else "as trained, T = 1"
        ece, nll = _number(figures[name]["ece"], 3), _number(figures[name]["nll"], 3)
        axes.set_title(f"{temperature}\nECE {ece}, NLL {nll}", fontsize="medium")
        axes.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="probability of the predicted class")
    figure.axes[0].set_ylabel("share of correct clips (number of clips)")
    figure.suptitle(f"Reliability, {_title(result)}", fontsize="medium")
    return figure


def _router(result: Mapping[str, Any]) -> Figure:
    """How the router's weights spread: a row per group of clips and true class, a column per modality."""
    groups, modalities = list(result["router_histogram"]), list(result["router"])
    figure = _figure(1.6 + 2.6 * len(modalities), 1.2 + 0.5 * len(groups))
    for axes, m in zip(figure.subplots(1, len(modalities), sharey=True), modalities, strict=True):
        for row, group in enumerate(groups):
            counts = np.array(result["router_histogram"][group][m])
            base = len(groups) - 1 - row
            axes.axhline(base, color=_GREY, linewidth=0.6)
            if not counts.any():
                axes.text(0.5, base + 0.15, "absent", ha="center", color=_GREY, fontsize="small")
                continue
            edges = np.linspace(0, 1, len(counts) + 1)
            color = _BLUE if group in result["clips"] else _ORANGE
            axes.stairs(base + 0.85 * counts / counts.max(), edges, baseline=base, fill=True, color=color, alpha=0.8)
            mean = float((counts * (edges[:-1] + edges[1:]) / 2).sum() / counts.sum())
            axes.plot([mean, mean], [base, base + 0.85], color="black", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, len(groups)), xlabel="router weight")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_title(m, fontsize="medium")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    labels = [group if group in result["clips"] else f"true: {group}" for group in groups]
    figure.axes[0].set_yticks([len(groups) - 0.7 - row for row in range(len(groups))], labels)
    figure.suptitle(f"Router weights and their mean, {_title(result)}", fontsize="medium")
    return figure


def _pseudo_labels(result: Mapping[str, Any]) -> Figure:
    """What PLGM made of the training clips' labels, per modality."""
    names, modalities = result["class_names"], list(result["pseudo_labels"])
    figure = _figure(1 + (1 + 0.7 * len(names)) * len(modalities), 2.2 + 0.65 * len(names))
    for axes, m in zip(np.atleast_1d(figure.subplots(1, len(modalities), sharey=True)), modalities, strict=True):
        counts = np.array(result["pseudo_labels"][m])
        _matrix(axes, counts, names, "pseudo label", "clip's label" if m == modalities[0] else "")
        changed = 1 - np.trace(counts) / max(counts.sum(), 1)
        axes.set_title(f"{m}: {100 * changed:.1f} % of {counts.sum()} differ", fontsize="medium")
    figure.suptitle(f"Pseudo labels of the training clips{_seeds(result)}", fontsize="medium")
    return figure


def _number(value: float | Sequence[float], digits: int) -> str:
    """A figure, or its mean and standard deviation over seeds."""
    if isinstance(value, int | float):
        return f"{value:.{digits}f}"
    return " ± ".join(f"{part:.{digits}f}" for part in value)
