"""Several people: who is who through crossings, occlusions and cuts, and whose face is taken."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mmfeat import models, voice
from mmfeat.clip import extract
from mmfeat.demo.face import Face, Pose, random_identity
from mmfeat.espeak import speak
from mmfeat.extractors import find
from mmfeat.extractors.face_follow import FaceFollower
from mmfeat.extractors.face_looks import apart, looks
from mmfeat.extractors.face_nets import NETS, FaceNets, Region
from mmfeat.extractors.face_people import People
from mmfeat.extractors.shot_cuts import ShotCuts
from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.media import open_media
from mmfeat.recipe import load_recipe
from mmfeat.track import Frame, Track, Waveform
from tests.media_files import write_media

Image = NDArray[np.uint8]
FPS = 25
WIDTH, HEIGHT = 480, 240


@pytest.fixture(scope="module")
def nets() -> FaceNets:
    models.pull((*NETS, voice.MODEL))
    return FaceNets()


@pytest.fixture(scope="module")
def cast() -> list[Face]:
    """A man and two women."""
    return [Face(random_identity(np.random.default_rng(seed), female=seed > 1)) for seed in (1, 2, 5)]


def wall() -> Image:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    soft = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 9)
    return np.interp(soft, (soft.min(), soft.max()), (60, 190)).astype(np.uint8)


def put(scene: Image, face: Face, x: float, pose: Pose | None = None, noise: int = 0, scale: float = 1.0) -> None:
    """Paste the drawn head, an oval, so that its middle lies at x."""
    drawn = face.draw(pose or Pose(), noise)[10:230, 85:235]
    head = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = head.shape[:2]
    oval = np.zeros((height, width), np.float32)
    cv2.ellipse(oval, (width // 2, height // 2), (width // 2 - 3, height // 2 - 3), 0, 0, 360, 1.0, -1)
    oval = cv2.GaussianBlur(oval, (0, 0), 2)[:, :, None]
    left, top = round(x - width / 2), (HEIGHT - height) // 2
    low, high = max(left, 0), min(left + width, WIDTH)
    if low < high:
        part, mask = head[:, low - left : high - left], oval[:, low - left : high - left]
        under = scene[top : top + height, low:high]
        under[:] = np.round(under + (part - under.astype(np.float32)) * mask)


def identities(nets: FaceNets, scenes: list[Image]) -> list[dict[int, float]]:
    """Of each frame: identity → x of its middle."""
    follow = FaceFollower(nets, 3, 15, 0.5, 0.5, eyes=False)
    return [
        {face.identity: float(face.mesh[:, 0].mean()) for face in follow(scene, k / FPS)}
        for k, scene in enumerate(scenes)
    ]


# Identity


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


@pytest.mark.parametrize("same_room", [False, True])
def test_a_cut_starts_new_tracks_at_once(nets: FaceNets, cast: list[Face], same_room: bool) -> None:
    """Also at the same place before the same wall, where little but the face changes."""
    scenes = []
    for k in range(24):
        scenes.append(wall() if same_room or k < 12 else np.ascontiguousarray(wall()[::-1, ::-1]))
        put(scenes[-1], cast[0 if k < 12 else 2], 240, noise=k)
    seen = identities(nets, scenes)
    assert [set(frame) for frame in seen] == [{0}] * 12 + [{1}] * 12


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


def pushed(image: Image, rng: np.random.Generator) -> Image:
    """As a camera in the hand sees it: shifted by up to a twentieth, turned, on some frames blurred."""
    height, width = image.shape[:2]
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-2, 2), 1.1)
    warp[:, 2] += rng.uniform(-0.05, 0.05, 2) * (width, height)
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
    if kind == "shake":
        seen = [pushed(scene, rng) for scene in seen]
    if kind == "colours":
        seen = [
            np.clip(s * np.array([1.4, 1, 0.6]) + 10, 0, 255).astype(np.uint8) if k > 20 else s
            for k, s in enumerate(seen)
        ]
    return [np.asarray(scene, np.uint8) for scene in seen]


TROUBLES = ["flash", "long flash", "strobe", "fade", "fade to white", "shake", "colours"]


@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("clip", ["grid/Raw/bbaf2n", "openface/subj01_timepoint01.mp4"])
def test_one_person_stays_one_through(nets: FaceNets, shared_data: Path, clip: str, kind: str) -> None:
    path = shared_data / clip
    with open_media(next(path.iterdir()) if path.is_dir() else path) as media:
        images = [frame.image for frame in islice(media.frames(), 60)]
    scale = 400 / images[0].shape[1]
    images = [
        np.asarray(cv2.resize(i, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8) for i in images
    ]
    seen = identities(nets, troubled(kind, images))
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


def test_a_dissolve_starts_a_new_person(nets: FaceNets, cast: list[Face]) -> None:
    other = Face(random_identity(np.random.default_rng(8), female=True))
    scenes = []
    for k in range(60):
        share = float(np.clip((k - 20) / 12, 0, 1))
        pair = [wall(), wall()]
        for scene, face in zip(pair, (cast[0], other), strict=True):
            put(scene, face, 240, noise=k)
        scenes.append(cv2.addWeighted(pair[0], 1 - share, pair[1], share, 0))
    seen = identities(nets, scenes)
    assert not set(seen[0]) & set(seen[-1]) and len(seen[-1]) == 1


def test_looks_tell_people_apart(cast: list[Face]) -> None:
    region = Region(160, 120, 220)
    seen = [[looks(face.draw(pose), region) for pose in (Pose(), Pose(mouth=0.8, yaw=8))] for face in cast]
    own = max(apart(*pair) for pair in seen)
    others = min(apart(seen[a][0], seen[b][0]) for a in range(3) for b in range(a))
    assert own < others and apart(seen[0][0], seen[0][0]) == 0


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


def spoken() -> tuple[NDArray[np.float32], int]:
    """A few seconds of speech, between two silences."""
    found = speak("the boat was drifting slowly. nobody knew, why we ever came back to this old harbour", "en-us")
    rate = found.waveform.rate
    quiet = np.zeros(rate // 3, np.float32)
    return np.concatenate([quiet, found.waveform.samples, quiet]), rate


def mouth(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """How far a mouth is open per frame that says this."""
    step = rate // FPS
    level = np.sqrt(np.square(samples[: len(samples) // step * step]).reshape(-1, step).mean(axis=1))
    return 0.9 * np.convolve(level / level.max(), [0.25, 0.5, 0.25], "same") ** 0.7


def talk(cast: list[Face], left: NDArray[np.float64], right: NDArray[np.float64]) -> list[Image]:
    """The left face is the larger one."""
    scenes = []
    for k, opening in enumerate(zip(left, right, strict=True)):
        scenes.append(wall())
        put(scenes[-1], cast[0], 130, Pose(mouth=float(opening[0])), k)
        put(scenes[-1], cast[1], 370, Pose(mouth=float(opening[1])), k, scale=0.85)
    return scenes


def shown(images: list[Image]) -> list[Frame]:
    return [Frame(image, k / FPS, (k + 1) / FPS) for k, image in enumerate(images)]


def is_right(track: Track) -> NDArray[np.bool_]:
    return track.values[:, track.names.index("x_30")] > WIDTH / 2


def run(images: list[Image], sound: Callable[[], Waveform | None] | None, **settings: object) -> Track:
    return Facemesh(FacemeshConfig(columns=("landmarks_px", "measures"), **settings))(shown(images), sound)  # type: ignore[arg-type]


@pytest.mark.parametrize("speaker", ["left", "right"])
@pytest.mark.parametrize("other", ["silent", "talks too"])
def test_who_speaks_is_taken(nets: FaceNets, cast: list[Face], speaker: str, other: str) -> None:
    samples, rate = spoken()
    heard = mouth(samples, rate)
    rival = np.roll(heard[::-1], 7) if other == "talks too" else np.zeros_like(heard)
    images = talk(cast, *((heard, rival) if speaker == "left" else (rival, heard)))
    track = run(images, lambda: Waveform(samples, rate), person="speaking")
    assert track.valid.all() and not track.note
    assert (is_right(track) == (speaker == "right")).mean() > 0.9
    assert is_right(run(images, None, person="largest")).mean() == 0


def test_turns_are_followed_without_flicker(nets: FaceNets, cast: list[Face]) -> None:
    samples, rate = spoken()
    heard = mouth(samples, rate)
    half, rest = len(heard) // 2, np.zeros_like(heard)
    first = np.arange(len(heard)) < half
    images = talk(cast, np.where(first, heard, rest), np.where(first, rest, heard))
    right = is_right(run(images, lambda: Waveform(samples, rate), person="speaking"))
    assert (right == ~first).mean() > 0.85 and np.abs(np.diff(right.astype(int))).sum() == 1


@pytest.mark.parametrize(
    ("sound", "note"),
    [
        (None, "no sound: the largest face was taken"),
        (Waveform(np.zeros(0, np.float32), 16000), "no sound: the largest face was taken"),
        (Waveform(np.zeros(16000, np.float32), 16000), "no speech: the largest face was taken"),
    ],
)
def test_without_speech_the_largest_is_taken_and_said(
    nets: FaceNets, cast: list[Face], sound: Waveform | None, note: str
) -> None:
    images = talk(cast, np.zeros(5), np.linspace(0, 1, 5))
    track = run(images, lambda: sound, person="speaking")
    assert track.note == note and not is_right(track).any()


def test_a_doubtful_choice_is_said(nets: FaceNets, cast: list[Face]) -> None:
    """Nobody who is seen speaks."""
    samples, rate = spoken()
    still = np.zeros(len(mouth(samples, rate)))
    track = run(talk(cast, still, still), lambda: Waveform(samples, rate), person="speaking")
    assert track.note.startswith("who speaks is doubtful: ")


def test_one_person_is_no_choice(nets: FaceNets, cast: list[Face]) -> None:
    def never() -> Waveform | None:
        raise AssertionError("nobody had to be heard")

    track = run([cast[0].draw(Pose())] * 3, never, person="speaking")
    assert track.valid.all() and not track.note


def test_everybody_has_columns(nets: FaceNets, cast: list[Face]) -> None:
    images = talk(cast, np.zeros(12), np.linspace(0, 1, 12))
    for image in images[10:]:  # not so long that the other is larger over the clip
        image[:, 40:210] = (90, 60, 30)  # the left one is hidden
    track = run(images, None, person="all", max_faces=3, smoothing=0.02)
    alone = run(images, None, person="largest")
    assert track.names[:2] == ("face0_seen", "face0_x_0") and len(track.names) == 3 * (len(alone.names) + 1)
    column = {name: track.values[:, k] for k, name in enumerate(track.names)}
    assert track.valid.all()
    assert column["face0_seen"].tolist() == [1] * 10 + [0] * 2 and column["face1_seen"].tolist() == [1] * 12
    assert not column["face2_seen"].any() and not column["face2_x_30"].any()
    assert (column["face0_x_30"][:10] < WIDTH / 2).all() and (column["face1_x_30"] > WIDTH / 2).all()
    assert not column["face0_x_30"][10:].any()
    assert (np.diff(column["face1_mouth_open"]) > 0).mean() > 0.8


def test_seats_are_shared_by_people_of_different_shots() -> None:
    class Box:
        def __init__(self, identity: int, area: float):
            self.identity, self.area, self.mesh = identity, area, np.zeros((468, 3), np.float32)

    people = People("all")
    for frame in range(20):
        first = 0 if frame < 10 else 2
        people.see(frame, [Box(first, 4), Box(first + 1, 9 if first else 1)], (10, 10))  # type: ignore[list-item]
    seats, note = people.seats(np.zeros((20, 2)), 2, None)
    assert not note and seats.tolist() == [[0, 1]] * 10 + [[3, 2]] * 10


def test_of_two_who_are_seen_as_long_the_larger_is_taken(nets: FaceNets, cast: list[Face]) -> None:
    images = talk(cast, np.zeros(3), np.zeros(3))
    for frames in (images, [image[:, ::-1].copy() for image in images]):
        assert (is_right(run(frames, None, person="longest")) == is_right(run(frames, None, person="largest"))).all()


def test_nobody_at_all(nets: FaceNets) -> None:
    for person in ("largest", "speaking", "all"):
        empty = run([], lambda: None, person=person)
        faceless = run([np.full((64, 64, 3), 80, np.uint8)] * 2, lambda: None, person=person)
        assert len(empty) == 0 and len(faceless) == 2 and not faceless.valid.any() and not faceless.values.any()


def test_smoothing_stays_with_one_person(nets: FaceNets, cast: list[Face]) -> None:
    images = talk(cast, np.zeros(8), np.zeros(8))
    for image in images[4:]:
        image[:, : WIDTH // 2] = (90, 60, 30)
    track = run(images, None, person="largest", smoothing=0.2)
    assert is_right(track).tolist() == [False] * 4 + [True] * 4
    assert np.ptp(track.values[:4, 0]) < 3 and np.ptp(track.values[4:, 0]) < 3


def test_only_who_listens_needs_the_model_of_voices() -> None:
    registered = find("facemesh")
    for person, needs in (("largest", False), ("all", False), ("speaking", True)):
        config = FacemeshConfig.model_validate({"person": person})
        assert registered.hears(config) == needs == (voice.MODEL in registered.models(config))


def test_a_clip_from_its_file(nets: FaceNets, cast: list[Face], tmp_path: Path) -> None:
    samples, rate = spoken()
    opening = mouth(samples, rate)
    images = talk(cast, np.zeros_like(opening), opening)
    recipe = load_recipe("default").changed(
        vision={"extractor": "facemesh", "person": "speaking", "columns": ["landmarks_px"]}, words=None
    )
    heard = write_media(tmp_path / "heard.mkv", images, sound=samples[None], rate=rate, sound_codec="pcm_s16le")
    found = extract(heard, recipe=recipe)
    assert is_right(found.vision).mean() > 0.9 and "face was taken" not in found.reason
    mute = extract(write_media(tmp_path / "mute.mkv", images[:5]), recipe=recipe)
    assert "no sound: the largest face was taken" in mute.reason and not is_right(mute.vision).any()
