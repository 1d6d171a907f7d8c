"""What extractors, which may be anybody's, have to keep to beyond what Track and Wordpieces check themselves."""

from __future__ import annotations

from typing import Any

from mmfeat.track import Track, Wordpieces


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
    step = float((track.times[:, 1] - track.times[:, 0]).max())
    first, last = float(track.times[:, 0].min()), float(track.times[:, 1].max())
    if first < 0 or (seconds is not None and last > seconds + step):
        length = "" if seconds is None else f" of {seconds:.3f} s"
        raise ValueError(f"{who} returned times from {first:.3f} to {last:.3f} s, outside the clip{length}")


def check_text(pieces: Any, extractor: Any, text: str) -> None:
    """Raises TypeError or ValueError, naming the extractor and the rule."""
    who = type(extractor).__name__
    if not isinstance(pieces, Wordpieces):
        raise TypeError(f"{who} returned {type(pieces).__name__}, not Wordpieces")
    if pieces.values.shape[1] != len(extractor.names):
        raise ValueError(f"{who} returned {pieces.values.shape[1]} columns for its {len(extractor.names)} names")
    if len(pieces.spans) and pieces.spans.max() > len(text):
        raise ValueError(f"{who} returned spans that end behind the transcript's {len(text)} characters")
