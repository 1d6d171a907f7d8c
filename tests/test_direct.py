"""Arrays to their places in a file: where the system writes past its cache, where it does not, and where it stops."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmfeat.direct import PAGE, Place, Writer

KINDS = ("f4", "i4", "?", "f8")
GAP = 7
"""Bytes of others between two arrays."""


def write(path: Path, columns: list[tuple[str, int]], pieces: list[int], first: int) -> tuple[bytes, bytes]:
    """Arrays one behind the other from byte `first` of a file, so many rows at a time; returns what the file holds and
    what it should."""
    rng, places, expected = np.random.default_rng(0), {}, bytearray(b"#" * first)
    content = {}
    for number, (kind, width) in enumerate(columns):
        key, dtype = f"{number}", np.dtype(kind)
        places[key] = Place(len(expected), (width,), dtype)
        content[key] = rng.integers(0, 2 if kind == "?" else 99, (sum(pieces), width)).astype(dtype)
        expected += content[key].tobytes() + b"#" * GAP
    path.write_bytes(b"#" * len(expected))
    done = 0
    with Writer(path) as file:
        for rows in pieces:
            arrays = file.arrays({key: place.after(done) for key, place in places.items()}, rows)
            for key, array in arrays.items():
                array[:] = content[key][done : done + rows]
            file.write()
            done += rows
    return path.read_bytes(), bytes(expected)


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 3000)), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(0, 2 * PAGE),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_byte_is_where_it_belongs(
    tmp_path: Path, columns: list[tuple[str, int]], pieces: list[int], first: int
) -> None:
    found, expected = write(tmp_path / "file", columns, pieces, first)
    assert found == expected


LARGE = ([("f4", 5000), ("?", 100)], [3, 4, 5], 100)


@pytest.fixture
def direct(tmp_path: Path) -> int:
    """The flag, where the disk of the tests takes it."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        pytest.skip("this platform has no O_DIRECT")
    (tmp_path / "probe").touch()
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | flag))
    except OSError:
        pytest.skip(f"O_DIRECT is not for the disk of {tmp_path}")
    return flag


@pytest.mark.parametrize("why", ["platform", "open", "write", "little"])
def test_what_the_disk_refuses_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, direct: int
) -> None:
    opened, written, refused = os.open, os.pwrite, []

    def open_(path: Any, flags: int) -> int:
        if flags & direct and why == "open":
            refused.append(flags)
            raise OSError(errno.EINVAL, "Invalid argument")
        file = opened(path, flags)
        if flags & direct:
            past.add(file)
        return file

    def pwrite(file: int, data: Any, offset: int) -> int:
        if file in past and why != "platform":
            assert not offset % PAGE and not len(data) % PAGE
            refused.append(offset)
            if why == "write":
                raise OSError(errno.EINVAL, "Invalid argument")
            return written(ordinary, data[:100], offset)
        return written(file, data, offset)

    past = set[int]()
    if why == "platform":
        monkeypatch.delattr(os, "O_DIRECT")
    (tmp_path / "file").touch()
    ordinary = opened(tmp_path / "file", os.O_WRONLY)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    found, expected = write(tmp_path / "file", *LARGE)
    os.close(ordinary)
    assert found == expected
    assert bool(refused) == (why != "platform")


def test_large_arrays_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: int) -> None:
    written, sizes = os.pwrite, {True: 0, False: 0}
    opened, past = os.open, set[int]()

    def open_(path: Any, flags: int) -> int:
        file = opened(path, flags)
        if flags & direct:
            past.add(file)
        return file

    def pwrite(file: int, data: Any, offset: int) -> int:
        sizes[file in past] += len(data)
        return written(file, data, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    before = len(list(Path("/proc/self/fd").iterdir()))
    found, expected = write(tmp_path / "file", *LARGE)
    assert found == expected
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert sizes[True] > 200_000 and sizes[False] < 4 * 3 * PAGE


def write_to_full_disk(then: str = "") -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full, the device on which every write fails")
    with Writer(Path("/dev/full")) as file:
        file.arrays({"x": Place(0, (5000,), np.dtype("f4"))}, 3)["x"][:] = 1
        file.write()
        if then:
            raise KeyError(then)


def test_a_full_disk_is_an_error_and_no_file_stays_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No space left"):
        write_to_full_disk()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_another_error_is_not_hidden_by_that_of_the_disk() -> None:
    with pytest.raises(KeyError, match="the clip"):
        write_to_full_disk(then="the clip")


def test_the_error_of_an_earlier_write_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwrite

    def pwrite(file: int, data: Any, offset: int) -> int:
        if offset < 8000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", [("f4", 5000)], [1, 1, 1], 0)


def test_arrays_are_asked_for_once_before_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = {"x": Place(0, (10,), np.dtype("f4"))}
    with Writer(tmp_path / "file") as file:
        file.arrays(place, 1)
        with pytest.raises(RuntimeError, match="not written"):
            file.arrays(place, 1)
