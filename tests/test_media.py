"""Decoding by timestamps: what comes out must stand at its own time."""

from __future__ import annotations

import math
import re
import struct
import tracemalloc
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat import track
from mmfeat.media import CutError, MediaError, open_media
from mmfeat.track import Waveform
from tests.media_files import leap, stripes, tone, write_media


def test_frames_and_sound_come_out_of_one_pass(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", stripes(25), sound=tone(1.0))
    with open_media(path) as media:
        frames = list(media.frames())
        sound = media.waveform()
    assert len(frames) == 25
    assert frames[0].image.shape == (64, 96, 3) and frames[0].image.dtype == np.uint8
    assert [frame.start for frame in frames] == pytest.approx(np.arange(25) / 25, abs=2e-3)
    assert frames[-1].end == pytest.approx(1.0, abs=2e-3)
    assert sound is not None and sound.rate == 16000
    assert sound.seconds == pytest.approx(1.0, abs=0.07)  # AAC fills its last packet
    assert np.abs(sound.samples).max() == pytest.approx(0.5, abs=0.05)


def test_times_of_a_variable_frame_rate_are_the_files_own(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.3, 0.34, 0.9]
    path = write_media(tmp_path / "a.mkv", stripes(5), times)
    with open_media(path) as media:
        frames = list(media.frames())
    assert [frame.start for frame in frames] == pytest.approx(times, abs=2e-3)
    assert [frame.end for frame in frames[:-1]] == pytest.approx(times[1:], abs=2e-3)


def test_cut_is_exact_in_picture_and_sound(tmp_path: Path) -> None:
    sound = np.concatenate([tone(1.0), 0 * tone(1.0), tone(1.0)], axis=1)
    path = write_media(tmp_path / "long.mkv", stripes(75), sound=sound, sound_codec="pcm_s16le")
    with open_media(path, start=0.98, end=2.02) as media:
        frames = list(media.frames())
        waveform = media.waveform()
    assert frames[0].start == 0.0
    assert frames[-1].end == pytest.approx(1.04, abs=2e-3)
    # At 0.98 s picture 24 (0.96 to 1.00) is still on the screen, at 2.02 picture 50.
    assert frames[0].image.mean() == pytest.approx(4 * 24, abs=3)
    assert frames[-1].image.mean() == pytest.approx(4 * 50, abs=3)
    assert waveform is not None and len(waveform.samples) == round(1.04 * 16000)
    loud = np.flatnonzero(np.abs(waveform.samples) > 0.2) / 16000
    quiet = loud[(loud > 0.03) & (loud < 1.0)]
    assert not len(quiet) and loud.min() < 0.01 and loud.max() > 1.02


def test_whole_file_equals_its_cuts_put_together(tmp_path: Path) -> None:
    path = write_media(tmp_path / "long.mkv", stripes(50), sound=tone(2.0), sound_codec="pcm_s16le")

    def read(start: float | None, end: float | None) -> np.ndarray:
        with open_media(path, start, end) as media:
            waveform = media.waveform()
        assert waveform is not None
        return waveform.samples

    np.testing.assert_array_equal(np.concatenate([read(0, 0.7), read(0.7, 2.0)]), read(None, None))


def test_missing_streams_are_states(tmp_path: Path) -> None:
    with open_media(write_media(tmp_path / "silent.mp4", stripes(5))) as media:
        assert media.has_video and not media.has_audio
        assert len(list(media.frames())) == 5 and media.waveform() is None
    with open_media(write_media(tmp_path / "sound.wav", sound=tone(0.5), sound_codec="pcm_s16le")) as media:
        assert not media.has_video and list(media.frames()) == []
        waveform = media.waveform()
        assert waveform is not None and len(waveform.samples) == 8000


def test_sound_alone_can_be_had_without_decoding_the_pictures(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", stripes(25), sound=tone(1.0))
    with open_media(path) as media:
        media.skip_video()
        alone = media.waveform()
    with open_media(path) as media:
        both = media.waveform()
    assert alone is not None and both is not None
    np.testing.assert_array_equal(alone.samples, both.samples)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_u8", "pcm_f32le", "pcm_s32le"])
def test_mono_is_the_mean_of_the_channels(tmp_path: Path, channels: int, codec: str) -> None:
    sound = tone(0.2, channels=channels) * np.linspace(0, 1, channels)[:, None] if channels > 1 else tone(0.2)
    path = write_media(tmp_path / "a.wav", sound=sound.astype(np.float32), sound_codec=codec)
    with open_media(path) as media:
        waveform = media.waveform()
    assert waveform is not None
    np.testing.assert_allclose(waveform.samples, sound.mean(axis=0), atol=1 / 100 if codec == "pcm_u8" else 1e-4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"these are words, not a video\n" * 50, "not a readable media file")],
)
def test_what_is_no_media_file_is_refused_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=reason):
        open_media(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not found"):
        open_media(tmp_path / "nothing.mp4")


def test_truncated_file_keeps_what_decodes(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", stripes(100), sound=tone(4.0))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with open_media(path) as media:
        frames = list(media.frames())
    assert 20 < len(frames) < 100


def test_rotated_video_is_upright(shared_data: Path) -> None:
    with open_media(shared_data / "odd" / "nasa_13013_rotated.mp4") as media:
        frame = next(media.frames())
    assert frame.image.shape == (480, 270, 3)


def test_pictures_are_converted_in_this_thread(tmp_path: Path) -> None:
    """Or PyAV starts as many threads for each as there are cores."""
    asked: list[dict[str, object]] = []

    class Recorder:
        def reformat(self, frame: Any, **options: Any) -> Any:
            asked.append(options)
            return frame.reformat(**options)

    with open_media(write_media(tmp_path / "a.mp4", stripes(5))) as media:
        media._to_rgb = Recorder()  # type: ignore[assignment]
        assert len(list(media.frames())) == 5
    assert [options["threads"] for options in asked] == [1] * 5


UPRIGHT = (1, 0, 0, 1)


def oriented(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The mp4 with another display matrix (a, b, c, d) of its video."""
    content = path.read_bytes()

    def stored(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    track = content.index(b"tkhd")
    assert stored(*UPRIGHT) in content[track : track + 100]
    changed = path.with_name(f"{'_'.join(map(str, matrix))}.mp4")
    changed.write_bytes(content[:track] + content[track:].replace(stored(*UPRIGHT), stored(*matrix), 1))
    return changed


@pytest.mark.parametrize(
    "matrix", [m for x, y in product((-1, 1), repeat=2) for m in ((x, 0, 0, y), (0, x, y, 0))], ids=str
)
def test_turned_and_mirrored_video_is_shown_as_its_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    """Point (x, y) is shown at (a x + c y, b x + d y): ISO/IEC 14496-12, 8.3.2."""
    ramp = np.add.outer(np.arange(48) * 2, np.arange(64)).astype(np.uint8)
    path = write_media(tmp_path / "a.mp4", [np.stack([ramp, ramp, ramp], axis=2)] * 5)
    with open_media(path) as media:
        plain = next(media.frames()).image
    with open_media(oriented(path, matrix)) as media:
        shown = next(media.frames()).image
    y, x = np.mgrid[: plain.shape[0], : plain.shape[1]]
    a, b, c, d = matrix
    to_x, to_y = a * x + c * y, b * x + d * y
    expected = np.zeros_like(plain if a else plain.swapaxes(0, 1))
    expected[to_y - to_y.min(), to_x - to_x.min()] = plain
    np.testing.assert_array_equal(shown, expected)


def test_true_times_of_real_variable_frame_rate(shared_data: Path) -> None:
    with open_media(shared_data / "odd" / "face_noface.mov") as media:
        frames = list(media.frames())
        sound = media.waveform()
    assert len(frames) == 169 and frames[-1].start == pytest.approx(6.36035, abs=1e-4)
    assert sound is not None and sound.seconds == pytest.approx(6.396, abs=0.01)


def test_every_odd_file_is_read_or_refused(shared_data: Path) -> None:
    refused = {}
    for path in sorted((shared_data / "odd").iterdir()):
        try:
            with open_media(path) as media:
                for frame in media.frames():
                    assert frame.end > frame.start >= 0
                media.waveform()
        except MediaError as error:
            refused[path.name] = str(error)
    assert set(refused) == {"bad.wav", "evil.wav", "mono.empty.wav", "mono.invalid.wav", "mono.zero.wav", "null.wav"}
    assert all(refused.values())


@pytest.mark.parametrize(
    "name", ["grid/Raw/bbaf2n/0001.mpg", "odd/face_noface.mov", "odd/testsrc2_vp9.webm", "odd/sine_mono_mp3.swf"]
)
@pytest.mark.parametrize("start", [0.21, 0.71, 1.51, 2.51])
def test_a_cut_of_a_real_file_is_what_the_whole_has_there(shared_data: Path, name: str, start: float) -> None:
    """Formats without an index (MPEG program streams) and without seeking (SWF) too."""
    with open_media(shared_data / name) as media:
        frames, sound = list(media.frames()), media.waveform()
    end = min(start + 0.4, media.seconds)
    if end <= start:
        return
    with open_media(shared_data / name, start, end) as media:
        cut, heard = list(media.frames()), media.waveform()
    assert media.damage == ""
    wanted = [frame for frame in frames if frame.start < end - 1e-6 and frame.end > start + 1e-6]
    assert [frame.start for frame in cut] == pytest.approx([max(f.start - start, 0) for f in wanted], abs=2e-3)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(cut, wanted, strict=True))
    if sound is not None and heard is not None and len(heard.samples):
        there = sound.samples[round(start * sound.rate) :][: len(heard.samples)]
        np.testing.assert_allclose(heard.samples, there, atol=1e-3)


def test_a_seek_that_lands_late_begins_earlier(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An MPEG program stream has no index: seeking just before a time lands after it."""
    path = shared_data / "grid" / "Raw" / "bbaf2n" / "0001.mpg"
    with open_media(path, 1.51) as media:
        wanted = [frame.start for frame in media.frames()]
    assert len(wanted) == 38
    monkeypatch.setattr("mmfeat.media.SEEK_BACK", (0.0, 0.01))
    with open_media(path, 1.51) as media:
        assert [frame.start for frame in media.frames()] == wanted


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (-1, 2, "clip's start, -1 s, is no time"),
        (2, 1, "ends at 1 s, not after its start at 2 s"),
        (9, None, "file is 1.00 s long"),
        (math.nan, None, "clip's start, nan s, is no time"),
        (None, math.inf, "clip's end, inf s, is no time"),
        (None, 1e300, "is no time"),
    ],
)
def test_impossible_cuts_say_why(tmp_path: Path, start: float | None, end: float | None, says: str) -> None:
    path = write_media(tmp_path / "a.mkv", stripes(25))
    with pytest.raises(CutError, match=says):
        open_media(path, start, end)


def test_a_file_that_ends_before_its_clip_is_marked(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", stripes(25))
    with open_media(path, 0.5, 9.0) as media:
        assert len(list(media.frames())) == 13
    assert media.damage == "the file ends 8.0 s before the clip does"


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_leap_in_time_is_damage_and_neither_silence_nor_a_picture_that_lasts(tmp_path: Path, kind: str) -> None:
    """A damaged time stamp would make a clip of hours; what comes before it is kept, and the other stream."""
    whole = write_media(tmp_path / "whole.mkv", stripes(75), sound=tone(3.0))
    with open_media(leap(whole, tmp_path / "leap.mkv", kind, after=2.0, by=36_000)) as media:
        frames, sound = list(media.frames()), media.waveform()
        assert sound is not None
        assert {"audio": sound.seconds, "video": media.video_seconds}[kind] == pytest.approx(2.0, abs=0.1)
        assert media.seconds == pytest.approx(3.0, abs=0.1) and frames[-1].end <= 3.1
        assert re.match(rf"{kind} leaps from [23]\.\d to 3600\d\.\d s", media.damage)


def test_sound_that_begins_late_is_no_leap(tmp_path: Path) -> None:
    whole = write_media(tmp_path / "whole.mkv", stripes(50), [30.0 * k for k in range(50)], tone(3.0))
    with open_media(leap(whole, tmp_path / "late.mkv", "audio", after=0.0, by=900)) as media:
        assert len(list(media.frames())) == 50 and not media.damage
        assert media.waveform().seconds == pytest.approx(903, abs=0.1)


def test_a_pause_behind_the_clip_is_none_of_its_damage(tmp_path: Path) -> None:
    whole = write_media(tmp_path / "whole.mkv", stripes(125), sound=tone(5.0))
    path = leap(whole, tmp_path / "leap.mkv", "audio", after=3.0, by=900)
    with open_media(path, 0.0, 4.0) as media:
        assert len(list(media.frames())) == 100 and not media.damage
        assert media.waveform().seconds == pytest.approx(3.0, abs=0.1)


def test_an_hour_of_sound_is_in_memory_once(tmp_path: Path) -> None:
    """Here 40 seconds, 7 MB; frames that are collected and joined at the end would be there twice."""
    rate = 44100
    path = write_media(tmp_path / "a.wav", sound=tone(40, rate, channels=2), rate=rate, sound_codec="pcm_s16le")
    tracemalloc.start()
    try:
        with open_media(path) as media:
            sound = media.waveform()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sound is not None and len(sound.samples) == 40 * rate
    assert peak < 4 * len(sound.samples) + 6e6  # and what it grows by


@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]),
    st.sampled_from([8000, 16000, 22050]),
    st.integers(0, 30000),
    st.sampled_from([0.011, 0.1, 10.0]),
)
@settings(deadline=None, max_examples=40)
def test_pieces_are_the_resampled_sound_bit_for_bit(source: int, rate: int, count: int, piece: float) -> None:
    sound = Waveform(np.random.default_rng(count).normal(0, 0.3, count).astype(np.float32), source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track, "_PIECE", piece)
        pieces = list(sound.pieces(rate))
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.float32), *pieces]), sound.at(rate).samples)
