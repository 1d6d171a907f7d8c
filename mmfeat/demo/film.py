"""One planned clip → one mp4 file: H.264 and AAC, 25 pictures a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from mmfeat.demo.face import HEIGHT, WIDTH, Face, Pose, random_identity
from mmfeat.demo.plan import PlannedClip
from mmfeat.demo.speech import RATE, Sound, loudness, random_voice, say
from mmfeat.espeak import Spoken
from mmfeat.files import atomic

FPS = 25


def make_clip(clip: PlannedClip, path: Path) -> list[Spoken]:
    """Write the clip, atomically; returns its true word times. The same plan gives the same bytes."""
    cv2.setNumThreads(1)
    corpus_seed, speaker, _ = clip.seed
    of_speaker = np.random.default_rng((corpus_seed, speaker, 0))
    face = Face(random_identity(of_speaker, clip.female))
    voice = random_voice(of_speaker, clip.female)
    rest = of_speaker.normal(0, [0.10, 0.10])  # the speaker's calm face is not quite neutral
    random = np.random.default_rng(clip.seed)
    sound = say(clip, voice, random)
    poses = perform(clip.V, sound, rest, random)
    with atomic(path) as temporary:
        _write(temporary, face, poses, sound.samples)
    return sound.words


def _wander(random: np.random.Generator, steps: int, seconds: float, spread: float) -> NDArray[np.float64]:
    """A smooth random path around 0 with the given standard deviation and time scale."""
    keep = np.exp(-1 / (FPS * seconds))
    path = np.empty(steps)
    value = random.normal()
    for step in range(steps):
        value = keep * value + np.sqrt(1 - keep**2) * random.normal()
        path[step] = value
    return spread * np.convolve(np.pad(path, 3, mode="edge"), np.ones(7) / 7, "valid")


def perform(V: int, sound: Sound, rest: NDArray[np.float64], random: np.random.Generator) -> list[Pose]:
    """The face's moments, one per picture.

    A positive V label means raised lip corners and brows and eyes on the camera; a negative one lowered corners and
    brows drawn together, and eyes that turn away. The mouth follows the speech's loudness. All of it with noise.
    """
    steps = int(np.ceil(len(sound.samples) / RATE * FPS))
    times = (np.arange(steps) + 0.5) / FPS
    onset, apex = random.uniform(0, 0.3) * times[-1], random.uniform(0.2, 0.5)
    course = 0.35 + 0.65 * np.clip((times - onset) / apex, 0, 1)
    drive = 0.8 * V + random.normal(0, 0.22)
    smile = (drive + random.normal(0, 0.18)) * course + rest[0] + _wander(random, steps, 0.5, 0.10)
    brow = (0.8 * drive + random.normal(0, 0.28)) * course + rest[1] + _wander(random, steps, 0.5, 0.12)
    mouth = 0.75 * loudness(sound.samples, times) ** 0.7 * random.uniform(0.7, 1.1)
    away = max(-drive, 0.0) * random.choice([-0.5, 0.5])
    gaze = away + _wander(random, steps, 0.3, 0.18), 0.3 * abs(away) + _wander(random, steps, 0.3, 0.12)
    blink = np.ones(steps)
    for start in np.cumsum(random.exponential(2.2, 4)):
        blink = np.minimum(blink, np.clip(np.abs(times - start) / 0.09, 0.0, 1.0))
    eyes = np.clip(1 + 0.12 * brow + _wander(random, steps, 0.6, 0.05), 0.4, 1.15) * blink
    lean = random.normal(0, [6, 3, 2.5])
    yaw = lean[0] + _wander(random, steps, 0.8, 5.0)
    pitch = lean[1] + _wander(random, steps, 0.7, 2.5) - 2.5 * mouth
    roll = lean[2] + _wander(random, steps, 0.8, 2.0)
    shift = _wander(random, steps, 0.9, 0.08) + random.normal(0, 0.12), _wander(random, steps, 0.9, 0.05)
    return [
        Pose(
            float(np.clip(smile[i], -1, 1)),
            float(np.clip(brow[i], -1, 1)),
            float(np.clip(mouth[i] - 0.05, 0, 1)),
            float(eyes[i]),
            (float(np.clip(gaze[0][i], -1, 1)), float(np.clip(gaze[1][i], -1, 1))),
            float(yaw[i]),
            float(pitch[i]),
            float(roll[i]),
            (float(shift[0][i]), float(shift[1][i])),
        )
        for i in range(steps)
    ]


def _write(path: Path, face: Face, poses: list[Pose], samples: NDArray[np.float32]) -> None:
    with av.open(str(path), "w", format="mp4") as file:
        # One thread and no look-ahead: x264's look-ahead gave other bytes for the same pictures from run to run.
        options = {"preset": "veryfast", "crf": "21", "x264-params": "threads=1:rc-lookahead=0:mbtree=0"}
        video = file.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1
        audio = file.add_stream("aac", rate=RATE, layout="mono")
        audio.bit_rate = 96_000
        for index, pose in enumerate(poses):
            frame = av.VideoFrame.from_ndarray(face.draw(pose, index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        fifo = av.AudioFifo()
        fifo.write(sound)
        for piece in fifo.read_many(1024, partial=True):
            file.mux(audio.encode(piece))
        file.mux(audio.encode(None))
