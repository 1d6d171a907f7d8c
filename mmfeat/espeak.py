"""espeak-ng through ctypes: speech with the times of its words and sounds, and the sounds of written words.

The library and its data come in the wheel of espeakng-loader (espeak-ng is GPL-3.0, the loader MIT).
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmfeat.track import Waveform

# From espeak-ng's speak_lib.h.
_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT = 2, 1, 0x8000
_UTF8, _END_PAUSE = 1, 0x1000
_WORD, _PHONEME = 1, 7
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_IPA = 0x02

_lock = threading.Lock()


class EspeakError(RuntimeError):
    """espeak-ng does not start, or refused a voice or a text."""


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Spoken:
    """A word or a sound on the time axis, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Speech:
    """Synthetic speech and what is known of it."""

    waveform: Waveform
    words: list[Spoken]
    """A word begins with its first sound and ends with its last one: pauses belong to no word."""
    sounds: list[Spoken]
    """espeak's phoneme mnemonics, pauses left out."""


@contextmanager
def _engine() -> Iterator[tuple[Any, int]]:
    """A newly loaded library and its sample rate.

    espeak-ng keeps random numbers and wave positions between two texts, which neither its seed nor its Terminate
    resets: the same text sounds different the second time. Loading the library anew (3 ms) does reset them.
    """
    import espeakng_loader

    with _lock:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            rate = library.espeak_Initialize(
                _SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), _PHONEME_EVENTS | _DONT_EXIT
            )
            if rate <= 0:
                raise EspeakError(f"espeak-ng does not start (status {rate})")
            yield library, rate
        finally:
            library.espeak_Terminate()
            unload = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary")  # noqa: B009 - one per system
            unload(library._handle)


def _select(library: Any, voice: str) -> None:
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise EspeakError(f"espeak-ng has no voice {voice!r}")


def speak(
    text: str, voice: str = "en-us", *, rate: int = 175, pitch: int = 50, pitch_range: int = 50, volume: int = 100
) -> Speech:
    """Synthesise `text`. The same arguments give the same samples, except for voices with breath (`f2`, `f3`, `f5`,
    `whisper` and a few more), whose noise espeak-ng 1.52 takes from memory that it never set.

    `voice` is a language with an optional variant (`en-us+f3`), `rate` counts words per minute, the others are
    espeak's scales from 0 to 100 (`volume` to 200). Raises EspeakError.
    """
    blocks: list[np.ndarray] = []
    events: list[tuple[int, int, int, int, str]] = []

    def receive(samples: Any, count: int, event: Any) -> int:
        if samples and count:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while event[index].type:
            item = event[index]
            if item.type in (_WORD, _PHONEME):
                name = item.id.string.decode("utf-8", "replace") if item.type == _PHONEME else ""
                events.append((item.type, item.sample, item.text_position, item.length, name))
            index += 1
        return 0

    callback = _Callback(receive)
    with _engine() as (library, sample_rate):
        library.espeak_SetSynthCallback(callback)
        _select(library, voice)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range), (_VOLUME, volume)):
            library.espeak_SetParameter(parameter, value, 0)
        # espeak-ng says "on the" and some other pairs as one word with one event; a no-break space keeps them apart.
        # After punctuation it would swallow the pause.
        data = re.sub(r"(?<=\w) ", "\u00a0", text).encode()
        if library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8 | _END_PAUSE, None, None) != 0:
            raise EspeakError(f"espeak-ng does not speak {text!r}")
        library.espeak_Synchronize()
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
    waveform = Waveform((samples / 32768).astype(np.float32), sample_rate)
    return Speech(waveform, *_on_time_axis(text, events, sample_rate, waveform.seconds))


def _on_time_axis(
    text: str, events: list[tuple[int, int, int, int, str]], rate: int, seconds: float
) -> tuple[list[Spoken], list[Spoken]]:
    """Words and sounds from events: a sound lasts until the next one (or pause) begins."""
    words: list[Spoken] = []
    sounds: list[Spoken] = []
    name = ""
    first = 0
    starts = [sample for kind, sample, *_ in events if kind == _PHONEME]
    ends = iter([*starts[1:], round(seconds * rate)])

    def close() -> None:
        if name and len(sounds) > first:
            words.append(Spoken(name, sounds[first].start, sounds[-1].end))

    for kind, sample, position, length, mnemonic in events:
        if kind == _WORD:
            close()
            name, first = text[position - 1 : position - 1 + length], len(sounds)
        else:
            end = next(ends)
            if mnemonic and not mnemonic.startswith("_") and end > sample:
                sounds.append(Spoken(mnemonic, sample / rate, end / rate))
    close()
    return words, sounds


def phonemes(words: Iterable[str], voice: str = "en-us") -> list[str]:
    """The pronunciation of each word in IPA, phonemes separated by `_`; empty where espeak-ng says nothing."""
    found = []
    with _engine() as (library, _):
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        _select(library, voice)
        for word in words:
            rest = ctypes.c_char_p(word.encode())
            parts = []
            while rest.value:
                part = library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, ord("_") << 8 | _IPA)
                parts.append((part or b"").decode())
            found.append("_".join(part.strip() for part in parts if part.strip()))
    return found
