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
_SHAKE = 3
"""Cells by which a picture may be shifted against the last one, as when the camera is pushed."""
_FLASH, _ALL = 20, 0.9
"""A light that goes on or off changes at least half of the picture by so many levels, this share of it in one way."""


class ShotCuts:
    """Call it with one picture after another; a cut is where nearly all of one is new, at once and not gradually."""

    def __init__(self) -> None:
        self._last: Image | None = None
        self._recent = [0.0, 0.0]
        self.is_flash = False
        """Whether the last picture is much brighter, or much darker, than the one before, and nearly all of it."""

    def __call__(self, image: Image) -> float:
        """The share of the picture's cells, 0 to 1, that hold what neither they nor their neighbours held before.

        Comparing with neighbours takes motion of a sixteenth of the picture per frame. What a change of light, a flash
        or a fade does is undone by rank, what a pushed camera does by shifting one of the pictures. Where much has been
        new in the last two pictures too, something is moving, and nothing is reported. Blank pictures are passed over.
        """
        small = cv2.resize(image, (2 * _SIDE, 2 * _SIDE), interpolation=cv2.INTER_NEAREST)
        thumbnail: Image = cv2.resize(small, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        last, self.is_flash = self._last, False
        if last is not None and (cv2.absdiff(last, thumbnail) > _STEP).mean() < _STILL:
            self._last, self._recent = thumbnail, [self._recent[1], 0.0]
            return 0.0
        if thumbnail.std() < _BLANK:
            return 0.0
        self._last = thumbnail
        if last is None:
            return 0.0
        self.is_flash = _is_flash(last, thumbnail)
        share = _least_new(last, thumbnail)
        if share > _STILL:
            share = min(share, _least_new(*_aligned(last, thumbnail)))
        before, self._recent = max(self._recent), [self._recent[1], share]
        return share if share > 2 * before else 0.0


def _is_flash(one: Image, other: Image) -> bool:
    change = other.mean(axis=2) - one.mean(axis=2)
    if np.median(np.abs(change)) < _FLASH:
        return False
    return float(max((change > -_FLASH / 2).mean(), (change < _FLASH / 2).mean())) > _ALL


def _aligned(one: Image, other: Image) -> tuple[Image, Image]:
    """The parts of two pictures that show the same, if one is the other shifted: where their levels differ least."""
    size, reach = _SIDE, range(-_SHAKE, _SHAKE + 1)

    def parts(down: int, across: int) -> tuple[Image, Image]:
        y, x, to_y, to_x = max(down, 0), max(across, 0), size + min(down, 0), size + min(across, 0)
        return one[y - down : to_y - down, x - across : to_x - across], other[y:to_y, x:to_x]

    return min((parts(down, across) for down in reach for across in reach), key=lambda pair: cv2.absdiff(*pair).mean())


def _least_new(one: Image, other: Image) -> float:
    """The least of three answers: as it is, and with the grey levels of either picture mapped to the other's."""
    return min(_new(one, other), _new(_mapped(one, other), other), _new(_mapped(other, one), one))


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
    mapped = np.empty(image.shape, np.uint8).reshape(-1, 3)
    order = image.reshape(-1, 3).argsort(axis=0, kind="stable")
    np.put_along_axis(mapped, order, np.sort(to.reshape(-1, 3), axis=0), axis=0)
    return mapped.reshape(image.shape)
