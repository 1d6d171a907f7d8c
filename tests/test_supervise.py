"""Programs of other makers: what they say, and that nothing of them outlives its time or its worker."""

from __future__ import annotations

import os
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


DAEMON = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
DAEMON += "  open('pid', 'w').write(str(os.getpid()))\n  time.sleep(60)\n os._exit(0)\nos.wait()\n"
DAEMON += "while not os.path.exists('pid'): time.sleep(0.01)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans cannot be found")
class TestWhoLeavesItsParents:
    @pytest.mark.parametrize(("then", "status"), [("", 0), ("time.sleep(60)", None)])
    def test_a_daemon(self, tmp_path: Path, then: str, status: int | None) -> None:
        assert run(python(DAEMON + then), tmp_path, 2).status == status
        assert gone(int((tmp_path / "pid").read_text()))

    def test_a_session_of_its_own_after_a_normal_end(self, tmp_path: Path) -> None:
        assert run(python(CHILD.format(", start_new_session=True")), tmp_path, 60) == Ended(0, "started\n")
        assert gone(int((tmp_path / "pid").read_text()))

    def test_where_the_keeper_itself_is_killed(self, tmp_path: Path) -> None:
        code = "import os, time; open('pid', 'w').write(str(os.getpid())); os.kill(os.getppid(), 9); time.sleep(60)"
        assert run(python(code), tmp_path, 20).status == -9
        assert gone(int((tmp_path / "pid").read_text()))

    def test_nothing_needs_to_be_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bare = tmp_path / "python"
        bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        bare.chmod(0o755)
        command = python(CHILD.format(", start_new_session=True") + "p.wait()")
        monkeypatch.setattr("sys.executable", str(bare))
        assert run(command, tmp_path, 2).status is None
        assert gone(int((tmp_path / "pid").read_text()))


def test_what_it_prints_goes_to_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert run(python("print('x' * 10**6)"), tmp_path, 60).status == 0


def test_its_folder_goes_with_a_worker_that_is_killed_before_anything_runs(tmp_path: Path) -> None:
    code = "from mmfeat.supervise import keeper_of; import os, time; keeper = keeper_of(prefix='of-')\n"
    code += "(keeper.scratch / 'large').touch(); print('there', flush=True); time.sleep(60)"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, env=env) as worker:
        assert worker.stdout and worker.stdout.readline() and list(tmp_path.glob("of-*/large"))
        worker.kill()
    for _ in range(100):
        if list(tmp_path.iterdir()):
            time.sleep(0.1)
    assert not list(tmp_path.iterdir())


def test_it_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    order = f"from pathlib import Path; from mmfeat.supervise import run; run({python(CHILD.format('') + 'p.wait()')!r}"
    worker = subprocess.Popen(python(f"{order}, Path({str(tmp_path)!r}), 60)"))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert worker.poll() is None
        time.sleep(0.05)
    worker.kill()
    worker.wait()
    assert gone(int((tmp_path / "pid").read_text()))
