"""What the machinery around the models costs, with few clips and with very many. Each part prints ratios from one run;
`speedup.py` beside this has two workers against one.

    python -m tests.benchmarks.scale overhead      # CPU per clip of submission, shards, bookkeeping, journal
    python -m tests.benchmarks.scale busy          # 64 workers of sleeping clips
    python -m tests.benchmarks.scale memory        # client, packer, all of it with 1 000 and 100 000 clips
    python -m tests.benchmarks.scale resume        # 100 000 finished clips
    python -m tests.benchmarks.scale packing       # against plain sequential writing
    python -m tests.benchmarks.scale realtime      # footage per second of one core, real models
    python -m tests.benchmarks.scale table         # a label.csv of a million rows

Synthetic shards lie in a folder that goes at the end; `--folder` says on which disk.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from mmfeat import corpus as corpora
from mmfeat.clip import ClipReport
from mmfeat.corpus import Corpus
from mmfeat.dask_client import default_workers
from mmfeat.pack import _survey, pack
from mmfeat.pack_block import Reader
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.shards import Shard, Store
from mmfeat.track import Word
from pipelines import run_report, schedule
from pipelines.extract import Job, extract_corpus, jobs
from pipelines.features import make_features
from pipelines.journal import Journal, who
from pipelines.limits import watched
from tests.benchmarks.tiny import write_recipe

LINKS = 10_000
"""Names that one file on disk gets; a file system allows some 65 000."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one clip's shards."""

    vision: tuple[int, int]
    audio: tuple[int, int]
    text: tuple[int, int]


TINY = Shape((4, 24), (8, 24), (8, 24))
REAL = Shape((100, 709), (260, 33), (16, 384))
"""Four seconds with the default recipe."""


def shards(shape: Shape, rng: np.random.Generator) -> dict[str, Shard]:
    """One clip's results, of noise."""
    made = {}
    for part in ("vision", "audio"):
        steps, columns = getattr(shape, part)
        starts = np.arange(steps) / steps
        arrays = {
            "times": np.stack([starts, starts + 1 / steps], axis=1),
            "values": rng.standard_normal((steps, columns), np.float32),
            "valid": np.ones(steps, bool),
        }
        names = tuple(f"{part}_{k}" for k in range(columns))
        made[part] = Shard("ok", "", 4.0, arrays, {"steps": steps, "columns": columns}, names)
    steps, columns = shape.text
    arrays = {
        "ids": np.arange(steps, dtype=np.int32),
        "segments": np.zeros(steps, np.int32),
        "spans": np.zeros((steps, 2), np.int32),
        "values": rng.standard_normal((steps, columns), np.float32),
    }
    made["text"] = Shard("ok", arrays=arrays, details={"steps": steps, "columns": columns})
    words = [asdict(Word(f"word{k}", k / 10, k / 10 + 0.1, 1.0, (6 * k, 6 * k + 5))) for k in range(shape.text[0] - 2)]
    made["words"] = Shard("ok", seconds=4.0, details={"words": words})
    return made


def make_corpus(root: Path, clips: int) -> Corpus:
    """Rows of label.csv with a file each that nobody decodes: many names of few files."""
    sentence = "what a lovely day to be out and about in the sun"
    rows = ["video_id,clip_id,text,label,mode"]
    for number in range(clips):
        path = root / "Raw" / f"video{number // 100}" / f"{number}.mp4"
        if number % 100 == 0:
            path.parent.mkdir(parents=True)
        if number % LINKS == 0:
            source = path
            source.write_bytes(b"no film")
        else:
            os.link(source, path)
        rows.append(f"video{number // 100},{number},{sentence} {number},{number % 3 - 1},train")
    (root / "label.csv").write_text("\n".join(rows))
    return corpora.load(root)


def fill(store: Store, corpus: Corpus, recipe: Recipe, shape: Shape, links: int = LINKS) -> None:
    """Results for every clip, each file under `links` names."""
    rng = np.random.default_rng(0)
    fingerprints = recipe.fingerprints()
    for number, clip in enumerate(corpus.usable):
        if number % links == 0:
            made = shards(shape, rng)
            sources = {part: store.write(clip, part, fingerprints[part], made[part]) for part in fingerprints}
            continue
        for path in store.expected(clip, fingerprints):
            if path.suffix == ".npz":
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(sources[path.parts[-3].split("-")[0]], path)


def write_only(job: Job) -> ClipReport:
    """A clip's task without decoding and models: what is left is the machinery."""
    with watched(job.limits, lambda reason: None):
        made = shards(TINY, np.random.default_rng(0))
        for part in job.parts:
            job.store.write(job.clip, part, job.fingerprints[part], made[part])
        return ClipReport(job.clip.id, "ok", "", 4.0, job.parts, dict.fromkeys(("decode", *job.parts), 0.1))


def sleep_only(job: Job) -> ClipReport:
    """A clip of 1 to 3 seconds."""
    seconds = 1 + 2 * (int(job.clip.clip_id) * 0.618034 % 1)
    began = time.monotonic()
    time.sleep(seconds)
    return ClipReport(job.clip.id, "ok", "", seconds, job.parts, {"began": began, "ended": time.monotonic()})


def cpu_of_all() -> np.ndarray:
    """CPU seconds of this process and its children, those that live included: programs' own, and in the kernel."""
    mine = psutil.Process()
    return np.sum([process.cpu_times()[:2] for process in (mine, *mine.children(recursive=True))], axis=0)


def write_slowly(job: Job) -> ClipReport:
    """A clip that takes as long as four seconds of footage do with the default recipe."""
    time.sleep(0.35)
    return write_only(job)


def overhead(folder: Path, recipe: Recipe, clips: int = 2000) -> None:
    """CPU of client, scheduler and workers per clip. The first clips, which import things, do not count.

    The kernel's part is nearly all the file system's, which has four files to bring to the disk; ext4 takes several
    times as long where many files were deleted in the minutes before.
    """
    _overhead(folder / "short", recipe, clips, 1, write_only)
    _overhead(folder / "long", recipe, clips // 8, 2, write_slowly)


def _overhead(folder: Path, recipe: Recipe, clips: int, workers: int, task: Callable[[Job], ClipReport]) -> None:
    corpus = make_corpus(folder / "corpus", clips)
    marks: list[tuple[int, np.ndarray]] = []

    def report(done: int, total: int, note: str = "") -> None:
        if done in (clips // 4, clips):
            marks.append((done, cpu_of_all()))

    with Journal(folder / "work") as journal:
        run = extract_corpus(
            corpus, recipe, folder / "work", workers=workers, task=task, report=report, journal=journal
        )
    (first, before), (last, after) = marks
    made = shards(TINY, np.random.default_rng(0))
    began = time.process_time()
    for _ in range(200):
        shards(TINY, np.random.default_rng(0))
    making = (time.process_time() - began) / 200
    own, kernel = 1000 * ((after - before) / (last - first) - (making, 0.0))
    print(
        f"{folder.name} clips: {own + kernel:.2f} ms of CPU per clip of {len(made)} shards ({run.done} clips),", end=" "
    )
    print(f"{kernel:.2f} of them in the kernel")


def busy(folder: Path, recipe: Recipe, clips: int = 1500, workers: int = 64) -> None:
    """Share of the workers' time in which a clip was worked on, between their start and the last clips, when there is
    not enough left for all."""
    from distributed import Client, LocalCluster

    corpus = make_corpus(folder / "corpus", clips)
    todo = jobs(corpus, recipe, Store(folder / "work"))
    most, spans = 0, list[tuple[float, float]]()
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for outcome in schedule.run_each(client, sleep_only, todo):
            assert outcome.result is not None
            most = max(most, len(cluster.scheduler.tasks))
            spans.append((outcome.result.timings["began"], outcome.result.timings["ended"]))
    begins = sorted(began for began, _ in spans)
    first, last = begins[workers], begins[-workers]
    worked = sum(max(0.0, min(ended, last) - max(began, first)) for began, ended in spans)
    print(f"{workers} workers are {worked / (workers * (last - first)):.1%} busy;", end=" ")
    print(f"the scheduler never held more than {most} of {clips} tasks")


@contextmanager
def peak(say: str) -> Iterator[None]:
    """Print how far memory rose above what it is now, and the seconds that it took."""
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts again
    yield
    status = Path("/proc/self/status").read_text()
    high = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
    print(f"{say}: {(high - before) / 2**20:.0f} MiB above import, {time.monotonic() - began:.1f} s", flush=True)


def memory(folder: Path, recipe: Recipe, clips: tuple[int, ...] = (1000, 100_000), tasks: int = 3000) -> None:
    """Each in a process of its own."""
    for count in clips:
        root = folder / str(count)
        corpus = make_corpus(root / "corpus", count)
        fill(Store(root / "work"), corpus, recipe, TINY)
        _tell(root / "work", corpus, recipe)
        del corpus
        for what in ("client", "packer", "whole"):
            arguments = [f"_{what}", "--folder", str(root), "--clips", str(count), "--tasks", str(tasks)]
            subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", *arguments], check=True)


def _client(folder: Path, recipe: Recipe, clips: int, tasks: int) -> None:
    """Extract into an empty work folder; after `tasks` clips, which tell how it grows, it is stopped."""
    stop = schedule.Stop()
    grown: list[int] = []

    def report(done: int, total: int, note: str = "") -> None:
        if done in (tasks // 3, tasks):
            grown.append(psutil.Process().memory_info().rss)
        stop.requested = done >= tasks

    import distributed  # noqa: F401

    with peak(f"client, {clips} clips, {min(tasks, clips)} of them done"), Journal(folder / "empty") as journal:
        corpus = corpora.load(folder / "corpus")
        extract_corpus(
            corpus,
            recipe,
            folder / "empty",
            workers=1,
            task=write_only,
            stop=stop,
            report=report,
            journal=journal,
        )
    if len(grown) == 2:
        rate = (grown[1] - grown[0]) / (tasks - tasks // 3)
        print(f"    and grows by {rate:.0f} bytes per clip done", flush=True)


def _packer(folder: Path, recipe: Recipe, clips: int, tasks: int) -> None:
    with peak(f"packer, {clips} clips"):
        pack(corpora.load(folder / "corpus"), recipe, Store(folder / "work"), folder / "features.h5")


def _whole(folder: Path, recipe: Recipe, clips: int, tasks: int) -> None:
    """`mmfeat extract` where every clip is done: what is left, packing, and the page, in one process. Without pictures:
    they cost another process the same, however many clips."""
    run_report.SAMPLE = 0
    with peak(f"whole command, {clips} clips"):
        make_features(corpora.load(folder / "corpus"), recipe, folder / "features.h5", workdir=folder / "work")


def _tell(workdir: Path, corpus: Corpus, recipe: Recipe) -> None:
    """The journal of a run that has done every clip."""
    kinds = ("decode", "vision", "audio", "text", "words", "store")
    with Journal(workdir) as journal:
        journal.write("start", corpus=str(corpus.root.resolve()), recipe=recipe.model_dump(mode="json"), **who())
        for clip in corpus.usable:
            timings = {kind: clip.row / 1000 + len(kind) for kind in kinds}
            journal.write("clip", id=clip.id, status="ok", reason="", seconds=4.0, timings=timings)


def resume(folder: Path, recipe: Recipe, clips: int = 100_000) -> None:
    """The parts of `mmfeat extract` on a corpus of which everything is done."""
    corpus, store = make_corpus(folder / "corpus", clips), Store(folder / "work")
    fill(store, corpus, recipe, TINY)
    timed("label.csv and Raw/", lambda: corpora.load(folder / "corpus"))
    timed("what is left to do", lambda: jobs(corpus, recipe, store))
    reader = Reader(recipe, store, recipe.fingerprints(), aligned=False, keep_damaged=True)
    timed("what became of each, before packing", lambda: _survey(corpus, recipe, reader))


def timed(say: str, compute: Callable[[], object]) -> float:
    began = time.monotonic()
    compute()
    seconds = time.monotonic() - began
    print(f"{say}: {seconds:.1f} s", flush=True)
    return seconds


def packing(folder: Path, recipe: Recipe, clips: int = 1500) -> None:
    """Both end with the bytes on the disk (fsync). Shards are in the page cache; their lengths differ."""
    corpus, store = make_corpus(folder / "corpus", clips), Store(folder / "work")
    fill(store, corpus, recipe, REAL, links=50)
    out = folder / "features.h5"
    ratios, plain = [], 0.0
    for _ in range(3):
        began = time.monotonic()
        pack(corpus, recipe, store, out, workers=default_workers())
        packed, size = time.monotonic() - began, out.stat().st_size
        out.unlink()
        before, plain = plain, _plainly(folder / "plain", size)
        wrote = (before + plain) / 2 if before else plain  # the disk's speed changes from minute to minute
        ratios.append(wrote / packed)
        print(f"{size / 1e6:.0f} MB: packed {size / packed / 1e6:.0f} MB/s, plain {size / wrote / 1e6:.0f} MB/s")
    print(f"packing runs at {sorted(ratios)[1]:.0%} of plain writing")


def _plainly(path: Path, size: int) -> float:
    """Seconds for as many bytes, one after the other."""
    block = np.random.default_rng(0).bytes(2**20)
    began = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return seconds


def realtime(folder: Path, recipe: Recipe, clips: int = 12) -> None:
    """Seconds of footage per second of one core: the default recipe with word alignment on 640 x 360 at 25 fps. The
    first clips, with which models are loaded, do not count."""
    import cv2

    from mmfeat.clip import extract_to_store
    from mmfeat.demo.corpus import make_demo
    from mmfeat.media import open_media
    from tests.media_files import write_media

    make_demo(folder / "demo", clips)
    default, spent, store = load_recipe("default"), Counter[str](), Store(folder / "work")
    footage = cpu = 0.0
    for number, clip in enumerate(corpora.load(folder / "demo").usable):
        assert clip.path is not None
        with open_media(clip.path, None, None) as media:
            frames = [cv2.resize(frame.image, (640, 360)) for frame in media.frames()]
            sound = media.waveform()
        assert sound is not None
        path = write_media(folder / "Raw" / f"{number}.mp4", frames, sound=sound.samples[None], rate=sound.rate)
        began = time.process_time()
        report = extract_to_store(replace(clip, path=path), default, store)
        if number >= 3:
            cpu, footage = cpu + time.process_time() - began, footage + report.seconds
            spent.update(report.timings)
    print(f"{footage / cpu:.1f} times real time: {footage:.0f} s of footage in {cpu:.1f} s of CPU, of which")
    print(", ".join(f"{kind} {seconds / spent.total():.0%}" for kind, seconds in spent.most_common()))


def table(folder: Path, recipe: Recipe, rows: int = 10**6) -> None:
    (folder / "Raw" / "v").mkdir(parents=True)
    lines = (f"v{number // 1000},{number},a few words of text,0.5,train" for number in range(rows))
    (folder / "label.csv").write_text("\n".join(itertools.chain(["video_id,clip_id,text,label,mode"], lines)))
    with peak(f"label.csv of {rows} rows"):
        corpora.load(folder)


PARTS = {part.__name__: part for part in (overhead, busy, memory, resume, packing, realtime, table)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "_client", "_packer", "_whole"], metavar="|".join(PARTS))
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--clips", type=int)
    parser.add_argument("--tasks", type=int)
    args = parser.parse_args()
    size = {key: value for key in ("clips", "tasks") if (value := getattr(args, key)) is not None}
    if args.part.startswith("_"):
        return globals()[args.part](args.folder, load_recipe(args.folder.parent / "tiny.yaml"), **size)
    print(f"load of this machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        PARTS[args.part](Path(name), load_recipe(write_recipe(Path(name) / "tiny.yaml")), **size)


if __name__ == "__main__":
    main()
