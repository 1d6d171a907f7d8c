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
            make(result).savefig(path, dpi=150, format="png", bbox_inches="tight")
    return [folder / name for name, _ in wanted]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(result: Mapping[str, Any]) -> str:
    hidden = f" without {' and '.join(result['dropped'])}" if result["dropped"] else ""
    hidden += ", completed" if "completed" in result else ""
    return f"{result['split']} split{hidden}{_seeds(result)}"


def _seeds(result: Mapping[str, Any]) -> str:
    return f", {result['seeds']} seeds together" if result.get("seeds", 1) > 1 else ""


def _confusion(result: Mapping[str, Any]) -> Figure:
    counts, names = np.array(result["confusion"]), result["class_names"]
    figure = _figure(_side(names) + 1.4, _side(names) + 1.5)
    axes = figure.add_subplot()
    _matrix(axes, counts, names, "predicted", "true")
    axes.set_title(f"Confusion, {_title(result)}", fontsize="medium")
    return figure


def _side(names: Sequence[str]) -> float:
    """Of a square with a cell per pair of classes, in inches."""
    return max(0.65 * len(names), 3.0)


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
    """Share of correct clips, and number of clips, per bin of the predicted class's probability."""
    figures = result["calibration"]
    names = ["before"] if figures["temperature"] == 1 else ["before", "after"]
    figure = _figure(max(0.6 + 3.6 * len(names), 5), 4.6)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        clips, confidence, right = np.array(result["reliability"][name]).T
        lefts, some = np.linspace(0, 1, len(clips), endpoint=False), clips > 0
        width, lefts, shares = 1 / len(clips), lefts[some], right[some] / clips[some]
        axes.bar(lefts, shares, width, align="edge", color=_BLUE, edgecolor="white", label="correct")
        axes.plot(confidence[some] / clips[some], shares, "o", color=_ORANGE, label="at the bin's mean probability")
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
        for left, count in zip(lefts, clips[some], strict=True):
            axes.text(left + width / 2, -0.05, f"{count:.0f}", ha="center", fontsize="x-small", color=_GREY)
        temperature = f"T = {_number(figures['temperature'], 2)}" if name == "after" else "as trained, T = 1"
        ece, nll = _number(figures[name]["ece"], 3), _number(figures[name]["nll"], 3)
        axes.set_title(f"{temperature}\nECE {ece}, NLL {nll}", fontsize="medium")
        axes.set(xlim=(0, 1), ylim=(-0.07, 1.05), xlabel="probability of the predicted class")
    figure.axes[0].set_ylabel("share of the bin's clips")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
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
            mean = _mean(result["router_means"][group][m])
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
    figure = _figure(_side(names) * len(modalities) + 1.8, _side(names) + 2.6)
    figure.set_layout_engine("compressed")  # room that the squares leave is at the margins, where `draw` cuts it off
    for axes, m in zip(np.atleast_1d(figure.subplots(1, len(modalities), sharey=True)), modalities, strict=True):
        counts = np.array(result["pseudo_labels"][m])
        _matrix(axes, counts, names, "pseudo label", "clip's label" if m == modalities[0] else "")
        share = result["relabelled"][m]
        title = f"{100 * _mean(share):.1f} % of {counts.sum()} differ" if share is not None else "no clip has it"
        axes.set_title(f"{m}: {title}", fontsize="medium")
    figure.suptitle(f"Pseudo labels of the training clips{_seeds(result)}", fontsize="medium")
    return figure


def draw_comparison(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the PNGs of a summary that `cmc.compare` made: `comparison.png`, and `curve.png` of several shares."""
    strategies = summary["strategies"]
    wanted = {"comparison.png": _strategies}
    if any(len(per_share) > 1 for per_share in strategies.values()):
        wanted["curve.png"] = _curve
    for name, make in wanted.items():
        with atomic(folder / name) as path:
            make(strategies).savefig(path, dpi=150, format="png", bbox_inches="tight")
    return [folder / name for name in wanted]


def _strategies(strategies: Mapping[str, Any]) -> Figure:
    """Accuracy per strategy and group of clips; beside it the unimodal labels that are found, where they are known."""
    largest = {name: per_share[max(per_share, key=float)] for name, per_share in strategies.items()}
    found = {name: figures["recovered"] for name, figures in largest.items() if figures["recovered"]}
    figure = _figure(5.5 if not found else 10, 1.6 + 0.5 * len(largest))
    panels = figure.subplots(1, 2 if found else 1, squeeze=False)[0]
    first = next(iter(largest.values()))
    groups = {
        f"test, {group}": [figures["test"][group]["accuracy"] for figures in largest.values()]
        for group in first["test"]
    }
    groups |= {"validation": [figures["validation"]["accuracy"] for figures in largest.values()]}
    _points(panels[0], list(largest), groups)
    panels[0].set_xlabel("accuracy, %")
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize="small", frameon=False)
    if found:
        modalities = next(iter(found.values()))
        shown = {m: [per[m]["made"] for per in found.values()] for m in modalities if m != "mean"}
        _points(panels[1], list(found), shown)
        for m, color in zip(shown, _GROUPS, strict=False):
            panels[1].axvline(100 * modalities[m]["copying"][0], color=color, linestyle=":", linewidth=1)
        panels[1].set_xlabel("unimodal labels found, % (dotted: copying the clip's label)")
        panels[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize="small", frameon=False)
    figure.suptitle(f"Strategies, mean and standard deviation of {first['seeds']} seeds", fontsize="medium")
    return figure


_GROUPS = (_BLUE, _ORANGE, "#4b9b6e", _GREY)


def _points(axes: Axes, rows: Sequence[str], groups: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """One row per name, one point with its spread per group."""
    for k, (group, figures) in enumerate(groups.items()):
        middle = np.arange(len(rows)) + 0.14 * (k - (len(groups) - 1) / 2)
        mean, spread = 100 * np.array(figures).T
        axes.errorbar(mean, middle, xerr=spread, fmt="o", markersize=4, color=_GROUPS[k], capsize=2, label=group)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _curve(strategies: Mapping[str, Any]) -> Figure:
    """Test accuracy over the share of labelled training clips, a line per strategy."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    for k, (name, per_share) in enumerate(strategies.items()):
        shares = sorted(per_share, key=float)
        mean, spread = 100 * np.array([per_share[share]["test"]["overall"]["accuracy"] for share in shares]).T
        x = 100 * np.array([float(share) for share in shares])
        axes.errorbar(x, mean, yerr=spread, marker="o", markersize=4, capsize=2, color=f"C{k}", label=name)
    shares = sorted({100 * float(share) for per_share in strategies.values() for share in per_share})
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:.3g}" for share in shares])
    axes.minorticks_off()
    axes.set(xlabel="training clips with a label, %", ylabel="test accuracy, %")
    axes.grid(color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    seeds = next(iter(next(iter(strategies.values())).values()))["seeds"]
    axes.set_title(f"Learning curve, mean and standard deviation of {seeds} seeds", fontsize="medium")
    return figure


def _mean(value: float | Sequence[float]) -> float:
    """A figure, or its mean over seeds."""
    return value if isinstance(value, int | float) else value[0]


def _number(value: float | Sequence[float], digits: int) -> str:
    """A figure, or its mean and standard deviation over seeds."""
    if isinstance(value, int | float):
        return f"{value:.{digits}f}"
    return " ± ".join(f"{part:.{digits}f}" for part in value)
