"""What extractors, which may be anybody's, have to keep to beyond what Track and Wordpieces check themselves.

And what they may rely on: a transcript is Unicode text.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mmfeat.track import Track, Wordpieces

_NO_TEXT = re.compile("[\ud800-\udfff\0]")

_BEHIND = 0.1
"""Seconds by which steps that are as long may end behind the clip: a window begun there, a codec's padding."""


def check_track(track: Any, extractor: Any, seconds: float | None = None) -> None:
    """Raises TypeError or ValueError, naming the extractor and the rule. `seconds` is the clip's length, if known."""
    who = type(extractor).__name__
    if not isinstance(track, Track):
        raise TypeError(f"{who} returned {type(track).__name__}, not a Track")
    if track.names != tuple(extractor.names):
        raise ValueError(f"{who} returned {len(track.names)} columns that are not its {len(extractor.names)} names")
    if track.values[~track.valid].any():
        raise ValueError(f"{who} returned values in rows that are not valid; they must be zero")
    if not len(track):
        return
    starts, ends = track.times.T
    first, last = float(starts.min()), float(ends.max())
    end = math.inf if seconds is None else seconds
    if first < 0 or starts.max() >= end or last > end + min(float((ends - starts).max()), _BEHIND):
        length = "" if seconds is None else f" of {seconds:.3f} s"
        raise ValueError(f"{who} returned times from {first:.3f} to {last:.3f} s, outside the clip{length}")


def no_text(transcript: str) -> str:
    """Why neither a tokenizer nor HDF5 can hold a transcript; empty where they can.

    A label.csv that holds such text is refused as a whole. It comes from Python and from the command line, decoded with
    a wrong encoding, and nobody knows which letters it stood for.
    """
    if not (found := _NO_TEXT.search(transcript)):
        return ""
    what = "a NUL character" if found[0] == "\0" else f"half a character (the lone surrogate U+{ord(found[0]):X})"
    return f"the transcript is no Unicode text: {what} at character {found.start() + 1} of {len(transcript)}"


def check_text(pieces: Any, extractor: Any, text: str) -> None:
    """Raises TypeError or ValueError, naming the extractor and the rule."""
    who = type(extractor).__name__
    if not isinstance(pieces, Wordpieces):
        raise TypeError(f"{who} returned {type(pieces).__name__}, not Wordpieces")
    if pieces.values.shape[1] != len(extractor.names):
        raise ValueError(f"{who} returned {pieces.values.shape[1]} columns for its {len(extractor.names)} names")
    if len(pieces.spans) and pieces.spans.max() > len(text):
        raise ValueError(f"{who} returned spans that end behind the transcript's {len(text)} characters")
