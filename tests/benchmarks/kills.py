"""Kills `mmfeat extract` again and again at random moments, and holds the result to that of an undisturbed run.

A corpus of small clips is extracted once in peace. Then the same command is started in a session of its own and hit:
the client, one worker, or everything by kill -9, or Ctrl-C once or twice; at random moments of extraction and of
packing. It is started again until it finishes, and then every array must be the same, bit for bit; the journal must
read, `mmfeat status` must find every clip done, and no process and no half-written result may be left.

    python -m tests.benchmarks.kills --times 100 --seed 0
    python -m tests.benchmarks.kills --times 10 --recipe default   # real models, which take long to load
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import psutil

from mmfeat.layout import FeatureFile
from pipelines.commands.status import count
from pipelines.journal import runs
from tests.benchmarks.tiny import write_recipe
from tests.media_files import tone, write_media

VICTIMS = ("client", "worker", "everything", "Ctrl-C", "Ctrl-C twice")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "nobody", "looks")
CONTINUES = {-signal.SIGKILL, -signal.SIGINT, 130}
"""Exit statuses after which the same command is started again; 0 is the end."""
NOT_BEGUN = "Failed to import the site module"
"""What Python says to a Ctrl-C before it has come to the first line of ours."""
PATIENCE = 120.0
"""Seconds after which a run that neither ends nor can be hit is a failure."""


@dataclass
class Tally:
    """What was hit, and when."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(victim, moment) → times."""
    finished: int = 0
    """Runs that came to their end and were compared."""

    def __len__(self) -> int:
        return self.hits.total()


@dataclass(frozen=True)
class Place:
    """A corpus, and where its features go."""

    corpus: Path
    folder: Path
    recipe: str

    @property
    def out(self) -> Path:
        return self.folder / "features.h5"

    @property
    def workdir(self) -> Path:
        return self.folder / "mmfeat-work"

    def start(self) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.benchmarks.tiny", "extract", str(self.corpus), "-o", str(self.out)]
        with (self.folder / "said.txt").open("w") as said:
            return subprocess.Popen(
                [*command, "--recipe", self.recipe, "--workers", "2"],
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a terminal sends Ctrl-C to the whole group, workers included
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")

    def shards(self) -> int:
        return sum(1 for _ in self.workdir.glob("*-*/*/[!.]*.npz"))

    def half_packed(self) -> set[Path]:
        return set(self.folder.glob(f".{self.out.stem}.*{self.out.suffix}"))


def make_corpus(root: Path, clips: int) -> Path:
    """Clips of 0.4 s: noise with a tone, and a sentence."""
    rng = np.random.default_rng(5)
    rows = ["video_id,clip_id,text,label,mode"]
    for number in range(clips):
        frames = list(rng.integers(0, 255, (4, 48, 64, 3), np.uint8))
        write_media(root / "Raw" / "v" / f"{number}.mp4", frames, sound=tone(0.4, pitch=200 + 9 * number), fps=10)
        text = " ".join(rng.choice(WORDS, 6))
        rows.append(f"v,{number},{text},{number % 3 - 1},{('train', 'valid', 'test')[number % 3]}")
    (root / "label.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


def contents(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Every array of an HDF5 file: its name, its type and shape, and its content."""
    names: list[str] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            array = file[name][()]
            content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            yield name, f"{array.dtype} {array.shape}", content


@dataclass(frozen=True)
class Pace:
    """Seconds that an undisturbed run takes."""

    whole: float
    packing: float
    """While the feature file is being written."""


def undisturbed(place: Place) -> Pace:
    """Run in peace."""
    began, packing = time.monotonic(), list[float]()
    process = place.start()
    while process.poll() is None:
        if place.half_packed():
            packing.append(time.monotonic())
        time.sleep(0.001)
    assert process.returncode == 0, place.said()
    return Pace(time.monotonic() - began, packing[-1] - packing[0])


def batter(
    place: Place,
    peaceful: Path,
    times: int,
    rng: np.random.Generator,
    pace: Pace,
    say: Callable[[str], None] = print,
) -> Tally:
    """Hit runs `times` times, finish each, and compare. AssertionError says what did not survive."""
    tally = Tally()
    clips = len((place.corpus / "label.csv").read_text().splitlines()) - 1
    total = len(list(peaceful.parent.glob("mmfeat-work/*-*/*/*.npz")))
    expected = list(contents(peaceful))
    while len(tally) < times:
        ours = replace(place, folder=place.folder / f"run{tally.finished}")
        status = 1
        while status != 0:
            process = ours.start()
            hit = ""
            if len(tally) < times:
                moment, is_due = _draw(ours, rng, pace, total)
                hit = _hit(process, str(rng.choice(VICTIMS)), is_due)
                if hit:
                    tally.hits[hit, moment] += 1
            status = process.wait(PATIENCE)
            too_early = status == 1 and hit.startswith("Ctrl-C") and NOT_BEGUN in ours.said()
            continues = status in CONTINUES or too_early
            assert status == 0 or continues, f"exit status {status}:\n{ours.said()}"
            _nothing_lives(process.pid)
            if (ours.workdir / "journal.jsonl").exists():
                count(ours.workdir, runs(ours.workdir)[-1])
        _compare(ours, expected, clips)
        tally.finished += 1
        say(f"{len(tally)} hits, {tally.finished} runs finished: all as undisturbed")
    return tally


def _draw(place: Place, rng: np.random.Generator, pace: Pace, total: int) -> tuple[str, Callable[[], bool]]:
    """A moment, and how to know that it has come."""
    began = time.monotonic()
    kind = rng.choice(("any time", "shards", "packing"))
    if kind == "any time":
        wait = rng.uniform(0, pace.whole)
        return kind, lambda: time.monotonic() - began >= wait
    if kind == "shards":
        shards = int(rng.integers(place.shards() + 1, total + 1)) if place.shards() < total else total
        return kind, lambda: place.shards() >= shards
    delay, seen = rng.uniform(0, pace.packing), list[float]()
    before = place.half_packed()

    def is_packing() -> bool:
        if not seen and place.half_packed() - before:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= delay

    return kind, is_packing


def _hit(process: subprocess.Popen[str], victim: str, is_due: Callable[[], bool]) -> str:
    """Wait for the moment and strike; gives what was struck, empty where the run ended before."""
    deadline = time.monotonic() + PATIENCE
    while not is_due():
        if process.poll() is not None:
            return ""
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.001)
    if victim == "worker":
        workers = _workers(process.pid)
        if not workers:
            victim = "everything"
        else:
            with suppress(psutil.NoSuchProcess):
                workers[0].kill()
            return victim
    if process.poll() is not None:
        return ""
    match victim:
        case "client":
            process.kill()
        case "everything":
            os.killpg(process.pid, signal.SIGKILL)
        case _:
            os.killpg(process.pid, signal.SIGINT)
            if victim == "Ctrl-C twice":
                time.sleep(0.05)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
    return victim


def _workers(client: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(client).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def _nothing_lives(session: int) -> None:
    """Workers end with their client, however it ended."""
    deadline = time.monotonic() + 30
    while alive := [pid for pid in psutil.pids() if _session(pid) == session]:
        assert time.monotonic() < deadline, f"processes are left: {[psutil.Process(pid).cmdline() for pid in alive]}"
        time.sleep(0.05)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _compare(place: Place, expected: list[tuple[str, str, bytes]], clips: int) -> None:
    found = list(contents(place.out))
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for (name, _, ours), (_, _, theirs) in zip(found, expected, strict=True):
        assert ours == theirs, f"{name} differs from the undisturbed run"
    assert not (left := list(place.folder.glob(".*"))), f"left behind: {left}"
    assert all(path.stat().st_size for path in place.workdir.glob("*-*/*/[!.]*.npz"))
    with FeatureFile(place.out) as file:
        assert len(file) == clips
    latest = runs(place.workdir)[-1]
    assert latest.end is not None
    counts = count(place.workdir, latest)
    assert (counts.done, counts.left, counts.failed.total()) == (clips, 0, 0), counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--recipe", help="a shipped recipe, or a file (default: parts without models)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = args.recipe or str(write_recipe(folder / "tiny.yaml"))
        peaceful = Place(make_corpus(folder / "corpus", args.clips), folder / "peaceful", recipe)
        pace = undisturbed(peaceful)
        print(f"undisturbed: {args.clips} clips in {pace.whole:.1f} s, packed in {pace.packing:.2f} s", flush=True)
        rng = np.random.default_rng(args.seed)
        tally = batter(replace(peaceful, folder=folder / "hit"), peaceful.out, args.times, rng, pace)
    moments = sorted({moment for _, moment in tally.hits})
    print(f"\n{'':14}" + "".join(f"{moment:>10}" for moment in moments))
    for victim in VICTIMS:
        print(f"{victim:14}" + "".join(f"{tally.hits[victim, moment]:>10}" for moment in moments))
    print(f"{len(tally)} hits, {tally.finished} runs: the same arrays bit for bit")


if __name__ == "__main__":
    main()
