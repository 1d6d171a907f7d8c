"""A recording with its words on it: where each was found, and how sure the aligner is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ft2font import FT2Font

from mmfeat.track import Waveform, Word

ROW = 8.0
"""Seconds on a line: fast speech has four words a second."""
LINES = 200
_BINS = 1400  # of a line's waveform: about one per dot of the picture
_COLOURS = "RdYlGn"
_WIDTH = 14.0


class PictureError(ValueError):
    """There is too much for one picture."""


def plot_words(sound: Waveform, words: Sequence[Word], out: Path, origin: float = 0.0, title: str = "") -> None:
    """Draw waveform, words and confidence into the picture `out`, `ROW` seconds a line.

    Args:
        sound: what was aligned; it begins at `origin`, seconds.
        words: with times on the same axis as `origin`.
        out: the picture; its ending names the format.
        title: above everything.

    Words in a script that no font here has are numbered, as in a list of the words, and the title says so.
    Raises PictureError for a recording of more than `LINES` lines.
    """
    count = max(1, int(np.ceil(sound.seconds / ROW - 1e-6)))
    if count > LINES:
        raise PictureError(
            f"{sound.seconds / 60:.0f} minutes are too long for one picture, which holds {LINES * ROW / 60:.0f}: "
            "choose a part with --start and --end"
        )
    family, missing = fonts("".join(word.text for word in words))
    labels = [f"#{k + 1}" if set(word.text) & missing else word.text for k, word in enumerate(words)]
    if missing:
        title += "   (words in a script that no font here has are numbered; a font such as Noto Sans CJK helps)"
    row = ROW if count > 1 else max(sound.seconds, 0.1)
    with plt.rc_context({"font.family": family}):
        figure, axes = plt.subplots(count, 1, figsize=(_WIDTH, 1.35 * count + 0.9), squeeze=False, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        top = max(float(np.abs(sound.samples).max(initial=0.0)), 1e-3)
        for line, axis in enumerate(axes[:, 0]):
            start = line * row
            _draw_sound(axis, sound, start, start + row, origin, top)
            inside = [k for k, w in enumerate(words) if w.start - origin < start + row and w.end - origin > start]
            for k in inside:
                _draw_word(axis, words[k], labels[k], k % 2, (start + origin, start + row + origin))
            axis.set_xlim(start + origin, start + row + origin)
        axes[-1, 0].set_xlabel("seconds")
        scale = plt.cm.ScalarMappable(norm=plt.Normalize(0, 1), cmap=_COLOURS)
        figure.colorbar(scale, ax=axes[: min(count, 4), 0].tolist(), label="confidence", fraction=0.02, pad=0.01)
        figure.savefig(out, dpi=100)
        plt.close(figure)


def fonts(text: str) -> tuple[list[str], set[str]]:
    """Font families that together have the characters of `text`, and the characters that no font has."""
    family = ["DejaVu Sans"]
    default = font_manager.findfont("DejaVu Sans")
    missing = {c for c in text if not c.isspace()} - set(map(chr, FT2Font(default).get_charmap()))
    if not missing:
        return family, missing
    for font in font_manager.fontManager.ttflist:
        if "Last Resort" in font.name or not missing or font.name in family:
            continue
        if found := missing & set(map(chr, FT2Font(font.fname).get_charmap())):
            family.append(font.name)
            missing -= found
    return family, missing


def _draw_sound(axis: Axes, sound: Waveform, start: float, end: float, origin: float, top: float) -> None:
    """The waveform's lowest and highest values per dot, in the middle band."""
    samples = sound.samples[round(start * sound.rate) : round(end * sound.rate)] / top
    axis.set_ylim(-2.3, 2.6)
    axis.set_yticks([])
    axis.tick_params(labelsize=8)
    if not len(samples):
        return
    size = max(1, int(np.ceil((end - start) * sound.rate / _BINS)))
    whole = np.pad(samples, (0, -len(samples) % size), mode="edge").reshape(-1, size)
    middle = origin + start + (np.arange(len(whole)) + 0.5) * size / sound.rate
    axis.fill_between(middle, whole.min(axis=1), whole.max(axis=1), color="#666666", lw=0.3)


def _draw_word(axis: Axes, word: Word, label: str, level: int, line: tuple[float, float]) -> None:
    """The span in the colour of its confidence, the word above it, its confidence as a bar below."""
    start, end = max(word.start, line[0]), min(word.end, line[1])
    axis.axvspan(start, end, color=plt.get_cmap(_COLOURS)(word.confidence), alpha=0.4, lw=0)
    axis.axvline(word.start, c="#444444", lw=0.5)
    axis.plot([start, end], [-2.2 + word.confidence] * 2, c="#1f5fbf", lw=1.5, solid_capstyle="butt")
    if line[0] <= (word.start + word.end) / 2 < line[1]:  # once, where most of the word is
        axis.text((start + end) / 2, 1.35 + 0.6 * level, label, ha="center", va="center", fontsize=8, clip_on=False)
