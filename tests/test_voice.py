"""Voice activity: speech is heard, silence, noise and tones are not, and times are those of the sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmfeat import models, voice
from mmfeat.espeak import speak
from mmfeat.media import open_media
from mmfeat.track import Waveform
from tests.media_files import tone


@pytest.fixture(scope="module", autouse=True)
def _model() -> None:
    models.pull([voice.MODEL])


def spoken() -> tuple[Waveform, float, float]:
    """Half a second of room, a sentence, a second of room, with a little noise; when the sentence starts and ends."""
    speech = speak("the quick brown fox jumps over the lazy dog", "en-us")
    rate = speech.waveform.rate
    samples = np.concatenate([np.zeros(rate // 2), speech.waveform.samples, np.zeros(rate)])
    samples += 0.001 * np.random.default_rng(0).standard_normal(len(samples))
    return Waveform(samples.astype(np.float32), rate), 0.5, 0.5 + speech.words[-1].end


def test_speech_is_found_where_it_is() -> None:
    sound, start, end = spoken()
    times, probability = voice.speech(sound)
    middles = times.mean(axis=1)
    assert (probability[(middles > start + 0.1) & (middles < end - 0.1)] > 0.5).mean() > 0.95
    assert (probability[(middles < start - 0.1) | (middles > end + 0.4)] < 0.5).all()


@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_what_is_no_speech(kind: str) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(48000).astype(np.float32)
    samples = {"silence": np.zeros(48000, np.float32), "noise": noise, "tone": tone(3.0)[0]}[kind]
    assert voice.speech(Waveform(samples, 16000))[1].max() < 0.5


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 1.0])
def test_times_cover_the_sound(rate: int, seconds: float) -> None:
    sound = Waveform(np.zeros(int(rate * seconds), np.float32), rate)
    times, probability = voice.speech(sound)
    assert times.shape == (len(probability), 2) and probability.dtype == np.float32
    assert (np.diff(times, axis=1) > 0).all() and (times[1:, 0] == times[:-1, 1]).all()
    if len(times):
        assert times[0, 0] == 0 and times[-1, 1] == pytest.approx(sound.seconds, abs=1e-4)


def test_long_recordings_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, *_ = spoken()
    whole = voice.speech(sound)[1]
    monkeypatch.setattr(voice, "_BLOCK", 7)
    assert voice.speech(sound)[1] == pytest.approx(whole, abs=1e-4)


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path))
    voice._net.cache_clear()
    with pytest.raises(models.MissingModelError, match="mmfeat models pull silero_vad"):
        voice.speech(Waveform(np.zeros(16000, np.float32), 16000))
    voice._net.cache_clear()


def test_real_speech_and_real_noise(shared_data: Path) -> None:
    share = {}
    for name in ("audio/jfk.flac", "audio/bus_chinese.wav", "silent/no_face.mp4"):
        with open_media(shared_data / name) as media:
            sound = media.waveform()
        assert sound
        share[Path(name).stem] = (voice.speech(sound)[1] > 0.5).mean()
    assert share["jfk"] > 0.6 and share["bus_chinese"] > 0.8 and share["no_face"] == 0
