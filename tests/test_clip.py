"""One clip end to end with the default recipe: made on the spot, and real footage of every odd kind."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmfeat
from mmfeat import clip as clip_module
from mmfeat import corpus, models
from mmfeat.clip import ClipFeatures, extract_to_store
from mmfeat.corpus import Clip
from mmfeat.extractors import MissingBackendError
from mmfeat.media import MediaError
from mmfeat.pack import pack
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.shards import Store
from tests import tiny_models
from tests.media_files import stripes, tone, write_media


@pytest.fixture(scope="module", autouse=True)
def _models() -> None:
    models.pull()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("default")


def as_clip(path: Path, text: str = "hello there") -> Clip:
    return Clip(path.parent.name, path.stem, "train", path, text, math.nan)


def test_named_tracks_with_times(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", stripes(25), sound=tone(1.0))
    found = mmfeat.extract(path, text="")
    assert isinstance(found, ClipFeatures)
    assert len(found.vision) == 25 and not found.vision.valid.any()
    assert {"pose_Rx", "gaze_angle_x", "nx_0", "nZ_67", "lip_corner_pull"} <= set(found.vision.names)
    assert len(found.audio) > 40 and "mfcc_0" in found.audio.names
    assert found.text.values.shape == (2, 384) and found.words == []
    assert found.status == "no_face+no_text"
    assert {"decode", "vision", "audio", "text"} <= set(found.timings)


def test_missing_streams_and_what_cannot_be_aligned(tmp_path: Path) -> None:
    silent = mmfeat.extract(write_media(tmp_path / "silent.mp4", stripes(5)), text="hello")
    assert silent.status == "no_face+no_audio+no_words" and len(silent.audio) == 0 and len(silent.vision) == 5
    assert silent.rows()["audio"].shape == (0, len(silent.audio.names))
    with pytest.raises(MediaError, match="cannot be aligned: no sound"):
        silent.rows(aligned=True)
    heard = mmfeat.extract(write_media(tmp_path / "heard.wav", sound=tone(0.5), sound_codec="pcm_s16le"))
    assert heard.status == "no_video+no_text" and len(heard.vision) == 0 and len(heard.audio) > 0


def test_a_transcript_without_a_word_cannot_be_aligned(tmp_path: Path) -> None:
    found = mmfeat.extract(
        write_media(tmp_path / "a.wav", sound=tone(0.5), sound_codec="pcm_s16le"), text="😀 [laughs] !!"
    )
    assert found.status == "no_video+no_words" and len(found.audio) > 0
    with pytest.raises(MediaError, match="cannot be aligned: the transcript has no word, only"):
        found.rows(aligned=True)


def test_a_broken_file_is_an_error_here_and_a_reason_in_a_corpus(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"not a film" * 99)
    with pytest.raises(MediaError, match="not a readable media file"):
        mmfeat.extract(path)
    store, clip = Store(tmp_path / "work"), as_clip(path)
    report = extract_to_store(clip, recipe, store)
    assert report.status == "failed" and "not a readable media file" in report.reason
    assert store.missing(clip, recipe.fingerprints()) == ()
    assert store.read(clip, "text", recipe.fingerprints()["text"]).status == "ok"


def test_what_goes_wrong_in_one_part_costs_neither_run_nor_other_parts(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("a corner nobody saw")

    monkeypatch.setattr(clip_module, "_audio", explode)
    clip = as_clip(write_media(tmp_path / "a.mp4", stripes(5), sound=tone(0.3)), "")
    store = Store(tmp_path / "work")
    report = extract_to_store(clip, recipe, store)
    assert report.reason == "ZeroDivisionError: a corner nobody saw"
    prints = recipe.fingerprints()
    assert store.read(clip, "vision", prints["vision"]).status == "no_face"
    assert store.read(clip, "audio", prints["audio"]).status == "failed"


def test_a_long_transcript_is_cut_and_says_so(tmp_path: Path) -> None:
    found = mmfeat.extract(write_media(tmp_path / "a.mp4", stripes(5)), text="word " * 60)
    assert "cut_text" in found.status and "transcript cut to 50 wordpieces" in found.reason


def test_an_aligner_that_fails_leaves_the_rest_of_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise IndexError("a corner nobody saw")

    make = clip_module.loaded
    monkeypatch.setattr(clip_module, "loaded", lambda part, recipe: explode if part == "words" else make(part, recipe))
    found = mmfeat.extract(write_media(tmp_path / "a.mp4", stripes(5), sound=tone(0.3)), text="hello")
    assert "no_words" in found.status and "IndexError: a corner nobody saw" in found.reason


def test_a_missing_backend_is_not_blamed_on_the_clip(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingBackendError("mmfeat models pull x")

    monkeypatch.setattr(clip_module, "_audio", missing)
    clip = as_clip(write_media(tmp_path / "a.mp4", stripes(5), sound=tone(0.3)))
    with pytest.raises(MissingBackendError):
        extract_to_store(clip, recipe, Store(tmp_path / "work"))


def test_only_the_parts_asked_for_are_done(tmp_path: Path, recipe: Recipe) -> None:
    clip = as_clip(write_media(tmp_path / "a.mp4", stripes(5), sound=tone(0.3)))
    store = Store(tmp_path / "work")
    report = extract_to_store(clip, recipe, store, ("audio",))
    assert report.parts == ("audio",) and "vision" not in report.timings
    assert store.missing(clip, recipe.fingerprints()) == ("vision", "text", "words")


def test_stored_and_direct_features_are_the_same_bits(shared_data: Path, tmp_path: Path, recipe: Recipe) -> None:
    path = shared_data / "grid" / "Raw" / "bbaf2n" / "0001.mpg"
    clip, store = as_clip(path, "bin blue at f two now"), Store(tmp_path / "work")
    extract_to_store(clip, recipe, store)
    direct = mmfeat.extract(path, clip.text)
    prints = recipe.fingerprints()
    stored = clip_module.features({part: store.read(clip, part, prints[part]) for part in recipe.parts()}, recipe)
    assert direct.words == stored.words and [word.text for word in direct.words] == clip.text.split()
    for aligned in (False, True):
        one, two = direct.rows(aligned), stored.rows(aligned)
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)
    assert direct.vision.valid.mean() > 0.95


REAL = ("grid/Raw/bbaf2n", "talking", "silent", "odd", "audio")


@pytest.mark.parametrize("folder", REAL)
def test_every_real_file_ends_in_features_or_a_reason(
    shared_data: Path, tmp_path: Path, recipe: Recipe, folder: str
) -> None:
    store = Store(tmp_path / "work")
    prints = recipe.fingerprints()
    for path in sorted((shared_data / folder).iterdir()):
        clip = as_clip(path)
        report = extract_to_store(clip, recipe, store)
        assert store.missing(clip, prints) == (), path.name
        if report.status == "failed":
            assert report.reason, path.name
            continue
        features = clip_module.features({part: store.read(clip, part, prints[part]) for part in recipe.parts()}, recipe)
        assert len(features.vision) or len(features.audio), path.name
        for track in features.tracks.values():
            assert not len(track) or track.times[-1, 1] <= report.seconds + 1e-3, path.name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello \ud800 world", r"half a character \(the lone surrogate U\+D800\) at character 7 of 13"),
        ("caf\udce9", r"half a character \(the lone surrogate U\+DCE9\) at character 4 of 4"),
        ("hello\0", "a NUL character at character 6 of 6"),
    ],
)
@pytest.mark.parametrize("extractor", ["transformers", "glove"])
def test_what_is_no_unicode_text_fails_the_clip_and_says_where(
    tmp_path: Path, text: str, says: str, extractor: str
) -> None:
    path = write_media(tmp_path / "a.mp4", stripes(3), sound=tone(0.2))
    vectors = {"vectors": str(tiny_models.vectors(tmp_path / "v.txt"))} if extractor == "glove" else {}
    recipe = load_recipe("default").changed(text={"extractor": extractor, **vectors}, words=None)
    with pytest.raises(MediaError, match=f"text: the transcript is no Unicode text: {says}"):
        mmfeat.extract(path, text, recipe)


def test_what_is_no_unicode_text_costs_its_own_clip_only(tmp_path: Path) -> None:
    """A clip made in Python: no table would let it in. Its shards are stored, and the file says what is wrong."""
    recipe, store = load_recipe("default").changed(words=None), Store(tmp_path / "work")
    clips = [
        as_clip(write_media(tmp_path / f"v/{k}.mp4", stripes(3), sound=tone(0.2)), text)
        for k, text in enumerate(["caf\udce9", "hello"])
    ]
    reports = [extract_to_store(clip, recipe, store) for clip in clips]
    says = "the transcript is no Unicode text: half a character (the lone surrogate U+DCE9) at character 4 of 4"
    assert [(report.id, report.reason) for report in reports] == [("v$_$0", says), ("v$_$1", "")]
    assert store.read(clips[0], "vision", recipe.fingerprints()["vision"]).status == "no_face"
    packed = pack(corpus.Corpus(tmp_path, clips, []), recipe, store, tmp_path / "f.h5")
    assert [(clip.status, clip.reason) for clip in packed.clips] == [("failed", says), ("no_face", "")]


@pytest.mark.parametrize("extractor", ["transformers", "glove"])
@pytest.mark.parametrize(
    "text", ["a" * 100_000, "你" * 5000, "n't" * 20_000, "-" * 50_000, "a-" * 20_000, "é" * 50_000]
)
def test_one_endless_word_is_a_transcript_too(tmp_path: Path, text: str, extractor: str) -> None:
    """Through label.csv, as a corpus is read; csv's own limit is 131072 characters."""
    vectors = {"vectors": str(tiny_models.vectors(tmp_path / "v.txt"))} if extractor == "glove" else {}
    recipe = load_recipe("default").changed(text={"extractor": extractor, **vectors}, words=None)
    write_media(tmp_path / "Raw/v/1.mp4", sound=tone(0.2))
    (tmp_path / "label.csv").write_text(f"video_id,clip_id,text,label,mode\nv,1,{text},1,train\n", encoding="utf-8")
    (found,) = corpus.load(tmp_path).usable
    report = extract_to_store(found, recipe, Store(tmp_path / "work"), ("text",))
    assert report.status in ("ok", "cut_text", "no_text"), report.reason
    assert found.text == text


@pytest.mark.parametrize(("bad", "says"), [(b"\xed\xa0\x80", "is not UTF-8"), (b"\0", "line 2: NUL bytes")])
def test_a_table_of_such_text_is_refused_in_one_line(tmp_path: Path, bad: bytes, says: str) -> None:
    write_media(tmp_path / "Raw/v/1.mp4", sound=tone(0.2))
    (tmp_path / "label.csv").write_bytes(b"video_id,clip_id,text,label,mode\nv,1,hello " + bad + b",1,train\n")
    with pytest.raises(corpus.CorpusError, match=says):
        corpus.load(tmp_path)


@pytest.mark.parametrize("times", [1, 99])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A corpus may still be copied. Else old features would pass for those of the new file for ever."""
    whole = write_media(tmp_path / "whole.mp4", sound=tone(3.0))
    path = write_media(tmp_path / "clip.mp4", sound=tone(1.0))
    extract_all, left = clip_module._extract, [times]

    def replaced_meanwhile(*arguments: Any) -> Any:
        found = extract_all(*arguments)
        if left[0]:
            left[0] -= 1
            path.write_bytes(whole.read_bytes() + bytes(left[0]))
        return found

    monkeypatch.setattr(clip_module, "_extract", replaced_meanwhile)
    clip, store = as_clip(path), Store(tmp_path / "work")
    report = extract_to_store(clip, recipe, store)
    assert not store.missing(clip, recipe.fingerprints())
    if times == 1:
        assert report.status != "failed" and report.seconds == pytest.approx(3.0, abs=0.1)
        assert store.read(clip, "audio", recipe.fingerprints()["audio"]).seconds == report.seconds
    else:
        assert report.status == "failed" and "changed while it was read, 3 times" in report.reason
        text = store.read(clip, "text", recipe.fingerprints()["text"])
        assert text.status == "ok", "it is not made from the file"


def test_a_file_whose_name_is_no_utf_8_is_a_clip_like_any_other(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / os.fsdecode(b"clip.m\xff")
    path.write_bytes(write_media(tmp_path / "clip.mp4", sound=tone(1.0)).read_bytes())
    clip, store = as_clip(path), Store(tmp_path / "work")
    assert extract_to_store(clip, recipe, store).status != "failed"
    assert not store.missing(clip, recipe.fingerprints())
    broken = as_clip(tmp_path / os.fsdecode(b"gone.m\xff"))
    report = extract_to_store(broken, recipe, store, ["audio"])
    assert store.failure(broken, "audio", recipe.fingerprints()["audio"]) == report.reason != ""
