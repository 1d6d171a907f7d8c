"""How faces are followed and cut out, without the nets themselves."""

from __future__ import annotations

import os
from itertools import cycle

import numpy as np
import pytest
from numpy.typing import NDArray

from mmfeat.extractors import face_looks
from mmfeat.extractors.face_follow import FaceFollower, _Followed
from mmfeat.extractors.face_looks import looks
from mmfeat.extractors.face_nets import Detection, Region, _without_greeting, overlap

Image = NDArray[np.uint8]
IMAGE = np.zeros((50, 200, 3), np.uint8)


class FakeNets:
    """Sees faces of 40 pixels at the places in `at`; the mesh goes to the one nearest to where it is told to look."""

    def __init__(self, *at: int) -> None:
        x, y = np.meshgrid(np.linspace(0, 40, 26), np.linspace(0, 40, 18))
        self.face = np.stack([x.ravel(), y.ravel(), x.ravel()], axis=1).astype(np.float32)
        self.at = list(at)
        self.presence = 1.0

    def detect(self, image: Image, threshold: float, window: object = None) -> list[Detection]:
        eyes = np.array([[0, 0], [10, 0]], np.float32)
        return [Detection(np.array([x, 0, x + 40, 40], np.float32), eyes + np.float32(x), 0.9) for x in self.at]

    def mesh(self, image: Image, region: Region) -> tuple[NDArray[np.float32], float]:
        if not self.at:
            return self.face, 0.0
        nearest = min(self.at, key=lambda x: abs(x + 20 - region.x))
        return self.face + np.array([nearest, 0, 0], np.float32), self.presence


class SmallFace(FakeNets):
    """The face at 100 is too small to be found in the whole picture."""

    searched = 0

    def detect(self, image: Image, threshold: float, window: object = None) -> list[Detection]:
        self.searched += window is not None
        return [face for face in super().detect(image, threshold) if window or face.box[0] != 100]


def follower(nets: FakeNets, max_faces: int = 3, detect_every: int = 100, small: bool = False) -> FaceFollower:
    return FaceFollower(nets, max_faces, detect_every, detection=0.5, presence=0.5, eyes=False, small=small)  # type: ignore[arg-type]


def identities(follow: FaceFollower) -> list[int]:
    return [face.identity for face in follow(IMAGE)]


def test_faces_that_meet_are_followed_as_one() -> None:
    nets = FakeNets(0, 100)
    follow = follower(nets)
    assert identities(follow) == identities(follow) == [0, 1]
    nets.at = [50]
    assert identities(follow) == identities(follow) == [0]


def test_a_face_that_comes_back_soon_keeps_its_identity() -> None:
    nets = FakeNets(0)
    follow = follower(nets)
    assert identities(follow) == [0]
    nets.at = []
    assert [identities(follow) for _ in range(5)] == [[]] * 5
    nets.at = [5]
    assert identities(follow) == [0]
    nets.at = []
    assert [identities(follow) for _ in range(60)] == [[]] * 60
    nets.at = [5]
    assert identities(follow) == [1]


def test_no_more_faces_than_asked_for() -> None:
    assert identities(follower(FakeNets(0, 60, 120), max_faces=2)) == [0, 1]


def test_further_faces_are_found_while_one_is_followed() -> None:
    nets = FakeNets(0)
    follow = follower(nets, detect_every=3)
    assert identities(follow) == [0]
    nets.at = [0, 100]
    assert [identities(follow) for _ in range(3)] == [[0], [0], [0, 1]]


def test_small_faces_are_found_beside_a_large_one() -> None:
    assert identities(follower(SmallFace(0, 100), small=True)) == [0, 1]
    nets = SmallFace(0)
    follow = follower(nets, small=True)
    assert identities(follow) == [0]
    nets.at, nets.searched = [0, 100], 0
    assert [identities(follow) for _ in range(5)] == [[0]] * 4 + [[0, 1]]
    assert nets.searched == 1
    alone = SmallFace(0, 100)
    for follow in (follower(alone), follower(alone, max_faces=1, small=True)):
        assert [identities(follow) for _ in range(20)] == [[0]] * 20
    assert alone.searched == 0


def test_a_new_face_needs_more_certainty_than_a_followed_one() -> None:
    nets = FakeNets(0)
    nets.presence = 0.8
    follow = follower(nets)
    assert identities(follow) == []
    nets.presence = 1.0
    assert identities(follow) == [0]
    nets.presence = 0.8
    assert identities(follow) == [0]
    nets.presence = 0.4
    assert identities(follow) == []


def test_what_is_no_face_on_a_second_look_is_not_met() -> None:
    nets = FakeNets(0)
    looks = cycle([0.99, 0.05])
    place = nets.mesh
    nets.mesh = lambda image, region: (place(image, region)[0], next(looks))  # type: ignore[method-assign]
    assert identities(follower(nets)) == []


def test_unclear_portraits_are_not_judged_for_long() -> None:
    rng = np.random.default_rng(0)
    one, other = (looks(rng.integers(0, 256, (8, 8, 3), np.uint8), Region(4, 4, 8)) for _ in range(2))
    face = _Followed(0, Region(0, 0, 9), np.zeros(4, np.float32), 0.0)
    face.add(one, True, 0)
    assert face.is_confirmed(other, False, 15) and len(face.portraits) == 1  # a flash
    assert not face.is_confirmed(other, True, 30)
    assert face.is_confirmed(one, True, 45) and len(face.portraits) == 2
    assert [face.is_confirmed(other, False, 60) for _ in range(3)] == [True, True, False]
    assert face.is_confirmed(one, True, 75)
    faint = _Followed(1, Region(0, 0, 9), np.zeros(4, np.float32), 0.0)
    faint.add(one, False, 0)  # it was coming into the picture
    assert faint.is_confirmed(other, True, 15) and faint.portraits.pop() is other
    faint.add(one, True, 30)
    assert not faint.is_confirmed(other, True, 45)


def test_region_maps_there_and_back() -> None:
    region = Region(50, 40, 20, np.pi / 2)
    plain, mirrored = region.to_frame(10), region.to_frame(10, mirrored=True)
    for warp in (plain, mirrored):
        assert warp @ (5, 5, 1) == pytest.approx((50, 40))
    assert plain @ (10, 5, 1) == pytest.approx((50, 50))
    assert mirrored @ (0, 5, 1) == pytest.approx((50, 50))
    image = np.zeros((100, 100, 3), np.uint8)
    image[30:50, 40:60, 0] = np.arange(20)[:, None] * 10
    cut = Region(50, 40, 20).cut(image, 20)
    assert cut.shape == (1, 20, 20, 3) and cut[0, :, :, 0] * 255 == pytest.approx(image[30:50, 40:60, 0])


def test_overlap() -> None:
    box = np.array([0, 0, 10, 10], np.float32)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 5]], np.float32)
    assert overlap(box, others) == pytest.approx([1, 1 / 3, 0, 0])


def test_only_the_greeting_of_the_runtime_is_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    with _without_greeting():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: a broken model\n")
    assert capfd.readouterr().err == "ERROR: a broken model\n"


def test_halves_with_nothing_in_common_are_strangers():
    """Nothing is known of them; 0 would say that they are the same picture."""
    face = np.random.default_rng(0).random(face_looks._SHAPE + 3 * face_looks._COLOURS**2, np.float32)
    left, right = face.copy(), face.copy()
    half = np.arange(face.size) % 2 == 0
    left[half], right[~half] = np.nan, np.nan
    assert face_looks.apart(face, face) == 0 == face_looks.apart(face, left)
    assert face_looks.apart(left, right) > 1
