"""Extraction through Dask: what a bad clip costs, what is done again, and that workers leave no trace in the result."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from distributed import Client, LocalCluster

from mmfeat import corpus as corpora
from mmfeat import dask_client
from mmfeat.clip import ClipReport
from mmfeat.corpus import Clip, Corpus
from mmfeat.dask_client import SchedulerError
from mmfeat.pack import pack
from mmfeat.recipe import load_recipe
from mmfeat.shards import Shard, Store
from pipelines import extract as extraction
from pipelines import schedule
from pipelines.extract import ExtractionError, Job, extract_corpus
from pipelines.journal import Journal
from tests.media_files import tone, write_media

FINGERPRINTS = {"vision": "0123456789abcdef", "audio": "fedcba9876543210"}


@dataclass(frozen=True)
class FakeRecipe:
    """What `extract_corpus` asks of a recipe."""

    def fingerprints(self) -> dict[str, str]:
        return FINGERPRINTS

    def locate(self, clip: Clip) -> Clip:
        return clip

    def check(self) -> None:
        """Nothing is missing."""


def fake_task(job: Job) -> ClipReport:
    """Does what the transcript says; leaves a line in `done.log` beside the store for every time it ran."""
    with (job.store.workdir.parent / "done.log").open("a") as log:
        log.write(f"{job.clip.clip_id}\n")
    match job.clip.text:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(30)  # the signal may reach another thread first
        case "raise":
            raise ValueError("a thing that nobody thought of")
        case "disk full":
            raise OSError(errno.ENOSPC, "No space left on device", "shard.npz")
        case "slow":
            time.sleep(0.4)
    for part in job.parts:
        job.store.write(job.clip, part, FINGERPRINTS[part], Shard("ok", seconds=2.0))
    return ClipReport(job.clip.id, "ok", "", 2.0, job.parts, {"decode": 0.5, "vision": 1.5})


def make_corpus(folder: Path, *texts: str) -> Corpus:
    """One clip per transcript; the media files are empty."""
    (folder / "Raw" / "v").mkdir(parents=True)
    rows = ["video_id,clip_id,text,label,mode"]
    for number, text in enumerate(texts):
        (folder / "Raw" / "v" / f"{number:04}.mp4").write_bytes(b"no film")
        rows.append(f"v,{number:04},{text},0,train")
    (folder / "label.csv").write_text("\n".join(rows))
    return corpora.load(folder)


def run(corpus: Corpus, workdir: Path, **options):
    return extract_corpus(corpus, FakeRecipe(), workdir, task=fake_task, **options)


def reasons(corpus: Corpus, workdir: Path) -> dict[str, str]:
    """Why clips failed, by their transcripts."""
    store = Store(workdir)
    shards = {clip.text: store.read(clip, "vision", FINGERPRINTS["vision"]) for clip in corpus.usable}
    return {text: shard.reason for text, shard in shards.items() if shard.status == "failed"}


def test_a_clip_that_crashes_or_raises_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("MMFEAT_WORKER_LOG", str(tmp_path / "another.log"))
    texts = ["a", "b", "crash", "c", "raise", "d", "e", "f"]
    corpus, workdir = make_corpus(tmp_path / "corpus", *texts), tmp_path / "work"
    seen: list[tuple[int, int, str]] = []
    result = run(corpus, workdir, workers=2, report=lambda done, total, note="": seen.append((done, total, note)))

    assert (result.todo, result.done, result.failed, result.reused) == (8, 8, 2, 0)
    assert reasons(corpus, workdir) == {
        "crash": "crashed the worker process 3 times",
        "raise": "ValueError: a thing that nobody thought of",
    }
    assert result.stages == Counter(decode=3.0, vision=9.0) and result.footage == 12.0
    # Its own log, also where an earlier cluster of this process had another.
    assert "Segmentation fault" in (workdir / extraction.WORKER_LOG).read_text()
    assert "vision 6, audio 6" in seen[-1][2], "what became of each modality, also where all goes well"
    assert seen[0] == (0, 8, "") and seen[-1][:2] == (8, 8) and "2 failed: 1 " in seen[-1][2]
    assert "clips/s" in seen[-1][2] and "1 crashed the worker process 3 times" in seen[-1][2]

    # Now nothing is left, not even what failed: no cluster is started.
    monkeypatch.setattr(extraction, "connect", lambda *args: pytest.fail("a cluster was started"))
    again = run(corpus, workdir, workers=2)
    assert (again.todo, again.reused) == (0, 8)


def test_failed_clips_are_retried_only_on_request(tmp_path):
    corpus, workdir = make_corpus(tmp_path / "corpus", "a", "raise"), tmp_path / "work"
    run(corpus, workdir, workers=1)
    result = run(corpus, workdir, workers=1, retry_failed=True)
    assert (result.todo, result.failed, result.reused) == (1, 1, 1)
    assert (tmp_path / "done.log").read_text().split() == ["0000", "0001", "0001"]


def test_a_full_disk_stops_the_run(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", "a", "disk full", "b")
    with pytest.raises(ExtractionError, match=r"0001: .*No space left on device"):
        run(corpus, tmp_path / "work", workers=1)


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a program of Dask's as a user would; all end with the test."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    started: list[subprocess.Popen] = []

    def start(*arguments: str | Path) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-m", "dask", *arguments, "--no-dashboard"], **options))
        return started[-1]

    yield start
    for process in reversed(started):
        process.terminate()
        process.wait(20)


@pytest.fixture
def scheduler(dask, tmp_path: Path) -> tuple[subprocess.Popen, str]:
    """Its process and its address."""
    file = tmp_path / "scheduler.json"
    process = dask("scheduler", "--port", "0", "--scheduler-file", file)
    while not file.exists() or not file.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    return process, json.loads(file.read_text())["address"]


def wait_for_worker(address: str) -> None:
    with Client(address) as client:
        client.wait_for_workers(1, timeout=30)


def test_a_scheduler_that_a_user_has_started(tmp_path, monkeypatch, dask, scheduler):
    corpus = make_corpus(tmp_path / "corpus", "a", "raise", "b")
    process, address = scheduler
    with pytest.raises(SchedulerError, match=f"no workers; start some: dask worker {address}"):
        run(corpus, tmp_path / "work", scheduler=address)
    dask("worker", address, "--nthreads", "1")
    wait_for_worker(address)
    result = run(corpus, tmp_path / "work", scheduler=address)
    assert (result.done, result.failed) == (3, 1)

    process.kill()
    process.wait()
    monkeypatch.setattr(dask_client, "CONNECT_SECONDS", 1)
    with pytest.raises(SchedulerError, match="no Dask scheduler answers at"):
        run(corpus, tmp_path / "work2", scheduler=address)


def test_workers_and_at_last_the_scheduler_go_in_the_middle_of_a_run(tmp_path, monkeypatch, capfd, dask, scheduler):
    """The client says whom it waits for; no clip fails of it."""
    monkeypatch.setattr(schedule, "LOOKS", 0.2)
    corpus, (process, address) = make_corpus(tmp_path / "corpus", *["slow"] * 20), scheduler
    worker = dask("worker", address, "--nthreads", "1", "--no-nanny")
    wait_for_worker(address)
    said: list[str] = []

    def report(done: int, total: int, note: str = "") -> None:
        if done == 2:
            worker.kill()
        if note not in said:
            said.append(note)
        if "start some" in note:
            process.kill()

    capfd.readouterr()
    with (
        Journal(tmp_path / "work") as journal,
        pytest.raises(SchedulerError, match=f"the scheduler at {address} is gone; the same command continues"),
    ):
        run(corpus, tmp_path / "work", scheduler=address, report=report, journal=journal)
    assert said[-1] == f"the scheduler at {address} has no workers; start some: dask worker {address} --nthreads 1"
    assert '"event": "waiting"' in (tmp_path / "work" / "journal.jsonl").read_text()
    assert reasons(corpus_of_done(corpus, tmp_path / "work"), tmp_path / "work") == {}
    assert "Traceback" not in (output := capfd.readouterr().err) and "distributed" not in output


def corpus_of_done(corpus: Corpus, workdir: Path) -> Corpus:
    store = Store(workdir)
    done = [clip for clip in corpus.clips if not store.missing(clip, FINGERPRINTS)]
    return Corpus(corpus.root, done, [])


INTERRUPTED = """
import sys
from pathlib import Path
from mmfeat import corpus
from pipelines.schedule import stop_on_interrupt
from tests.test_pipelines_extract import run

if __name__ == "__main__":
    with stop_on_interrupt(lambda: print("finishing", flush=True)) as stop:
        result = run(corpus.load(sys.argv[1]), Path(sys.argv[2]), workers=2, stop=stop)
    print(f"interrupted={result.interrupted} done={result.done}")
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_a_state_that_the_next_run_continues(tmp_path, times):
    corpus, workdir = make_corpus(tmp_path / "corpus", *["slow"] * 12), tmp_path / "work"
    log = tmp_path / "done.log"
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, script, corpus.root, workdir],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to the whole process group, workers included
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    output, _ = process.communicate(timeout=60)

    before = log.read_text().split()
    if times == 1:
        assert process.returncode == 0 and "interrupted=True" in output, output
    else:
        assert process.returncode != 0 and "KeyboardInterrupt" in output, output
    assert "finishing" in output
    result = run(corpus, workdir, workers=2)
    assert 0 < result.todo < 12 and result.failed == 0 and not result.interrupted
    if times == 1:
        # What ran was finished, so every clip was worked on exactly once in the two runs together.
        assert len(before) == 12 - result.todo
        assert sorted(log.read_text().split()) == [f"{number:04}" for number in range(12)]


def test_a_clip_counts_for_the_modalities_that_it_has():
    def parts(status: str) -> list[str]:
        report = ClipReport("v", status, "", 1.0, ("vision", "audio", "text", "words"))
        return [part for part, has in extraction._parts_of(report).items() if has]

    assert parts("ok") == parts("silent+damaged") == ["vision", "audio", "text", "words"]
    assert parts("no_face") == parts("no_video+cut_text") == ["audio", "text", "words"]
    assert parts("no_audio+no_words") == ["vision", "text"]
    assert parts("no_text") == ["vision", "audio"]
    assert parts("failed") == []


def write_clip(path: Path, seed: int) -> None:
    """Half a second of noise with a tone; there is no face in it."""
    noise = np.random.default_rng(seed).integers(0, 255, (5, 48, 64, 3), np.uint8)
    write_media(path, list(noise), sound=tone(0.5, pitch=200 + 20 * seed), fps=10)


def contents(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


AT_WORK = Counter[str]()
"""Tasks of the next test that run now, and the most that ran at once; its workers are threads of this process."""


def counted_task(number: int) -> int:
    AT_WORK["now"] += 1
    AT_WORK["most"] = max(AT_WORK["most"], AT_WORK["now"])
    time.sleep(0.1)
    AT_WORK["now"] -= 1
    return number


def test_workers_that_come_later_get_work(monkeypatch):
    """As on a cluster, where the first job starts on Friday and the others at night."""
    monkeypatch.setattr(schedule, "LOOKS", 0.0)
    one = {"threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(n_workers=1, **one) as cluster, Client(cluster) as client:
        done = []
        for outcome in schedule.run_each(client, counted_task, range(80)):
            done.append(outcome.result)
            if len(done) == 4:
                cluster.scale(8)
                client.wait_for_workers(8)
    assert sorted(done) == list(range(80)) and AT_WORK["most"] > 4  # which is what one worker alone is given


def test_what_has_not_begun_when_the_user_stops_is_left():
    """What runs is finished and counted; what only waits on a worker is for the next run."""
    stop, begun, done = schedule.Stop(), AT_WORK["begun"], []
    two = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**two) as cluster, Client(cluster) as client:
        for outcome in schedule.run_each(client, slowly_counted_task, range(40), stop=stop):
            done.append(outcome.result)
            stop.requested = True
    assert len(done) == AT_WORK["begun"] - begun
    assert len(done) <= 4, "the first, and what the two workers had begun meanwhile"


def slowly_counted_task(number: int) -> int:
    AT_WORK["begun"] += 1
    time.sleep(0.5)
    return number


def test_one_and_two_workers_give_the_same_bits(tmp_path):
    root = tmp_path / "corpus"
    rows = ["video_id,clip_id,text,label,mode"]
    for number in range(5):
        write_clip(root / "Raw" / "v" / f"{number}.mp4", seed=number)
        rows.append(f"v,{number},sentence number {number},{number - 2},{'train' if number < 3 else 'test'}")
    (root / "label.csv").write_text("\n".join(rows))
    corpus, recipe = corpora.load(root), load_recipe("default")

    packed = []
    for workers in (1, 2):
        workdir = tmp_path / f"work{workers}"
        result = extract_corpus(corpus, recipe, workdir, workers=workers)
        assert result.failed == 0 and result.done == 5
        packed.append(contents(pack(corpus, recipe, Store(workdir), tmp_path / f"{workers}.h5").path))
    one, two = packed
    assert one.keys() == two.keys() and "train/vision" in one
    assert one["train/audio"].any() and one["train/text"].any()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
