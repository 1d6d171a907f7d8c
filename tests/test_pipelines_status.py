"""What a work folder says of itself, and what may be removed from it."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfeat import corpus as corpora
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.shards import Shard, Store
from pipelines.cli import main
from pipelines.journal import NAME, Journal, runs, who
from tests.test_pipelines_extract import make_corpus

FINGERPRINTS = {"vision": "0123456789abcdef", "audio": "fedcba9876543210"}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder in which one clip is done, one failed, one half done, one not begun, and one was refused."""
    monkeypatch.setattr(Recipe, "fingerprints", lambda self: FINGERPRINTS)
    corpus = make_corpus(tmp_path / "corpus", "a", "b", "c", "d", "e")
    (corpus.root / "Raw" / "v" / "0004.mp4").unlink()
    store, workdir = Store(tmp_path / "work"), tmp_path / "work"
    done, failed, half, _ = corpora.load(corpus.root).usable
    for part, fingerprint in FINGERPRINTS.items():
        store.write(done, part, fingerprint, Shard("ok"))
        store.fail(failed, part, fingerprint, "the decoder died")
    store.write(half, "vision", FINGERPRINTS["vision"], Shard("ok"))
    start(workdir, corpus.root)
    return workdir


def start(workdir: Path, corpus: Path, **more) -> None:
    with Journal(workdir) as journal:
        recipe = load_recipe("default").model_dump(mode="json")
        journal.write("start", **({"corpus": str(corpus), "recipe": recipe, "out": "features.h5"} | who() | more))


def status(workdir: Path, capsys: pytest.CaptureFixture[str], code: int = 3) -> dict:
    assert main(["status", str(workdir), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_status_counts_what_is_there(work, capsys):
    found = status(work, capsys)
    assert {k: found[k] for k in ("clips", "refused", "done", "left")} == {
        "clips": 5,
        "refused": 1,
        "done": 1,
        "left": 2,
    }
    assert found["failed"] == {"the decoder died": 1} and found["parts"] == {"vision": 2, "audio": 1}
    assert found["running"] and found["seconds_left"] is None  # this process lives; no clip has been done yet
    assert main(["status", str(work)]) == 3
    shown = capsys.readouterr().out
    assert "the decoder died" in shown and "--retry-failed" in shown and "running" in shown


def test_the_estimate_comes_from_the_clips_of_the_present_run(work, capsys, monkeypatch):
    clock = iter([0.0, 10.0, 10.5, 11.0])
    monkeypatch.setattr("pipelines.journal.time.time", lambda: next(clock))
    start(work, Path(runs(work)[0].start["corpus"]))
    with Journal(work) as journal:
        for _ in range(3):
            journal.write("clip", id="v", status="ok")
    assert runs(work)[-1].clips_per_second == 2.0
    assert status(work, capsys)["seconds_left"] == 1.0  # two clips are left


def test_a_run_that_was_killed_is_not_running(work, capsys):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    root = Path(runs(work)[0].start["corpus"])
    start(work, root, pid=child.pid)
    with (work / NAME).open("a") as file:
        file.write('{"event": "clip", "ti')  # cut short by the kill
    assert not status(work, capsys)["running"]
    start(work, root, pid=os.getpid(), host="elsewhere")
    assert not runs(work)[-1].is_running and platform.node() != "elsewhere"


def test_clean_removes_what_no_corpus_uses(work, capsys):
    store = Store(work)
    root = Path(runs(work)[0].start["corpus"])
    clip = corpora.load(root).usable[0]
    useless = store.write(clip, "vision", "ffffffffffffffff", Shard("ok"))  # another recipe's
    half = useless.with_name(".half.0123.npz")
    half.write_bytes(b"a killed writer left this")
    (work / "notes-of-mine").mkdir()
    (work / "notes-of-mine" / "keep.txt").write_text("a stranger's file")
    before = set(store.files())

    assert main(["clean", str(work)]) == 2, "the run still runs"
    with Journal(work) as journal:
        journal.write("end", done=1)
    capsys.readouterr()
    assert main(["clean", str(work)]) == 0
    assert "2 of 7 files" in capsys.readouterr().out and set(store.files()) == before
    assert main(["clean", str(work), "--yes"]) == 0
    assert set(store.files()) == before - {useless, half}
    assert not useless.parents[1].exists() and (work / "notes-of-mine" / "keep.txt").exists()
    assert store.missing(clip, FINGERPRINTS) == ()

    other = make_corpus(work.parent / "other", "a")
    start(work, other.root, pid=0)
    with Journal(work) as journal:
        journal.write("end", done=1)
    assert main(["clean", str(work), "--yes"]) == 0
    assert set(store.files()) == before - {useless, half}, "two corpora share a work folder: both keep theirs"


@pytest.mark.parametrize("command", ["status", "clean"])
def test_a_folder_without_a_journal_is_no_work_folder(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    assert "is no work folder" in capsys.readouterr().err


def test_paths_whose_bytes_are_not_utf_8(tmp_path, capsys):
    """They are written down, read back the same, and shown."""
    root = tmp_path / os.fsdecode(b"corpus \xff \xc3\xa9")
    make_corpus(root, "a")
    (root / "Raw" / "v" / os.fsdecode(b"0000.\xff")).write_bytes(b"no film")
    echo = io.StringIO()
    with Journal(tmp_path / "work", echo) as journal:
        journal.write("start", corpus=str(root), recipe=load_recipe("default").model_dump(mode="json"), **who())
    assert runs(tmp_path / "work")[0].start["corpus"] == str(root) == json.loads(echo.getvalue())["corpus"]
    assert main(["check", str(root)]) == 0
    assert "0000.\\udcff" in capsys.readouterr().out


def test_two_machines_may_work_into_one_folder_at_a_time(tmp_path):
    """Each line belongs to the run that wrote it; older journals do not say which, so it is the latest."""
    with Journal(tmp_path) as ours, Journal(tmp_path) as theirs:
        ours.write("start", corpus="a", **who())
        theirs.write("start", corpus="b", pid=1, host="elsewhere")
        for _ in range(3):
            ours.write("clip", id="v", status="ok")
        ours.write("end", done=3)
    first, second = runs(tmp_path)
    assert (first.clips, second.clips) == (3, 0) and first.end and not second.end
    (tmp_path / NAME).write_text(re.sub(r', "run": "\w+"', "", (tmp_path / NAME).read_text()))
    first, second = runs(tmp_path)
    assert (first.clips, second.clips) == (0, 3) and second.end


def end_all(work: Path) -> None:
    with Journal(work) as journal:
        journal.write("end", done=1)


def test_clean_leaves_the_runs_of_other_machines_alone(work, capsys, monkeypatch):
    end_all(work)
    root = Path(runs(work)[0].start["corpus"])
    written = next(iter(Store(work).files())).with_name(".0123.89abcdef-77-0123456789ab.npz")
    written.write_bytes(b"half")
    start(work, root, host="elsewhere", pid=77)
    start(work, root)  # the latest of this corpus, of another machine
    end_all(work)
    capsys.readouterr()
    assert main(["clean", str(work), "--yes"]) == 2
    assert "elsewhere may be extracting" in (said := capsys.readouterr().err) and "--force" in said
    lines = (work / NAME).read_text().replace('"elsewhere"', f'"{platform.node()}"').replace('"pid": 77', '"pid": 0')
    (work / NAME).write_text(lines.replace('"pid": 0', f'"pid": {child_that_ended()}'))
    assert main(["clean", str(work), "--yes"]) == 0
    assert written.exists(), "somebody whom the journal does not tell of may be writing it"
    os.utime(written, (0, 0))
    assert main(["clean", str(work), "--yes"]) == 0
    assert not written.exists()


def test_force_cleans_after_a_machine_that_was_lost(work):
    end_all(work)
    written = next(iter(Store(work).files())).with_name(".0123.89abcdef-77-0123456789ab.npz")
    written.write_bytes(b"half")
    start(work, Path(runs(work)[0].start["corpus"]), host="elsewhere")
    assert main(["clean", str(work), "--yes", "--force"]) == 0
    assert not written.exists()


def child_that_ended() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_machine_that_has_been_silent_for_days_is_not_waited_for(work, monkeypatch):
    end_all(work)
    start(work, Path(runs(work)[0].start["corpus"]), host="elsewhere")
    now = time.time()
    monkeypatch.setattr("pipelines.commands.clean.time.time", lambda: now + 25 * 3600)
    assert main(["clean", str(work)]) == 0


def test_a_corpus_that_is_gone_is_named_and_its_results_stay(work, capsys):
    """Its disk may only be missing at the moment."""
    end_all(work)
    store, root = Store(work), Path(runs(work)[0].start["corpus"])
    useless = store.write(corpora.load(root).usable[0], "vision", "ffffffffffffffff", Shard("ok"))
    before = set(store.files())
    root.rename(root.with_name("unmounted"))
    other = make_corpus(work.parent / "other", "a")
    start(work, other.root)
    end_all(work)
    capsys.readouterr()
    assert main(["clean", str(work), "--yes"]) == 0
    assert str(root) in (said := capsys.readouterr().out) and "stay" in said
    assert set(store.files()) == before - {useless}
    assert main(["clean", str(work), "--yes", "--force"]) == 0
    assert set(store.files()) == set()
