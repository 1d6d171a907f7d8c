"""A speaker's voice, and a clip's sound with the true times of its words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmfeat.demo.plan import PlannedClip
from mmfeat.espeak import Spoken, speak

RATE = 22050
_LEAD, _TAIL = 0.30, 0.35  # seconds of room before the first and after the last word, about
# None of the voices with breath (f2, f3, f5, …): for them espeak-ng reads memory that it never set.
_FEMALE = ("f1", "f4", "Annie", "linda")
_MALE = ("m1", "m3", "m7", "Alex")


@dataclass(frozen=True)
class Voice:
    """What does not change within a speaker, in espeak's units."""

    name: str
    rate: float
    pitch: float
    pitch_range: float
    gain: float
    """dB."""
    room: float
    """Background noise relative to full scale, dB."""


def random_voice(random: np.random.Generator, female: bool) -> Voice:
    names = _FEMALE if female else _MALE
    return Voice(
        name=f"en-us+{names[random.integers(len(names))]}",
        rate=random.normal(172, 6),
        pitch=random.normal(50, 3),
        pitch_range=random.normal(46, 5),
        gain=random.normal(-11, 1.0),
        room=random.uniform(-62, -52),
    )


@dataclass(frozen=True, eq=False)
class Sound:
    samples: NDArray[np.float32]
    """Mono at RATE, full scale 1."""
    words: list[Spoken]
    speech: tuple[float, float]
    """When the first word begins and the last one ends, seconds."""


def say(clip: PlannedClip, voice: Voice, random: np.random.Generator) -> Sound:
    """Speak a clip's sentence: higher, livelier, faster and louder for a positive A label, the opposite for a negative.

    espeak's word events are the truth: a word begins with its first sound and ends with its last one, so pauses and the
    silence around the sentence belong to no word.
    """
    drive = clip.A + random.normal(0, 0.2)
    aspects = drive + random.normal(0, 0.22, 4)
    speech = speak(
        clip.text,
        voice.name,
        rate=int(np.clip(voice.rate + 27 * aspects[0], 110, 240)),
        pitch=int(np.clip(voice.pitch + 26 * aspects[1], 5, 95)),
        pitch_range=int(np.clip(voice.pitch_range + 26 * aspects[2], 5, 99)),
    )
    end = speech.words[-1].end + 0.02
    spoken = speech.waveform.samples[: round(end * RATE)].astype(np.float64)
    level = 10 ** ((voice.gain + 4.5 * aspects[3]) / 20)
    spoken *= min(level * 0.18 / np.sqrt(np.mean(spoken**2)), 0.97 / np.abs(spoken).max())
    lead = round((_LEAD + random.uniform(-0.08, 0.15)) * RATE)
    tail = round((_TAIL + random.uniform(-0.08, 0.15)) * RATE)
    samples = np.concatenate([np.zeros(lead), spoken, np.zeros(tail)])
    samples += 10 ** (voice.room / 20) * random.standard_normal(len(samples))
    shift = lead / RATE
    words = [Spoken(w.text, w.start + shift, w.end + shift) for w in speech.words]
    return Sound(samples.astype(np.float32), words, (words[0].start, words[-1].end))


def loudness(samples: NDArray[np.float32], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square within 30 ms of each time, relative to the loudest of them: 0 to 1."""
    power = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    low = np.clip(np.round((times - 0.03) * RATE).astype(int), 0, len(samples) - 1)
    high = np.clip(np.round((times + 0.03) * RATE).astype(int), low + 1, len(samples))
    level = np.sqrt((power[high] - power[low]) / (high - low))
    return level / max(level.max(), 1e-9)
