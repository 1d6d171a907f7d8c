"""A media file → upright frames with true times and a mono waveform, in one decoding pass (PyAV).

Times count from the start of the clip: the container's own start, or `start` where a clip is cut out of a longer
file. A missing audio or video stream is a state; only a file in which nothing can be decoded is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from mmfeat.media_sound import Sound
from mmfeat.track import Frame, Waveform

av.logging.set_level(av.logging.FATAL)

# A frame that comes later than all before it by more than this is left out: its time was damaged, or the clock was set.
LEAP = 600.0

# Seconds; no file is so long, and later times overflow where they are counted in samples.
LATEST = 1e8
# How much later in the file one stream may lie than another; past that, nothing of the cut is still to come.
INTERLEAVING = 5.0
# Seconds before the clip's start at which decoding begins, tried in turn: codecs need some sound before the first that
# is right, and a file without an index is not entered where one asks.
SEEK_BACK = (1.0, 5.0, 20.0)
# A clip that is shorter than its row, or its file's header, says by more than this many seconds is marked.
SHORT = 0.5
# Formats whose header says how long they are; others are estimated from their size.
STATES_LENGTH = {"mov", "mp4", "matroska", "webm", "avi", "wav", "flac", "ogg", "asf"}
# How files begin that name other files, which FFmpeg would open: a clip must not lead out of the corpus.
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0")
# Larger pictures are not decoded: 2 ** 27 are 16384 x 8192, 400 MB as RGB.
MOST_PIXELS = 2**27
# Where more than this share of the pictures have no time of their own, the clip is marked.
TIMELESS = 0.05


class MediaError(Exception):
    """Nothing usable can be decoded; the message says why."""


class CutError(MediaError):
    """The start and end that were asked for are no part of the file."""


def open_media(path: str | Path, start: float | None = None, end: float | None = None) -> Media:
    """Open a clip, or the part from `start` to `end` seconds of a longer file, which is cut exactly and not re-encoded.

    Raises MediaError where the file is missing, is no media file, or holds neither video nor audio, and CutError where
    `start` and `end` are no part of it.
    """
    return Media(Path(path), start, end)


class Media:
    """One clip, decoded once: iterate over `frames()`, then take `waveform()`. A context manager."""

    def __init__(self, path: Path, start: float | None = None, end: float | None = None):
        for name, time in (("start", start), ("end", end)):
            if time is not None and not 0 <= time < LATEST:  # nor NaN
                raise CutError(f"the clip's {name}, {time:g} s, is no time in a file")
        if end is not None and end <= (start or 0.0):
            raise CutError(f"the clip ends at {end:g} s, not after its start at {start or 0.0:g} s")
        self.damage = ""
        """What broke while decoding; what came before it is kept."""
        self._look_at_beginning(path)
        self._path, self._start = path, start or 0.0
        self._limit = None if end is None else end - self._start
        self._open()
        self._sound = Sound()
        self._to_rgb = VideoReformatter()
        self._decoder = self._decode()
        self.video_seconds = 0.0

    def _look_at_beginning(self, path: Path) -> None:
        """What FFmpeg would do otherwise: refuse playlists, and see that a RIFF file (wav, avi) is all there."""
        try:
            size = path.stat().st_size
            if not path.is_file():
                raise MediaError("not a file")  # a pipe or a device may never end
            with path.open("rb") as file:
                head = file.read(16)
        except FileNotFoundError:
            raise MediaError("file not found") from None
        except OSError as error:
            raise MediaError(f"cannot be read ({_say(error)})") from None
        if not size:
            raise MediaError("file is empty")
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(PLAYLISTS):
            raise MediaError("a playlist, not a media file")
        stated = int.from_bytes(head[4:8], "little") + 8
        if head.startswith(b"RIFF") and size < stated < 2**32:  # who writes to a pipe states the largest number
            self.damage = f"the file is cut off: {size} of {stated} bytes"

    def _open(self) -> None:
        try:
            self._container: Any = av.open(str(self._path), metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"not a readable media file ({_say(error)})") from None
        # A cover picture is a video stream of one still that belongs to no time.
        pictures = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        self._video: Any = next((s for s in pictures if s.codec_context), None)
        self._audio: Any = next((s for s in self._container.streams.audio if s.codec_context), None)
        if not self._video and not self._audio:
            self._container.close()
            raise MediaError("neither a video nor an audio stream that can be decoded")
        for stream in filter(None, (self._video, self._audio)):
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            stream.codec_context.thread_count = 1  # Dask runs one process a core; and one thread decodes the same
        self._origin = (self._container.start_time or 0) / av.time_base + self._start
        length = (self._container.duration or 0) / av.time_base
        states_length = STATES_LENGTH & set(self._container.format.name.split(","))
        self._claimed = length - self._start if states_length else 0.0
        if length and self._start >= length:
            self._container.close()
            raise CutError(f"the clip starts at {self._start:g} s, but the file is {length:.2f} s long")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._decoder.close()
        self._container.close()

    @property
    def has_video(self) -> bool:
        return self._video is not None

    @property
    def has_audio(self) -> bool:
        return self._audio is not None

    @property
    def seconds(self) -> float:
        """Length of what was decoded so far: the later end of video and sound."""
        return max(self.video_seconds, self._sound.seconds)

    def skip_video(self) -> None:
        """Decode sound only; `frames()` then gives nothing. Without effect once decoding has begun."""
        if inspect.getgeneratorstate(self._decoder) == inspect.GEN_CREATED:
            self._video = None

    def picture_times(self) -> list[float]:
        """When each picture is shown, in seconds from the start of the file, undecoded; empty without video.

        The file is read to its end for it, so nothing can be decoded afterwards.
        """
        if self._video is None:
            return []
        times = []
        try:
            for packet in self._container.demux(self._video):
                shown = packet.dts if packet.pts is None else packet.pts
                if shown is not None and packet.size and not packet.is_discard:
                    times.append(float(shown * Fraction(packet.time_base)) - self._origin + self._start)
        except (av.error.FFmpegError, OSError):
            pass  # what comes before the damage is shown all the same
        return sorted({time for time in times if time >= 0})

    def frames(self) -> Iterator[Frame]:
        """The clip's pictures in order of time. The sound is decoded on the way."""
        yield from self._decoder

    def waveform(self) -> Waveform | None:
        """The clip's sound, shape (n,) at the file's own rate, time 0 at sample 0; None where there is none."""
        for _ in self._decoder:
            pass
        return self._sound.waveform() if self._audio else None

    def _decode(self) -> Generator[Frame, None, None]:
        streams = [stream for stream in (self._video, self._audio) if stream]
        if not streams:
            return
        if self._start:
            streams = self._go_to_start(streams)
        limit = self._limit
        done = {stream.index: False for stream in streams}
        pending: tuple[float, Any] | None = None
        shown, timeless, count = 0.0, 0, 0
        step = 1 / float(self._video.average_rate or self._video.guessed_rate or 25) if self._video else 0.0
        for frame in self._raw(streams):
            is_video = isinstance(frame, av.VideoFrame)
            stream = self._video if is_video else self._audio
            time = self._time(frame, shown if is_video else self._sound.seconds)
            if time - max(shown, self.seconds) > LEAP:
                if limit is None or time < limit:
                    leap = f"{stream.type} leaps from {max(shown, self.seconds):.1f} to {time:.1f} s"
                    self.damage = self.damage or leap
                else:  # a pause, perhaps, of which the clip has nothing
                    done[stream.index] = True
                continue
            if limit is not None and time >= limit:
                done[stream.index] = True
                if all(done.values()) or time >= limit + INTERLEAVING:
                    break
                continue
            if not is_video:
                self._sound.add(frame, time)
                continue
            count += 1
            if pending and time <= pending[0]:
                timeless += 1
                continue  # two pictures at one time: the first is kept
            if pending and time > 0:
                yield self._frame(*pending, end=time)
            pending, shown = (time, frame), time + step
        if pending:
            end = pending[0] + step
            if limit is not None:
                end = min(end, limit)
            if end > 0:
                yield self._frame(*pending, end=end)
        if timeless > TIMELESS * count:
            self.damage = self.damage or f"{timeless} of {count} pictures have no time of their own"
        if self._sound.broken:
            self.damage = (
                self.damage or f"{100 * self._sound.broken:.3g} % of the sound's samples are no finite numbers"
            )
        if limit is not None:
            self._sound.cut(limit)
        if not self.seconds:
            raise MediaError(self.damage or "nothing could be decoded")
        self.note_end(self.seconds)
        if limit is None and self.seconds < self._claimed - SHORT:
            self.damage = self.damage or f"the file claims {self._claimed:.1f} s, {self.seconds:.1f} s could be decoded"

    def note_end(self, seconds: float) -> None:
        """Of the clip there are so many seconds; 0: not known. That its row asks for more is damage."""
        if self._limit is not None and 0 < seconds < self._limit - SHORT:
            self.damage = self.damage or f"the file ends {self._limit - seconds:.1f} s before the clip does"

    def _go_to_start(self, streams: list[Any]) -> list[Any]:
        """Place the container before the clip's start, so that every stream is decoded from then on.

        Where a file has no index a seek may land too late. That is seen from the first frames that come out; then
        the seek begins earlier, and in the end at the beginning of the file.
        """
        wanted = [stream is self._video for stream in streams]
        for back in SEEK_BACK:
            if self._start <= back:
                break
            try:
                for attempt in range(2):  # the second time, the frames are for the caller
                    self._container.seek(int((self._origin - back) * av.time_base))
                    if attempt == 0 and not self._lands_early(streams):
                        break
                else:
                    return streams
            except (av.error.FFmpegError, OSError):
                break  # some formats cannot seek
        self._container.close()
        self._open()
        return [self._video if is_video else self._audio for is_video in wanted]

    def _lands_early(self, streams: list[Any]) -> bool:
        """Whether the first frame of every stream from here on lies before the clip's start."""
        waiting = {stream.index for stream in streams}
        for packet in self._container.demux(streams):
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError, ValueError):
                continue  # pieces of frames are what a seek leaves first
            for frame in frames[:1]:
                if packet.stream.index in waiting and (frame.pts is None or self._time(frame, 0.0) > 0):
                    return False
                waiting.discard(packet.stream.index)
            if not waiting:
                return True
        return False

    def _raw(self, streams: list[Any]) -> Iterator[Any]:
        """Decoded frames of all streams. A packet that cannot be decoded is passed over, and noted once."""
        packets = self._container.demux(streams)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError) as error:
                self.damage = self.damage or f"reading stopped at {self.seconds:.2f} s ({_say(error)})"
                return
            try:
                for frame in packet.decode():
                    if getattr(frame, "is_corrupt", False) and self.seconds:
                        self.damage = self.damage or f"damaged {packet.stream.type} at {self.seconds:.2f} s"
                    yield frame
            except (av.error.FFmpegError, OSError, ValueError) as error:
                if self._start and not self.seconds:
                    continue  # before the clip, where a seek leaves pieces of frames
                self.damage = self.damage or f"damaged {packet.stream.type} at {self.seconds:.2f} s ({_say(error)})"

    def _time(self, frame: Any, otherwise: float) -> float:
        """Seconds from the start of the clip; a frame without a timestamp follows the one before."""
        if frame.pts is None:
            return otherwise
        return float(frame.pts * Fraction(frame.time_base)) - self._origin

    def _frame(self, time: float, frame: Any, end: float) -> Frame:
        # One for all frames, in this thread: PyAV would start as many new threads for every frame as there are cores.
        image = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turn = frame.rotation
        if _is_mirrored(frame):  # FFmpeg's angle is half a turn off then
            image, turn = np.fliplr(image), turn + 180
        if turns := round(turn / 90) % 4:
            image = np.rot90(image, turns)
        self.video_seconds = end
        return Frame(np.ascontiguousarray(image), max(time, 0.0), end)


def _is_mirrored(frame: Any) -> bool:
    """Whether the picture is to be shown mirrored, as some phones say of their front camera's."""
    if not frame.side_data or not (found := frame.side_data.get("DISPLAYMATRIX")):
        return False
    a, b, _, c, d = np.frombuffer(found, np.int32)[:5].astype(float)
    return bool(a * d - b * c < 0)


def _say(error: Exception) -> str:
    """FFmpeg's words without the errno and the path, which the report names anyway."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
