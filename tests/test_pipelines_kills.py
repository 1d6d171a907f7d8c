"""Runs that are killed, and disks that are full: the same command continues, to the same bits.

`python -m tests.benchmarks.kills` does it a hundred times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmfeat.dask_client import SchedulerError, local
from mmfeat.files import Target, atomic, clear_leftovers
from pipelines.journal import NAME, Journal, runs, who
from tests.benchmarks.kills import Pace, Place, batter, contents, make_corpus, undisturbed
from tests.benchmarks.tiny import write_recipe


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Pace]:
    """A corpus that was extracted undisturbed."""
    folder = tmp_path_factory.mktemp("kills")
    place = Place(make_corpus(folder / "corpus", 12), folder / "peaceful", str(write_recipe(folder / "tiny.yaml")))
    return place, undisturbed(place)


def test_a_run_that_is_hit_again_and_again_ends_with_the_same_bits(peaceful, tmp_path):
    place, pace = peaceful
    tally = batter(replace(place, folder=tmp_path), place.out, 6, np.random.default_rng(1), pace)
    assert len(tally) == 6 and tally.finished


def test_a_worker_that_dies_while_it_starts(tmp_path, monkeypatch):
    import distributed

    real, attempts = distributed.LocalCluster, list[int]()

    def dies(**options):
        attempts.append(1)
        if len(attempts) <= fails:
            raise RuntimeError("Nanny failed to start.")
        return real(**options | {"processes": False})

    monkeypatch.setattr(distributed, "LocalCluster", dies)
    fails = 2
    with local(1) as client:
        assert client.submit(sum, [1, 2]).result() == 3 and len(attempts) == 3
    fails = 99
    with pytest.raises(SchedulerError, match="worker processes cannot be started: Nanny failed"), local(1):
        pass


FULL = """
folder=$1 size=$2; shift 2
mount -t tmpfs -o size=$size tmpfs "$folder" || exit 99
"$@"; echo "status=$?"
find "$folder" -name '.*.*' | sed s/^/half:/
mount -o remount,size=64m "$folder"
"$@"; echo "status=$?"
cp "$folder/f.h5" "$folder.h5"
"""


@pytest.mark.parametrize("during", ["extraction", "packing"])
def test_a_full_disk_is_named_and_the_run_continues_when_there_is_space(peaceful, tmp_path, during):
    place, _ = peaceful
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk needs util-linux's unshare and user namespaces")
    work, size = (disk / "work", "120k") if during == "extraction" else (tmp_path / "work", "60k")
    command = [sys.executable, "-m", "tests.benchmarks.tiny", "extract", place.corpus, "-o", disk / "f.h5"]
    command += ["--recipe", place.recipe, "--workers", "1", "--workdir", work]
    done = subprocess.run([*namespace, "sh", "-c", FULL, "sh", disk, size, *command], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith(("status=", "half:"))]
    assert said == ["status=2", "status=0"], done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("mmfeat: ")]
    assert len(told) == 1 and "No space left on device" in told[0] and str(disk) in told[0]
    assert "Traceback" not in done.stderr
    assert list(contents(tmp_path / "disk.h5")) == list(contents(place.out))


def test_what_a_killed_writer_left_goes_and_what_another_writes_stays(tmp_path):
    path = tmp_path / "features.h5"
    write = "import sys, pathlib, os, mmfeat.files as f\nwith f.atomic(pathlib.Path(sys.argv[1])) as t:\n t.touch()\n"
    subprocess.run([sys.executable, "-c", f"{write} os.kill(os.getpid(), 9)", path], check=False)
    (left,) = tmp_path.iterdir()
    with atomic(path) as ours:
        ours.touch()
        strangers = [tmp_path / ".features.notes.h5", left.with_name(f".{left.name}")]
        for stranger in strangers:
            stranger.touch()
        clear_leftovers(path)
        assert set(tmp_path.iterdir()) == {ours, *strangers}


def test_the_first_write_that_failed_is_told():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full, the device on which every write fails")
    with Target(Path("/dev/full")) as target:
        target.check()
        assert target.write(np.ones(3)) == 24 and target.write(b"more") == 4
        with pytest.raises(OSError, match="No space left"):
            target.check()


def test_a_line_that_was_cut_short_costs_only_itself(tmp_path):
    with (tmp_path / NAME).open("w") as file:
        file.write('{"event": "clip", "ti')
    with Journal(tmp_path) as journal:
        journal.write("start", corpus="c", **who())
    (run,) = runs(tmp_path)
    assert run.start["pid"] == os.getpid()
    assert len((tmp_path / NAME).read_text().splitlines()) == 2
