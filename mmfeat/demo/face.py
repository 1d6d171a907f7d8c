"""A drawn, shaded, moving face whose expression, gaze and mouth follow parameters.

The face is a picture over a height map. Features are drawn flat, in face units (half the width of the face is 1, y
points down, the eyes lie at y = -0.12), shaded by the normals of the map, then turned in space: a face mesh sees real
parallax and real head angles.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.demo.identity import Identity, Pose, random_identity

__all__ = ["HEIGHT", "WIDTH", "Face", "Identity", "Pose", "random_identity"]

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]
Points = NDArray[np.float64]

WIDTH, HEIGHT = 320, 240
_SCALE = 80  # texture pixels per face unit; about 1.4 per picture pixel
_HALF_W, _HALF_H = 1.4, 1.75  # what the texture covers, face units
_ORIGIN = np.array([_HALF_W, _HALF_H])  # the middle of the face, from the texture's corner
_MARGIN = 40  # pixels that the figure may move without showing its end
_EYE_X, _EYE_Y = 0.40, -0.12
_MOUTH_Y = 0.74
_SUBPIXEL = 4  # bits of fraction in cv2's coordinates


def _blurred(picture: Any, sigma: float) -> Any:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def _to_texture(points: Any) -> NDArray[np.int32]:
    pixels = (np.asarray(points, float) + _ORIGIN) * _SCALE * (1 << _SUBPIXEL)
    return np.round(pixels).astype(np.int32)


def _curve(points: Any, closed: bool = False, steps: int = 8) -> Points:
    """A smooth line through the points (Catmull-Rom)."""
    p = np.asarray(points, float)
    ends = (p[-1:], p[:1], p[1:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1], p[:0])
    p = np.concatenate([ends[0], p, ends[1], ends[2]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    line = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    line = line.transpose(1, 0, 2).reshape(-1, 2)
    return line if closed else np.concatenate([line, c[-1:]])


def _mirrored(half: Any) -> Points:
    """A closed outline from its right half, given from the middle round to the middle."""
    half = np.asarray(half, float)
    return _curve(np.concatenate([half, half[-2:0:-1] * [-1, 1]]), closed=True)


class Face:
    """Draws one identity. Same identity, pose and noise seed: same picture."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self._random = np.random.default_rng(identity.texture)
        y, x = np.mgrid[: round(2 * _HALF_H * _SCALE), : round(2 * _HALF_W * _SCALE)].astype(np.float32)
        self._x, self._y = x / _SCALE - _HALF_W, y / _SCALE - _HALF_H
        self._height = self._make_height()
        self._normals = self._make_normals()
        self._skin, self._alpha = self._make_skin()
        self._wall = self._make_wall()

    @cached_property
    def _outline(self) -> Points:
        j = self.identity.jaw
        return _mirrored(
            [(0, -1.38), (0.42, -1.3), (0.78, -1.02), (0.95, -0.55), (0.96, -0.1), (0.91 * j, 0.35),
             (0.77 * j, 0.78), (0.5 * j, 1.12), (0.24 * j, 1.3), (0, 1.33)]
        )  # fmt: skip

    def _bump(self, x: float, y: float, width: float, height: float) -> Floats:
        return np.exp(-(((self._x - x) / width) ** 2) - ((self._y - y) / height) ** 2)

    def _make_height(self) -> Floats:
        """How far each point lies in front of the ears' plane, face units. Slopes stay below what a turn can hide."""
        n = self.identity.nose
        head = 0.95 * (1 - 0.72 * (self._x / 1.02) ** 2 - 0.62 * (self._y / 1.5) ** 2)
        ramp = np.clip((self._y + 0.2) / 0.6, 0, 1) * np.clip((0.52 - self._y) / 0.12, 0, 1)
        nose = 0.26 * ramp * np.exp(-((self._x / (0.13 * n + 0.06 * ramp)) ** 2))
        wings = 0.06 * (self._bump(-0.15 * n, 0.38, 0.09, 0.09) + self._bump(0.15 * n, 0.38, 0.09, 0.09))
        sockets = -0.09 * (self._bump(-_EYE_X, _EYE_Y, 0.26, 0.15) + self._bump(_EYE_X, _EYE_Y, 0.26, 0.15))
        ridge = 0.05 * (self._bump(-0.4, -0.4, 0.35, 0.12) + self._bump(0.4, -0.4, 0.35, 0.12))
        cheeks = 0.05 * (self._bump(-0.52, 0.3, 0.25, 0.22) + self._bump(0.52, 0.3, 0.25, 0.22))
        lips = 0.06 * self._bump(0, _MOUTH_Y, 0.3, 0.16) - 0.04 * self._bump(0, 0.96, 0.3, 0.06)
        chin = 0.07 * self._bump(0, 1.14, 0.25, 0.14)
        height = head + nose + wings + sockets + ridge + cheeks + lips + chin
        return _blurred(height.astype(np.float32), 2.5)

    def _make_normals(self) -> Floats:
        dx = cv2.Sobel(self._height, cv2.CV_32F, 1, 0, ksize=3) / 8 * _SCALE
        dy = cv2.Sobel(self._height, cv2.CV_32F, 0, 1, ksize=3) / 8 * _SCALE
        normals = np.dstack([-dx, -dy, np.ones_like(dx)])
        return (normals / np.linalg.norm(normals, axis=2, keepdims=True)).astype(np.float32)

    def _noise(self, shape: tuple[int, int], sigma: float) -> Floats:
        noise = _blurred(self._random.standard_normal(shape).astype(np.float32), sigma)
        return noise / noise.std()

    def _make_skin(self) -> tuple[Floats, Floats]:
        """Colour (h, w, 3) and opacity (h, w, 1) of all that the expression does not move."""
        me = self.identity
        shape = self._height.shape
        skin = np.full((*shape, 3), me.skin, np.float32)
        skin *= (1 + 0.02 * self._noise(shape, 3) + 0.015 * self._noise(shape, 12))[..., None]
        blush = (
            self._bump(-0.55, 0.32, 0.28, 0.22) + self._bump(0.55, 0.32, 0.28, 0.22) + self._bump(0, 0.38, 0.14, 0.1)
        )
        skin *= 1 - blush[..., None] * np.array([0.0, 0.09, 0.08], np.float32)
        sockets = self._bump(-_EYE_X, _EYE_Y, 0.27, 0.13) + self._bump(_EYE_X, _EYE_Y, 0.27, 0.13)
        under_nose = self._bump(0, 0.49, 0.2 * me.nose, 0.05)
        under_lip = self._bump(0, 0.97, 0.2, 0.05)
        beside = self._bump(-0.17 * me.nose, 0.3, 0.05, 0.14) + self._bump(0.17 * me.nose, 0.3, 0.05, 0.14)
        skin *= (1 - 0.16 * sockets - 0.25 * under_nose - 0.14 * under_lip - 0.1 * beside)[..., None]
        for side in (-1, 1):
            nostril = _curve([(side * 0.05, 0.44), (side * 0.09, 0.4), (side * 0.15 * me.nose, 0.42),
                              (side * 0.1, 0.46)], closed=True)  # fmt: skip
            self._fill(skin, nostril, np.array(me.skin) * 0.35, soft=1.2)
        strands = 1 + 0.10 * self._noise(shape, 1.2) + 0.08 * cv2.GaussianBlur(self._noise(shape, 1.0), (1, 31), 0)
        hair = np.array(me.hair, np.float32) * strands[..., None]
        low = 0.35 if me.long_hair else -0.15
        hairline = _mirrored([(0, -0.92), (0.45, -0.9), (0.76, -0.7), (0.88, -0.35), (0.94, low), (1.12, low),
                              (1.2, -0.5), (1.1, -1.1), (0.72, -1.5), (0.3, -1.63), (0, -1.65)])  # fmt: skip
        cover = np.zeros(shape, np.float32)
        cv2.fillPoly(cover, [_to_texture(self._outline)], 1.0, cv2.LINE_AA, _SUBPIXEL)
        for side in (-1, 1):
            centre = _to_texture([side * 0.98, 0.02])
            axes = (np.array([0.12, 0.26]) * _SCALE * (1 << _SUBPIXEL)).astype(int)
            cv2.ellipse(cover, centre.tolist(), axes.tolist(), 0, 0, 360, 1.0, -1, cv2.LINE_AA, _SUBPIXEL)
        mane = np.zeros(shape, np.float32)
        cv2.fillPoly(mane, [_to_texture(hairline)], 1.0, cv2.LINE_AA, _SUBPIXEL)
        mane = _blurred(mane, 1.6)
        opacity = np.maximum(_blurred(cover, 1.0), mane)[..., None]
        # No skin outside the face's outline, or it would shine through the hair's soft outer edge.
        beyond = np.where(cv2.erode(cover, np.ones((9, 9))) < 1, np.sqrt(mane), mane)[..., None]
        return skin + (hair - skin) * beyond, opacity

    def _make_wall(self) -> Floats:
        """The background, floats (HEIGHT, WIDTH, 3)."""
        shape = (HEIGHT, WIDTH)
        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        light = 1 + 0.15 * (x / WIDTH - 0.5) * self.identity.light[0] - 0.2 * (y / HEIGHT - 0.5)
        wall = light + 0.03 * self._noise(shape, 20) + 0.015 * self._noise(shape, 2)
        edge = self._random.uniform(0.1, 0.9) * WIDTH
        wall = wall * np.where(x < edge, 1.0, 0.88)
        return _blurred((wall[..., None] * np.array(self.identity.wall)).astype(np.float32), 2)

    def _fill(self, canvas: Floats, outline: Points, colour: Any, soft: float = 0.7, strength: float = 1.0) -> None:
        """Paint an outline's inside on a texture, its edge softened by `soft` texture pixels."""
        low = np.floor((outline.min(axis=0) + _ORIGIN) * _SCALE - 4 - 3 * soft).astype(int).clip(0)
        high = np.ceil((outline.max(axis=0) + _ORIGIN) * _SCALE + 4 + 3 * soft).astype(int)
        window = canvas[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros(window.shape[:2], np.float32)
        cv2.fillPoly(
            mask, [_to_texture(outline) - (low << _SUBPIXEL).astype(np.int32)], strength, cv2.LINE_AA, _SUBPIXEL
        )
        mask = _blurred(mask, soft)[..., None]
        window += (np.asarray(colour, np.float32) - window) * mask

    def _eye(self, canvas: Floats, side: int, pose: Pose) -> None:
        me = self.identity
        half, open_ = 0.215 * me.eyes, max(pose.eyes, 0.0) * (1 - 0.22 * max(pose.smile, 0))
        x, y = side * _EYE_X, _EYE_Y
        inner, outer = (x - side * half, y + 0.025), (x + side * half, y - 0.015)
        top, bottom = 0.105 * me.eyes * open_, 0.06 * me.eyes * min(1.0, 0.35 + open_) * (1 - 0.35 * max(pose.smile, 0))
        lid_y = y - top + (0.03 if open_ < 0.3 else 0)
        upper = _curve([inner, (x - side * 0.1, lid_y + 0.012), (x + side * 0.06, lid_y), outer])
        lower = _curve([outer, (x + side * 0.05, y + bottom), (x - side * 0.09, y + bottom * 0.9), inner])
        crease = upper + np.array([0, -0.055])
        self._fill(canvas, np.concatenate([crease, upper[::-1]]), np.array(me.skin) * 0.86, soft=1.5, strength=0.5)
        self._fill(
            canvas, np.concatenate([crease + np.array([0, -0.012]), crease[::-1]]), np.array(me.skin) * 0.62, 0.9, 0.8
        )
        almond = np.concatenate([upper, lower])
        if open_ > 0.08:
            low = np.floor((almond.min(axis=0) + _ORIGIN) * _SCALE - 5).astype(int)
            high = np.ceil((almond.max(axis=0) + _ORIGIN) * _SCALE + 5).astype(int)
            window = canvas[low[1] : high[1], low[0] : high[0]]
            ball = np.empty_like(window)
            ball[:] = (226, 220, 216)
            centre = np.array([x + 0.085 * pose.gaze[0], y - 0.02 + 0.05 * pose.gaze[1]])
            corner = low << _SUBPIXEL

            def disc(at: Points, radius: float, colour: Any) -> None:
                place = (_to_texture(at) - corner).tolist()
                size = round(radius * _SCALE * (1 << _SUBPIXEL))
                cv2.circle(ball, place, size, tuple(float(c) for c in colour), -1, cv2.LINE_AA, _SUBPIXEL)

            iris = np.array(me.iris)
            disc(centre, 0.098, iris * 0.45)
            disc(centre, 0.086, iris)
            disc(centre, 0.04, (14, 12, 12))
            disc(centre + np.array([0.03 * np.sign(me.light[0] or 1), -0.035]), 0.017, (250, 250, 250))
            shadow = np.exp(-(((self._y[low[1] : high[1], :1] - (y - top)) / 0.05).clip(0, None) ** 2))[..., None]
            ball *= 1 - 0.4 * shadow
            mask = np.zeros(window.shape[:2], np.float32)
            cv2.fillPoly(mask, [_to_texture(almond) - corner.astype(np.int32)], 1.0, cv2.LINE_AA, _SUBPIXEL)
            window += (ball - window) * _blurred(mask, 0.6)[..., None]
        lash = np.concatenate([upper + np.array([0, -0.026]), upper[::-1] + np.array([0, 0.006])])
        self._fill(canvas, lash, np.array(me.hair) * 0.4, soft=0.8, strength=0.95)
        self._fill(
            canvas, np.concatenate([lower, lower[::-1] + np.array([0, 0.016])]), np.array(me.skin) * 0.5, 0.9, 0.55
        )

    def _brow(self, canvas: Floats, side: int, pose: Pose) -> None:
        me = self.identity
        lift, draw = -0.10 * pose.brow, max(-pose.brow, 0.0)
        y = -0.40 + lift
        spine = _curve([(side * (0.17 - 0.035 * draw), y + 0.02 + 0.07 * draw), (side * 0.34, y - 0.05 + 0.02 * draw),
                        (side * 0.5, y - 0.07), (side * 0.68, y + 0.01)])  # fmt: skip
        thick = 0.05 * me.brows * np.array([0.75, 1.0, 0.85, 0.2])
        width = np.interp(np.linspace(0, 3, len(spine)), range(4), thick)[:, None] * [0, 1]
        self._fill(
            canvas, np.concatenate([spine - width, spine[::-1] + width[::-1]]), np.array(me.hair) * 0.8, 1.5, 0.9
        )
        if draw > 0.2:
            fold = _curve([(side * 0.06, -0.42), (side * 0.075, -0.34), (side * 0.06, -0.24)])
            line = np.concatenate([fold, fold[::-1] + np.array([side * 0.018, 0])])
            self._fill(canvas, line, np.array(me.skin) * 0.6, 1.4, 0.6 * draw)

    def _mouth(self, canvas: Floats, pose: Pose) -> None:
        me = self.identity
        smile, up, down = pose.smile, max(pose.smile, 0.0), max(-pose.smile, 0.0)
        half = 0.33 + 0.085 * smile - 0.05 * pose.mouth - 0.01 * down
        corner_y = _MOUTH_Y - 0.10 * up + 0.085 * down
        gap = 0.20 * pose.mouth
        y = _MOUTH_Y + 0.02 * up - 0.015 * down
        corner = np.array([half, corner_y])
        inner_up = np.array([(0, y - 0.15 * gap), (half * 0.45, y - 0.12 * gap + 0.25 * (corner_y - y))])
        inner_low = np.array([(0, y + gap), (half * 0.5, y + 0.85 * gap + 0.2 * (corner_y - y))])
        top = y - 0.085 + 0.02 * up
        outer_up = [(0, top + 0.018), (0.075, top - 0.008), (half * 0.6, top + 0.035 + 0.25 * (corner_y - y))]
        bottom = y + gap + 0.105 - 0.02 * up
        outer_low = [(half * 0.6, bottom - 0.035 + 0.25 * (corner_y - y)), (half * 0.25, bottom)]
        lips = np.array(me.lips)

        def whole(half_line: Any) -> Points:
            line = np.asarray(half_line, float)
            return np.concatenate([(line * [-1, 1])[:0:-1], line])

        upper = _curve(whole([*outer_up, corner]))
        seam_up = _curve(whole([*inner_up, corner]))
        seam_low = _curve(whole([*inner_low, corner]))
        lower = _curve(whole([(0, bottom), *outer_low[::-1], corner]))
        if up > 0.1 or down > 0.1:
            for side in (-1, 1):  # the fold from the nose round the mouth, and the shadow in the corner
                fold = _curve(
                    [(side * 0.2, 0.42), (side * (half + 0.05), 0.56), (side * (half + 0.09), corner_y + 0.02)]
                )
                line = np.concatenate([fold, fold[::-1] + np.array([side * 0.02, 0.0])])
                self._fill(canvas, line, np.array(me.skin) * 0.66, 2.0, 0.55 * up + 0.25 * down)
        self._fill(canvas, np.concatenate([upper, lower[::-1]]) * [1.01, 1] + np.array([0, 0.004]), lips * 0.9, 1.3)
        self._fill(canvas, np.concatenate([seam_low, lower[::-1]]), np.minimum(lips * 1.1, 255), 1.2)
        if pose.mouth > 0.04:
            cave = np.concatenate([seam_up, seam_low[::-1]])
            self._fill(canvas, cave, (58, 22, 22), 0.8)
            teeth = np.minimum(seam_up + np.array([0, 0.075]), seam_low - np.array([0, 0.3 * gap]))
            teeth = np.maximum(teeth, seam_up) * [0.82, 1]
            self._fill(canvas, np.concatenate([seam_up * [0.82, 1], teeth[::-1]]), (226, 220, 210), 0.8, 0.9)
        seam = np.concatenate([seam_up - np.array([0, 0.011]), seam_up[::-1] + np.array([0, 0.009])])
        self._fill(canvas, seam, lips * 0.42, 0.8, 0.9)
        for side in (-1, 1):
            dot = _curve([corner * [side, 1] + d for d in ((-0.03, 0), (0, -0.02), (0.025, 0), (0, 0.02))], closed=True)
            self._fill(canvas, dot, np.array(me.skin) * 0.5, 1.2, 0.7)

    def draw(self, pose: Pose, noise: int = 0) -> Picture:
        """One picture, RGB of shape (HEIGHT, WIDTH, 3); `noise` seeds the camera's grain."""
        texture = self._skin.copy()
        for side in (-1, 1):
            self._eye(texture, side, pose)
            self._brow(texture, side, pose)
        self._mouth(texture, pose)
        turn = _rotation(pose)
        light = np.array(self.identity.light) / np.linalg.norm(self.identity.light)
        facing = np.maximum(self._normals @ (turn.T @ light).astype(np.float32), 0)
        texture *= (0.45 + 0.68 * facing)[..., None]
        gloss = facing**2
        for _ in range(3):
            gloss *= gloss
        texture += 26 * gloss[..., None]
        picture = self._body(pose)
        centre = np.array([WIDTH / 2, HEIGHT * 0.47]) + np.array(pose.shift) * self.identity.size
        self._paste(picture, texture, turn, centre)
        grain = np.random.default_rng((self.identity.texture, noise)).standard_normal((HEIGHT, WIDTH, 1), np.float32)
        picture = cv2.GaussianBlur(picture, (3, 3), 0.6) + 2.0 * grain
        return np.asarray(cv2.convertScaleAbs(np.maximum(picture, 0, out=picture)), np.uint8)

    def _body(self, pose: Pose) -> Floats:
        """The wall with shoulders, neck and long hair before it; they follow the head only partly."""
        colour, opacity = self._figure
        x, y = 0.6 * np.array(pose.shift) * self.identity.size
        move = np.array([[1, 0, x - _MARGIN], [0, 1, y - _MARGIN]])
        front, cover = (cv2.warpAffine(layer, move, (WIDTH, HEIGHT)) for layer in (colour, opacity))
        return np.asarray(self._wall * (1 - cover) + front, np.float32)

    @cached_property
    def _figure(self) -> tuple[Floats, Floats]:
        """Colour times opacity, and opacity, of what is below and behind the head, with a margin around the picture."""
        me = self.identity
        shape = (HEIGHT + 2 * _MARGIN, WIDTH + 2 * _MARGIN)
        colour, opacity = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 3), np.float32)
        middle = np.array([WIDTH / 2, HEIGHT * 0.47]) + _MARGIN

        def paint(points: Any, shade: Any, soft: float) -> None:
            pixels = np.round((_mirrored(points) * me.size + middle) * (1 << _SUBPIXEL)).astype(np.int32)
            mask = np.zeros(shape, np.float32)
            cv2.fillPoly(mask, [pixels], 1.0, cv2.LINE_AA, _SUBPIXEL)
            mask = _blurred(mask, soft)[..., None]
            colour[:] += (np.asarray(shade, np.float32) - colour) * mask
            opacity[:] += (1 - opacity) * mask

        if me.long_hair:
            paint([(0, -1.5), (0.9, -1.2), (1.2, -0.2), (1.22, 0.9), (0.95, 1.6), (0.4, 1.7), (0, 1.7)],
                  np.array(me.hair) * 0.7, 2)  # fmt: skip
        paint([(0, 1.5), (0.5, 1.55), (1.4, 1.8), (1.75, 2.3), (1.9, 4.0), (0, 4.0)], me.shirt, 1)
        paint([(0, 0.9), (0.5, 0.9), (0.52, 1.45), (0.62, 1.68), (0.3, 1.86), (0, 1.92)], np.array(me.skin) * 0.68, 2)
        return colour, opacity

    def _paste(self, picture: Floats, texture: Floats, turn: NDArray[np.float64], centre: Points) -> None:
        """Lay the turned head over the picture (orthographic view)."""
        reach = np.array([1.45, 1.75]) * self.identity.size
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach), [WIDTH, HEIGHT]).astype(int)
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
        x, y = (x - centre[0]) / self.identity.size, (y - centre[1]) / self.identity.size
        # Seen at (x, y) is the point (u, v, z(u, v)) with turn[:2] @ point = (x, y); solved by iterating on z.
        back, lean = np.linalg.inv(turn[:2, :2]), turn[:2, 2]
        z = np.full_like(x, 0.6)
        for _ in range(3):
            right, below = x - lean[0] * (z - 0.5), y - lean[1] * (z - 0.5)
            u = back[0, 0] * right + back[0, 1] * below
            v = back[1, 0] * right + back[1, 1] * below
            at = (((u + _HALF_W) * _SCALE).astype(np.float32), ((v + _HALF_H) * _SCALE).astype(np.float32))
            z = cv2.remap(self._height, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        colour = cv2.remap(texture, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.remap(self._alpha, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        window = picture[low[1] : high[1], low[0] : high[0]]
        window += (colour - window) * alpha[..., None]


def _rotation(pose: Pose) -> NDArray[np.float64]:
    """Head to camera; x right, y down, z towards the camera."""
    yaw, pitch, roll = np.radians([pose.yaw, pose.pitch, pose.roll])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return about_z @ about_x @ about_y
