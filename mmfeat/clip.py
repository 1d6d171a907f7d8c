"""One clip → its features: the pictures and the sound are decoded once and given to each part's extractor."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mmfeat import align, contract
from mmfeat.corpus import Clip
from mmfeat.extractors import MissingBackendError
from mmfeat.media import Media, MediaError, open_media
from mmfeat.recipe import PARTS, Recipe, load_recipe
from mmfeat.shards import Shard, ShardError, Store
from mmfeat.sound_quality import Quality, at_loudness, measure
from mmfeat.track import Frame, Track, Waveform, Word, Wordpieces
from mmfeat.words import AlignmentError

FAILED = "failed"
READS = 3
"""Times that a clip is read whose file is another one when that is done: a corpus may still be copied."""
Timings = dict[str, float]
"""Wall seconds by kind of work: decode, transcript, vision, audio, text, words."""


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Everything extracted from one clip; what `mmfeat.extract` returns."""

    tracks: dict[str, Track]
    """`vision` and `audio`; without any step where the stream is missing."""
    text: Wordpieces
    words: list[Word]
    status: str
    """`ok`, or states joined by `+`: no_video, no_face, no_audio, silent, clipped, no_text, transcribed, cut_text,
    no_words, damaged."""
    reason: str
    seconds: float
    timings: Timings
    transcript: str = ""
    """What speech recognition heard, where no transcript was given."""
    pooling: align.Method = "mean"
    grid_hz: float | None = None
    sound: Quality | None = None
    """Of the recording, before any change of loudness; None where there is no sound."""

    @property
    def vision(self) -> Track:
        return self.tracks["vision"]

    @property
    def audio(self) -> Track:
        return self.tracks["audio"]

    def rows(self, aligned: bool = False) -> align.Rows:
        """Arrays of this clip as the feature file holds them, not padded. Raises MediaError where words are missing."""
        if not aligned and self.grid_hz:
            return align.grid_rows(self.tracks, self.text, self.seconds, self.grid_hz, self.pooling)
        if not aligned:
            return align.unaligned_rows(self.tracks, self.text)
        if "no_words" in self.status:
            raise MediaError(f"cannot be aligned: {self.reason}")
        return align.aligned_rows(self.tracks, self.text, self.words, self.pooling)


@dataclass(frozen=True)
class ClipReport:
    """What a worker says of one clip: small, picklable, no arrays."""

    id: str
    status: str
    reason: str
    seconds: float
    parts: tuple[str, ...]
    timings: Timings = field(default_factory=dict)


def extract(
    path: str | Path,
    text: str = "",
    recipe: str | Path | Recipe = "default",
    start: float | None = None,
    end: float | None = None,
) -> ClipFeatures:
    """Extract one clip. `start` and `end` (seconds) cut it out of a longer file.

    >>> features = mmfeat.extract("clip.mp4", text="what a lovely day")
    >>> features.vision.names[:2], features.vision.values.shape

    Raises MediaError where nothing can be decoded or a part fails, RecipeError for a wrong recipe, and
    MissingBackendError, with the command that helps, where a package or a model is not installed.
    """
    recipe = load_recipe(recipe)
    clip = recipe.locate(Clip("", Path(path).stem, "test", Path(path), text, math.nan, start=start, end=end))
    shards, timings = _extract(clip, recipe, recipe.parts())
    failures: dict[str, list[str]] = {}
    for part, shard in shards.items():
        if shard.status == FAILED:
            failures.setdefault(shard.reason, []).append(part)
    if failures:
        said = (f"{', '.join(failed)}: {reason}" for reason, failed in failures.items())
        raise MediaError(f"{path}: {'; '.join(said)}")
    return features(shards, recipe, timings)


def extract_to_store(clip: Clip, recipe: Recipe, store: Store, parts: Iterable[str] = PARTS) -> ClipReport:
    """Extract `parts` of a clip and write a shard for each: the task that pipelines run.

    A bad clip is never an exception: its shards say why. Raises MissingBackendError, since then no clip can succeed,
    and OSError where the store cannot be written.
    """
    parts = tuple(part for part in recipe.parts() if part in set(parts))
    clip = recipe.locate(clip)
    fingerprints = {**fingerprints_of(recipe), "transcript": clip.transcriber}
    for _ in range(READS):
        places = store.places(clip, fingerprints)
        shards, timings = _extract(clip, recipe, parts, _heard_before(clip, store))
        now = store.places(clip, fingerprints)
        changed = {part for part in shards if now[part] != places[part]}
        if not changed:
            break
        places = now
        reason = f"its file changed while it was read, {READS} times (--retry-failed reads it again)"
        shards |= {part: Shard(FAILED, reason) for part in changed}
    began = time.perf_counter()
    for part, shard in shards.items():
        if shard.status == FAILED:
            store.fail_at(places[part], clip, shard.reason)
        else:
            store.write_at(places[part], clip, shard)
    timings["store"] = time.perf_counter() - began
    status, reason, seconds = summary(shards)
    return ClipReport(clip.id, status, reason, seconds, parts, timings)


def summary(shards: dict[str, Shard]) -> tuple[str, str, float]:
    """(status, reason, seconds) of a clip from those of its parts: failed as soon as one part failed."""
    seconds = max((shard.seconds for shard in shards.values()), default=0.0)
    said = {part: shard for part, shard in shards.items() if shard.status != "ok" or shard.reason}
    reasons = list(dict.fromkeys(shard.reason for shard in said.values() if shard.reason))
    if failed := {part: shard.reason for part, shard in shards.items() if shard.status == FAILED}:
        same = len(set(failed.values())) == 1
        reason = next(iter(failed.values())) if same else "; ".join(f"{part}: {why}" for part, why in failed.items())
        return FAILED, reason, seconds
    states = dict.fromkeys(state for shard in said.values() for state in shard.status.split("+") if state != "ok")
    return "+".join(states) or "ok", "; ".join(reasons), seconds


def features(shards: dict[str, Shard], recipe: Recipe, timings: Timings | None = None) -> ClipFeatures:
    """Tracks, wordpieces and words back from shards, none of which may have failed."""
    tracks = {}
    for part in ("vision", "audio"):
        arrays = shards[part].arrays
        tracks[part] = Track(arrays["times"], arrays["values"], arrays["valid"], shards[part].names)
    arrays = shards["text"].arrays
    pieces = Wordpieces(arrays["ids"], arrays["segments"], arrays["spans"], arrays["values"])
    words = shards["words"].details["words"] if "words" in shards else []
    status, reason, seconds = summary(shards)
    found = [Word(**{**word, "span": tuple(word["span"])}) for word in words]
    measured = shards["audio"].details.get("quality")
    return ClipFeatures(
        tracks,
        pieces,
        found,
        status,
        reason,
        seconds,
        timings or {},
        shards["text"].details.get("transcript", ""),
        recipe.pooling,
        recipe.grid_hz,
        Quality(**measured) if measured else None,
    )


def _heard_before(clip: Clip, store: Store) -> str | None:
    """The clip's transcript, where speech recognition has made it for other parts already."""
    try:
        return store.read(clip, "transcript", clip.transcriber).details.get("text") if clip.transcriber else None
    except (FileNotFoundError, ShardError):
        return None


def _extract(
    clip: Clip, recipe: Recipe, parts: tuple[str, ...], heard: str | None = None
) -> tuple[dict[str, Shard], Timings]:
    """Shards of `parts`, and of "transcript" where one had to be made: where there is none and it was not `heard`."""
    timings: Timings = {}
    if heard is not None:
        clip = replace(clip, text=heard)
    elif clip.transcriber and not {"text", "words"}.isdisjoint(parts):
        parts = ("transcript", *parts)
    shards: dict[str, Shard] = {}
    if any(part != "text" for part in parts):
        try:
            shards |= _from_media(clip, recipe, parts, timings)
        except MediaError as error:
            shards |= {part: Shard(FAILED, str(error)) for part in parts if part != "text"}
    if "text" in parts:
        transcript = shards.get("transcript", Shard("ok", details={"text": clip.text}))
        if transcript.status == FAILED:
            shards["text"] = transcript
        else:
            clip = replace(clip, text=transcript.details["text"])
            shards["text"] = _guarded(lambda: _text(clip, recipe, timings))
    return {part: shards[part] for part in parts}, timings


def _from_media(clip: Clip, recipe: Recipe, parts: tuple[str, ...], timings: Timings) -> dict[str, Shard]:
    if clip.path is None:
        raise MediaError(clip.refused or "file not found")
    shards: dict[str, Shard] = {}
    with open_media(clip.path, clip.start, clip.end) as media:
        if "vision" in parts:
            shards["vision"] = _guarded(lambda: _vision(media, clip, recipe, timings))
        media.skip_video()  # where nobody asked for pictures
        try:
            with _timed(timings, "decode"):
                sound = media.waveform()
        except OSError as error:  # the clip's own file; an OSError of the store must stop the run
            raise MediaError(f"reading failed: {error}") from None
        if "transcript" in parts:
            shards["transcript"] = _guarded(lambda: _transcript(sound, recipe, timings))
            clip = replace(clip, text=shards["transcript"].details.get("text", ""))
        quality = None
        if sound is not None and len(sound.samples):
            quality = measure(sound)
            sound = sound if recipe.loudness is None else at_loudness(sound, recipe.loudness)
        if "audio" in parts:
            shards["audio"] = _guarded(lambda: _audio(sound, quality, recipe, timings))
        if "words" in parts:
            failed = "transcript" in shards and shards["transcript"].status == FAILED
            shards["words"] = shards["transcript"] if failed else _guarded(lambda: _words(sound, clip, recipe, timings))
        seconds = max([media.seconds, *(shard.seconds for shard in shards.values())])
        media.note_end(seconds)
        if media.damage:
            shards = {part: _damaged(shard, media.damage) for part, shard in shards.items()}
        return {part: replace(shard, seconds=seconds) for part, shard in shards.items()}


def _guarded(compute: Any) -> Shard:
    """A part's shard; whatever goes wrong in one part of one clip becomes its reason and costs nothing else."""
    try:
        return compute()
    except (MissingBackendError, KeyboardInterrupt):
        raise
    except MediaError as error:
        return Shard(FAILED, str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the library's own words are the reason the user reads
        return Shard(FAILED, f"{type(error).__name__}: {error}")


def _damaged(shard: Shard, damage: str) -> Shard:
    """What came before the damage is kept, and marked."""
    if shard.status == FAILED:
        return shard
    states = [state for state in (shard.status, "damaged") if state != "ok"]
    return replace(shard, status="+".join(states), reason="; ".join(filter(None, (shard.reason, damage))))


def _vision(media: Media, clip: Clip, recipe: Recipe, timings: Timings) -> Shard:
    extractor = loaded("vision", recipe)
    began, decoding = time.perf_counter(), timings.get("decode", 0.0)
    frames, registered = _timed_frames(media.frames(), timings), recipe.registered("vision")
    if registered.by_clip:
        track = extractor(frames, clip)
    elif registered.hears(recipe.config("vision")):
        track = extractor(frames, media.waveform)
    else:
        track = extractor(frames)
    contract.check_track(track, extractor, None if registered.by_clip else media.video_seconds)
    spent = time.perf_counter() - began
    timings["vision"] = spent - (timings.get("decode", 0.0) - decoding)
    if not len(track):
        return _track_shard(track, "no_video", "no picture could be decoded" if media.has_video else "")
    shard = _track_shard(track, "ok" if track.valid.any() else "no_face", track.note)
    return replace(shard, seconds=float(track.times[-1, 1]))  # pictures that were not decoded have a length too


def _audio(sound: Waveform | None, quality: Quality | None, recipe: Recipe, timings: Timings) -> Shard:
    extractor = loaded("audio", recipe)
    if sound is None or quality is None:
        return _track_shard(Track.empty(extractor.names), "no_audio")
    with _timed(timings, "audio"):
        track = extractor(sound)
        contract.check_track(track, extractor, sound.seconds)
        shard = _track_shard(track, quality.status, quality.reason)
    return replace(shard, details={**shard.details, "quality": asdict(quality)})


def _words(sound: Waveform | None, clip: Clip, recipe: Recipe, timings: Timings) -> Shard:
    if not clip.text.strip():
        return Shard("no_text", details={"words": []})
    if sound is None or not len(sound.samples):
        return Shard("no_words", "no sound to find words in", details={"words": []})
    aligner = loaded("words", recipe)
    try:
        with _timed(timings, "words"):
            found = aligner(sound, clip.text, clip) if "words" in clip.given else aligner(sound, clip.text)
    except AlignmentError as error:
        return Shard("no_words", f"words not found: {error}", details={"words": []})
    except Exception as error:  # noqa: BLE001 - pictures, sound and text of the clip are good all the same
        return Shard("no_words", f"words not found: {type(error).__name__}: {error}", details={"words": []})
    if not found:
        return Shard("no_words", "the transcript has no word, only punctuation or sounds", details={"words": []})
    return Shard("ok", details={"words": [asdict(word) for word in found]})


def _transcript(sound: Waveform | None, recipe: Recipe, timings: Timings) -> Shard:
    transcriber = loaded("transcript", recipe)
    with _timed(timings, "transcript"):
        return Shard("ok", details={"text": transcriber(sound) if sound is not None else ""})


def _text(clip: Clip, recipe: Recipe, timings: Timings) -> Shard:
    text, extractor = clip.text, loaded("text", recipe)
    if why := contract.no_text(text):
        return Shard(FAILED, why)
    with _timed(timings, "text"):
        pieces = extractor(text)
    contract.check_text(pieces, extractor, text)
    arrays: dict[str, NDArray[Any]] = {
        "ids": pieces.ids,
        "segments": pieces.segments,
        "spans": pieces.spans,
        "values": pieces.values,
    }
    steps, columns = pieces.values.shape
    details: dict[str, Any] = {"steps": steps, "columns": columns}
    if not text.strip():
        return Shard("no_text", arrays=arrays, details=details)
    states = []
    if clip.transcriber:
        details["transcript"] = text
        states.append("transcribed")
    if not pieces.values.any():  # of word vectors; rows of unknown words stay, for audio and vision that go with them
        why = "the transcript has no word that has a vector"
        return Shard("+".join([*states, "no_text"]), why, arrays=arrays, details=details)
    reason = ""
    longest = getattr(recipe.config("text"), "max_wordpieces", None)  # of extractors that cut at all
    if longest and steps >= longest and text[pieces.spans[:, 1].max() :].strip():
        states.append("cut_text")
        reason = f"transcript cut to {steps} wordpieces"
    return Shard("+".join(states) or "ok", reason, arrays=arrays, details=details)


def _track_shard(track: Track, status: str = "ok", reason: str = "") -> Shard:
    arrays: dict[str, NDArray[Any]] = {"times": track.times, "values": track.values, "valid": track.valid}
    details = {"steps": len(track), "columns": len(track.names)}
    return Shard(status, reason, arrays=arrays, details=details, names=track.names)


def loaded(part: str, recipe: Recipe) -> Any:
    """An extractor or aligner with its models, loaded once per process however many clips it sees."""
    return _loaded(part, recipe.model_dump_json())


@functools.lru_cache(maxsize=16)
def _loaded(part: str, recipe: str) -> Any:
    return Recipe.model_validate_json(recipe).make(part)


def fingerprints_of(recipe: Recipe) -> dict[str, str]:
    """`recipe.fingerprints()`, computed once per process: model files are read for it."""
    return _fingerprints(recipe.model_dump_json())


@functools.lru_cache(maxsize=16)
def _fingerprints(recipe: str) -> dict[str, str]:
    return Recipe.model_validate_json(recipe).fingerprints()


@contextmanager
def _timed(timings: Timings, kind: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[kind] = timings.get(kind, 0.0) + time.perf_counter() - began


def _timed_frames(frames: Iterator[Frame], timings: Timings) -> Iterator[Frame]:
    """The same frames; the time spent on decoding them is noted apart from what is done with them."""
    while True:
        with _timed(timings, "decode"):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame
