"""One clip as the pipeline sees it, on one page: frames, landmarks, sound, words, pitch, expression measures."""

from __future__ import annotations

import re
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mmfeat.clip import ClipFeatures, extract
from mmfeat.media import open_media
from mmfeat.recipe import Recipe
from mmfeat.track import Frame, Track, Waveform

STRIP = 8
"""Frames shown."""
_NUMBERED = re.compile(r"_?\d+$")
_SEAT = re.compile(r"face\d+_")
"""How the columns of one of several people begin."""
COLOURS = ("#33ff66", "#ffa500", "#30a0ff", "#ff50c0", "#f0e020", "#a070ff")
"""Of people, in turn."""


def plot_clip(
    path: Path, text: str, recipe: Recipe, out: Path, start: float | None = None, end: float | None = None
) -> None:
    """Extract the clip at `path` and draw it into the picture `out`; `start` and `end` cut it out of a longer file.

    Raises what `mmfeat.extract` raises.
    """
    features = extract(path, text, with_pixels(recipe), start, end)
    with open_media(path, start, end) as media:
        frames = _strip(media.frames(), features.seconds)
        sound = media.waveform()
    shape = frames[0].image.shape if frames else (1, 2)
    strip = 10.5 / STRIP * shape[0] / shape[1] + 0.3  # as high as the frames are, and their titles
    ratios = (strip, 1.3, 1.1, max(3.6, 0.125 * len(_measures(features.vision))))
    figure, axes = plt.subplots(
        4, 1, figsize=(12, sum(ratios) + 1), sharex=True, height_ratios=ratios, layout="constrained"
    )
    figure.suptitle(f"{path.name}: {features.status}", x=0.01, ha="left")
    _draw_frames(axes[0], frames, features.vision, features.seconds)
    _draw_sound(axes[1], sound, features)
    _draw_pitch(axes[2], features.audio)
    _draw_measures(axes[3], features.vision)
    axes[3].set_xlabel("seconds")
    axes[3].set_xlim(0, features.seconds)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def with_pixels(recipe: Recipe) -> Recipe:
    """The same recipe; facemesh also says where in the picture it saw the landmarks."""
    if recipe.vision["extractor"] != "facemesh":
        return recipe
    columns = [*recipe.resolved()["vision"]["columns"], "landmarks_px"]
    return recipe.model_copy(update={"vision": {**recipe.vision, "columns": tuple(dict.fromkeys(columns))}})


def landmarks(vision: Track, row: int) -> list[tuple[str, NDArray[np.float32]]]:
    """The colour of each person who is seen in one frame, and their landmarks in pixels, shape (P, 2).

    Nobody where the extractor does not say where it saw them.
    """
    columns = {name: k for k, name in enumerate(vision.names)}
    found = []
    for colour, prefix in zip(cycle(COLOURS), _seats(vision)):
        points = [name for name in vision.names if re.fullmatch(rf"{prefix}x_\d+", name)]
        if points and _seen(vision, prefix)[row]:
            pairs = [[columns[name], columns[f"{prefix}y{name[len(prefix) + 1 :]}"]] for name in points]
            found.append((colour, vision.values[row, pairs]))
    return found


def _seats(vision: Track) -> list[str]:
    """How the columns of each person begin: in no way of their own where only one was chosen."""
    return list(dict.fromkeys(match.group() for name in vision.names if (match := _SEAT.match(name)))) or [""]


def _seen(vision: Track, seat: str) -> NDArray[np.bool_]:
    """Shape (T,): in which frames a person is there."""
    return vision.valid & (vision.values[:, vision.names.index(f"{seat}seen")] > 0) if seat else vision.valid


def _strip(frames: object, seconds: float) -> list[Frame]:
    """STRIP frames, the one on screen in the middle of each slot."""
    wanted = [(k + 0.5) * seconds / STRIP for k in range(STRIP)]
    kept: list[Frame] = []
    for frame in frames:  # type: ignore[attr-defined]
        while wanted and frame.start <= wanted[0] < frame.end:
            kept.append(frame)
            wanted.pop(0)
    return kept


def _draw_frames(axis: Axes, frames: list[Frame], vision: Track, seconds: float) -> None:
    axis.set_yticks([])
    axis.set_ylim(0, 1)
    axis.spines[:].set_visible(False)
    axis.tick_params(bottom=False)
    if not frames:
        axis.text(0.5 * seconds, 0.5, "no pictures", ha="center")
        return
    slot = seconds / STRIP
    for k, frame in enumerate(frames):
        inset = axis.inset_axes((k / STRIP + 0.002, 0, 1 / STRIP - 0.004, 1))
        inset.axis("off")
        inset.imshow(frame.image)
        row = int(np.searchsorted(vision.times[:, 0], frame.start, side="right")) - 1
        seen = 0 <= row < len(vision) and vision.valid[row]
        if seen:
            for colour, points in landmarks(vision, row):
                inset.scatter(points[:, 0], points[:, 1], s=2, lw=0, c=colour)
        inset.set_title(f"{(k + 0.5) * slot:.2f} s" + ("" if seen else ", no face"), fontsize=8)
    axis.set_ylabel("vision")


def _draw_sound(axis: Axes, sound: Waveform | None, features: ClipFeatures) -> None:
    axis.set_ylabel("sound, words")
    axis.set_yticks([])
    if sound is None or not len(sound.samples):
        axis.text(0.5 * features.seconds, 0.0, "no sound", ha="center")
        return
    axis.plot(np.arange(len(sound.samples)) / sound.rate, sound.samples, lw=0.3, c="#888888")
    top = max(float(np.abs(sound.samples).max()), 1e-3)
    axis.set_ylim(-top, 1.6 * top)
    for word in features.words:
        axis.axvspan(word.start, word.end, color=plt.get_cmap("RdYlGn")(word.confidence), alpha=0.35, lw=0)
        axis.axvline(word.start, c="#444444", lw=0.5)
        axis.text((word.start + word.end) / 2, 1.25 * top, word.text, ha="center", va="center", fontsize=9)


def _draw_pitch(axis: Axes, audio: Track) -> None:
    column = {name: audio.values[:, k] for k, name in enumerate(audio.names)}
    middle = audio.times.mean(axis=1)
    if "f0" in column:
        axis.plot(middle, np.where(column["f0"] > 0, column["f0"], np.nan), ".-", ms=3, lw=1, c="#1f5fbf")
        axis.set_ylabel("F0 (Hz)", color="#1f5fbf")
    if "rms" in column:
        loudness = axis.twinx()
        loudness.fill_between(middle, column["rms"], color="#e08a2e", alpha=0.35, lw=0)
        loudness.set_ylabel("RMS", color="#e08a2e")
        loudness.set_ylim(bottom=0)


def _draw_measures(axis: Axes, vision: Track) -> None:
    """Columns that are not numbered points, each scaled to its own range in the clip."""
    shown = _measures(vision)
    if not len(vision) or not vision.valid.any() or not shown:
        axis.set_yticks([])
        why = "no face" if not vision.valid.any() else "no columns with names of their own"
        axis.text(0.5, 0.5, why, ha="center", transform=axis.transAxes)
        return
    values = vision.values[:, shown].astype(float)
    colours: dict[int, str] = {}
    for colour, seat in zip(cycle(COLOURS), _seats(vision)):
        of_seat = [k for k, column in enumerate(shown) if vision.names[column].startswith(seat)]
        values[~_seen(vision, seat)[:, None] & np.isin(np.arange(len(shown)), of_seat)] = np.nan
        colours |= dict.fromkeys(of_seat, colour if seat else "none")
    edges = np.append(vision.times[:, 0], vision.times[-1, 1])
    axis.pcolormesh(edges, np.arange(len(shown) + 1), _scaled(values).T, cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    axis.set_yticks(np.arange(len(shown)) + 0.5, [vision.names[k] for k in shown], fontsize=8)
    axis.invert_yaxis()
    for k, label in enumerate(axis.get_yticklabels()):
        label.set_bbox({"facecolor": colours[k], "alpha": 0.4, "lw": 0, "pad": 1})


def _measures(vision: Track) -> list[int]:
    """The columns with a name of their own, of people who were there."""
    found = []
    for seat in _seats(vision):
        if _seen(vision, seat).any():
            names = [(k, name.removeprefix(seat)) for k, name in enumerate(vision.names) if name.startswith(seat)]
            found += [k for k, name in names if not _NUMBERED.search(name) and not name.startswith(("gaze_", "seen"))]
    return found


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.nanstd(values, axis=0)
    return (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1.0)
