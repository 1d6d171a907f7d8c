"""A clip that hangs or eats memory costs itself: it ends with its reason, and its neighbours are done."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mmfeat import clip as clips
from mmfeat.clip import ClipReport
from mmfeat.shards import Shard, Store
from pipelines import extract as extraction
from pipelines import limits
from pipelines.extract import Job, extract_clip, extract_corpus
from pipelines.limits import Limits, believable_length, resident_bytes, watched
from tests.media_files import tone, write_media
from tests.test_pipelines_extract import FINGERPRINTS, FakeRecipe, make_corpus, reasons


def misbehave(clip, recipe, store, parts) -> ClipReport:
    """In place of extraction: does what the transcript says."""
    with (store.workdir.parent / "done.log").open("a") as log:
        log.write(f"{clip.text}\n")
    held = []
    match clip.text:
        case "hang":
            time.sleep(60)
        case "feed":  # another program
            code = "import time; held = b'x' * (300 * 2**20); time.sleep(60)"
            subprocess.run([sys.executable, "-c", code], check=False)
        case "eat":
            for _ in range(400):
                held.append(bytearray(b"x" * (16 * 2**20)))
                time.sleep(0.02)
    for part in parts:
        store.write(clip, part, FINGERPRINTS[part], Shard("ok", seconds=1.0))
    return ClipReport(clip.id, "ok", "", 1.0, parts)


def limited_task(job: Job) -> ClipReport:
    """`extract_clip` on a worker, with a misbehaving extraction and a worker that has 200 MiB to spare."""
    clips.extract_to_store, clips.fingerprints_of = misbehave, lambda recipe: FINGERPRINTS
    limits = Limits(seconds=5.0, factor=1.0, memory=resident_bytes() + 200 * 2**20)
    return extract_clip(Job(job.clip, job.recipe, job.store, job.parts, job.fingerprints, limits))


def test_hanging_and_hungry_clips_fail_with_their_reason_and_neighbours_are_done_once(tmp_path):
    corpus, workdir = make_corpus(tmp_path / "corpus", "a", "hang", "b", "eat", "feed", "c", "d"), tmp_path / "work"
    result = extract_corpus(corpus, FakeRecipe(), workdir, workers=2, task=limited_task)
    assert (result.done, result.failed) == (7, 3)
    found = reasons(corpus, workdir)
    assert set(found) == {"hang", "eat", "feed"}
    assert "took longer than 5 s (--time-limit)" in found["hang"]
    for hungry in ("eat", "feed"):
        assert "needs more memory than a worker has" in found[hungry] and "--memory-limit" in found[hungry]
    log = (tmp_path / "done.log").read_text().split()
    assert sorted(log) == ["a", "b", "c", "d", "eat", "feed", "hang"], "each once, the failed ones too"

    again = extract_corpus(corpus, FakeRecipe(), workdir, workers=1, task=limited_task)
    assert again.todo == 0
    # With --retry-failed the old verdict is forgotten, so that a worker really tries again.
    retried = extract_corpus(corpus, FakeRecipe(), workdir, workers=2, retry_failed=True, task=limited_task)
    assert (retried.todo, retried.failed) == (3, 3)
    assert sorted((tmp_path / "done.log").read_text().split()) == sorted([*log, "hang", "eat", "feed"])


def test_a_worker_with_other_models_is_refused(tmp_path, monkeypatch):
    corpus, store = make_corpus(tmp_path / "corpus", "a"), Store(tmp_path / "work")
    job = extraction.jobs(corpus, FakeRecipe(), store)[0]
    monkeypatch.setattr(clips, "fingerprints_of", lambda recipe: FINGERPRINTS | {"vision": "another"})
    with pytest.raises(extraction.MissingBackendError, match="other vision features than this machine expects"):
        extract_clip(job)


def test_a_worker_of_another_version_that_came_late_is_refused(tmp_path, monkeypatch):
    """`check_workers` asks those that are there when the run begins."""
    corpus, store = make_corpus(tmp_path / "corpus", "a"), Store(tmp_path / "work")
    monkeypatch.setattr(clips, "fingerprints_of", lambda recipe: FINGERPRINTS)
    monkeypatch.setattr(extraction, "__version__", "0.1")
    job = replace(extraction.jobs(corpus, FakeRecipe(), store)[0], version="0.2")
    with pytest.raises(extraction.MissingBackendError, match=r"mmfeat is 0.2 on the client, but 0.1 on"):
        extract_clip(job)


def test_what_stays_within_its_limits_is_left_alone():
    verdicts: list[str] = []
    with watched(Limits(seconds=0.3, factor=1.0, memory=2**40), verdicts.append) as allow:
        allow(10.0)
        time.sleep(0.8)
    time.sleep(0.5)  # nor does the watchdog outlive the clip
    assert verdicts == []


def test_a_length_that_the_file_is_too_small_for_is_not_believed(tmp_path):
    path = tmp_path / "clip.mp4"
    write_media(path, [], sound=tone(2.0, pitch=200))
    assert believable_length(path, None, None) == pytest.approx(2.0, abs=0.2)
    assert believable_length(path, 10.0, 14.0) == 4.0
    assert believable_length(Path("nowhere.mp4"), None, None) == 0.0
    header = struct.pack("<4sI8sIHHIIHH", b"RIFF", 2**31 - 1, b"WAVEfmt ", 16, 1, 1, 8, 16, 2, 16)
    liar = tmp_path / "liar.wav"
    liar.write_bytes(header + b"data\xff\xff\xff\x7f" + bytes(1000))
    assert believable_length(liar, None, None) <= 1044 / 500


def test_clips_side_by_side_are_watched_by_one_thread(monkeypatch):
    """A worker may have several threads, whatever it was told."""
    monkeypatch.setattr(limits, "_DOG", limits._Dog())
    before = {thread.ident for thread in threading.enumerate() if thread.name == "watchdog"}
    barrier, errors = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        try:
            for _ in range(50):
                with watched(Limits(), errors.append):
                    pass
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not limits._DOG._watches
    dogs = [thread for thread in threading.enumerate() if thread.name == "watchdog" and thread.ident not in before]
    assert len(dogs) == 1


def test_a_look_that_fails_is_not_the_last(monkeypatch):
    """One moment without memory, and no clip of this worker would be watched any more."""
    monkeypatch.setattr(limits, "LOOKS", 0.01)
    monkeypatch.setattr(limits, "_DOG", limits._Dog())
    killed = threading.Event()
    monkeypatch.setattr(limits.os, "kill", lambda pid, number: killed.set())
    failing = [MemoryError(), psutil.Error(), OSError()]

    def resident() -> int:
        if failing:
            raise failing.pop()
        return 2**40

    monkeypatch.setattr(limits, "resident_bytes", resident)
    verdicts: list[str] = []
    with watched(Limits(memory=2**30), verdicts.append):
        assert killed.wait(30)
    assert "needs more memory" in verdicts[0] and not failing


def test_without_children_no_process_is_asked_whose_child_it_is() -> None:
    """That takes as long as there are processes, five times a second."""
    script = (
        "import psutil; from pipelines import limits\n"
        "psutil.Process.children = None\n"
        "assert limits.children_bytes() == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
