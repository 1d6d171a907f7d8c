"""Loudness as the standard has it; silence and clipping are said of a clip, and cost it nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

import mmfeat
from mmfeat import clip, models, sound_quality
from mmfeat.layout import FeatureFile
from mmfeat.media import open_media
from mmfeat.recipe import RecipeError, load_recipe
from mmfeat.sound_quality import _k_weighting, at_loudness, is_silent, loudness, measure
from mmfeat.track import Floats, Waveform
from pipelines.cli import main
from tests.media_files import tone, write_media


def sine(seconds: float, level: float, rate: int = 48000, pitch: float = 997.0) -> Waveform:
    """`level` is the amplitude in dB of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    return Waveform((10 ** (level / 20) * np.sin(2 * np.pi * pitch * time)).astype(np.float32), rate)


def joined(*sounds: Waveform) -> Waveform:
    return Waveform(np.concatenate([sound.samples for sound in sounds]), sounds[0].rate)


class TestLoudness:
    def test_the_filters_are_those_that_the_standard_lists(self) -> None:
        (shelf, shelf_back), (_, high_pass_back) = _k_weighting(48000)
        np.testing.assert_allclose(shelf, [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-11)
        np.testing.assert_allclose(shelf_back, [1, -1.69065929318241, 0.73248077421585], atol=1e-11)
        np.testing.assert_allclose(high_pass_back, [1, -1.99004745483398, 0.99007225036621], atol=1e-11)

    @pytest.mark.parametrize("rate", [4000, 8000, 16000, 22050, 44100, 48000])
    def test_a_full_sine_has_3_lufs_less_than_full_scale_at_any_rate(self, rate: int) -> None:
        assert loudness(sine(5, 0, rate)) == pytest.approx(-3.01, abs=0.1)
        assert loudness(sine(5, -20, rate)) == pytest.approx(-23.01, abs=0.1)

    def test_pauses_do_not_count(self) -> None:
        """Gates: absolute at -70 LUFS, relative 10 LU below the mean (EBU Tech 3341, case 3, in one channel)."""
        speech = sine(6, -20)
        alone = loudness(speech)
        assert alone is not None
        assert loudness(joined(speech, sine(6, -100), speech)) == pytest.approx(alone, abs=0.2)
        assert loudness(joined(sine(10, -36), sine(60, -23), sine(10, -36))) == pytest.approx(-23 - 3.01, abs=0.1)

    @pytest.mark.parametrize("seconds", [0.25, 0.4, 0.85, 3.33])
    @pytest.mark.parametrize("rate", [11025, 48000])
    def test_blocks_do_not_change_it(self, seconds: float, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Against the standard's formula for the whole sound at once."""
        rng = np.random.default_rng(0)
        fading = np.linspace(1, 0.1, round(seconds * rate))
        sound = Waveform((fading * rng.normal(0, 0.1, len(fading))).astype(np.float32), rate)
        weighted = sound.samples.astype(np.float64)
        for numerator, denominator in _k_weighting(rate):
            weighted = lfilter(numerator, denominator, weighted)
        step, size = round(0.1 * rate), min(4 * round(0.1 * rate), len(weighted))
        power = np.array(
            [np.mean(weighted[k : k + size] ** 2) for k in range(0, len(weighted) - size + 1, step)], np.float64
        )
        power = power[power > 10 ** ((-70 + 0.691) / 10)]
        power = power[power > 0.1 * power.mean()]
        expected = -0.691 + 10 * np.log10(power.mean())
        assert loudness(sound) == pytest.approx(expected, abs=1e-6)
        monkeypatch.setattr(sound_quality, "_BLOCK", 0.2)
        assert loudness(sound) == pytest.approx(expected, abs=1e-6)

    def test_short_and_silent(self) -> None:
        assert loudness(sine(0.2, -20)) == pytest.approx(-23, abs=0.5)
        assert loudness(Waveform(np.zeros(4800, np.float32), 48000)) is None
        assert loudness(Waveform(np.ones(1, np.float32), 48000)) is not None

    @pytest.mark.parametrize("level", [-50, -20, 0])
    def test_every_sound_is_brought_to_the_target(self, level: float) -> None:
        assert loudness(at_loudness(sine(2, level), -23)) == pytest.approx(-23, abs=1e-3)

    def test_silence_stays_silence(self) -> None:
        silence = Waveform(np.full(4800, 1e-6, np.float32), 48000)
        np.testing.assert_array_equal(at_loudness(silence, -23).samples, silence.samples)


class TestQuality:
    def test_of_an_ordinary_recording(self, shared_data: Path) -> None:
        for path in ("audio/jfk.flac", "audio/bus_chinese.wav", "grid/Raw/bbaf2n/0001.mpg"):
            with open_media(shared_data / path) as media:
                sound = media.waveform()
            assert sound is not None
            found = measure(sound)
            assert found.status == "ok" and found.reason == "" and found.silent < 0.5, path
            assert found.loudness is not None and -40 < found.loudness < -10, path

    @pytest.mark.parametrize(("codec", "suffix"), [("pcm_s16le", ".wav"), ("aac", ".mp4"), ("mp2", ".mpg")])
    @pytest.mark.parametrize(("gain", "status"), [(1.0, "ok"), (4.0, "clipped")])
    def test_clipping_shows_through_lossy_codecs(
        self, tmp_path: Path, codec: str, suffix: str, gain: float, status: str
    ) -> None:
        """A voice whose largest sample is full scale is not clipped; four times as loud, much of it is."""
        rate = 44100
        time = np.arange(3 * rate) / rate
        pulses = sum(np.cos(2 * np.pi * 150 * k * time) / np.sqrt(k) for k in range(1, 20))
        voice = pulses * np.sin(np.pi * time) ** 2
        clipped = np.clip(gain * voice / np.abs(voice).max(), -1, 1).astype(np.float32)
        path = write_media(tmp_path / f"a{suffix}", sound=clipped[None], rate=rate, sound_codec=codec)
        with open_media(path) as media:
            sound = media.waveform()
        assert sound is not None
        assert measure(sound).status == status, measure(sound)

    def test_figures(self) -> None:
        samples = np.zeros(16000, np.float32)
        samples[:8000:2], samples[1:8000:2] = 0.1, -0.1
        samples[100:140] = -1.0
        samples[1000:1002] = 1.0  # two loud samples are no flat top
        found = measure(Waveform(samples, 16000))
        assert (found.peak, found.silent, found.clipped) == (1.0, 0.5, 40 / 16000)
        assert found.reason == "more than 0.2% of the sound's samples are clipped"
        assert "peak 1.00, 50% silent, 0.25% clipped" in str(found)

    @given(
        st.lists(st.tuples(st.sampled_from([0.0, 0.5, -1.0, 1.0]), st.integers(1, 40)), min_size=1, max_size=30),
        st.sampled_from([0.001, 0.02, 10.0]),
    )
    @settings(deadline=None)
    def test_blocks_do_not_change_it(self, runs: list[tuple[float, int]], block: float) -> None:
        samples = np.concatenate([np.full(count, value, np.float32) for value, count in runs])
        whole = "".join("x" if abs(sample) > 0.95 else " " for sample in samples)
        clipped = sum(len(run) for run in re.findall("x{3,}", whole)) / len(samples)
        frames = [samples[k : k + 20] for k in range(0, len(samples), 20)]
        if len(samples) > 20:
            frames[-1] = samples[-20:]
        silent = np.mean([frame.std() < 1e-3 for frame in frames])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sound_quality, "_BLOCK", block)
            found = measure(Waveform(samples, 1000))
        assert (found.clipped, found.silent) == (pytest.approx(clipped), pytest.approx(silent))
        assert found.peak == np.abs(samples).max()

    def test_an_offset_is_silence(self) -> None:
        assert measure(Waveform(np.full(16000, 0.05, np.float32), 16000)).status == "silent"
        hum = sine(1.0, -20, 16000)
        assert measure(Waveform(hum.samples + np.float32(0.05), 16000)).silent == 0

    def test_the_last_part_of_a_frame_counts(self) -> None:
        samples = np.zeros(16000 + 100, np.float32)
        samples[-100:] = sine(1.0, -6, 16000).samples[:100]
        found = measure(Waveform(samples, 16000))
        assert found.silent == pytest.approx(50 / 51) and found.heard == pytest.approx(0.02)

    @pytest.mark.parametrize("place", [0, 7000, -1])
    @pytest.mark.parametrize("rate", [8000, 44100])
    def test_one_loud_sample_is_a_click_and_is_named(self, place: int, rate: int) -> None:
        """In the last frame too, of which there is one sample: less its mean, it would be nothing."""
        samples = np.zeros(2 * rate + 1, np.float32)
        samples[place] = 1.0
        found = measure(Waveform(samples, rate))
        assert found.peak == 1 and found.heard == pytest.approx(0.02) and found.silent < 1
        assert (found.status, found.reason) == ("silent", "the sound is below -60 dBFS but for 0.02 s")
        assert is_silent(Waveform(samples, rate))
        np.testing.assert_array_equal(at_loudness(Waveform(samples, rate), -23).samples, samples)

    def test_what_real_recordings_are(self) -> None:
        """Digital silence, a quiet room, an ordinary room, a slamming door in a quiet room, one short word."""
        rng, rate = np.random.default_rng(0), 16000
        white = rng.normal(0, 1, 3 * rate)

        def room(level: float) -> Floats:
            return (10 ** (level / 20) * white).astype(np.float32)

        door = np.zeros(3 * rate, np.float32)
        door[rate:] = 2 * np.exp(-np.arange(2 * rate) / (0.08 * rate)) * rng.normal(0, 0.3, 2 * rate)
        word = np.zeros(3 * rate, np.float32)
        word[rate : rate + 2400] = tone(0.15)[0]
        recordings = {
            "silent": (np.zeros(3 * rate, np.float32), room(-96), room(-65)),
            "ok": (room(-55), room(-65) + door.clip(-1, 1), room(-65) + word, tone(0.05)[0], word[: rate + 2000]),
        }
        for status, sounds in recordings.items():
            for sound in sounds:
                found = measure(Waveform(sound, rate))
                assert found.status == status, found
                assert is_silent(Waveform(sound, rate)) is (status == "silent")
        assert loudness(Waveform(room(-65), rate)) is not None  # above the standard's gate, and yet not to be raised
        np.testing.assert_array_equal(at_loudness(Waveform(room(-65), rate), -23).samples, room(-65))

    def test_of_a_mix_it_says_so(self, tmp_path: Path) -> None:
        """Two channels that cancel each other are silent as what is heard here, their mix."""
        voice = tone(0.5)[0]
        path = write_media(tmp_path / "a.wav", sound=np.stack([voice, -voice]), sound_codec="pcm_s16le")
        with open_media(path) as media:
            sound = media.waveform()
        assert sound is not None and sound.channels == sound.at(8000).channels == 2
        found = measure(sound)
        assert found.reason == "the mix of the sound's 2 channels is below -60 dBFS throughout"
        assert str(found).endswith("mix of 2 channels") and "mix" not in str(measure(Waveform(voice, 16000)))
        assert at_loudness(Waveform(voice, 16000, 2), -23).channels == 2

    def test_silent_is_silent_throughout(self) -> None:
        quiet = Waveform(tone(1.0)[0] * 1e-3, 16000)
        assert measure(quiet).status == "silent" and "below -60 dBFS throughout" in measure(quiet).reason
        assert measure(joined(quiet, Waveform(tone(0.1)[0], 16000))).status == "ok"
        assert measure(Waveform(np.zeros(1, np.float32), 16000)).status == "silent"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings without pictures, as corpus."""
    models.pull()
    folder = tmp_path_factory.mktemp("corpus") / "Raw" / "film"
    voices = {"ok": 1.0, "silent": 0.0, "clipped": 8.0}
    sounds = {name: np.clip(gain * tone(0.6), -1, 1) for name, gain in voices.items()}
    paths = {
        name: write_media(folder / f"{name}.wav", sound=sound, sound_codec="pcm_s16le")
        for name, sound in sounds.items()
    }
    rows = "".join(f"film,{name},,0.5,train\n" for name in paths)
    (folder.parents[1] / "label.csv").write_text(f"video_id,clip_id,text,label,mode\n{rows}", encoding="utf-8")
    return paths


def test_what_a_clip_says(clips: dict[str, Path]) -> None:
    found = {name: mmfeat.extract(path) for name, path in clips.items()}
    assert {name: clip.status for name, clip in found.items()} == {
        "ok": "no_video+no_text",
        "silent": "no_video+silent+no_text",
        "clipped": "no_video+clipped+no_text",
    }
    assert all(clip.audio.valid.all() and len(clip.audio) for clip in found.values())
    sound = found["clipped"].sound
    assert sound is not None and sound.clipped > 0.5
    assert found["silent"].sound is not None and found["silent"].sound.loudness is None


def test_what_a_corpus_says(clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features.h5"
    corpus = clips["ok"].parents[2]
    assert main(["extract", str(corpus), "--out", str(out), "--workdir", str(tmp_path / "work"), "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert "silent" in said.out and "more than 10.0% of the sound's samples are clipped" in said.out
    with FeatureFile(out) as file:
        assert [clip.status.split("+")[1] for clip in file.clips()] == ["no_text", "silent", "clipped"]
        assert len(file.read("train", "id")) == 3


def test_one_loudness_before_anything_hears_the_sound(clips: dict[str, Path]) -> None:
    as_recorded = load_recipe("default")
    same = as_recorded.model_copy(update={"loudness": -23.0})
    prints, changed = as_recorded.fingerprints(), same.fingerprints()
    assert {part for part in prints if prints[part] != changed[part]} == {"audio", "words"}
    found = mmfeat.extract(clips["ok"], recipe=same)
    rms = found.audio.values[5:-5, found.audio.names.index("rms")]
    with open_media(clips["ok"]) as media:
        sound = media.waveform()
    assert sound is not None
    expected = 10 ** ((-23 - (loudness(sound) or 0)) / 20) * 0.5 / np.sqrt(2)
    assert np.median(rms) == pytest.approx(expected, rel=0.02)
    assert found.sound == mmfeat.extract(clips["ok"]).sound  # of the recording, not of what was made of it
    with pytest.raises(RecipeError, match="loudness: Input should be less than or equal to 0"):
        as_recorded.changed(loudness=3)


def test_words_are_heard_at_the_recipes_loudness(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Waveform] = []

    def aligner(sound: Waveform, text: str) -> list[object]:
        heard.append(sound)
        return []

    make = clip.loaded
    monkeypatch.setattr(clip, "loaded", lambda part, recipe: aligner if part == "words" else make(part, recipe))
    for target in (None, -16.0):
        mmfeat.extract(clips["ok"], "hello", load_recipe("default").changed(loudness=target))
    as_recorded, louder = map(loudness, heard)
    assert louder == pytest.approx(-16, abs=0.01) and as_recorded != pytest.approx(-16, abs=1)


def test_times_from_files_do_not_depend_on_the_loudness() -> None:
    recipe = load_recipe("default").changed(words={"aligner": "given"})
    before, after = recipe.fingerprints(), recipe.changed(loudness=-23.0).fingerprints()
    assert {part for part in before if before[part] != after[part]} == {"audio"}
