"""What a drawn face is made of: who it is, and how it looks at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Identity:
    """What does not change within a speaker. Colours are RGB, 0 to 255."""

    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lips: tuple[float, float, float]
    shirt: tuple[float, float, float]
    wall: tuple[float, float, float]
    long_hair: bool
    jaw: float
    """Width of the jaw, about 1."""
    nose: float
    """Width of the nose, about 1."""
    eyes: float
    """Size of the eyes, about 1."""
    brows: float
    """Thickness of the brows, about 1."""
    size: float
    """Picture pixels per face unit."""
    light: tuple[float, float, float]
    """Direction towards the light: right, down, towards the camera."""
    texture: int
    """Seed of the skin's and the wall's texture."""


@dataclass(frozen=True)
class Pose:
    """One moment of a face; everything 0 is a calm face that looks into the camera."""

    smile: float = 0.0
    """Lip corners: 1 up and out, -1 down."""
    brow: float = 0.0
    """1 raised, -1 lowered and drawn together."""
    mouth: float = 0.0
    """0 closed, 1 wide open."""
    eyes: float = 1.0
    """0 shut, 1 open."""
    gaze: tuple[float, float] = (0.0, 0.0)
    """Right and down, -1 to 1."""
    yaw: float = 0.0
    """Degrees, positive to the right of the picture."""
    pitch: float = 0.0
    """Degrees, positive down."""
    roll: float = 0.0
    """Degrees, positive clockwise."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Face units from the middle of the picture."""


def random_identity(random: np.random.Generator, female: bool) -> Identity:
    tone = random.uniform(0, 1)
    skin = (1 - tone) * np.array([236, 193, 165]) + tone * np.array([141, 94, 68]) + random.normal(0, 4, 3)
    hairs = np.array([[42, 30, 24], [72, 48, 32], [110, 74, 44], [168, 128, 78], [58, 58, 60]])
    hair = hairs[random.integers(len(hairs) if tone < 0.5 else 2)] + random.normal(0, 5, 3)
    irises = np.array([[74, 48, 28], [96, 72, 40], [70, 96, 70], [70, 104, 140]])
    lips = skin * [0.84, 0.58, 0.58] + ([18, 0, 4] if female else [0, 4, 4])
    return Identity(
        skin=tuple(skin),
        hair=tuple(hair),
        iris=tuple(irises[random.integers(len(irises) if tone < 0.5 else 2)]),
        lips=tuple(lips),
        shirt=tuple(random.uniform(30, 200, 3)),
        wall=tuple(random.uniform(90, 190) + random.normal(0, 14, 3)),
        long_hair=female and bool(random.uniform() < 0.8),
        jaw=random.uniform(0.9, 0.98) if female else random.uniform(0.98, 1.08),
        nose=random.uniform(0.85, 1.15),
        eyes=random.uniform(0.95, 1.12),
        brows=random.uniform(0.7, 0.95) if female else random.uniform(0.95, 1.3),
        size=random.uniform(54, 64),
        light=(random.uniform(-0.7, 0.7), random.uniform(-0.6, -0.2), 1.0),
        texture=int(random.integers(1 << 31)),
    )
