"""Peak memory of a long sound through decoding, its quality and an audio extractor.

    python -m tests.benchmarks.sound_memory --minutes 60

Makes a wav of stereo noise and voice and works on it in a process of its own, whose peak (VmHWM, Linux) is printed
after each step, and less what a clip of 6 seconds takes: the libraries.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

RATE = 44100


def make(path: Path, minutes: float) -> None:
    rng = np.random.default_rng(0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for start in np.arange(0, 60 * minutes, 10):
            time = start + np.arange(round(min(10, 60 * minutes - start) * RATE)) / RATE
            voice = 0.3 * (np.sin(np.pi * time) > 0) * np.sin(2 * np.pi * 150 * time)
            stereo = np.stack([voice, 0.8 * voice], axis=1) + rng.normal(0, 0.01, (len(time), 2))
            file.writeframes((32767 * stereo).astype("<i2").tobytes())


def peak() -> int:
    """MB."""
    (found,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found) // 1000


def measure(path: Path) -> None:
    from mmfeat import sound_quality
    from mmfeat.media import open_media
    from mmfeat.recipe import load_recipe

    extractor = load_recipe("default").make("audio")
    with open_media(path) as media:
        media.skip_video()
        sound = media.waveform()
        assert sound is not None
        print("decoded", peak())
        sound_quality.measure(sound)
        print("measured", peak())
        extractor(sound)
        print("extracted", peak())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for minutes in (0.1, args.minutes):
            path = Path(folder) / "sound.wav"
            make(path, minutes)
            command = [sys.executable, "-m", "tests.benchmarks.sound_memory", "--measure", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append({step: int(mb) for step, mb in (line.split() for line in done.stdout.splitlines())})
    print(f"{args.minutes:g} min of stereo at {RATE} Hz, peak in MB, and above a clip of 6 s:")
    for step, mb in peaks[1].items():
        print(f"  {step:10} {mb:6} {mb - peaks[0][step]:6}")


if __name__ == "__main__":
    main()
