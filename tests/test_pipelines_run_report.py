"""The page about a run: complete, self-contained, and with nothing in it that a clip's name could smuggle in."""

from __future__ import annotations

import base64
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmfeat import corpus as corpora
from mmfeat.demo.face import Face, Pose, random_identity
from mmfeat.recipe import load_recipe
from mmfeat.registry import MissingBackendError
from pipelines import run_report
from pipelines.cli import main
from pipelines.journal import Journal, who
from pipelines.limits import Limits
from pipelines.pictures import Picture, draw, pictures
from tests.media_files import write_media
from tests.test_pipelines_extract import write_clip

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    raw = folder / "corpus" / "Raw" / "v"
    rows = ["video_id,clip_id,text,label,mode"]
    for number in range(3):
        write_clip(raw / f"{number}.mp4", seed=number)
        rows.append(f"v,{number},,0.5,train")
    (raw / "bad.mp4").write_bytes(b"no film")
    rows += ["v,bad,,0.5,train", f'v,"{SCRIPT}",,0.5,train']
    (folder / "corpus" / "label.csv").write_text("\n".join(rows))
    assert main(["extract", str(folder / "corpus"), "-o", str(folder / "f.h5"), "--workers", "1"]) == 3
    return (folder / "f_report.html").read_text()


def test_it_says_what_became_of_the_clips(page):
    assert "<b>3 of 5 clips</b>" in page and "2 failed" in page
    assert "not a readable media file" in page and "v$_$bad" in page
    assert "<td class=n>0 of 3</td>" in page and "<td class=n>3 of 3</td>" in page  # no faces, all with sound
    for kind in ("decode", "vision", "audio", "store"):
        assert re.search(rf"</span>{kind} \d+%", page)
    assert "times real time on one" in page


def test_it_needs_nothing_else_and_runs_nothing(page):
    assert SCRIPT not in page and "&lt;script&gt;" in page
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r"(?:src|href)='([^']*)'", page))
    assert not re.search(r"(?:src|href)=[^']", page) and "url(" not in page and "@import" not in page
    pictures = re.findall(r"data:image/jpeg;base64,([^']+)", page)
    assert len(pictures) == 3
    image = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] <= 240 and image.shape[0] <= 200 and image.std() > 10


def test_landmarks_are_drawn_where_the_face_is(tmp_path: Path, shared_data: Path):
    (tmp_path / "Raw" / "v").mkdir(parents=True)
    (tmp_path / "Raw" / "v" / "1.mp4").symlink_to(shared_data / "talking" / "vr_face2.mp4")
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label,mode\nv,1,,0.5,train\n")
    clip = corpora.load(tmp_path).usable[0]
    image = decoded(draw(clip, 2.0, load_recipe("default"))).astype(int)
    green = (image[:, :, 1] > 150) & (image[:, :, 1] - image[:, :, 2] > 60) & (image[:, :, 1] - image[:, :, 0] > 60)
    rows, columns = np.nonzero(green)
    assert 60 < len(rows) < 1000, "some pixels for each of 68 points"
    assert 0.3 < columns.mean() / image.shape[1] < 0.7 and 0.3 < rows.mean() / image.shape[0] < 0.8


def decoded(picture: Picture) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)


def thumbnail(images: list[np.ndarray], folder: Path) -> np.ndarray:
    write_media(folder / "Raw" / "v" / "1.mp4", images)
    (folder / "label.csv").write_text("video_id,clip_id,text,label,mode\nv,1,,0.5,train\n")
    clip = corpora.load(folder).usable[0]
    return decoded(draw(clip, len(images) / 25, load_recipe("default")))


def test_a_black_middle_is_not_what_is_shown(tmp_path: Path):
    scene = np.full((120, 160, 3), 40, np.uint8)
    scene[30:90, 40:120] = (200, 90, 30)
    shown = thumbnail([np.zeros_like(scene) if 10 < k < 40 else scene for k in range(50)], tmp_path)
    assert shown.std() > 20
    assert thumbnail([np.zeros_like(scene)] * 50, tmp_path / "black").std() < 2  # better than none


def test_a_moment_with_a_face_is_shown(tmp_path: Path):
    face = Face(random_identity(np.random.default_rng(1), female=False)).draw(Pose())
    empty = np.ascontiguousarray(
        np.broadcast_to(np.linspace(0, 200, face.shape[1])[:, None], face.shape).astype(np.uint8)
    )
    shown = thumbnail([empty] * 25 + [face] * 25, tmp_path).astype(int)
    green = (shown[:, :, 1] > 150) & (shown[:, :, 1] - shown[:, :, 2] > 60) & (shown[:, :, 1] - shown[:, :, 0] > 60)
    assert green.sum() > 60


def test_times_are_those_of_this_recipe_and_of_the_last_try(tmp_path: Path):
    """A work folder may serve several recipes and corpora."""
    recipe, corpus = load_recipe("default"), corpora.Corpus(tmp_path, [], [])
    own = {"corpus": str(tmp_path.resolve()), "recipe": recipe.model_dump(mode="json"), **who()}
    with Journal(tmp_path) as journal:
        journal.write("start", **{**own, "recipe": {**own["recipe"], "audio": {"extractor": "opensmile"}}})
        journal.write("clip", id="a", seconds=5.0, timings={"opensmile": 900.0})
        journal.write("start", **{**own, "corpus": "/elsewhere"})
        journal.write("clip", id="z", seconds=5.0, timings={"vision": 800.0})
        journal.write("start", **own)
        journal.write("clip", id="a", seconds=5.0, timings={"vision": 500.0, "audio": 1.0})
        journal.write("start", **{**own, "recipe": {**own["recipe"], "padding": "max"}})
        journal.write("clip", id="a", seconds=5.0, timings={"vision": 2.0})
        journal.write("clip", id="b", seconds=6.0, timings={"vision": 1.0})
    said = run_report._times(corpus, recipe, tmp_path)
    assert "opensmile" not in said and "vision 75%" in said and "audio 25%" in said
    assert "4.0 s of work for 2 clips and 11 s of footage" in said and "2.8 times real time" in said


def test_the_sample_shows_every_kind_of_status_first(monkeypatch):
    monkeypatch.setattr(run_report, "SAMPLE", 3)
    clips = [corpora.Clip("v", str(k), "train", Path("x"), "", 0.0) for k in range(50)]
    statuses = [run_report.ClipStatus(clip.id, "train", "ok") for clip in clips]
    statuses[31] = run_report.ClipStatus(clips[31].id, "train", "failed", "why")
    statuses[7] = run_report.ClipStatus(clips[7].id, "train", "no_face")
    corpus = corpora.Corpus(Path("x"), clips, [])
    chosen = run_report._sample(corpus, statuses)
    assert {status.status for _, status in chosen} == {"ok", "failed", "no_face"}
    assert chosen == run_report._sample(corpus, statuses)


def figure(picture: Picture, name: str = "1") -> str:
    clip = corpora.Clip("v", name, "train", Path("x"), "", 0.0)
    return run_report._figure(clip, run_report.ClipStatus(clip.id, "train", "ok", name), picture)


def test_the_name_of_a_clip_with_a_picture_is_no_markup_either():
    shown = figure(Picture(b"jpeg", SCRIPT), SCRIPT)
    assert SCRIPT not in shown and shown.count("&lt;script&gt;") == 3


def refusing(error: BaseException):
    def make(part, recipe):
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("a window needs ten frames"), "ValueError: a window needs ten frames"),
        (MissingBackendError("model 'face_landmark' is not there"), "without landmarks: model &#x27;face_landmark"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_an_extractor_that_cannot_be_asked_costs_the_landmarks_only(tmp_path, monkeypatch, error, says):
    """The features are made by then: by workers that have what is missing here, or from more than a few frames."""
    scene = np.zeros((120, 160, 3), np.uint8)
    scene[30:90, 40:120] = (200, 90, 30)
    write_media(tmp_path / "Raw" / "v" / "1.mp4", [scene] * 10)
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label,mode\nv,1,,0.5,train\n")
    clip = corpora.load(tmp_path).usable[0]
    monkeypatch.setattr("mmfeat.clip.loaded", refusing(error))
    shown = figure(draw(clip, 0.4, load_recipe("default")))
    assert "data:image/jpeg" in shown and says in shown


@dataclass(frozen=True)
class Misbehaving:
    """A clip that does what its name says wherever somebody opens it."""

    clip_id: str
    start = end = None

    @property
    def path(self) -> Path:
        match self.clip_id:
            case "crash":
                os.abort()
            case "ctrl-c":
                os.kill(os.getpid(), signal.SIGINT)  # a terminal sends it to all processes; the client answers
            case "hang":
                time.sleep(60)
            case "eat":
                held = b"x" * 2**29
                time.sleep(60 + len(held))
            case "raise":
                raise PermissionError(13, "denied", "v/1.mp4")
        return Path(__file__)  # no film


def test_what_a_clip_does_to_who_opens_it_costs_its_picture_only(tmp_path):
    names = ["a", "crash", "b", "ctrl-c", "hang", "raise", "c", "eat", "d"]
    clips = [(Misbehaving(name), 1.0) for name in names]
    limits = Limits(seconds=4.0, factor=0.0, memory=2**29)
    made = dict(zip(names, pictures(clips, load_recipe("default"), tmp_path / "log", limits), strict=True))
    assert {name for name, picture in made.items() if not picture.why} == {"a", "b", "ctrl-c", "c", "d"}
    assert "decoding it crashed: Aborted" in made["crash"].why
    assert made["hang"].why == "took longer than 4 s" and "memory" in made["eat"].why
    assert "v/1.mp4: denied" in made["raise"].why and "v/1.mp4: denied" in figure(made["raise"])


def test_all_pictures_together_have_their_time(monkeypatch):
    monkeypatch.setattr("pipelines.pictures.PATIENCE", 1.0)
    made = pictures([(Misbehaving("hang"), 1.0)] * 2, load_recipe("default"))
    assert [picture.why for picture in made] == ["the pictures took longer than 1 s together"] * 2
