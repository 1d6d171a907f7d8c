"""Ways in which media files go wrong, made from good clips by a seeded corruptor.

`KINDS` is the fault matrix: each kind of damage with what must become of the clip. docs/faults.md shows it, and
tests/test_fault_matrix.py holds the pipeline and that page to it.
"""

from __future__ import annotations

import os
import struct
import wave
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.media_files import leap, tone, write_media

Rng = np.random.Generator
SECONDS = 2.0


@dataclass(frozen=True)
class Kind:
    """One kind of damage."""

    name: str
    make: Callable[[Path, Rng], Path | None]
    """Writes the file beside the path given (which has no ending); returns it, or None for a file without content."""
    becomes: str
    """States that the clip may end in, joined by `|`: `fails`, `damaged` (kept, marked), `kept` (nothing is amiss),
    `no_video`, `no_audio`."""
    reason: str = ""
    """A regular expression that is found in the reason."""


def good(path: Path, ending: str = ".mp4", **more: object) -> Path:
    """Two seconds of moving noise with a tone."""
    rng = np.random.default_rng(7)
    frames = [rng.integers(0, 255, (96, 128, 3), np.uint8) for _ in range(20)]
    options = {"frames": frames, "sound": tone(SECONDS), "fps": 10} | more
    if ending == ".webm":
        options |= {"codec": "libvpx", "sound_codec": "libopus", "sound": tone(SECONDS, 48000), "rate": 48000}
    if ending == ".wav":
        options |= {"frames": None, "sound_codec": "pcm_s16le"}
    return write_media(path.with_suffix(ending), **options)  # type: ignore[arg-type]


def edited(ending: str, edit: Callable[[bytearray, Rng], bytes | bytearray]) -> Callable[[Path, Rng], Path]:
    """A good clip with its bytes changed."""

    def make(path: Path, rng: Rng) -> Path:
        file = good(path, ending)
        file.write_bytes(edit(bytearray(file.read_bytes()), rng))
        return file

    return make


def written(ending: str, content: bytes | Callable[[Path], object]) -> Callable[[Path, Rng], Path]:
    """A file with this content, whatever its name says."""

    def make(path: Path, rng: Rng) -> Path:
        file = path.with_suffix(ending)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            content(file)
        return file

    return make


def cut(share: float) -> Callable[[bytearray, Rng], bytes]:
    return lambda data, rng: bytes(data[: int(share * len(data))])


def index_first(data: bytearray, rng: Rng) -> bytes:
    """An mp4 whose index (moov) lies before the media, as streams have it; offsets corrected."""
    boxes = {name: (start, end) for name, start, end in _boxes(data)}
    moov = bytearray(data[slice(*boxes["moov"])])
    at = 0
    while (at := moov.find(b"stco", at + 1)) >= 0:
        count = struct.unpack(">I", moov[at + 8 : at + 12])[0]
        places = np.frombuffer(moov, ">u4", count, at + 12) + len(moov)
        moov[at + 12 : at + 12 + 4 * count] = places.astype(">u4").tobytes()
    head = data[slice(*boxes["ftyp"])]
    return bytes(head + moov + data[len(head) : boxes["moov"][0]])


def _boxes(data: bytearray) -> list[tuple[str, int, int]]:
    found, at = [], 0
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        found.append((name.decode("latin1"), at, at + size))
        at += max(size, 8)
    return found


def streamed(share: float) -> Callable[[bytearray, Rng], bytes]:
    """Broken off, but with its index at the front."""
    return lambda data, rng: cut(share)(bytearray(index_first(data, rng)), rng)


def flipped(start: float, end: float, count: int) -> Callable[[bytearray, Rng], bytes]:
    """`count` bytes between two places (shares of the file) replaced by others."""

    def edit(data: bytearray, rng: Rng) -> bytes:
        for at in rng.integers(int(start * len(data)), max(int(end * len(data)), 1), count):
            data[at] ^= int(rng.integers(1, 256))
        return bytes(data)

    return edit


def in_box(name: str, count: int) -> Callable[[bytearray, Rng], bytes]:
    """Bytes flipped inside one box of an mp4."""

    def edit(data: bytearray, rng: Rng) -> bytes:
        start, end = next((start, end) for box, start, end in _boxes(data) if box == name)
        return flipped((start + 8) / len(data), end / len(data), count)(data, rng)

    return edit


def zeroed(data: bytearray, rng: Rng) -> bytes:
    """A quarter of the media lost to zeros, as failing disks leave it."""
    start, end = next((start, end) for box, start, end in _boxes(data) if box == "mdat")
    quarter = (end - start) // 4
    data[start + quarter : start + 2 * quarter] = bytes(quarter)
    return bytes(data)


def patched(box: bytes, offset: int, value: bytes) -> Callable[[bytearray, Rng], bytes]:
    """Bytes of every box of that name replaced, `offset` after its name."""

    def edit(data: bytearray, rng: Rng) -> bytes:
        at = -1
        while (at := data.find(box, at + 1)) >= 0:
            data[at + 4 + offset : at + 4 + offset + len(value)] = value
        return bytes(data)

    return edit


def png(side: int, rows: int) -> bytes:
    """A black PNG that claims to be square, of which so many rows are there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj()
    data = b"".join([*(packer.compress(bytes(side + 1)) for _ in range(rows)), packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    """A WAV file of float samples (n,)."""
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)
    return head + struct.pack("<4sI", b"data", len(data)) + data


def _pcm(path: Path, channels: int = 1, samples: int = 32000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((8000 * np.sin(np.arange(samples * channels) / 9)).astype("<i2").tobytes())


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "not a film")


def _silent_film(path: Path, rng: Rng) -> Path:
    return good(path, sound=None)


def _sound_only(path: Path, rng: Rng) -> Path:
    return good(path, frames=None)


def _one_frame(path: Path, rng: Rng) -> Path:
    return good(path, frames=[np.zeros((96, 128, 3), np.uint8)], sound=None)


def _tiny(path: Path, rng: Rng) -> Path:
    return good(path, frames=[np.full((2, 2, 3), 90, np.uint8)] * 10)


def _backwards(path: Path, rng: Rng) -> Path:
    file = good(path)
    data = bytearray(file.read_bytes())
    at = data.find(b"stts")
    count = struct.unpack(">I", data[at + 8 : at + 12])[0]
    for k in range(count):
        struct.pack_into(">I", data, at + 16 + 8 * k, 0)  # every frame at the same time
    file.write_bytes(data)
    return file


def _renamed(ending: str, truly: str = ".webm") -> Callable[[Path, Rng], Path]:
    return lambda path, rng: good(path, truly).rename(path.with_suffix(ending))


def _leap(kind: str) -> Callable[[Path, Rng], Path]:
    """The times of one stream are ten hours late from the middle on, as where a camera's clock was set."""

    def make(path: Path, rng: Rng) -> Path:
        whole = good(path.with_name(f"{path.name}-whole"), ".mkv")
        leapt = leap(whole, path.with_suffix(".mkv"), kind, after=SECONDS / 2, by=36_000)
        whole.unlink()
        return leapt

    return make


def _folder(path: Path) -> None:
    path.mkdir()


def _picture(ending: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(cv2.imencode(ending, np.zeros((96, 128, 3), np.uint8))[1].tobytes())


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _twice(data: bytearray, rng: Rng) -> bytes:
    return bytes(data + data)


KINDS = (
    Kind("the first tenth of an mp4", edited(".mp4", cut(0.1)), "fails", "not a readable media file"),
    Kind("the first half of an mp4 whose index was at the end", edited(".mp4", cut(0.5)), "fails", "not a readable"),
    Kind("nine tenths of an mp4 whose index was at the end", edited(".mp4", cut(0.9)), "fails", "not a readable"),
    Kind("the first half of an mp4 with its index in front", edited(".mp4", streamed(0.5)), "damaged"),
    Kind("nine tenths of an mp4 with its index in front", edited(".mp4", streamed(0.9)), "damaged"),
    Kind("the first half of a webm", edited(".webm", cut(0.5)), "damaged", "claims 2.0 s"),
    Kind("nine tenths of a webm", edited(".webm", cut(0.9)), "damaged|kept"),
    Kind("the first 100 bytes of a webm", edited(".webm", cut(0.001)), "fails"),
    Kind("the first half of a wav", edited(".wav", cut(0.5)), "no_video+damaged", "cut off"),
    Kind("bytes flipped in the header of an mp4", edited(".mp4", flipped(0, 0.002, 12)), "fails|kept|damaged"),
    Kind("bytes flipped in the index of an mp4", edited(".mp4", in_box("moov", 60)), "fails|damaged|kept"),
    Kind("a hundred bytes flipped in the media of an mp4", edited(".mp4", in_box("mdat", 100)), "damaged"),
    Kind(
        "half the bytes of the media of an mp4 flipped",
        edited(".mp4", in_box("mdat", 60000)),
        "damaged|no_video+damaged|fails",
    ),
    Kind("bytes flipped all over a webm", edited(".webm", flipped(0.1, 1, 100)), "damaged|fails|kept"),
    Kind("bytes flipped in the header of a webm", edited(".webm", flipped(0, 0.001, 12)), "fails|kept|damaged"),
    Kind("a quarter of the media of an mp4 turned to zeros", edited(".mp4", zeroed), "damaged"),
    Kind("an mp4 followed by itself", edited(".mp4", _twice), "kept|damaged"),
    Kind("an empty file", written(".mp4", b""), "fails", "file is empty"),
    Kind("one byte", written(".mp4", b"\x00"), "fails", "not a readable media file"),
    Kind("a text renamed to mp4", written(".mp4", b"I am not a film.\n" * 50), "fails", "not a readable media file"),
    Kind("random bytes", written(".mp4", np.random.default_rng(3).bytes(50000)), "fails", "not a readable media file"),
    Kind("a zip archive renamed to mp4", written(".mp4", _zip), "fails", "not a readable media file"),
    Kind("a JPEG renamed to mp4", written(".mp4", _picture(".jpg")), "no_audio|fails"),
    Kind("a PNG renamed to mp4", written(".mp4", _picture(".png")), "no_audio|fails"),
    Kind("a webm named mp4", _renamed(".mp4"), "kept"),
    Kind("a webm named avi", _renamed(".avi"), "kept"),
    Kind("a wav named mp4", written(".mp4", _pcm), "no_video"),
    Kind(
        "a playlist that names another file", written(".mp4", b"#EXTM3U\n#EXTINF:2,\nother.ts\n"), "fails", "playlist"
    ),
    Kind("a list of files to join", written(".mp4", b"ffconcat version 1.0\nfile other.mp4\n"), "fails", "playlist"),
    Kind("no audio stream", _silent_film, "no_audio"),
    Kind("no video stream", _sound_only, "no_video"),
    Kind("a film of one frame", _one_frame, "no_audio"),
    Kind("pictures of 2 x 2 pixels", _tiny, "kept"),
    Kind("all frames at the same time", _backwards, "damaged", "no time of their own"),
    Kind(
        "a length of 13 years in the header", edited(".mp4", patched(b"mvhd", 16, b"\x7f\xff\xff\xff")), "damaged|kept"
    ),
    Kind("a time scale of 0", edited(".mp4", patched(b"mdhd", 12, bytes(4))), "kept|damaged|fails"),
    Kind("10^9 frames claimed", edited(".mp4", patched(b"stts", 8, struct.pack(">I", 10**9))), "kept|damaged|fails"),
    Kind(
        "10^9 entries in the index", edited(".mp4", patched(b"stsz", 8, struct.pack(">I", 10**9))), "kept|damaged|fails"
    ),
    Kind("100 000 x 100 000 pixels claimed", written(".png", png(100_000, rows=0)), "fails"),
    Kind("20 000 x 20 000 pixels in 400 kB", written(".png", png(20_000, rows=20_000)), "fails"),
    Kind(
        "a wav without samples",
        written(".wav", lambda path: _pcm(path, samples=0)),
        "fails",
        "nothing could be decoded",
    ),
    Kind(
        "a wav of not-a-number",
        written(".wav", wav(np.full(32000, np.nan, np.float32))),
        "no_video+damaged+silent",
        "100 % of the sound's samples are no finite numbers",
    ),
    Kind(
        "a wav of infinite values",
        written(".wav", wav(np.full(32000, np.inf, np.float32))),
        "no_video+damaged+silent",
        "no finite numbers",
    ),
    Kind("sound of 16 channels", written(".wav", lambda path: _pcm(path, channels=16)), "no_video"),
    Kind("a wav at 1 Hz", written(".wav", wav(np.zeros(5, np.float32), rate=1)), "no_video+silent|fails"),
    Kind(
        "a symbolic link to a good clip", written(".mp4", lambda p: p.symlink_to(good(p.with_name("linked")))), "kept"
    ),
    Kind("a symbolic link to itself", written(".mp4", _loop), "fails"),
    Kind("a symbolic link to nothing", written(".mp4", lambda path: path.symlink_to("nowhere.mp4")), "fails"),
    Kind("a folder named like a clip", written(".mp4", _folder), "fails"),
    Kind("a named pipe, which never ends", written(".mp4", lambda path: os.mkfifo(path)), "fails", "no file"),
    Kind("an endless device", written(".mp4", lambda path: path.symlink_to("/dev/zero")), "fails", "no file"),
    Kind("six bytes flipped in the media of an mp4", edited(".mp4", in_box("mdat", 6)), "damaged"),
    Kind(
        "a wav of which one sample in a hundred is not a number",
        written(".wav", wav(np.where(np.arange(32000) % 100, tone(SECONDS)[0], np.nan).astype(np.float32))),
        "no_video+damaged",
        "1 % of the sound's samples are no finite numbers",
    ),
    Kind("pictures whose times leap by ten hours", _leap("video"), "damaged", "video leaps from"),
    Kind("sound whose times leap by ten hours", _leap("audio"), "damaged", "audio leaps from"),
    Kind("a name whose ending is not UTF-8", _renamed(os.fsdecode(b".\xff"), ".mp4"), "kept"),
)
