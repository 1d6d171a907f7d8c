"""The page that shows one clip: drawn for every kind of clip, landmarks where a face is."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mmfeat import models
from mmfeat.plot import plot_clip
from mmfeat.recipe import load_recipe
from tests.media_files import stripes, tone, write_media


@pytest.fixture(scope="module", autouse=True)
def _models() -> None:
    models.pull()


def picture(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def greens(image: np.ndarray) -> int:
    """Pixels in the colour of landmarks."""
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    return int(((green > 220) & (red < 130) & (blue < 160)).sum())


@pytest.mark.parametrize("kind", ["whole", "silent", "heard"])
def test_every_kind_of_clip_is_drawn(tmp_path: Path, kind: str) -> None:
    frames, sound = stripes(10) if kind != "heard" else None, tone(0.4) if kind != "silent" else None
    path = write_media(tmp_path / "a.mkv", frames, sound=sound, sound_codec="pcm_s16le")
    plot_clip(path, "", load_recipe("default"), tmp_path / "a.png")
    image = picture(tmp_path / "a.png")
    assert image.shape[1] == 1320 and image.std() > 1 and greens(image) == 0


def test_landmarks_and_words_of_a_real_clip(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "grid" / "Raw" / "bbaf2n" / "0001.mpg"
    plot_clip(path, "bin blue at f two now", load_recipe("default"), tmp_path / "a.png")
    assert greens(picture(tmp_path / "a.png")) > 500
