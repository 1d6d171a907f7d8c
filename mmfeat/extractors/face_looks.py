"""What a face looks like in a few hundred numbers, to tell the people of one clip apart when one of them comes back."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.face_nets import Image, Region

Floats = NDArray[np.float32]

_SIDE = 32
_CELLS, _ANGLES = 4, 8
_COLOURS = 6
_GREY, _GRADIENTS, _COLOUR = 0.8, 1.2, 0.02
"""Weights that make the three parts count about the same."""
_ROWS, _COLUMNS = np.mgrid[:_SIDE, :_SIDE] // (_SIDE // _CELLS)
_PIXELS = np.mgrid[:_SIDE, :_SIDE][::-1] + 0.5
_CELL = ((_ROWS * _CELLS + _COLUMNS) * _ANGLES).ravel()
_STRANGERS = 1.5
"""About what two people are `apart`."""


def _oval(side: int) -> Floats:
    """Shape (side, side, 1): the weight of each place, falling towards the edges, where other things come and go."""
    down, across = np.mgrid[:side, :side] * (2 / (side - 1)) - 1
    return np.exp(-(np.hypot(across, down)[:, :, None] ** 4)).astype(np.float32)


_FINE, _COARSE = _oval(_SIDE)[:, :, 0], _oval(_COLOURS)[:, :, 0]
_LEVELS = _SIDE * _SIDE
_SHAPE = _LEVELS + _CELLS * _CELLS * _ANGLES
"""Where the colours begin, after the grey levels and the gradients, which no light changes much."""
_BLOWN_OUT = 0.98
"""A pixel's brightest colour, from which on it says nothing."""
_DULL, _BRIGHT, _IN_VIEW = 0.03, 0.7, 0.5
"""Least spread of grey levels, most pixels that are blown out, and least share in view with which somebody can be told:
dimmed to that spread, one person differs by less than 0.4 from before; blown out to that share, by less than 1."""


def looks(image: Image, region: Region) -> Floats:
    """Shape (n,): a face and its hair, upright on the eyes: grey levels, gradients (Dalal & Triggs 2005), colours.

    What lies beyond the picture's edge is nan. `apart` of two of them is below 0.8 for nearly all pairs of one person
    within seconds, and above for nearly all pairs of two people.
    """
    double = region.cut(image, 2 * _SIDE)[0]
    crop = _shrunk(double, _SIDE)
    grey = np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.float32)
    inside = _inside(image, region)
    grey_levels = np.where(inside > 0, cv2.GaussianBlur(grey, (0, 0), 1.5), np.nan)
    gradients = np.where(_shrunk(inside, _CELLS).reshape(-1, 1) > 0.8, _gradients(grey).reshape(-1, _ANGLES), np.nan)
    colours = cv2.cvtColor(_shrunk(crop, _COLOURS), cv2.COLOR_RGB2Lab)
    colours[_shrunk(inside, _COLOURS) < 0.5] = np.nan
    return np.concatenate([part.ravel() for part in (grey_levels, gradients, colours)]).astype(np.float32)


def is_clear(image: Image, region: Region, least: float = _DULL) -> bool:
    """Whether somebody can be told by this picture of a face: not in the dark, a flash, or mostly out of view.

    `least` is the spread of grey levels, 0 to 0.5, that it needs.
    """
    in_view = float(np.average(_inside(image, region), weights=_FINE))
    return in_view > _IN_VIEW and not is_faded(image, region, least) and glare(image, region) < _BRIGHT


def is_faded(image: Image, region: Region, least: float = _DULL) -> bool:
    """Whether a face is all but of one grey, as in the dark, or where a picture fades in."""
    grey = cv2.cvtColor(region.cut(image, _SIDE)[0], cv2.COLOR_RGB2GRAY)
    mean = np.average(grey, weights=_FINE)
    return bool(np.average(np.square(grey - mean), weights=_FINE) <= least * least)


def glare(image: Image, region: Region) -> float:
    """Share of a face that is so bright that one of its colours is at the limit."""
    return float(np.average(region.cut(image, _SIDE)[0].max(axis=2) >= _BLOWN_OUT, weights=_FINE))


def apart(one: Floats, other: Floats) -> float:
    """How different two faces look, of what is seen of both: 0 is the same picture. Of two halves that have nothing in
    common nothing is known, and they are taken for strangers.

    Another light changes colours far more than it changes the shape that shading and edges show, so that a shape which
    is very much the same speaks for itself.
    """
    seen = np.isfinite(one) & np.isfinite(other)
    pair = np.where(seen, (one, other), 0)
    fine, coarse = _FINE.ravel() * seen[:_LEVELS], _COARSE.ravel() * seen[_SHAPE::3]
    if not fine.any():
        return _STRANGERS
    grey, colours = pair[:, :_LEVELS], pair[:, _SHAPE:].reshape(2, -1, 3)
    grey = (grey - _mean(grey, fine)) * fine
    colours[:, :, 0] = 0.5 * (colours[:, :, 0] - _mean(colours[:, :, 0], seen[_SHAPE::3]))
    parts = _GREY * _unit(grey), _GRADIENTS * _unit(pair[:, _LEVELS:_SHAPE])
    shape = sum(float(np.square(part[0] - part[1]).sum()) for part in parts)
    colour = float(np.square(_COLOUR * (colours[0] - colours[1]) * coarse[:, None]).sum())
    return min(shape + colour * float(_COARSE.sum() / max(coarse.sum(), 1e-6)), 4 * shape)


def _inside(image: Image, region: Region) -> Floats:
    """Shape (side, side): 1 where a pixel of what is cut out lies in the picture, 0 where beyond its edge."""
    warp = region.to_frame(_SIDE)
    x, y = np.einsum("ij,jkl->ikl", warp[:, :2], _PIXELS) + warp[:, 2, None, None]
    return ((x >= 0) & (x <= image.shape[1]) & (y >= 0) & (y <= image.shape[0])).astype(np.float32)


def _shrunk(image: Floats, side: int) -> Floats:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _mean(rows: Floats, weights: Floats | NDArray[np.bool_]) -> Floats:
    """Shape (n, 1)."""
    return (rows @ weights / max(float(weights.sum()), 1e-6))[:, None]


def _unit(values: Floats) -> Floats:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _gradients(grey: Floats) -> NDArray[np.floating]:
    """Square roots of histograms of gradient angles in a grid of cells."""
    across, down = (cv2.Sobel(grey, cv2.CV_32F, x, 1 - x, ksize=3) for x in (1, 0))
    size, angle = cv2.cartToPolar(across, down)
    size, angle = size * _FINE, angle.ravel() * (_ANGLES / (2 * np.pi))
    low = angle.astype(np.intp)
    share = (angle - low) * size.ravel()
    low %= _ANGLES
    bins = _CELLS * _CELLS * _ANGLES
    histogram = np.bincount(_CELL + low, size.ravel() - share, bins)
    histogram += np.bincount(_CELL + (low + 1) % _ANGLES, share, bins)
    return np.sqrt(np.maximum(histogram, 0))
