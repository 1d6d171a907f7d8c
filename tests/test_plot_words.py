"""The picture of a recording with its words: something is drawn for every word, and long recordings stay readable."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mmfeat import plot_words as module
from mmfeat.plot_words import PictureError, fonts, plot_words
from mmfeat.track import Waveform, Word
from pipelines.cli import main
from tests.media_files import tone, write_media


def sound(seconds: float, rate: int = 8000) -> Waveform:
    return Waveform((0.3 * np.sin(np.arange(round(seconds * rate)) / 20)).astype(np.float32), rate)


def picture(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)


def coloured(image: np.ndarray) -> tuple[int, int]:
    """Dots that are reddish and greenish, left of the colour bar."""
    red, green, blue = image[:, : int(0.85 * image.shape[1])].transpose(2, 0, 1)
    return int((red - green > 40).sum()), int(((green - red > 20) & (green > blue)).sum())


def test_confidence_is_the_colour(tmp_path: Path) -> None:
    for name, confidence in (("low", 0.0), ("high", 1.0)):
        plot_words(sound(2), [Word("so", 0.5, 1.5, confidence, (0, 2))], tmp_path / f"{name}.png")
    low, high = (coloured(picture(tmp_path / f"{name}.png")) for name in ("low", "high"))
    assert low[0] > 10_000 > 100 > low[1]
    assert high[1] > 10_000 > 100 > high[0]


def test_long_recordings_have_several_lines(tmp_path: Path) -> None:
    words = [Word(f"word{k}", 100.0 + k, 100.9 + k, 0.5, (0, 1)) for k in range(50)]
    plot_words(sound(2), words[:1], tmp_path / "short.png", origin=100.0)
    plot_words(sound(50), words, tmp_path / "long.png", origin=100.0)
    short, long = (picture(tmp_path / f"{name}.png").shape[0] for name in ("short", "long"))
    assert long > 4 * short
    with pytest.raises(PictureError, match="--start"):
        plot_words(sound(module.LINES * module.ROW + 1, rate=10), [], tmp_path / "endless.png")
    assert not (tmp_path / "endless.png").exists()


@pytest.mark.filterwarnings("error")
def test_words_without_a_font_are_numbered(tmp_path: Path) -> None:
    """matplotlib would warn of each character and draw boxes."""
    unheard = "\U0001e900"  # Adlam
    assert fonts("hello, ÀΩЖ") == (["DejaVu Sans"], set())
    assert fonts(f"a{unheard}")[1] <= {unheard}
    plot_words(sound(2), [Word(f"{unheard}\ue123", 0.5, 1.5, 0.9, (0, 2))], tmp_path / "a.png")


def test_nothing_to_draw(tmp_path: Path) -> None:
    plot_words(sound(0), [], tmp_path / "a.png")
    assert picture(tmp_path / "a.png").std() > 1


def test_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media = write_media(tmp_path / "a.mkv", None, sound=tone(3.0), sound_codec="pcm_s16le")
    (tmp_path / "a.csv").write_text("word,start,end\nhello,1.0,1.5\n", encoding="utf-8")
    how = ["align", str(media), "--text", "hello", "--words", str(tmp_path / "a.csv"), "--plot"]
    assert main([*how, str(tmp_path / "a.png")]) == 0
    assert "a.png: written" in capsys.readouterr().out
    assert coloured(picture(tmp_path / "a.png"))[1] > 1000
    assert main([*how, str(tmp_path / "a.bmp")]) == 2
    assert ".png" in capsys.readouterr().err
