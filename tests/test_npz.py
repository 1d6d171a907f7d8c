"""What numpy.savez wrote is read as numpy.load reads it, or refused; what is written here, numpy.load reads."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmfeat import npz

KINDS = st.sampled_from(["f4", "f8", "i4", "u1", "?", "<U3"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


def saved(**content: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def write(**content: np.ndarray) -> bytes:
    return npz.archive(content)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npz") / "shard.npz"


@given(arrays.arrays(KINDS, SHAPES), arrays.arrays(KINDS, SHAPES))
def test_what_numpy_wrote_is_read(path, one, two):
    path.write_bytes(saved(head=one, values=two, turned=two.T))
    found = npz.read(path)
    assert list(found) == ["head", "values", "turned"]
    for ours, theirs in [
        (found["head"], one),
        (found["values"], two),
        (found["turned"], two.T),
        (npz.first(path), one),
    ]:
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


@given(arrays.arrays(KINDS, SHAPES), arrays.arrays(KINDS, SHAPES))
def test_what_is_written_numpy_reads(path, one, two):
    content = {"head": one, "values": two, "turned": two.T}
    path.write_bytes(npz.archive(content))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 3
    with np.load(path, allow_pickle=False) as theirs:
        for found in (theirs, npz.read(path)):
            assert list(found) == list(content)
            for name, array in content.items():
                assert found[name].dtype == array.dtype and found[name].shape == array.shape
                np.testing.assert_array_equal(found[name], array)


def test_a_first_member_of_any_size(path):
    large = np.arange(100_000)
    path.write_bytes(saved(head=large, values=np.ones(3)))
    assert np.array_equal(npz.first(path), large)


@given(st.data())
def test_damage_is_refused_or_without_effect(path, data):
    content = {"head": np.arange(40, dtype=np.uint8), "values": np.arange(12.0).reshape(3, 4)}
    whole = data.draw(st.sampled_from([saved, write]))(**content)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:at]
    else:
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    path.write_bytes(damaged)
    try:
        found = npz.read(path)
    except ValueError:
        return
    assert list(found) == list(content)
    assert all(np.array_equal(array, content[name]) for name, array in found.items())


def test_no_objects_are_unpickled(path):
    path.write_bytes(saved(head=np.array([{}], dtype=object)))
    with pytest.raises(ValueError, match="Python objects"):
        npz.read(path)
    with pytest.raises(ValueError, match="Python objects"):
        npz.archive({"head": np.array([{}], dtype=object)})
    with pytest.raises(FileNotFoundError):
        npz.read(path.with_name("nowhere.npz"))


@pytest.mark.parametrize("writer", ["numpy", "ours"])
def test_a_file_that_lost_a_member_is_damaged(path, writer):
    wanted = {name: np.arange(5) + k for k, name in enumerate(("one", "two", "three"))}
    if writer == "numpy":
        np.savez(path, **wanted)
    else:
        path.write_bytes(npz.archive(wanted))
    content = path.read_bytes()
    begin, end = (content.index(b"PK\3\4", at) for at in (1, content.index(b"PK\3\4", 1) + 1))
    path.write_bytes(content[:begin] + content[end:])
    with pytest.raises(ValueError, match="other members"):
        npz.read(path)


@pytest.mark.parametrize("header", ["{'descr': ", "{'descr': (((", "  x", "3", "{'descr': '<f4', 'shape': 1}"])
def test_a_header_that_is_none_is_damage(path, header):
    member = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", member)
    with pytest.raises(ValueError):
        npz.read(path)
