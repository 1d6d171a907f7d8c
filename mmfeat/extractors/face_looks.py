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
_CELL = ((_ROWS * _CELLS + _COLUMNS) * _ANGLES).ravel()


def _oval(side: int) -> Floats:
    """Shape (side, side, 1): the weight of each place, falling towards the edges, where other things come and go."""
    down, across = np.mgrid[:side, :side] * (2 / (side - 1)) - 1
    return np.exp(-(np.hypot(across, down)[:, :, None] ** 4)).astype(np.float32)


_SHAPE = _SIDE * _SIDE + _CELLS * _CELLS * _ANGLES
"""Length of the parts of `looks` that no light changes: grey levels and gradients."""
_FINE, _COARSE = _oval(_SIDE), _oval(_COLOURS)


def looks(image: Image, region: Region) -> Floats:
    """Shape (n,): a face and its hair, upright on the eyes: grey levels, gradients (Dalal & Triggs 2005), colours.

    `apart` of two of them is below 0.8 for nearly all pairs of one person within seconds, and above for nearly all
    pairs of two people.
    """
    double = region.cut(image, 2 * _SIDE)[0]
    crop = cv2.resize(double, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    soft = cv2.GaussianBlur(grey, (0, 0), 1.5)
    colours = cv2.cvtColor(cv2.resize(crop, (_COLOURS, _COLOURS), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2Lab)
    colours[:, :, 0] = 0.5 * (colours[:, :, 0] - colours[:, :, 0].mean())
    grey_levels = (soft - np.average(soft, weights=_FINE[:, :, 0])) * _FINE[:, :, 0]
    parts = _GREY * _unit(grey_levels), _GRADIENTS * _unit(_gradients(grey)), _COLOUR * colours * _COARSE
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def contrast(image: Image, region: Region) -> float:
    """Spread of a face's grey levels, 0 to 0.5: little in a fade, in a flash, in the dark."""
    grey = cv2.cvtColor(region.cut(image, _SIDE)[0], cv2.COLOR_RGB2GRAY)
    mean = np.average(grey, weights=_FINE[:, :, 0])
    return float(np.sqrt(np.average(np.square(grey - mean), weights=_FINE[:, :, 0])))


def apart(one: Floats, other: Floats) -> float:
    """How different two faces look: 0 is the same picture.

    Another light changes colours far more than it changes the shape that shading and edges show, so that a shape which
    is very much the same speaks for itself.
    """
    squares = np.square(one - other)
    shape = float(squares[:_SHAPE].sum())
    return min(shape + float(squares[_SHAPE:].sum()), 4 * shape)


def _unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _gradients(grey: Floats) -> NDArray[np.floating]:
    """Square roots of histograms of gradient angles in a grid of cells."""
    across, down = (cv2.Sobel(grey, cv2.CV_32F, x, 1 - x, ksize=3) for x in (1, 0))
    size, angle = cv2.cartToPolar(across, down)
    size, angle = size * _FINE[:, :, 0], angle.ravel() * (_ANGLES / (2 * np.pi))
    low = angle.astype(np.intp)
    share = (angle - low) * size.ravel()
    low %= _ANGLES
    bins = _CELLS * _CELLS * _ANGLES
    histogram = np.bincount(_CELL + low, size.ravel() - share, bins)
    histogram += np.bincount(_CELL + (low + 1) % _ANGLES, share, bins)
    return np.sqrt(np.maximum(histogram, 0))
