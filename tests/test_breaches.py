"""Extractors of others that break the contract: named, with the rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfeat import clip, contract
from mmfeat.media import MediaError
from mmfeat.recipe import load_recipe
from mmfeat.registry import Config
from mmfeat.track import Track, Wordpieces
from tests.media_files import stripes, write_media


class Careless:
    names = ("a", "b")


def track(first: float = 0.0, valid: bool = True) -> Track:
    starts = first + np.arange(3) * 0.5
    return Track(np.stack([starts, starts + 0.5], 1), np.ones((3, 2), np.float32), np.full(3, valid), Careless.names)


def steps(times: list[list[float]]) -> Track:
    return Track(np.array(times, float), np.ones((len(times), 2), np.float32), np.ones(len(times), bool), ("a", "b"))


def pieces(**changes: Any) -> Wordpieces:
    arrays: dict[str, Any] = {"ids": np.zeros(2, np.int32), "segments": np.zeros(2, np.int32)}
    arrays |= {"spans": np.array([[0, 2], [2, 5]], np.int32), "values": np.ones((2, 2), np.float32)}
    return Wordpieces(**{**arrays, **changes})


def test_what_keeps_to_the_contract_passes() -> None:
    contract.check_track(track(), Careless(), 1.5)
    contract.check_track(track(), Careless(), 1.45)  # the last step may end a little behind the sound
    contract.check_track(steps([[0, 0.02], [0.01, 0.03]]), Careless(), 0.0150)
    contract.check_track(steps([[0, 9.9]]), Careless())
    contract.check_track(Track.empty(Careless.names), Careless(), 0.0)
    contract.check_text(pieces(), Careless(), "hello")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (track(-0.5), "outside the clip"),
        (track(3.0), "outside the clip of 1.500 s"),
        (steps([[0, 2.9]]), "from 0.000 to 2.900 s, outside"),  # a long step allows itself nothing
        (steps([[0, 0.2], [0.1, 2.9]]), "outside"),
        (steps([[0, 2.9], [0.1, 0.2]]), "outside"),
        (steps([[0, 0.01], [1.5, 1.5]]), "from 0.000 to 1.500 s, outside"),  # begins where the clip is over
        (track(valid=False), "not valid; they must be zero"),
    ],
)
def test_tracks(bad: Track, says: str) -> None:
    with pytest.raises(ValueError, match=f"Careless .*{says}"):
        contract.check_track(bad, Careless(), 1.5)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (None, "returned NoneType, not Wordpieces"),
        (pieces(values=np.ones((2, 3), np.float32)), "3 columns for its 2 names"),
        (pieces(spans=np.array([[0, 2], [2, 9]], np.int32)), "behind the transcript's 5 characters"),
    ],
)
def test_texts(bad: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"Careless .*{says}"):
        contract.check_text(bad, Careless(), "hello")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ids": np.zeros(3, np.int32)}, "shapes"),
        ({"values": np.ones((5, 2), np.float32)}, "shapes"),
        ({"values": np.ones((2, 2), np.float64)}, "float32"),
        ({"ids": np.zeros(2, np.int64)}, "int32"),
        ({"values": np.full((2, 2), np.nan, np.float32)}, "non-finite"),
        ({"spans": np.array([[0, 2], [5, 2]], np.int32)}, "ends before it starts"),
    ],
)
def test_wordpieces_check_themselves(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pieces(**changes)


class TestClip:
    def extract(self, part: str, extractor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        path = write_media(tmp_path / "a.mp4", stripes(3))
        recipe = load_recipe("default")
        monkeypatch.setattr(clip, "loaded", lambda asked, recipe: extractor if asked == part else recipe.make(asked))
        return clip.extract(path, "hello", recipe.changed(words=None))

    def test_late_pictures_fail_the_clip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Late(Careless):
            def __call__(self, frames: Any) -> Track:
                list(frames)
                return track(100.0)

        with pytest.raises(MediaError, match=r"vision: .*Late returned times from 100"):
            self.extract("vision", Late(), tmp_path, monkeypatch)

    def test_spans_behind_the_text_fail_the_clip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Far(Careless):
            config = Config()

            def __call__(self, text: str) -> Wordpieces:
                return pieces(spans=np.full((2, 2), 999, np.int32))

        with pytest.raises(MediaError, match=r"text: .*Far returned spans"):
            self.extract("text", Far(), tmp_path, monkeypatch)

    def test_text_needs_no_limit_of_wordpieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Plain(Careless):
            config = Config()

            def __call__(self, text: str) -> Wordpieces:
                return pieces()

        assert "cut_text" not in self.extract("text", Plain(), tmp_path, monkeypatch).status
