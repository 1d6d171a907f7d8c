"""The demo corpus: real mp4 files, planted labels beside them, the same again from the same seed."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from mmfeat.corpus import load
from mmfeat.demo import Demo, DemoError, make_demo
from mmfeat.demo.face import Face, Pose, random_identity
from mmfeat.demo.plan import CLIPS_PER_SPEAKER, consensus, plan
from mmfeat.demo.speech import Voice, say
from mmfeat.espeak import EspeakError, speak
from mmfeat.media import open_media
from mmfeat.words.transcript import tokens

CLIPS = 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return make_demo(tmp_path_factory.mktemp("demo") / "corpus", clips=CLIPS, seed=3, workers=1)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_it_is_a_corpus_without_problems(demo: Demo) -> None:
    corpus = load(demo.folder)
    assert corpus.problems == []
    assert len(corpus.clips) == CLIPS and {clip.split for clip in corpus.clips} == {"train", "valid", "test"}
    for clip in corpus.clips:
        with open_media(clip.path) as media:
            frames = list(media.frames())
            sound = media.waveform()
        assert not media.damage and sound is not None
        assert frames[0].image.shape == (240, 320, 3)
        assert 1.5 < len(frames) / 25 < 6 and abs(len(frames) / 25 - sound.seconds) < 0.1
        assert len({frame.image.tobytes() for frame in frames}) == len(frames)


def test_files_are_h264_and_aac(demo: Demo) -> None:
    with av.open(str(load(demo.folder).clips[0].path)) as file:
        assert [stream.codec_context.name for stream in file.streams] == ["h264", "aac"]
        assert file.streams.video[0].average_rate == 25


def test_training_does_not_see_what_was_planted(demo: Demo) -> None:
    assert {path.relative_to(demo.folder).parts[0] for path in demo.folder.rglob("*")} == {"label.csv", "Raw"}
    assert not demo.truth.is_relative_to(demo.folder)
    with (demo.folder / "label.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "video_id",
        "clip_id",
        "text",
        "label",
        "label_T",
        "label_A",
        "label_V",
        "annotation",
        "mode",
    ]
    assert all(row["label_T"] == row["label_A"] == row["label_V"] == "" for row in rows)
    with (demo.truth / "planted.csv").open(newline="", encoding="utf-8") as file:
        planted = list(csv.DictReader(file))
    assert [row["label"] for row in planted] == [row["label"] for row in rows]
    for row in planted:
        assert int(row["label"]) == consensus(int(row["label_T"]), int(row["label_A"]), int(row["label_V"]))


def test_true_words_are_the_transcripts_and_lie_on_the_sound(demo: Demo) -> None:
    truth = json.loads((demo.truth / "true_words.json").read_text("utf-8"))
    for clip in load(demo.folder).clips:
        words = truth[clip.id]
        assert [word["word"] for word in words] == [token.text for token in tokens(clip.text)]
        edges = np.array([(word["start"], word["end"]) for word in words])
        assert (np.diff(edges.ravel()) >= 0).all()
        with open_media(clip.path) as media:
            sound = media.waveform()
        assert sound is not None and edges.max() < sound.seconds
        level = np.abs(sound.samples)
        begin, end = (round(second * sound.rate) for second in (edges[0, 0], edges[-1, 1]))
        # The codec keeps the time axis: sound begins and ends where the words do, to within 50 ms.
        loud = np.flatnonzero(level > 0.1 * level.max())
        assert level[: begin - round(0.03 * sound.rate)].max() < 0.1 * level.max()
        assert loud[0] < begin + 0.12 * sound.rate and loud[-1] < end + 0.05 * sound.rate


def test_same_seed_same_files_however_many_workers(demo: Demo, tmp_path: Path) -> None:
    again = make_demo(tmp_path / "again", clips=CLIPS, seed=3, workers=2)
    assert digests(again.folder) == digests(demo.folder)
    assert digests(again.truth) == digests(demo.truth)


def test_a_run_cut_short_is_continued(tmp_path: Path) -> None:
    first = make_demo(tmp_path / "corpus", clips=3, workers=1)
    clips = load(first.folder).clips
    before = digests(first.folder)
    kept = clips[0].path.stat().st_mtime_ns
    clips[1].path.unlink()
    (first.folder / "label.csv").unlink()
    seen: list[tuple[int, int]] = []
    second = make_demo(tmp_path / "corpus", clips=3, report=lambda done, total: seen.append((done, total)), workers=1)
    assert second.made == 1 and seen == [(2, 3), (3, 3)]
    assert clips[0].path.stat().st_mtime_ns == kept
    assert digests(first.folder) == before
    with pytest.raises(DemoError, match="another folder"):
        make_demo(tmp_path / "corpus", clips=3, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoError, match="not empty"):
        make_demo(tmp_path / "mine", clips=3)
    with pytest.raises(ValueError, match="at least 3"):
        make_demo(tmp_path / "none", clips=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_plan(seed: int) -> None:
    planned = plan(120, seed)
    assert len({clip.id for clip in planned}) == 120 and planned == plan(120, seed)
    assert Counter(clip.split for clip in planned) == {"train": 72, "valid": 18, "test": 30}
    splits: dict[str, set[str]] = {}
    for clip in planned:
        splits.setdefault(clip.video_id, set()).add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set(Counter(clip.video_id for clip in planned).values()) == {CLIPS_PER_SPEAKER}
    for split in ("train", "valid", "test"):
        share = [clip for clip in planned if clip.split == split]
        for modality in ("T", "A", "V", "M"):
            counts = Counter(getattr(clip, modality) for clip in share)
            assert set(counts) == {-1, 0, 1} and max(counts.values()) < 0.6 * len(share)
        agreeing = np.mean([clip.T == clip.A == clip.V for clip in share])
        assert 0.6 < agreeing < 0.72
    held_out = {clip.text for clip in planned if clip.split != "train"}
    assert not held_out & {clip.text for clip in planned if clip.split == "train"}


def test_consensus() -> None:
    assert consensus(1, 1, -1) == 1 and consensus(-1, 0, -1) == -1 and consensus(0, 0, 0) == 0
    assert consensus(1, 0, -1) == 0


def test_the_voice_follows_its_label() -> None:
    voice = Voice("en-us+m3", 172, 50, 46, -11, -60)
    levels, lengths = {}, {}
    planned = plan(120, 0)[0]
    for A in (-1, 1):
        sounds = [say(type(planned)(**{**vars(planned), "A": A}), voice, np.random.default_rng(i)) for i in range(8)]
        levels[A] = np.mean([np.sqrt(np.mean(sound.samples**2)) for sound in sounds])
        lengths[A] = np.mean([sound.speech[1] - sound.speech[0] for sound in sounds])
    assert levels[1] > 1.5 * levels[-1] and lengths[1] < 0.85 * lengths[-1]


def test_speech_is_the_same_whatever_was_said_before() -> None:
    first = speak("Hello there, my friend.", "en-us+f4")
    speak("Something else altogether.", "en-us+m7", rate=220)
    second = speak("Hello there, my friend.", "en-us+f4")
    assert np.array_equal(first.waveform.samples, second.waveform.samples) and first.words == second.words
    assert [word.text for word in first.words] == ["Hello", "there", "my", "friend"]
    assert first.words[1].end < first.words[2].start  # the comma's pause belongs to no word
    with pytest.raises(EspeakError, match="no voice"):
        speak("Hello.", "xx-nowhere")


def test_the_face_moves_with_its_parameters() -> None:
    face = Face(random_identity(np.random.default_rng(0), female=True))
    calm = face.draw(Pose()).astype(int)
    assert np.array_equal(calm, face.draw(Pose()))
    for pose in (Pose(smile=0.8), Pose(brow=-0.8), Pose(mouth=0.8), Pose(eyes=0), Pose(gaze=(0.8, 0)), Pose(yaw=15)):
        assert np.abs(face.draw(pose).astype(int) - calm).max() > 60


def test_no_pose_breaks_the_drawing() -> None:
    face = Face(random_identity(np.random.default_rng(1), female=False))
    for corner in (-1.0, 1.0):
        extreme = Pose(corner, corner, 1.0, 0.0 if corner < 0 else 1.2, (corner, corner), 30 * corner, 20 * corner,
                       20 * corner, (corner, corner))  # fmt: skip
        assert face.draw(extreme).shape == (240, 320, 3)
