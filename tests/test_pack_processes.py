"""Packing by several processes, and what may happen to it meanwhile."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from mmfeat import pack as pack_module
from mmfeat import pack_block
from mmfeat.layout import FeatureFile
from mmfeat.pack import pack
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.shards import ShardError
from tests.test_shards_pack import FINGERPRINTS, many


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """With the fingerprints of what `many` stores."""
    monkeypatch.setattr(Recipe, "fingerprints", lambda self: dict(FINGERPRINTS))
    return load_recipe("default")


def test_processes_write_the_same_file(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte but for the moment that it says."""
    monkeypatch.setattr(pack_module, "_CLIPS", 1)
    monkeypatch.setattr(pack_module, "_TOGETHER", 2)
    monkeypatch.setattr(pack_block, "_BYTES", 1)
    monkeypatch.setattr(pack_block, "_BLOCK", 1)
    store, corpus = many(tmp_path)
    files = []
    for workers in (1, 2):
        done: list[int] = []
        out = tmp_path / f"{workers}.h5"
        pack(corpus, recipe, store, out, report=lambda n, of, done=done: done.append(n), workers=workers)
        assert done == list(range(1, 12))
        with h5py.File(out) as file:
            created = file.attrs["created"]
        files.append(out.read_bytes().replace(created.encode(), b""))
    assert files[0] == files[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_goes_while_it_is_packed_is_named(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(pack_module, "_CLIPS", 1)
    store, corpus = many(tmp_path)
    survey = pack_module._survey

    def survey_then_lose(*arguments: Any) -> Any:
        seen = survey(*arguments)
        next(store.workdir.glob("audio-*/*/*.npz")).unlink()
        return seen

    monkeypatch.setattr(pack_module, "_survey", survey_then_lose)
    with pytest.raises(FileNotFoundError, match=r"npz \(clip .*c.*\) is not there: extract it first"):
        pack(corpus, recipe, store, tmp_path / "f.h5", workers=workers)
    assert not list(tmp_path.glob("*.h5")) and not list(tmp_path.glob(".*.h5"))


@pytest.mark.parametrize("workers", [1, 2])
def test_all_damaged_shards_are_found_at_once(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Or a disk that lost a thousand would take a thousand runs."""
    monkeypatch.setattr(pack_module, "_CLIPS", 1)
    store, corpus = many(tmp_path)
    for path in sorted(store.workdir.glob("*-*/*/*.npz"))[::4]:
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ShardError, match=r"is removed: the same command extracts it again, and 10 more$"):
        pack(corpus, recipe, store, tmp_path / "f.h5", workers=workers)
    assert len(list(store.workdir.glob("*-*/*/*.npz"))) == 33


def test_a_full_disk_is_named_when_hdf5_stumbles_over_it(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = many(tmp_path)

    def stumble(*_: Any) -> None:
        target.write(b"more")
        raise RuntimeError("address of object past end of allocation")

    with pack_module.Target(Path("/dev/full")) as target:
        monkeypatch.setattr(pack_module, "Target", lambda _: target)
        monkeypatch.setattr(pack_module, "_fill", stumble)
        with pytest.raises(OSError, match="No space left"):
            pack(corpus, recipe, store, tmp_path / "f.h5")


def test_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    """However it dies: its children would wait for work for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, signal, time\n"
        "from mmfeat.pack import _mapping\n"
        "if __name__ == '__main__':\n"
        "    with _mapping(2) as each:\n"
        "        list(each(time.sleep, [0.2] * 4))\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    said = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=60).stdout
    children = [int(pid) for pid in said.split()]
    assert len(children) == 2
    until = time.monotonic() + 30
    while any(map(psutil.pid_exists, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, children))


def test_a_killed_process_costs_time_only(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "_CLIPS", 1)
    monkeypatch.setattr(pack_block, "_BYTES", 1)
    monkeypatch.setattr(pack_block, "_BLOCK", 1)
    store, corpus = many(tmp_path)
    killed = []

    def kill(done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            killed.append(child.pid)
            child.kill()
            child.join()

    pack(corpus, recipe, store, tmp_path / "killed.h5", report=kill, workers=2)
    pack(corpus, recipe, store, tmp_path / "whole.h5")
    assert killed
    with FeatureFile(tmp_path / "killed.h5") as one, FeatureFile(tmp_path / "whole.h5") as other:
        assert one.words("train") == other.words("train")
        for key in set(one.keys("train")) - {"words"}:
            np.testing.assert_array_equal(one.read("train", key), other.read("train", key))
