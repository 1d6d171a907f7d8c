"""Who speaks: the mouth that moves as the sound does, moment by moment.

The sound's loudness, where a voice is in it, is compared with how far each mouth is open, how it opens and closes, and
how much it moves. People are then assigned to frames so that mouths and sound agree best over all, at a price for every
change of speaker (Viterbi 1967), so that the choice does not flicker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmfeat import voice
from mmfeat.track import Seconds, Waveform

Floats = NDArray[np.floating]

_RATE = 50
"""Points per second on which mouths and sound are compared."""
_BANDS = (600, 800, 1100, 1500, 2200, 3200)
_HUM = (80, 600)
"""Hz. An open mouth is loud between the first and the third formant, in each part of that range; below, nasals and
voiced stops are loud too, for which it is shut."""
_QUIET = 3e-3
"""Power of silence, of that of loud speech."""
_SIGNALS = {"open": (0.5, 0.01, 0.4), "opening": (1.0, 0.001, 0.4), "moving": (1.0, 0.25, 0.2)}
"""What is compared → its weight; the spread with which it counts by half, in distances of the outer eye corners (their
log for `moving`), as every face trembles a little; and how much of `_HUM` is taken from the sound's level."""
_STILL, _SPEAKS = 5e-4, 5e-3
"""Motion per point of a mouth at rest, and of one that speaks, at least: 0.006 to 0.03 in real footage."""
_AT_REST = 1.0
"""What a mouth at rest loses while a voice is heard."""
_LAGS = range(-5, 8)
"""Points by which the pictures may come after the sound: files are out of step by a tenth of a second."""
_USUAL_LAG, _UNUSUAL = 1, 0.005
"""The usual lag, and what each point away from it takes from the agreement."""
_CHANGE = 12.0
"""Price of a change of speaker, in points of full agreement."""

_CONVINCING = 0.35
"""Mean agreement of the chosen while a voice is heard, mostly more in footage that is in step, else mostly less."""

_SOUND_RATE, _FFT = 16000, 1024
POINTS = (82, 13, 312, 87, 14, 317, 0, 17, 2, 152, 33, 263)
"""Points of the mesh that `openings` takes: inner upper and lower lip, both lips' rims, nose and chin, eye corners."""


@dataclass(frozen=True, eq=False)
class Mouth:
    """One person's, in the frames in which they are seen."""

    frames: NDArray[np.intp]
    openings: Floats
    """Shape (N,): see `openings`."""


def openings(points: Floats) -> Floats:
    """Shape (N,): how far mouths are open, from the mesh's `POINTS` (N, 12, 3): the sum of the distances between the
    lips, over both lips, and from nose to chin, over that of the outer eye corners.
    """
    inner = np.linalg.norm(points[:, 0:3] - points[:, 3:6], axis=2).mean(axis=1)
    outer, jaw, eyes = np.linalg.norm(points[:, 6::2] - points[:, 7::2], axis=2).T
    return (inner + outer + jaw) / np.maximum(eyes, 1e-6)


def speakers(mouths: Mapping[int, Mouth], times: Seconds, sound: Waveform) -> tuple[NDArray[np.intp], str]:
    """Shape (T,): who of those seen in each frame speaks, by their keys; -1 where nobody is seen, or nobody speaks.

    And why that is doubtful; empty where it is not.

    `times` holds start and end of each frame. While nobody speaks, the choice stays with the one who spoke last, or,
    before the first word, with the one who will. Raises MissingModelError where silero-vad was not pulled.
    """
    found = np.full(len(times), -1, np.intp)
    heard = _Sound(sound)
    if not heard.is_speech:
        return found, ""
    tracks = {person: _track(mouth, times) for person, mouth in mouths.items()}
    lag = max(_LAGS, key=lambda lag: _agreement(tracks.values(), heard, lag) - _UNUSUAL * abs(lag - _USUAL_LAG))
    points = np.diff(times, axis=1)[:, 0] * _RATE
    agreed: list[Floats] = []
    for people in _together(mouths):
        first = min(mouths[person].frames[0] for person in people)
        gain = np.full((len(people), max(mouths[person].frames[-1] for person in people) + 1 - first), -np.inf)
        for row, person in enumerate(people):
            frames = mouths[person].frames
            agreement = np.interp(
                times[frames].mean(axis=1), tracks[person].times, tracks[person].agreement(heard, lag)
            )
            gain[row, frames - first] = agreement * points[frames]
        seen = np.flatnonzero(np.isfinite(gain).any(axis=0))
        path = _viterbi(gain)[seen]
        found[first + seen] = np.array(people)[path]
        frames = first + seen
        is_voiced = np.interp(times[frames].mean(axis=1), heard.clock, heard.voiced) > 0.5
        agreed.append((gain[path, seen] / points[frames])[is_voiced])
    return found, _doubt(np.concatenate(agreed), lag)


def _doubt(agreement: Floats, lag: int) -> str:
    """What speaks against a choice, from the agreement of the chosen while a voice is heard, and the lag."""
    if lag in (_LAGS[0], _LAGS[-1]):
        return "who speaks is doubtful: pictures and sound may be out of step"
    if len(agreement) and agreement.mean() < _CONVINCING:
        return f"who speaks is doubtful: lips and voice agree by {agreement.mean():.2f} of {_CONVINCING}"
    return ""


def _together(mouths: Mapping[int, Mouth]) -> list[list[int]]:
    """People in groups whose times in the picture overlap: a choice between others is none."""
    groups: list[list[int]] = []
    until = -1
    for person in sorted(mouths, key=lambda person: mouths[person].frames[0]):
        if mouths[person].frames[0] > until:
            groups.append([])
        groups[-1].append(person)
        until = max(until, int(mouths[person].frames[-1]))
    return groups


class _Sound:
    """What of the sound a mouth can follow, on the common clock; only that there is none where nobody speaks."""

    def __init__(self, sound: Waveform):
        steps, probability = voice.speech(sound)
        clock = np.arange(round(sound.seconds * _RATE)) / _RATE
        self.is_speech = bool(len(clock)) and bool((probability > 0.5).any())
        if not self.is_speech:
            return
        voiced = np.interp(clock, steps.mean(axis=1), probability) > 0.5
        hum, *bands = _levels(sound, clock, voiced)
        smooth = {"open": 1.5, "opening": 3.0, "moving": 5.0}
        levels = {
            name: _smooth(np.mean(bands, axis=0) - without * hum, smooth[name])
            for name, (_, _, without) in _SIGNALS.items()
        }
        levels["opening"] = _slope(levels["opening"])
        self.signals = {name: _standard(level) for name, level in levels.items()}
        self.clock, self.voiced = clock, voiced.astype(float)


@dataclass(frozen=True, eq=False)
class _Track:
    """A mouth on the common clock."""

    first: int
    signals: dict[str, Floats]
    rest: Floats
    """1 where the mouth is at rest, 0 where it moves as in speech."""

    @property
    def times(self) -> Floats:
        return (self.first + np.arange(len(self.signals["open"]))) / _RATE

    def agreement(self, sound: _Sound, lag: int) -> Floats:
        """Per step: about 1 where the mouth does what the sound does, and negative where it does the opposite."""
        total = np.zeros(len(self.signals["open"]))
        at = self.first + np.arange(len(total)) - lag
        for name, (weight, _, _) in _SIGNALS.items():
            heard = sound.signals[name]
            inside = (at >= 0) & (at < len(heard))
            total[inside] += weight * self.signals[name][inside] * heard[at[inside]]
        total /= sum(weight for weight, _, _ in _SIGNALS.values())
        inside = (at >= 0) & (at < len(sound.voiced))
        total[inside] -= _AT_REST * self.rest[inside] * sound.voiced[at[inside]]
        return total


def _track(mouth: Mouth, times: Seconds) -> _Track:
    middles = times[mouth.frames].mean(axis=1)
    first, last = int(np.ceil(middles[0] * _RATE)), int(np.floor(middles[-1] * _RATE))
    clock = np.arange(first, max(last, first) + 1) / _RATE
    opening = _smooth(np.interp(clock, middles, mouth.openings), 1.5)
    speed = _slope(opening)
    signals = {
        "open": opening,
        "opening": _smooth(speed, 2.5),
        "moving": np.log(_smooth(np.abs(speed), 5) + _STILL),
    }
    rest = np.clip(1 - _smooth(np.abs(speed), 12) / _SPEAKS, 0, 1)
    return _Track(first, {name: _standard(signal, _SIGNALS[name][1]) for name, signal in signals.items()}, rest)


def _agreement(tracks: Iterable[_Track], sound: _Sound, lag: int) -> float:
    """Mean over time, were everybody's best half second theirs."""
    best = np.zeros(max(track.first + len(track.times) for track in tracks))
    for track in tracks:
        part = best[track.first : track.first + len(track.times)]
        np.maximum(part, _smooth(track.agreement(sound, lag), 25), out=part)
    return float(best.mean())


def _viterbi(gain: Floats) -> NDArray[np.intp]:
    """Shape (T,): the path through (people, T) with the largest sum, a change of person costing `_CHANGE`.

    Where a person's gain is minus infinity they cannot be chosen, unless nobody can.
    """
    people, steps = gain.shape
    gain = np.where(np.isfinite(gain).any(axis=0), np.maximum(gain, -1e6), 0.0)
    total = np.zeros(people)
    came = np.empty((steps, people), np.intp)
    stay = np.arange(people)
    for step in range(steps):
        leader = int(total.argmax())
        change = total[leader] - _CHANGE > total
        came[step] = np.where(change, leader, stay)
        total = np.where(change, total[leader] - _CHANGE, total) + gain[:, step]
    path = np.empty(steps, np.intp)
    last = int(total.argmax())
    for step in range(steps - 1, -1, -1):
        path[step] = last
        last = came[step, last]
    return path


def _levels(sound: Waveform, clock: Floats, voiced: NDArray[np.bool_]) -> list[Floats]:
    """Log power around each time in `_HUM` and each of `_BANDS`, that of loud speech being 0; Hann windows of 50 ms."""
    import librosa

    samples = sound.at(_SOUND_RATE).samples
    samples = np.pad(samples, (0, max(0, _FFT - len(samples))))  # librosa warns of less
    spectrum = librosa.stft(samples, n_fft=_FFT, win_length=800, hop_length=160, pad_mode="constant")
    power = spectrum.real**2 + spectrum.imag**2
    frequencies = np.arange(len(power)) * (_SOUND_RATE / _FFT)
    found = []
    for low, high in (_HUM, *pairwise(_BANDS)):
        band = power[(frequencies >= low) & (frequencies < high)].sum(axis=0)
        level = np.interp(clock, np.arange(len(band)) * (160 / _SOUND_RATE), _smooth(band, 1))
        loud = np.quantile(level[voiced], 0.95) if voiced.any() else 0.0
        found.append(np.log(level / max(loud, 1e-12) + _QUIET))
    return found


def _slope(values: Floats) -> Floats:
    return np.gradient(values) if len(values) > 1 else np.zeros(len(values))


def _smooth(values: Floats, width: float) -> Floats:
    """Mean under a Gaussian with a standard deviation of `width` steps; ends are repeated."""
    reach = int(4 * width)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), weights / weights.sum(), "valid")


def _standard(values: Floats, floor: float = 1e-9) -> Floats:
    """Mean 0 and a standard deviation of nearly 1, less where values hardly vary; no moment decides alone."""
    if not len(values):
        return values
    return np.clip((values - values.mean()) / np.hypot(values.std(), floor), -2, 2)
