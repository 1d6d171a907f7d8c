"""The best way of a CTC model through a sequence of labels (Viterbi), in numpy.

States are the labels with a blank before, between and behind them. A frame stays in its state or goes to the next; it
may leave out a blank between two different labels, and an optional label. Graves et al. (2006), "Connectionist
Temporal Classification", section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_REACH = 5
"""A state is entered from itself or from one of the four before it."""


def best_path(
    emissions: Floats, labels: Sequence[int], blank: int, optional: Sequence[bool] | None = None
) -> tuple[NDArray[np.intp], float]:
    """For each frame the place in `labels` that it is spent on, or -1 for a blank; and the path's score.

    `emissions` (T, V) are log-probabilities of V labels in T frames; `optional` says which labels may be left out, of
    which no two are neighbours. The score is the sum over the path's frames. Memory grows with the square root of T
    times the number of labels: scores are kept for some frames only, from which those between are computed again.

    Raises ValueError where T frames are too few for the labels, or where every path has probability zero.
    """
    graph = _Graph(labels, blank, optional or [False] * len(labels))
    frames = len(emissions)
    if frames < graph.least:
        raise ValueError(f"the letters take at least {graph.least} frames, there are {frames}")
    if not frames:
        return np.zeros(0, np.intp), 0.0
    block = max(1, math.isqrt(frames))
    scores = graph.first(emissions[0])
    kept = [scores]  # of frames 0, block, 2 * block, …
    for time in range(1, frames):
        scores, _ = graph.step(scores, emissions[time], want_moves=False)
        if time % block == 0:
            kept.append(scores)
    state = max(graph.last, key=lambda last: scores[last])
    score = float(scores[state])
    if not math.isfinite(score):
        raise ValueError("no way through the labels has a probability above zero")
    path = np.empty(frames, np.intp)
    end = frames
    for first in range(len(kept) - 1, -1, -1):
        begin, scores = first * block, kept[first]
        moves = np.empty((end - begin, len(graph.states)), np.uint8)
        for time in range(begin + 1, end):
            scores, moves[time - begin] = graph.step(scores, emissions[time])
        if end < frames:  # the move into the next block's first frame
            _, into = graph.step(scores, emissions[end])
            state -= int(into[state])
        for time in range(end - 1, begin, -1):
            path[time] = state
            state -= int(moves[time - begin, state])
        path[begin] = state
        end = begin
    return np.where(path % 2 == 1, path // 2, -1), score


class _Graph:
    """States 2i + 1 are the labels, those with even numbers the blanks around them."""

    def __init__(self, labels: Sequence[int], blank: int, optional: Sequence[bool]):
        count = len(labels)
        self.states = np.full(2 * count + 1, blank, np.intp)
        self.states[1::2] = labels
        may = np.asarray(optional, bool)
        if (may[1:] & may[:-1]).any():
            raise ValueError("two neighbouring labels are optional")
        chain = np.asarray(labels, np.intp)
        # What moving by 2, 3 and 4 states costs: nothing, or everything where it is forbidden.
        self._cost = np.full((_REACH, 2 * count + 1), -np.inf)
        self._cost[:2] = 0.0
        different = chain[1:] != chain[:-1]
        self._cost[2, 3::2][different] = 0.0
        # Around an optional label: from the blank before it to the label behind it, or from label to label.
        skipped = may[1:-1] if count > 2 else np.zeros(0, bool)
        beyond = skipped & (chain[2:] != chain[:-2]) if count > 2 else skipped
        if count > 1:
            self._cost[3, 3::2][may[:-1]] = 0.0
        self._cost[4, 5::2][beyond] = 0.0
        for move in range(_REACH):
            self._cost[move, :move] = -np.inf
        required = chain[~may]
        # Two labels that are the same are parted by a blank or an optional label.
        self.least = len(required) + int((required[1:] == required[:-1]).sum())
        ends = [2 * count] + ([2 * count - 1] if count else [])
        begins = [0] + ([1] if count else [])
        if count and may[-1]:
            ends += [2 * count - 2] + ([2 * count - 3] if count > 1 else [])
        if count > 1 and may[0]:
            begins.append(3)
        self.last, self._begins = ends, begins

    def first(self, emission: Floats) -> Floats:
        """Scores (S,) after the first frame, emission (V,)."""
        scores = np.full(len(self.states), -np.inf)
        scores[self._begins] = emission[self.states[self._begins]]
        return scores

    def step(self, scores: Floats, emission: Floats, want_moves: bool = True) -> tuple[Floats, NDArray[np.uint8]]:
        """Scores after one more frame, and by how many states the best way into each has moved."""
        count = len(scores)
        ways = self._cost.copy()
        for move in range(min(_REACH, count)):
            ways[move, move:] += scores[: count - move]
        moves = ways.argmax(axis=0).astype(np.uint8) if want_moves else np.zeros(0, np.uint8)
        return ways.max(axis=0) + emission[self.states], moves
