"""Several people: whose face is taken, and whose columns are whose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mmfeat import voice
from mmfeat.clip import extract
from mmfeat.demo.face import Face, Pose
from mmfeat.espeak import speak
from mmfeat.extractors import find, speaking
from mmfeat.extractors.face_nets import FaceNets
from mmfeat.extractors.face_people import People
from mmfeat.extractors.vision_facemesh import Facemesh, FacemeshConfig
from mmfeat.recipe import load_recipe
from mmfeat.track import Frame, Track, Waveform
from tests.media_files import write_media
from tests.people_scenes import FPS, WIDTH, Image, put, wall


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
        (Waveform(np.full(100, 0.1, np.float32), 16000), "no speech: the largest face was taken"),
    ],
)
def test_without_speech_the_largest_is_taken_and_said(
    nets: FaceNets, cast: list[Face], sound: Waveform | None, note: str
) -> None:
    images = talk(cast, np.zeros(5), np.linspace(0, 1, 5))
    track = run(images, lambda: sound, person="speaking")
    assert track.note == note and not is_right(track).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("samples", [1, 100, 200, 800])
def test_a_moment_of_speech_is_no_failure(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """However short the sound is, and whatever the net takes it for."""
    sound = Waveform(np.full(samples, 0.1, np.float32), 16000)
    monkeypatch.setattr(voice, "speech", lambda sound: (np.array([[0, sound.seconds]]), np.ones(1, np.float32)))
    mouths = {who: speaking.Mouth(np.arange(25), np.linspace(0, 1 + who, 25)) for who in range(2)}
    times = np.stack([np.arange(25), np.arange(1, 26)], axis=1) / FPS
    assert len(speaking.speakers(mouths, times, sound)[0]) == 25


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
