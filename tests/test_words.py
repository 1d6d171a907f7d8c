"""Forced alignment: freshly spoken sentences against espeak-ng's own word times, and real speech."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.espeak import speak
from mmfeat.media import open_media
from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, find
from mmfeat.words import pocketsphinx as module
from mmfeat.words.pronounce import arpabet
from mmfeat.words.transcript import tokens

SENTENCE = "We bought the second camera, and the waiter was very kind."


@cache
def _shared_aligner() -> Any:
    entry = find("pocketsphinx")
    return entry.make(entry.config())


@pytest.fixture(scope="module")
def aligner() -> Any:
    return _shared_aligner()


def spoken(text: str, voice: str = "en-us+f1", lead: float = 0.3, **how: int) -> tuple[Waveform, np.ndarray]:
    """A sentence with silence and faint noise around it; its true word times, shape (words, 2)."""
    speech = speak(text, voice, **how)
    rate = speech.waveform.rate
    samples = np.pad(0.5 * speech.waveform.samples, round(lead * rate))
    samples = samples + 1e-3 * np.random.default_rng(0).standard_normal(len(samples))
    return Waveform(samples.astype(np.float32), rate), np.array([(w.start, w.end) for w in speech.words]) + lead


def times(words: list[Word]) -> np.ndarray:
    return np.array([(word.start, word.end) for word in words])


@pytest.mark.parametrize(
    ("voice", "how"),
    [("en-us+f1", {}), ("en-us+m3", {"rate": 140, "pitch": 30}), ("en-us+f4", {"rate": 210, "pitch": 65})],
)
def test_boundaries_are_those_of_the_synthesiser(aligner: Any, voice: str, how: dict[str, int]) -> None:
    sound, truth = spoken(SENTENCE, voice, **how)
    words = aligner(sound, SENTENCE)
    assert [SENTENCE[slice(*word.span)] for word in words] == [word.text for word in words]
    found = times(words)
    assert np.median(np.abs(found - truth)) <= 0.025
    assert (np.diff(found.ravel()) >= 0).all() and found.min() >= 0 and found.max() <= sound.seconds
    assert all(0 <= word.confidence <= 1 for word in words)


def test_a_pause_belongs_to_no_word(aligner: Any) -> None:
    first, second = spoken("I saw the garden.", lead=0.4), spoken("It was lovely.", lead=0.4)
    sound = Waveform(np.concatenate([first[0].samples, second[0].samples]), first[0].rate)
    words = aligner(sound, "I saw the garden. It was lovely.")
    assert words[3].end < first[1][-1, 1] + 0.12
    assert words[4].start > first[0].seconds + second[1][0, 0] - 0.12


def test_words_that_no_dictionary_has(aligner: Any) -> None:
    text = "Zorbliquax Wrendlemore visited the museum."
    sound, truth = spoken(text)
    assert aligner._decoder.lookup_word("nevermentioned") is None
    words = aligner(sound, text)
    assert [word.text for word in words] == ["Zorbliquax", "Wrendlemore", "visited", "the", "museum"]
    assert np.median(np.abs(times(words) - truth)) <= 0.04


def test_pronunciations_are_what_the_dictionary_would_have(aligner: Any) -> None:
    known = ["garden", "museum", "wonderful", "thing", "measure", "choice", "house", "yellow"]
    truth = [aligner._decoder.lookup_word(word).split() for word in known]
    guessed = [phones.split() for phones in arpabet(known)]
    assert all(guessed)
    agree = [
        sum(a == b for a, b in zip(x, y, strict=False)) / max(len(x), len(y))
        for x, y in zip(truth, guessed, strict=True)
    ]
    assert np.mean(agree) > 0.75
    assert arpabet([""]) == [""]


def test_a_number_is_one_word_however_it_is_said(aligner: Any) -> None:
    sound, truth = spoken("It was built in nineteen ninety nine and sold.")
    words = aligner(sound, "It was built in 1999, and sold.")
    assert [word.text for word in words] == ["It", "was", "built", "in", "1999", "and", "sold"]
    assert np.abs(times(words)[4] - [truth[4, 0], truth[6, 1]]).max() < 0.06


def test_a_wrong_transcript_has_low_confidence(aligner: Any) -> None:
    sound, _ = spoken(SENTENCE)
    right = np.mean([word.confidence for word in aligner(sound, SENTENCE)])
    wrong = np.mean([word.confidence for word in aligner(sound, "Avoid this museum, nothing ever worked for us.")])
    assert wrong < 0.35 and right > wrong + 0.25


def test_what_was_aligned_before_changes_nothing(aligner: Any) -> None:
    random = np.random.default_rng(1)
    texts = ("I saw the garden.", SENTENCE, "Please avoid Zorbliquax.")
    sounds = []
    for text in texts:
        samples = spoken(text, "en-us+m3")[0].samples
        noise = 1e-2 * random.standard_normal(len(samples))
        sounds.append(Waveform((samples + noise).astype(np.float32), 22050))
    loud = Waveform(random.uniform(-0.9, 0.9, 50_001).astype(np.float32), 16000)
    first = [aligner(sound, text) for sound, text in zip(sounds, texts, strict=True)]
    for order in ((2, 0, 1), (1, 2, 0)):
        for index in order:
            aligner(loud, "Unheardofword two")
            assert aligner(sounds[index], texts[index]) == first[index]
    entry = find("pocketsphinx")
    assert entry.make(entry.config())(sounds[0], texts[0]) == first[0]


def test_loudness_changes_little(aligner: Any) -> None:
    sound, _ = spoken(SENTENCE)
    soft = Waveform(sound.samples * np.float32(0.01), sound.rate)
    assert np.abs(times(aligner(sound, SENTENCE)) - times(aligner(soft, SENTENCE))).max() <= 0.021


def test_nothing_to_align(aligner: Any) -> None:
    sound, _ = spoken("Hello.")
    assert aligner(sound, "") == []
    assert aligner(sound, " …! 👍 ") == []
    with pytest.raises(AlignmentError, match="no sound"):
        aligner(Waveform(np.zeros(0, np.float32), 16000), "hello")
    for samples, rate in ((1, 16000), (159, 16000), (1, 192000)):  # loud, all the same
        with pytest.raises(AlignmentError, match="ms long, less than a frame"):
            aligner(Waveform(np.full(samples, 0.9, np.float32), rate), "go")
    with pytest.raises(AlignmentError, match="silent"):
        aligner(Waveform(np.zeros(16000, np.float32), 16000), "hello")
    with pytest.raises(AlignmentError, match="not finite"):
        aligner(Waveform(np.where(np.arange(16000) == 99, np.nan, 0.1).astype(np.float32), 16000), "hello")


def test_reasons_name_what_is_wrong(aligner: Any) -> None:
    sound, _ = spoken("Hello there.")
    with pytest.raises(AlignmentError, match=r"English only.*你"):
        aligner(sound, "hello 你好")
    with pytest.raises(AlignmentError, match="11 words need at least"):
        aligner(Waveform(sound.samples[:4000], sound.rate), SENTENCE)
    with pytest.raises(AlignmentError, match=r"1 word needs? at least 0\.12 s, .* 0\.11 s"):
        aligner(Waveform(sound.samples[-1800:], 16000), "hello")


@settings(max_examples=25, deadline=None)
@given(st.text("abzAZé90,.'’-$€% æß½Ⅷ()\u0301\ufe0f👍|<>[]ʼŒ", max_size=14))
def test_any_latin_text_gives_its_words_or_a_reason(text: str) -> None:
    sound = Waveform(np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32), 16000)
    try:
        words = _shared_aligner()(sound, text)
    except AlignmentError:
        return
    assert [(word.text, word.span) for word in words] == [(token.text, token.span) for token in tokens(text)]
    assert all(0 <= word.start <= word.end <= sound.seconds for word in words)


def test_only_what_would_not_fit_in_memory_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, _ = spoken(SENTENCE)
    entry = find("pocketsphinx")
    aligner = entry.make(entry.config())
    whole = aligner(sound, SENTENCE)
    assert aligner._decoder.config["beam"] == 0.0
    monkeypatch.setattr("mmfeat.words.pocketsphinx._MOST_BYTES", 0)
    assert aligner(sound, SENTENCE) == whole
    assert aligner._decoder.config["beam"] == 1e-300
    monkeypatch.undo()
    assert aligner(sound, SENTENCE) == whole
    assert aligner._decoder.config["beam"] == 0.0, "a long recording leaves no trace"


def test_a_narrow_beam_loses_the_way() -> None:
    sound, _ = spoken(SENTENCE)
    entry = find("pocketsphinx")
    with pytest.raises(AlignmentError, match=r"a beam of 0\.01 loses"):
        entry.make(entry.config(beam=1e-2))(sound, SENTENCE)


@pytest.mark.parametrize("wrong", [{"beam": math.nan}, {"beam": 1.0}, {"confidence_scale": math.inf}])
def test_settings_that_are_no_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        find("pocketsphinx").config(**wrong)


JFK = "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


def recording(path: Path) -> Waveform:
    with open_media(path) as media:
        sound = media.waveform()
    assert sound is not None
    return sound


@pytest.mark.parametrize("missing", [5, 12])
def test_speech_before_the_transcript_moves_no_word(aligner: Any, shared_data: Path, missing: int) -> None:
    sound = recording(shared_data / "audio/jfk.flac")
    whole, part = aligner(sound, JFK), aligner(sound, " ".join(JFK.split()[missing:]))
    assert np.abs(times(part) - times(whole)[missing:]).max() < 0.05


@pytest.mark.parametrize("decibels", [0, -5, -10])
def test_speech_under_noise_is_aligned_with_low_confidence(aligner: Any, shared_data: Path, decibels: int) -> None:
    folder = shared_data / "alignment"
    sound, text = recording(folder / "acoustic_corpus.wav"), (folder / "acoustic_corpus.lab").read_text("utf-8")
    power = np.mean(sound.samples.astype(np.float64) ** 2) / 10 ** (decibels / 10)
    noise = np.sqrt(power) * np.random.default_rng(0).standard_normal(len(sound.samples))
    words = aligner(Waveform((sound.samples + noise).astype(np.float32), sound.rate), text)
    assert [word.text for word in words] == [token.text for token in tokens(text)]
    assert np.mean([word.confidence for word in words]) < 0.5


@pytest.mark.parametrize(
    ("word", "foreign"), [("fellow", "привет"), ("Americans", "αμερικανοί"), ("country", "α"), ("country", "国家")]
)
def test_a_foreign_word_is_any_sound(aligner: Any, shared_data: Path, word: str, foreign: str) -> None:
    sound = recording(shared_data / "audio/jfk.flac")
    plain, found = aligner(sound, JFK), aligner(sound, JFK.replace(word, foreign))
    rest = [one for one in found if one.text.isascii()]
    assert {one.confidence for one in found if not one.text.isascii()} == {0.0}
    same = [one for one in plain if one.text != word]
    assert [one.text for one in rest] == [one.text for one in same]
    assert np.sort(np.abs(times(rest) - times(same)).max(axis=1))[-3] < 0.05


def test_a_recording_of_more_than_a_minute(aligner: Any) -> None:
    parts = [spoken(SENTENCE, voice) for voice in ("en-us+f1", "en-us+m3", "en-us+f4", "en-us+m7")] * 5
    sound = Waveform(np.concatenate([part[0].samples for part in parts]), parts[0][0].rate)
    begins = np.cumsum([0.0] + [part[0].seconds for part in parts[:-1]])
    truth = np.concatenate([part[1] + begin for part, begin in zip(parts, begins, strict=True)])
    assert sound.seconds > 60
    words = aligner(sound, " ".join([SENTENCE] * len(parts)))
    assert np.median(np.abs(times(words) - truth)) <= 0.025
    assert (np.diff(times(words).ravel()) >= 0).all()


def test_speech_that_the_transcript_lacks_draws_no_word_to_it(aligner: Any) -> None:
    texts = ("We bought the second camera today.", "My uncle is painting a large house.", "The waiter was kind.")
    said = [spoken(text, lead=0.1) for text in texts]
    sound = Waveform(np.concatenate([part[0].samples for part in said]), said[0][0].rate)
    words = aligner(sound, f"{texts[0]} {texts[2]}")
    later = said[0][0].seconds + said[1][0].seconds
    truth = np.concatenate([said[0][1], said[2][1] + later])
    wrong = np.abs(times(words) - truth).max(axis=1)
    assert np.delete(wrong, 6).max() < 0.15  # "the" may be heard anywhere
    assert (np.diff(times(words).ravel()) >= 0).all()


def test_a_grid_clip(aligner: Any, shared_data: Path) -> None:
    rows = [line.split() for line in (shared_data / "grid/bbaf2n.align").read_text().splitlines()]
    rows = [row for row in rows if row[2] not in ("sil", "sp")]
    sound = recording(shared_data / "grid/Raw/bbaf2n/0001.mpg")
    words = aligner(sound, " ".join(row[2] for row in rows))
    truth = np.array([(int(row[0]), int(row[1])) for row in rows]) / 25000
    assert np.median(np.abs(times(words) - truth)) <= 0.026


def test_paths_through_words_said_in_several_ways() -> None:
    ways = [(("a",), ("a", "b")), (("b", "c"), ("c",))]
    assert module._path(["a", "b", "c"], ways) in ([1, 2], [2, 1])
    assert module._path(["a", "c"], ways) == [1, 1]
    assert module._path(["a", "b"], ways) is None
    assert module._path([], ways) is None
    assert module._path([], []) == []


def test_of_long_silence_the_edges_are_kept() -> None:
    random = np.random.default_rng(0)
    speech = 3000 * random.standard_normal(2 * module.RATE)
    quiet = random.standard_normal(10 * module.RATE)
    samples = np.concatenate([quiet, speech, quiet, speech, quiet[: module.RATE]]).astype(np.int16)
    parts = module._without_silence(samples)
    edge = module._KEPT_SILENCE
    assert np.array(parts).ravel() / module.RATE == pytest.approx(
        [10 - edge, 12 + edge, 22 - edge, 24 + edge], abs=0.03
    )
    assert module._without_silence(speech.astype(np.int16)) == [(0, len(speech))]
    kept = parts[0][1] - parts[0][0]
    frames = [0, round(1.0 / 0.01), round((kept / module.RATE + 1.0) / 0.01)]
    expected = [10 - edge, 11 - edge, 23 - edge]
    assert module._whole_times(frames, parts, "right") == pytest.approx(expected, abs=0.04)


def test_pocketsphinx_is_quiet(aligner: Any, capfd: pytest.CaptureFixture[str]) -> None:
    sound, _ = spoken(SENTENCE)
    aligner(sound, SENTENCE)
    entry = find("pocketsphinx")
    narrow = entry.make(entry.config(beam=1e-2))
    with pytest.raises(AlignmentError):
        narrow(sound, SENTENCE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("before", "after"), [(0, 70), (70, 0), (40, 40)])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_long_silence_moves_no_word(aligner: Any, before: int, after: int, noise: float) -> None:
    speech, _ = spoken(SENTENCE)
    random = np.random.default_rng(1)
    quiet = [noise * random.standard_normal(seconds * speech.rate).astype(np.float32) for seconds in (before, after)]
    long = Waveform(np.concatenate([quiet[0], speech.samples, quiet[1]]), speech.rate)
    alone, found = aligner(speech, SENTENCE), aligner(long, SENTENCE)
    assert [word.text for word in found] == [word.text for word in alone]
    assert np.abs(times(found) - before - times(alone)).max() < 0.05
