"""The search for the best CTC path, against brute force and torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmfeat.words.ctc_path import best_path

BLANK = 0


def collapsed(frames: tuple[int, ...]) -> tuple[int, ...]:
    """What a frame by frame labelling says: runs become one label, blanks go."""
    return tuple(label for label, _ in itertools.groupby(frames) if label != BLANK)


def readings(labels: list[int], optional: list[bool]) -> set[tuple[int, ...]]:
    """The sequences that the labels stand for, with and without the optional ones."""
    ways = itertools.product(
        *[((label,), ()) if may else ((label,),) for label, may in zip(labels, optional, strict=True)]
    )
    return {tuple(itertools.chain(*way)) for way in ways}


@st.composite
def lattices(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[int], list[bool]]:
    frames, size = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(1, size - 1), max_size=4))
    optional: list[bool] = []
    for _ in labels:
        optional.append(draw(st.booleans()) and not (optional and optional[-1]))
    logits = np.random.default_rng(draw(st.integers(0, 10**6))).normal(0, 3, (frames, size))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32), labels, optional


@settings(max_examples=400, deadline=None)
@given(lattices())
def test_the_path_is_the_best_of_all(lattice: tuple[NDArray[np.float32], list[int], list[bool]]) -> None:
    emissions, labels, optional = lattice
    frames, size = emissions.shape
    wanted = readings(labels, optional)
    scores = {
        way: sum(float(emissions[t, label]) for t, label in enumerate(way))
        for way in itertools.product(range(size), repeat=frames)
        if collapsed(way) in wanted
    }
    if not scores:
        with pytest.raises(ValueError, match="frames"):
            best_path(emissions, labels, BLANK, optional)
        return
    path, score = best_path(emissions, labels, BLANK, optional)
    assert abs(score - max(scores.values())) < 1e-4
    way = tuple(labels[place] if place >= 0 else BLANK for place in path)
    assert abs(scores[way] - score) < 1e-4
    said = [place for place in path if place >= 0]
    assert said == sorted(said) and {i for i, may in enumerate(optional) if not may} <= set(said)


def test_long_paths_are_those_of_torch() -> None:
    """Log-probabilities of a path through many blocks; torch's CTC loss sums over paths, so it bounds them."""
    random = np.random.default_rng(0)
    labels = random.integers(1, 20, 300).tolist()
    truth = np.repeat(labels, random.integers(1, 12, 300))
    logits = random.normal(0, 1, (len(truth) + 40, 20)).astype(np.float32)
    logits[np.arange(20, 20 + len(truth)), truth] += 14
    emissions = torch.from_numpy(logits).log_softmax(-1)
    path, score = best_path(emissions.numpy(), labels, BLANK)
    loss = torch.nn.functional.ctc_loss(
        emissions[:, None], torch.tensor([labels]), torch.tensor([len(logits)]), torch.tensor([300]), reduction="sum"
    )
    assert -float(loss) - 300 < score <= -float(loss)
    assert [labels[place] for place, _ in itertools.groupby(path) if place >= 0] == labels
    # A frame whose own label leads by far is spent on it.
    agree = np.array([labels[place] if place >= 0 else 0 for place in path[20:-20]]) == truth
    assert agree.mean() > 0.95


def test_too_short_and_impossible() -> None:
    flat = np.log(np.full((3, 3), 1 / 3, np.float32))
    with pytest.raises(ValueError, match="at least 4 frames, there are 3"):
        best_path(flat, [1, 1, 2], BLANK)
    flat[:, 2] = -np.inf
    with pytest.raises(ValueError, match="no way"):
        best_path(flat, [1, 2], BLANK)
    assert best_path(flat, [], BLANK)[0].tolist() == [-1, -1, -1]
