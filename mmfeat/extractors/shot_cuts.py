"""How much of a picture is new since the last one, motion and light left aside: where shots of a film meet."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_SIDE = 16
"""Pictures are compared as so many cells a side."""
_STEP, _STILL = 25, 0.05
"""Two thumbnails are not worth a closer look where less than this share of their values differ by so many levels."""
_BLANK = 6.0
"""Spread of grey levels below which a picture shows nothing: black or white between two shots, or a flash."""
_OUTSIDE = 0.25
"""Difference, in spreads of the picture, with which a cell counts as new."""
_NEAR = np.ones((3, 3), np.uint8)


class ShotCuts:
    """Call it with one picture after another; a cut is where nearly all of one is new, at once and not gradually."""

    def __init__(self) -> None:
        self._last: Image | None = None
        self._recent = [0.0, 0.0]

    def __call__(self, image: Image) -> float:
        """The share of the picture's cells, 0 to 1, that hold what neither they nor their neighbours held before.

        Comparing with neighbours takes motion of a sixteenth of the picture per frame. What a change of light, a flash
        or a fade does is undone: the least of three answers counts, as it is, and with the grey levels of either
        picture mapped to those of the other by rank. Where much has been new in the last two pictures too, something is
        moving, and nothing is reported. Blank pictures are passed over.
        """
        small = cv2.resize(image, (2 * _SIDE, 2 * _SIDE), interpolation=cv2.INTER_NEAREST)
        thumbnail: Image = cv2.resize(small, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        last = self._last
        if last is not None and (cv2.absdiff(last, thumbnail) > _STEP).mean() < _STILL:
            self._last, self._recent = thumbnail, [self._recent[1], 0.0]
            return 0.0
        if thumbnail.std() < _BLANK:
            return 0.0
        self._last = thumbnail
        if last is None:
            return 0.0
        share = min(
            _new(last, thumbnail), _new(_mapped(last, thumbnail), thumbnail), _new(_mapped(thumbnail, last), last)
        )
        before, self._recent = max(self._recent), [self._recent[1], share]
        return share if share > 2 * before else 0.0


def _new(one: Image, other: Image) -> float:
    """The share of cells whose colour in one picture lies outside of what is near them in the other."""
    outside = [
        cv2.max(cv2.subtract(a, cv2.dilate(b, _NEAR)), cv2.subtract(cv2.erode(b, _NEAR), a))
        for a, b in ((one, other), (other, one))
    ]
    threshold = _OUTSIDE * max(float(other.std()), _BLANK)
    return float((np.maximum(*outside).max(axis=2) > threshold).mean())


def _mapped(image: Image, to: Image) -> Image:
    """The picture with another one's levels, the darkest for the darkest, channel by channel."""
    mapped = np.empty_like(image).reshape(-1, 3)
    order = image.reshape(-1, 3).argsort(axis=0, kind="stable")
    np.put_along_axis(mapped, order, np.sort(to.reshape(-1, 3), axis=0), axis=0)
    return mapped.reshape(image.shape)
