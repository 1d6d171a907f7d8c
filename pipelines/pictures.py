"""Pictures of clips, for the page about a run, made in a process of their own.

A clip that has crashed a worker, or made it hang, does the same to whoever opens it next. That must not be the client,
which by then has the features.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from mmfeat.dask_client import interrupts_held_back
from mmfeat.media import MediaError, open_media
from mmfeat.recipe import Recipe
from pipelines.exits import expected, message
from pipelines.limits import Limits, believable_length, watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmfeat.corpus import Clip
    from mmfeat.track import Frame, Track

LIMITS = Limits(seconds=60.0, factor=1.0)
"""Of one picture, the loading of models included; more memory than half of the machine's is too much."""
PATIENCE = 300.0
"""Seconds for all pictures together."""
_FRAMES = 3
"""Frames that the extractor sees at a moment: it follows a face from one to the next."""
_MOMENTS = (1 / 2, 1 / 4, 3 / 4, 0.1, 0.9)
"""Of a clip's length: the first of them at which somebody is seen is shown, else the first that is not blank."""
_BLANK = 6.0
"""Spread of grey levels below which a picture shows nothing."""
_WIDTH, _HEIGHT = 240, 200


@dataclass(frozen=True)
class Picture:
    """A frame of a clip, with the landmarks that were found in it."""

    jpeg: bytes | None = None
    why: str = ""
    """Why there is none, or why there are no landmarks; empty also where nothing can be decoded."""


def pictures(
    clips: Sequence[tuple[Clip, float]], recipe: Recipe, log: Path | None = None, limits: Limits = LIMITS
) -> list[Picture]:
    """One for each (clip, its length in seconds). What decoders have to say goes to the file `log`.

    Never raises for a clip: one that the process dies of has no picture, and those after it get another process.
    """
    deadline = time.monotonic() + PATIENCE
    made: list[Picture] = []
    while len(made) < len(clips):
        made += _by_one_process(clips[len(made) :], recipe, log, limits, deadline)
    return made


def _by_one_process(
    clips: Sequence[tuple[Clip, float]], recipe: Recipe, log: Path | None, limits: Limits, deadline: float
) -> list[Picture]:
    """Pictures of all clips up to the one that the process dies of; of all where it is too late."""
    spawn = multiprocessing.get_context("spawn")  # Dask's threads would not survive a fork
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_draw_all, args=(theirs, clips, recipe, log, limits), daemon=True)
    with interrupts_held_back():  # from the new process; Ctrl-C is for this one, which then ends that
        process.start()
    theirs.close()
    made: list[Picture] = []
    try:
        while len(made) < len(clips):
            if not ours.poll(max(0.0, deadline - time.monotonic())):
                late = Picture(why=f"the pictures took longer than {PATIENCE:.0f} s together")
                return [*made, *[late] * (len(clips) - len(made))]
            picture, lives = ours.recv()
            made.append(picture)
            if not lives:
                break
    except (EOFError, OSError):
        process.join()
        made.append(Picture(why=f"decoding it crashed: {_end_of(process.exitcode)}"))
    finally:
        process.kill()
        process.join()
        ours.close()
    return made


def _end_of(status: int | None) -> str:
    return (signal.strsignal(-status) or f"signal {-status}") if status and status < 0 else f"exit status {status}"


def _draw_all(
    line: Connection, clips: Sequence[tuple[Clip, float]], recipe: Recipe, log: Path | None, limits: Limits
) -> None:
    """In the new process: sends one (picture, whether the process goes on) for each clip."""
    if log:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(file, sys.stderr.fileno())
        os.close(file)
    from distributed.system import MEMORY_LIMIT

    limits = Limits(limits.seconds, limits.factor, limits.memory or MEMORY_LIMIT // 2)
    for clip, seconds in clips:
        with watched(limits, lambda reason: line.send((Picture(why=reason.partition(" (")[0]), False))) as allow:
            try:
                allow(believable_length(clip.path, clip.start, clip.end))
                picture = draw(clip, seconds, recipe)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a page must not cost the result that it shows
                picture = Picture(why=_said(error))
        line.send((picture, True))


def draw(clip: Clip, seconds: float, recipe: Recipe) -> Picture:
    """A frame in which somebody is seen, if anybody is, with landmarks; none where nothing can be decoded."""
    import cv2

    from mmfeat.plot import landmarks

    assert clip.path is not None
    try:
        with open_media(clip.path, clip.start, clip.end) as media:
            moments = _moments(media.frames(), seconds)
    except MediaError:
        return Picture()
    if not moments:
        return Picture()
    image, track, why = _best(moments, recipe)
    scale = min(_WIDTH / image.shape[1], _HEIGHT / image.shape[0])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for colour, points in landmarks(track, len(track) - 1) if track else ():
        rgb = tuple(bytes.fromhex(colour[1:]))
        for x, y in points * scale:
            cv2.circle(small, (round(float(x)), round(float(y))), 1, rgb, -1, cv2.LINE_AA)
    done, jpeg = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return Picture(jpeg.tobytes() if done else None, why)


def _best(moments: Sequence[list[Frame]], recipe: Recipe) -> tuple[NDArray[np.uint8], Track | None, str]:
    """The picture of the first moment at which the recipe's extractor sees something, what it sees, and "".

    Where the extractor cannot be asked, the first picture that is not blank, None, and why: it may be at home on the
    workers only, or need more than a few frames.
    """
    clear = [frames for frames in moments if frames[-1].image.std() >= _BLANK] or moments[:1]
    try:
        return (*_first_seen(clear, recipe), "")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it may be anybody's, and the features are made
        return clear[0][-1].image, None, f"without landmarks: {_said(error)}"


def _first_seen(clear: Sequence[list[Frame]], recipe: Recipe) -> tuple[NDArray[np.uint8], Track | None]:
    from mmfeat.clip import loaded
    from mmfeat.plot import with_pixels

    # What reads a clip as a whole has no answer for a few of its frames, and what hears it cannot tell who speaks.
    registered, shown = recipe.registered("vision"), with_pixels(recipe)
    if not registered.by_clip:
        if registered.hears(recipe.config("vision")):
            shown = shown.changed(vision={**shown.vision, "person": "all"})
        for frames in clear:
            track = loaded("vision", shown)(frames)
            if len(track) and track.valid[-1]:
                return frames[-1].image, track
    return clear[0][-1].image, None


def _said(error: BaseException) -> str:
    """In one line, as `pipelines.exits` has it; of an error that its words alone do not explain, its kind too."""
    return message(error) if expected(error) else f"{type(error).__name__}: {message(error)}"


def _moments(frames: Iterable[Frame], seconds: float) -> list[list[Frame]]:
    """The last few frames up to each of `_MOMENTS`, in their order; of a clip that ends before, its last frames."""
    found: dict[float, list[Frame]] = {}
    kept: list[Frame] = []
    waiting = sorted(_MOMENTS)
    for frame in frames:
        kept = [*kept[-(_FRAMES - 1) :], frame]
        while waiting and frame.end >= seconds * waiting[0]:
            found[waiting.pop(0)] = kept
        if not waiting:
            break
    found.update({moment: kept for moment in waiting if kept})
    return [found[moment] for moment in _MOMENTS if moment in found]
