"""A run that was killed or interrupted goes on to the very same files as one that was not."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmc import journal
from cmc import run as runs
from cmc import train as training
from cmc.cli import main
from cmc.config import Config
from cmc.planted import Plan, plant
from tests.test_cmc_train import encoder  # noqa: F401 - a fixture

PLAN = Plan({"train": 24, "valid": 12, "test": 6}, signal=4.0, missing=0.1, seed=5)
QUICK = ["--layers", "1", "--pretrain-epochs", "4", "--epochs", "3", "--batch-size", "12", "--label-warmup", "0"]
FROZEN = [*QUICK, "--text", "freeze"]
FILES = ("model.safetensors", "unimodal.safetensors", "pseudo_labels.npz")

# Runs as a process of its own. Forks a child per line `KILL ARGUMENTS…`: the child kills itself, as kill -9 would, at
# its KILLth tick; a tick is a call of one of the functions below, before it and after it. 0 does not kill. A state
# that is being written is cut in half by the kill.
KILLER = """
import os, signal, sys
import zipfile
from pathlib import Path
import torch
import torch._inductor  # a second that every child would take
from cmc import cli, finetune, journal, pretrain, run, train
torch.set_num_threads(1)
journal.SHARE = float("inf")  # every epoch's state is written, so that all processes tick alike
ticks, deadline, places = 0, 0, []

def tick(place, path=None):
    global ticks
    ticks += 1
    places.append(place)
    if ticks == deadline:
        if path is not None:
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

def watch(owner, name, place, path=None):
    original = getattr(owner, name)
    def watched(*args, **more):
        tick("before " + place)
        result = original(*args, **more)
        tick("after " + place, path and path(args))
        return result
    setattr(owner, name, watched)

watch(torch.optim.Adam, "step", "a step")
watch(torch, "save", "writing a state", lambda args: args[1])
watch(train, "transfer", "the stages' meeting")
watch(run, "save_file", "writing the run", lambda args: args[1])
watch(Path, "replace", "putting a file in place")

for line in sys.stdin:
    number, *arguments = line.split()
    child = os.fork()
    if child == 0:
        deadline = int(number)
        os.dup2(2, 1)
        status = cli.main(arguments)
        os.write(int(sys.argv[1]), (chr(10).join(places) + chr(10) + "end" + chr(10)).encode())
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """Trains in processes that end when they are told to."""

    def __init__(self) -> None:
        self._places, theirs = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", KILLER, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs],
        )
        os.close(theirs)
        self._reader = os.fdopen(self._places)

    def train(self, arguments: list[str], at: int = 0) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(" ".join([str(at), "train", *arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def places(self) -> list[str]:
        """What the last process that ended by itself ticked at."""
        found = []
        while (line := self._reader.readline().strip()) != "end":
            found.append(line)
        return found

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._reader.close()


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, PLAN)
    return path


@pytest.fixture(scope="module")
def undisturbed(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(features), "-o", str(folder), *FROZEN]) == 0
    return folder


def assert_same(folder: Path, other: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (json.loads((path / "run.json").read_text()) for path in (folder, other))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    assert not (folder / journal.FOLDER).exists()


def interrupt_at(stage: str, epoch: int) -> Any:
    def report(at: str, now: int, epochs: int, figures: Any) -> None:
        if (at, now) == (stage, epoch):
            raise KeyboardInterrupt

    return report


def test_killed_anywhere_the_run_ends_the_same(killer: Killer, features: Path, tmp_path: Path) -> None:
    arguments = [str(features), "-o", str(tmp_path / "whole"), *FROZEN]
    assert killer.train(arguments) == 0
    places = killer.places()
    moments = {place: [k + 1 for k, at in enumerate(places) if at == place] for place in set(places)}
    draw = random.Random(3)
    kills = {draw.choice(moments[place]) for place in sorted(moments)}  # every kind of place once
    for at in sorted(kills | set(draw.sample(range(1, len(places) + 1), 4))):
        folder = tmp_path / f"killed-{at}"
        arguments = [str(features), "-o", str(folder), *FROZEN]
        assert killer.train(arguments, at) == -signal.SIGKILL, places[at - 1]
        if killer.train([*arguments, "--resume"], 12) == -signal.SIGKILL:  # and once more, a few steps later
            assert killer.train([*arguments, "--resume"]) == 0
        killer.places()
        assert_same(folder, tmp_path / "whole")


@pytest.mark.parametrize("arguments", [["--pretrain", "gt"], ["--mode", "reference"], []])
def test_a_finetuned_encoder_goes_on_too(
    arguments: list[str],
    killer: Killer,
    encoder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = tmp_path / "features.h5"
    plant(path, Plan({"train": 16, "valid": 8}, annotated=True), encoder)
    command = [str(path), *QUICK, *arguments, "-o"]
    assert killer.train([*command, str(tmp_path / "whole")]) == 0
    places = killer.places()
    meeting = places.index("before the stages' meeting")
    draw = random.Random(8)
    for at in (draw.randrange(12, meeting), draw.randrange(meeting + 12, len(places))):
        folder = tmp_path / f"killed-{at}"
        assert killer.train([*command, str(folder)], at) == -signal.SIGKILL
        assert journal.is_unfinished(folder)
        assert killer.train([*command, str(folder), "--resume"]) == 0
        assert len(killer.places()) < len(places), "it did not start anew"
        assert_same(folder, tmp_path / "whole")


def test_killed_from_outside(features: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cmc.cli", "train", str(features), "-o", str(tmp_path / "run"), *FROZEN]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not journal.is_unfinished(tmp_path / "run") and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(1).uniform(0, 0.2))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert subprocess.run([*command, "--resume"], check=False).returncode == 0
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("stage", "epoch"), [("pretrain", 2), ("finetune", 1)])
def test_an_interrupted_run_is_usable_and_goes_on(
    stage: str, epoch: int, features: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.read(undisturbed).config
    record = training.train(features, tmp_path, config, interrupt_at(stage, epoch))
    assert record.status == "interrupted" and runs.load_model(tmp_path, runs.read(tmp_path))
    command = ["train", str(features), "-o", str(tmp_path), *FROZEN]
    assert main(command) == 2
    assert "add --resume to continue, --overwrite to start anew" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert_same(tmp_path, undisturbed)
    assert main([*command, "--resume"]) == 0
    assert "already trained" in capsys.readouterr().out


def test_seeds_go_on(killer: Killer, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert killer.train([str(features), "-o", str(whole), *FROZEN, "--seeds", "2"]) == 0
    second = len(killer.places()) // 2
    command = [str(features), "-o", str(folder), *FROZEN, "--seeds", "2"]
    assert killer.train(command, second + 20) == -signal.SIGKILL
    assert (folder / "seed-1111" / "run.json").exists() and not (folder / "seed-1112" / "run.json").exists()
    first = (folder / "seed-1111" / "run.json").stat().st_mtime_ns
    assert main(["train", *command]) == 2
    assert main(["train", *command, "--resume"]) == 0
    assert "seed-1111: already trained" in capsys.readouterr().out
    assert (folder / "seed-1111" / "run.json").stat().st_mtime_ns == first
    assert_same(folder / "seed-1112", whole / "seed-1112")
    assert (folder / "seeds.json").read_text() == (whole / "seeds.json").read_text()


@pytest.fixture
def unfinished(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(journal, "SHARE", float("inf"))
    config = Config(layers=1, pretrain_epochs=4, epochs=3, batch_size=12, label_warmup=0, text="freeze")
    training.train(features, tmp_path / "run", config, interrupt_at("finetune", 1))
    return tmp_path / "run"


def test_overwrite_starts_anew(unfinished: Path, features: Path, undisturbed: Path) -> None:
    command = ["train", str(features), "-o", str(unfinished), *FROZEN]
    assert main([*command, "--overwrite"]) == 0
    assert_same(unfinished, undisturbed)


def test_other_conditions_are_refused(
    unfinished: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def refused(*arguments: str, path: Path = features) -> str:
        assert main(["train", str(path), "-o", str(unfinished), *FROZEN, "--resume", *arguments]) == 2
        return capsys.readouterr().err

    assert "lr 0.001 there and 0.01 here" in refused("--lr", "0.01")
    assert "threads 1: with 2 the weights would differ" in refused("--threads", "2")
    plant(tmp_path / "other.h5", Plan(PLAN.clips, seed=6))
    assert "content differs" in refused(path=tmp_path / "other.h5")
    versions = training.versions()
    monkeypatch.setattr(training, "versions", lambda: versions | {"torch": "1.0"})
    torch.set_num_threads(1)
    assert f"use torch {versions['torch']}: with 1.0 the weights would differ" in refused()


@pytest.mark.parametrize("size", [0, 10, 5000, -1])
def test_a_damaged_state_is_named(
    size: int, unfinished: Path, features: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / journal.FOLDER / "finetune.pt"
    if size >= 0:
        os.truncate(path, size)
    else:
        with zipfile.ZipFile(path) as members:
            largest = max(members.infolist(), key=lambda member: member.file_size)
        content = bytearray(path.read_bytes())
        name, extra = struct.unpack("<HH", content[largest.header_offset + 26 : largest.header_offset + 30])
        content[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1  # not in the padding between
        path.write_bytes(content)
    command = ["train", str(features), "-o", str(unfinished), *FROZEN, "--resume"]
    assert main(command) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    path.unlink()
    assert main(command) == 0
    assert_same(unfinished, undisturbed)


def test_two_processes_do_not_train_one_run(
    unfinished: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (unfinished / journal.FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for again in ("--resume", "--overwrite"):
            assert main(["train", str(features), "-o", str(unfinished), *FROZEN, again]) == 2
            assert "another process is training" in capsys.readouterr().err
    assert journal.is_unfinished(unfinished)


def test_generators_are_as_they_were() -> None:
    before = journal.generators()
    drawn = torch.rand(3).tolist(), random.random(), np.random.standard_normal(3).tolist()
    journal.set_generators(before)
    assert (torch.rand(3).tolist(), random.random(), np.random.standard_normal(3).tolist()) == drawn


def test_a_costly_state_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def write(state: Any, path: Path) -> None:
        path.write_bytes(b"")
        written.append(clock[0])
        clock[0] += 5.0  # what a state of some gigabytes costs

    monkeypatch.setattr(torch, "save", write)
    written: list[float] = []
    with journal.RunJournal(tmp_path, {}, resume=False) as kept:
        for _ in range(30):
            clock[0] += 10.0
            kept.write("finetune", {}, dict, last=False)
        assert written == [10.0, 115.0, 220.0]
        kept.write("finetune", {}, dict, last=True)
        assert len(written) == 4
