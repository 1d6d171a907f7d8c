"""Expression measures: which movement of the face each follows, and which it ignores."""

from __future__ import annotations

import numpy as np
import pytest

from mmfeat.extractors.face_measures import MEASURES, measures

DOWN, UP, FORWARD, BACK = (0, 0.1, 0), (0, -0.1, 0), (0, 0, -0.1), (0, 0, 0.1)
RIGHT_OUT, RIGHT_IN = (-0.1, 0, 0), (0.1, 0, 0)  # of the person; x grows to the image's right
CORNERS, LIPS, CHIN = [61, 291], [0, 17], [152, 175, 199, 200]
NOSE, INNER_LIPS, EYE_CORNERS, BROWS = [2], [13, 14], [33, 133, 263, 362], [55, 65, 285, 295]


def change(name: str, points: list[int], by: tuple[float, float, float]) -> float:
    """How much a measure grows when some points of a face move."""
    still = np.random.default_rng(0).normal(0, 0.02, (1, 468, 3))
    still[:, CORNERS] += [(-0.25, 0.6, -0.1), (0.25, 0.6, -0.1)]
    still[:, [*NOSE, *INNER_LIPS, *LIPS]] += [
        (0, 0.45, -0.3),
        (0, 0.6, -0.25),
        (0, 0.6, -0.25),
        (0, 0.5, -0.3),
        (0, 0.7, -0.3),
    ]
    still[:, CHIN] += (0, 0.95, -0.2)
    still[:, [55, 65, 107]] += (-0.12, -0.2, -0.2)
    still[:, [285, 295, 336]] += (0.12, -0.2, -0.2)
    moved = still.copy()
    moved[:, points] += by
    column = MEASURES.index(name)
    return float(measures(moved)[0, column] - measures(still)[0, column])


@pytest.mark.parametrize(
    ("name", "points", "by"),
    [
        ("lip_corner_pull", CORNERS, UP),
        ("lip_corner_pull", CORNERS, BACK),
        ("lip_corner_pull", [61], RIGHT_OUT),
        ("brow_furrow", BROWS, DOWN),
        ("brow_furrow", [55, 65], RIGHT_IN),
        ("lip_pucker", [61], RIGHT_IN),
        ("lip_pucker", LIPS, FORWARD),
        ("jaw_drop", [175, 199, 200], DOWN),
    ],
)
def test_what_a_measure_follows(name: str, points: list[int], by: tuple[float, float, float]) -> None:
    assert change(name, points, by) > 0.005


@pytest.mark.parametrize("points", [NOSE, INNER_LIPS, LIPS, CHIN, BROWS])
def test_a_smile_is_in_the_corners_of_the_mouth(points: list[int]) -> None:
    assert change("lip_corner_pull", points, UP) == pytest.approx(0)


def test_a_smile_is_more_than_lips_pushed_up() -> None:
    """As pressed lips are by the chin, which brings the corners up and forward."""
    smile, push = (-0.1, -0.05, 0.05), (0.0, -0.05, -0.02)
    assert change("lip_corner_pull", [61], smile) > 3 * change("lip_corner_pull", [61], push)
