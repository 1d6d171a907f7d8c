"""Programs of other makers: what they say, and that nothing of them outlives its time or its worker."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mmfeat.supervise import Ended, run


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie":
            return True
        time.sleep(0.1)
    return False


CHILD = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']{});"
CHILD += "open('pid', 'w').write(str(p.pid)); print('started', flush=True);"


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("print('fine')", Ended(0, "fine\n")),
        ("import sys; print('no', file=sys.stderr); sys.exit(3)", Ended(3, "no\n")),
        ("import os; os.kill(os.getpid(), 11)", Ended(-11, "")),
        ("import sys; print(len(sys.stdin.read()))", Ended(0, "0\n")),
        ("import os; print(os.getcwd() == os.environ['HERE'])", Ended(0, "True\n")),
    ],
)
def test_how_it_ended_and_what_it_said(tmp_path: Path, code: str, ended: Ended) -> None:
    assert run(python(code), tmp_path, 60, {"HERE": str(tmp_path)}) == ended


def test_only_the_end_of_much_is_kept(tmp_path: Path) -> None:
    said = run(python("print('x' * 10**6); print('the end')"), tmp_path, 60).printed
    assert said.endswith("the end\n") and len(said) < 5000


def test_what_is_no_program_says_so(tmp_path: Path) -> None:
    assert run([str(tmp_path / "gone")], tmp_path, 60) == Ended(127, f"{tmp_path}/gone: No such file or directory\n")


@pytest.mark.parametrize("session", ["", ", start_new_session=True"])
def test_after_its_time_its_children_are_gone_too(tmp_path: Path, session: str) -> None:
    stop = python("open('stopped', 'w').close()")
    ended = run(python(CHILD.format(session) + "p.wait()"), tmp_path, 2, stop=stop)
    assert ended == Ended(None, "started\n") and (tmp_path / "stopped").exists()
    assert gone(int((tmp_path / "pid").read_text()))


def test_children_that_it_leaves_behind_are_ended(tmp_path: Path) -> None:
    stop = python("open('stopped', 'w').close()")
    assert run(python(CHILD.format("")), tmp_path, 60, stop=stop) == Ended(0, "started\n")
    assert gone(int((tmp_path / "pid").read_text())) and not (tmp_path / "stopped").exists()


def test_it_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    order = f"from pathlib import Path; from mmfeat.supervise import run; run({python(CHILD.format('') + 'p.wait()')!r}"
    worker = subprocess.Popen(python(f"{order}, Path({str(tmp_path)!r}), 60)"))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert worker.poll() is None
        time.sleep(0.05)
    worker.kill()
    worker.wait()
    assert gone(int((tmp_path / "pid").read_text()))
