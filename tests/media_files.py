"""Synthetic media for tests, written through PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def tone(seconds: float, rate: int = 16000, pitch: float = 220.0, channels: int = 1) -> NDArray[np.float32]:
    """A sine, shape (channels, n)."""
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def write_media(
    path: Path,
    frames: list[NDArray[np.uint8]] | None = None,
    times: list[float] | None = None,
    sound: NDArray[np.float32] | None = None,
    rate: int = 16000,
    fps: int = 25,
    codec: str = "libx264",
    sound_codec: str = "aac",
) -> Path:
    """A media file of RGB `frames`, shown from `times` (or evenly at `fps`), and `sound` of shape (channels, n)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = audio = None
        if frames:
            video = container.add_stream(codec, rate=fps)
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt, video.thread_count = "yuv420p", 1
            video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = container.add_stream(sound_codec, rate=rate, layout=layout)
        if video:
            for index, image in enumerate(frames or []):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = round(1000 * (times[index] if times else index / fps))
                frame.time_base = Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            for piece in av.AudioResampler(audio.format, audio.layout, rate).resample(frame):
                container.mux(audio.encode(piece))
            container.mux(audio.encode())
    return path


def stripes(count: int, height: int = 64, width: int = 96) -> list[NDArray[np.uint8]]:
    """Frames whose grey level is their number times 4, so that each can be told from its neighbours."""
    return [np.full((height, width, 3), 4 * k % 256, np.uint8) for k in range(count)]


def leap(source: Path, target: Path, kind: str, after: float, by: float) -> Path:
    """A copy of a file in which the times of one stream leap by `by` seconds at `after`."""
    patient = {"max_interleave_delta": "0"}  # packets stand in the order of their times, however far apart these are
    with av.open(str(source)) as read, av.open(str(target), "w", options=patient) as write:
        streams = {stream.index: write.add_stream_from_template(stream) for stream in read.streams}
        for packet in read.demux():
            if not packet.size:
                continue
            if packet.stream.type == kind and float(packet.pts * packet.time_base) >= after:
                packet.pts += round(by / packet.time_base)
                packet.dts = None if packet.dts is None else packet.dts + round(by / packet.time_base)
            packet.stream = streams[packet.stream.index]
            write.mux(packet)
    return target
