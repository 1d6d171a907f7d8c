"""Peak memory and time of training on a large feature file: streamed, and in memory, each in a process of its own.

Clips are as wide as CH-SIMS's (text 768, audio 33, vision 709 columns) and few of their steps are measured, so that
reading, not arithmetic, has the largest share that it can have. One epoch of each stage.

    python tests/benchmarks/memory.py              # 4 GB
    python tests/benchmarks/memory.py --gigabytes 1 --only always
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from cmc.planted import Plan, plant

SHAPES = {"text": (39, 768), "audio": (400, 33), "vision": (400, 709)}
MEASURED = {"text": 12, "audio": 24, "vision": 16}


def make(path: Path, gigabytes: float) -> int:
    """Write a feature file of about that size; returns its number of training clips."""
    bytes_per_clip = 4 * sum(steps * columns for steps, columns in SHAPES.values())
    clips = int(gigabytes * 1e9 / bytes_per_clip)
    plant(path, Plan({"train": clips * 9 // 10, "valid": clips // 10}))
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        for split in ("train", "valid"):
            group = file[split]
            count = len(group["id"])
            for key, (steps, columns) in SHAPES.items():
                del group[key]
                data = group.create_dataset(key, (count, steps, columns), "f4", chunks=(1, steps, columns))
                if key != "text":
                    del group[f"{key}_mask"]
                    group[f"{key}_mask"] = np.tile(np.arange(steps) < MEASURED[key], (count, 1))
                else:
                    tokens = group["text_bert"][:]
                    del group["text_bert"]
                    group["text_bert"] = np.pad(tokens, ((0, 0), (0, 0), (0, steps - tokens.shape[2])))
                row = np.zeros((steps, columns), np.float32)
                for clip in range(count):
                    row[: MEASURED[key]] = rng.standard_normal((MEASURED[key], columns))
                    data[clip] = row
    return clips * 9 // 10


def child(path: Path, stream: str) -> None:
    """Train, and print what it took."""
    import torch

    import cmc.train
    from cmc.config import Config

    torch.set_num_threads(1)
    torch.zeros(1).sum()
    imported = _peak()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(text="freeze", pretrain_epochs=1, epochs=1)
        started = time.monotonic()
        material = cmc.train.open_material(path, config, stream)  # type: ignore[arg-type]
        opened = time.monotonic()
        cmc.train.seed_everything(config.seed)
        cmc.train.fit(material, config)
        print(json.dumps({"open": opened - started, "train": time.monotonic() - opened, "peak": _peak() - imported}))
        del folder


def _peak() -> int:
    """Bytes; Linux gives kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--only", choices=("always", "never"))
    parser.add_argument("--child", nargs=2, metavar=("FILE", "STREAM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(Path(arguments.child[0]), arguments.child[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        clips = make(path, arguments.gigabytes)
        size = path.stat().st_size
        print(f"{clips} training clips, {size / 1e9:.1f} GB")
        found = {}
        for stream in (arguments.only,) if arguments.only else ("always", "never"):
            command = [sys.executable, __file__, "--child", str(path), stream]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[stream] = json.loads(done.stdout)
            print(
                f"--stream {stream}: peak {found[stream]['peak'] / 1e6:.0f} MB above imports "
                f"({found[stream]['peak'] / size:.1%} of the file), opened in {found[stream]['open']:.1f} s, "
                f"both stages' epoch {found[stream]['train']:.1f} s, {clips / found[stream]['train']:.0f} clips/s"
            )
    if len(found) == 2:
        print(f"streamed / in memory: {found['never']['train'] / found['always']['train']:.2f} of the throughput")


if __name__ == "__main__":
    main()
