"""Stages are skipped by content; progress is shown without a terminal as well."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pipelines import progress as progress_module
from pipelines.progress import duration, progress
from pipelines.stages import Stages, source_digest


def make(folder: Path) -> tuple[Path, list[int]]:
    return folder / "result.txt", []


def test_a_stage_runs_again_exactly_when_inputs_or_outputs_changed(tmp_path):
    out, calls = make(tmp_path)

    def work() -> None:
        calls.append(1)
        out.write_text("made")

    def run(**inputs: object) -> bool:
        return Stages(tmp_path / "stages.json").run("one", inputs, [out], work)

    assert run(a=1) and not run(a=1)
    out.touch()  # a new date, the same content
    assert not run(a=1)
    assert run(a=2) and not run(a=2)
    out.write_text("somebody else's")
    assert run(a=2)
    out.unlink()
    assert run(a=2)
    assert len(calls) == 4


def test_a_forgotten_stage_runs_again(tmp_path):
    stages = Stages(tmp_path / "s.json")
    for name in ("one", "two"):
        stages.run(name, {}, [tmp_path / name], lambda name=name: (tmp_path / name).touch())
    stages.forget("one")
    assert stages.run("one", {}, [tmp_path / "one"], lambda: None)
    assert not stages.run("two", {}, [tmp_path / "two"], lambda: None)
    assert stages.ran == ["one", "two", "one"]


def test_a_stage_that_failed_is_not_recorded(tmp_path):
    out, _ = make(tmp_path)

    def fail() -> None:
        out.write_text("half")
        raise RuntimeError

    stages = Stages(tmp_path / "s.json")
    assert not stages.was_cut_short("one", {})
    with pytest.raises(RuntimeError):
        stages.run("one", {}, [out], fail)
    assert stages.was_cut_short("one", {}) and not stages.was_cut_short("one", {"a": 1})
    assert Stages(tmp_path / "s.json").run("one", {}, [out], lambda: out.write_text("whole"))


def test_a_stage_must_write_what_it_promised(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result\.txt"):
        Stages(tmp_path / "s.json").run("one", {}, [tmp_path / "result.txt"], lambda: None)


def test_a_moved_folder_is_still_current(tmp_path):
    before, after = tmp_path / "a", tmp_path / "b"
    before.mkdir()
    Stages(before / "s.json").run("one", {}, [before / "x"], lambda: (before / "x").write_text("x"))
    before.rename(after)
    assert not Stages(after / "s.json").run("one", {}, [after / "x"], lambda: None)


def test_a_folder_is_judged_by_names_and_contents(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()

    def run() -> bool:
        return Stages(tmp_path / "s.json").run("one", {}, [folder], lambda: (folder / "a").write_text("a"))

    assert run() and not run()
    (folder / "a").rename(folder / "b")
    assert run()


def test_source_digest_follows_the_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "some_module_for_digests.py"
    module.write_text("a = 1")
    first = source_digest("some_module_for_digests")
    module.write_text("a = 2")
    assert source_digest("some_module_for_digests") != first


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress_module._lines("Extracting", "clips", stream, clock=lambda: now[0]) as report:
        for done in range(1, 11):
            now[0] += 2.0
            report(done, 10, "1 failed")
    assert stream.getvalue().splitlines() == [
        "Extracting: 3 of 10 clips, 1 failed, about 14 s left",
        "Extracting: 6 of 10 clips, 1 failed, about 8.0 s left",
        "Extracting: 9 of 10 clips, 1 failed, about 2.0 s left",
        "Extracting: 10 of 10 clips, 1 failed, 20 s in all",
    ]


def test_a_step_that_waits_says_so_at_once_and_then_now_and_again():
    now, stream = [0.0], io.StringIO()
    with progress_module._lines("Extracting", "clips", stream, clock=lambda: now[0]) as report:
        for note in ["", *["no workers"] * 130, "2 clips/s", "2 clips/s"]:
            report(0, 10, note)
            now[0] += 1.0
    assert stream.getvalue().splitlines() == [
        "Extracting: 0 of 10 clips, no workers",
        "Extracting: 0 of 10 clips, no workers",
        "Extracting: 0 of 10 clips, no workers",
        "Extracting: 0 of 10 clips, 2 clips/s",
    ]


def test_progress_in_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress("Packing", stream=stream) as report:
        report(3, 4, "2.0x real time")
    assert "3/4" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7380, "2 h 03 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said
