"""Several people: who is who through crossings, occlusions, cuts and changes of light."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmfeat.demo.face import Face, Pose, random_identity
from mmfeat.extractors.face_looks import apart, looks
from mmfeat.extractors.face_nets import FaceNets, Region
from mmfeat.extractors.shot_cuts import ShotCuts
from mmfeat.media import open_media
from tests.people_scenes import Image, identities, put, wall


def test_people_who_cross_do_not_swap(nets: FaceNets, cast: list[Face]) -> None:
    scenes = []
    for k in range(50):
        scenes.append(wall())
        put(scenes[-1], cast[1], 380 - 280 * k / 49, noise=k)
        put(scenes[-1], cast[0], 100 + 280 * k / 49, noise=k)  # passes in front
    seen = identities(nets, scenes)
    (left, right), last = sorted(seen[0], key=lambda identity: seen[0][identity]), seen[-1]
    assert len(last) == 2 and last[left] > 300 and last[right] < 180
    assert any(len(frame) < 2 for frame in seen)  # one did hide the other


@pytest.mark.parametrize("hidden", [10, 40])
def test_who_was_hidden_is_the_same(nets: FaceNets, cast: list[Face], hidden: int) -> None:
    """Two seconds are the default; 40 frames are 1.6 s."""
    scenes = []
    for k in range(20 + hidden):
        scenes.append(wall())
        put(scenes[-1], cast[0], 120, noise=k)
        put(scenes[-1], cast[1], 350 + (20 if k > 10 else 0), noise=k)  # comes back at another place
        if 10 <= k < 10 + hidden:
            scenes[-1][:, 260:] = (90, 60, 30)
    seen = identities(nets, scenes)
    assert set(seen[0]) == set(seen[-1]) and len(seen[0]) == 2
    assert all(len(frame) == 1 for frame in seen[11 : 10 + hidden])


def test_who_takes_the_place_of_another_is_somebody_else(nets: FaceNets, cast: list[Face]) -> None:
    scenes = []
    for k in range(30):
        scenes.append(wall())
        if not 10 <= k < 15:
            put(scenes[-1], cast[0 if k < 10 else 1], 240, noise=k)
    seen = identities(nets, scenes)
    assert set(seen[0]) == {0} and set(seen[-1]) == {1}


@pytest.mark.parametrize("light", [1.3, 1, 0.7, 0.5, 0.4])
@pytest.mark.parametrize("same_room", [False, True])
def test_a_cut_starts_new_tracks_at_once(nets: FaceNets, cast: list[Face], same_room: bool, light: float) -> None:
    """Also at the same place before the same wall, where little but the face changes, and the light."""
    scenes = []
    for k in range(24):
        scenes.append(wall() if same_room or k < 12 else np.ascontiguousarray(wall()[::-1, ::-1]))
        put(scenes[-1], cast[0 if k < 12 else 2], 240, noise=k)
    seen = identities(nets, scenes[:12] + [lit(scene, light) for scene in scenes[12:]])
    assert [set(frame) for frame in seen] == [{0}] * 12 + [{1}] * 12


@pytest.mark.parametrize("light", [1, 0.7, 0.5, 0.4])
def test_a_cut_between_speakers_of_one_studio(nets: FaceNets, shared_data: Path, light: float) -> None:
    one, other = (footage(shared_data / "grid/Raw" / name, 30) for name in ("brbk7n", "lbax4n"))
    seen = identities(nets, one[:15] + [lit(image, light) for image in other])
    assert [set(frame) for frame in seen] == [{0}] * 15 + [{1}] * 30


@pytest.mark.parametrize("cut", [10, 15])
def test_a_cut_in_half_of_a_split_screen_changes_that_half(nets: FaceNets, cast: list[Face], cut: int) -> None:
    scenes = []
    for k in range(24):
        scenes.append(wall())
        put(scenes[-1], cast[1], 120, noise=k)
        if k >= cut:
            scenes[-1][:, 240:] = wall()[::-1, 240:]
        put(scenes[-1], cast[0 if k < cut else 2], 360, noise=k)
    seen = identities(nets, scenes)
    left, right = sorted(seen[0], key=lambda identity: seen[0][identity])
    assert [set(frame) for frame in seen] == [{left, right}] * cut + [{left, 2}] * (24 - cut)


@pytest.mark.parametrize("kind", ["fade-in", "from the edge"])
def test_a_poor_portrait_does_not_split_a_person(nets: FaceNets, cast: list[Face], kind: str) -> None:
    scenes = []
    for k in range(50):
        scenes.append(wall())
        put(scenes[-1], cast[0], 6 * k - 60 if kind == "from the edge" else 240, noise=k)
        if kind == "fade-in":
            shown = min(1, 0.1 + k / 30)
            scenes[-1] = cv2.GaussianBlur(scenes[-1], (0, 0), 9 - 8 * shown)
            scenes[-1] = np.round(scenes[-1] * shown + 255 * (1 - shown)).astype(np.uint8)
    seen = identities(nets, scenes)
    assert set().union(*seen) == {0} and set(seen[-1]) == {0}


def lit(image: Image, light: float) -> Image:
    return np.clip(image * light, 0, 255).astype(np.uint8)


def footage(path: Path, frames: int) -> list[Image]:
    """The first frames of a video, or of a folder's only one, 400 pixels wide."""
    with open_media(next(path.iterdir()) if path.is_dir() else path) as media:
        images = [frame.image for frame in islice(media.frames(), frames)]
    size = 400, round(images[0].shape[0] * 400 / images[0].shape[1])
    return [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) for image in images]


def pushed(image: Image, rng: np.random.Generator, share: float) -> Image:
    """As a camera in the hand sees it: shifted by up to a share of the picture, turned, on some frames blurred."""
    height, width = image.shape[:2]
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-2, 2), 1.1)
    warp[:, 2] += rng.uniform(-share, share, 2) * (width, height)
    moved = cv2.warpAffine(image, warp, (width, height), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved if rng.random() < 0.7 else cv2.blur(moved, (9, 1)), np.uint8)


def troubled(kind: str, scenes: list[Image]) -> list[Image]:
    """The scenes, at least 45, with something in them that is no cut."""
    rng = np.random.default_rng(0)
    flashes = {"flash": (30,), "long flash": (29, 30), "strobe": (20, 22, 24, 30, 33, 36)}.get(kind, ())
    seen = [cv2.add(scene, (120,) * 4) if k in flashes else scene for k, scene in enumerate(scenes)]
    if kind == "fade":
        seen = [np.round(scene * min(1, max(abs(k - 24) - 3, 0) / 8)).astype(np.uint8) for k, scene in enumerate(seen)]
    if kind == "fade to white":
        shown = [min(1, max(abs(k - 24) - 3, 0) / 8) for k in range(len(seen))]
        seen = [np.round(scene * a + 255 * (1 - a)).astype(np.uint8) for scene, a in zip(seen, shown, strict=True)]
    if kind.endswith("shake"):
        seen = [pushed(scene, rng, 0.08 if kind == "hard shake" else 0.05) for scene in seen]
    if kind == "colours":
        seen = [
            np.clip(s * np.array([1.4, 1, 0.6]) + 10, 0, 255).astype(np.uint8) if k > 20 else s
            for k, s in enumerate(seen)
        ]
    return [np.asarray(scene, np.uint8) for scene in seen]


TROUBLES = ["flash", "long flash", "strobe", "fade", "fade to white", "shake", "hard shake", "colours"]


@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("clip", ["grid/Raw/bbaf2n", "openface/subj01_timepoint01.mp4"])
def test_one_person_stays_one_through(nets: FaceNets, shared_data: Path, clip: str, kind: str) -> None:
    seen = identities(nets, troubled(kind, footage(shared_data / clip, 60)))
    assert set().union(*seen) == {0} and set(seen[-1]) == {0}


@pytest.mark.parametrize("kind", ["flash", "black", "fade"])
def test_somebody_else_after(nets: FaceNets, cast: list[Face], kind: str) -> None:
    """A flash, black frames or a fade hide a cut to another person at the same place before the same wall."""
    scenes = []
    for k in range(50):
        scenes.append(wall())
        put(scenes[-1], cast[0 if k < 20 else 2], 240, noise=k)
        if kind == "flash" and k in (19, 20):
            scenes[-1] = np.asarray(cv2.add(scenes[-1], (120,) * 4), np.uint8)
        if kind == "black" and 20 <= k < 24:
            scenes[-1][:] = 0
        if kind == "fade":
            scenes[-1] = np.round(scenes[-1] * min(1, abs(k - 20) / 8)).astype(np.uint8)
    seen = identities(nets, scenes)
    assert set(seen[10]) == {0} and 0 not in set().union(*seen[36:]) and len(seen[-1]) == 1


def test_a_fade_in_of_real_footage_is_one_person(nets: FaceNets, shared_data: Path) -> None:
    with open_media(shared_data / "odd/test_video_audio_5_seconds.mp4") as media:
        seen = identities(nets, [frame.image for frame in media.frames()])
    assert set().union(*seen) == {0} and set(seen[-1]) == {0}


@pytest.mark.parametrize("edge", [0, 200])
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("frames", [4, 12])
def test_a_dissolve_starts_a_new_person(
    nets: FaceNets, cast: list[Face], edge: int, is_reversed: bool, frames: int
) -> None:
    """Also where the picture's edge cuts off the face of one of them."""
    other = Face(random_identity(np.random.default_rng(8), female=True))
    scenes = []
    for k in range(60):
        share = float(np.clip((k - 20) / frames, 0, 1))
        pair = [wall(), wall()]
        for scene, face, x in zip(pair, (cast[0], other), (260, 240), strict=True):
            put(scene, face, x, noise=k)
        scenes.append(np.asarray(cv2.addWeighted(pair[0], 1 - share, pair[1], share, 0)[:, edge:], np.uint8))
    seen = identities(nets, scenes[::-1] if is_reversed else scenes)
    assert not set(seen[0]) & set(seen[-1]) and len(seen[-1]) == 1


def test_who_leans_out_of_the_picture_stays_the_same(nets: FaceNets, shared_data: Path) -> None:
    scenes = []
    for k, image in enumerate(footage(shared_data / "grid/Raw/brbk7n", 70)):
        out = round(180 * float(np.clip((k - 10) / 15, 0, 1) - np.clip((k - 50) / 15, 0, 1)))
        scenes.append(cv2.copyMakeBorder(image[:, out:], 0, 0, 0, out, cv2.BORDER_REPLICATE))
    seen = identities(nets, [np.asarray(scene, np.uint8) for scene in scenes])
    assert all(set(frame) == {0} for frame in seen) and min(seen[40].values()) < 30


def test_looks_tell_people_apart(cast: list[Face]) -> None:
    region = Region(160, 120, 220)
    seen = [[looks(face.draw(pose), region) for pose in (Pose(), Pose(mouth=0.8, yaw=8))] for face in cast]
    own = max(apart(*pair) for pair in seen)
    others = min(apart(seen[a][0], seen[b][0]) for a in range(3) for b in range(a))
    assert own < others and apart(seen[0][0], seen[0][0]) == 0


@pytest.mark.parametrize("out", [40, 70])
def test_what_lies_beyond_the_edge_is_not_compared(cast: list[Face], out: int) -> None:
    image = cast[0].draw(Pose())
    whole = looks(image, Region(160, 120, 220))
    part = looks(np.ascontiguousarray(image[:, 50 + out :]), Region(110 - out, 120, 220))
    assert np.isnan(part).any() and apart(whole, part) < 0.01
    assert apart(looks(cast[1].draw(Pose()), Region(160, 120, 220)), part) > 0.2


# Cuts


def disturbed(kind: str, face: Image) -> list[Image]:
    """Twelve frames in which something happens that is no cut."""
    shots = [face.copy() for _ in range(12)]
    for k, image in enumerate(shots):
        if kind == "flash" and k == 6:
            image[:] = 255
        if kind == "light" and k >= 6:
            image[:] = np.clip(image * np.array([1.3, 1.1, 0.8]) + 20, 0, 255)
        if kind == "fade":
            image[:] = image * (1 - k / 12)
        if kind == "pan":
            image[:] = np.roll(image, 12 * k, axis=1)
        if kind == "occluder":
            image[:, 30 * k : 30 * k + 80] = (30, 40, 60)
    return shots


@pytest.mark.parametrize("kind", ["flash", "light", "fade", "pan", "occluder"])
def test_what_is_no_cut(cast: list[Face], kind: str) -> None:
    cuts = ShotCuts()
    assert max(cuts(image) for image in disturbed(kind, cast[0].draw(Pose()))) < 0.5


def test_what_is_one(cast: list[Face]) -> None:
    cuts = ShotCuts()
    other = wall()[:, :320]
    shares = [cuts(image) for image in [cast[0].draw(Pose(), k) for k in range(4)] + [other] * 4]
    assert shares[4] > 0.5 and max(shares[:4] + shares[5:]) < 0.1


def test_cuts_through_white_and_size_changes(cast: list[Face]) -> None:
    cuts = ShotCuts()
    face, other = cast[0].draw(Pose()), wall()
    shares = [cuts(image) for image in (face, face, np.full_like(face, 255), other, other)]
    assert shares[2] == 0 and shares[3] > 0.5 and shares[4] == 0


def test_cuts_in_real_footage(nets: FaceNets, shared_data: Path) -> None:
    """Titles fade to white, then a politician stands there."""
    cuts = ShotCuts()
    with open_media(shared_data / "odd/test_video_audio_5_seconds.mp4") as media:
        shares = [cuts(frame.image) for frame in media.frames()]
    assert np.flatnonzero(np.array(shares) > 0.5).tolist() == [93]


# Whose face
