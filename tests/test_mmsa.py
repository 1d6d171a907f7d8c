"""MMSA's pickles: read without running them, and given back bit for bit."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.mmsa import MMSAError
from mmfeat.mmsa.read import convert
from mmfeat.mmsa.unpickle import RefusedError, load, loads
from mmfeat.mmsa.write import export

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def identical(a: Any, b: Any) -> bool:
    """Same types, dtypes with their byte order, shapes and bits: NaN equals the same NaN, and 0 is not −0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray) and a.dtype.hasobject:
        return a.shape == b.shape and b.dtype.hasobject and identical(a.ravel().tolist(), b.ravel().tolist())
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype.str, a.shape, a.tobytes()) == (b.dtype.str, b.shape, b.tobytes())
    if isinstance(a, dict):
        return identical([*a, *a.values()], [*b, *b.values()])  # in the same order
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return identical(np.float64(a), np.float64(b)) if isinstance(a, float) else a == b


class Evil:
    """Pickles as a call."""

    def __init__(self, call: Any, *arguments: Any, state: Any = None):
        self._reduced = (call, arguments, state)

    def __reduce__(self) -> Any:
        return self._reduced


REFUSED = [
    (Evil(os.system, "touch hacked"), f"asks for {os.system.__module__}.system"),
    (Evil(builtins.eval, "open('hacked', 'w')"), r"asks for (builtins|__builtin__)\.eval"),
    (Evil(builtins.getattr, "numpy", "load"), r"asks for (builtins|__builtin__)\.getattr"),
    (Evil(np.load, "x.npy"), r"asks for numpy\.load"),
    (Evil(np.fromfile, "x.npy"), r"asks for numpy"),
    ({"text": Evil(os.system, "touch hacked")}, "system"),
    (np.array([Evil(os.system, "touch hacked")], object), "system"),
    (os.system, f"asks for {os.system.__module__}.system"),  # named, not called
    (Path("x"), "asks for pathlib"),
    (OrderedDict(a=1), r"asks for collections\.OrderedDict"),
    (torch.ones(2), "asks for torch"),
    (np.dtype("f4"), "a Type where a value should be"),
    (np.zeros(2, [("a", "f4")]), "of type 'V4'"),
    (np.zeros(2, "M8[s]"), "of type 'M8'"),
    ([bytearray(b"x")], "bytearray where a value should be"),
    (Evil(np.dtype, "O8(4)"), "of type 'O8"),
    (Evil(np.ndarray, (1,), np.dtype("O"), b"\0" * 8), "objects without its objects"),
    (Evil(np.ndarray, (1 << 40,), np.dtype("u1"), b"\0"), "does not fit its shape"),
    (Evil(np.float32(0).__reduce__()[0], np.dtype("f4"), b"\0" * 8), "number whose content does not fit its type"),
    (Evil(bytearray, 1 << 40), "of something else than bytes"),
    ({((1,),): 2}, "tuple as a key"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, value, reason, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": value}, protocol))
    with pytest.raises(RefusedError, match=f"x.pkl is refused: it .*{reason}"):
        load("x.pkl")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_is_called_one(tmp_path, zipped):
    torch.save({"train": torch.ones(2)}, tmp_path / "x.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(MMSAError, match=r"torch\.save.* no pickle.*pickle\.dump"):
        load(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"cnumpy\ndtype\n}Vx\nI1\nsb.", "alters numpy.dtype"),
        (b"cnumpy\ndtype\n)}(V__call__\ncos\nsystem\nsb.", "system"),
        (b"(S'touch hacked'\nios\nsystem\n.", "asks for .*system"),
        (b"c__main__\nx\n.", "asks for __main__.x"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.ctypes\x93.", "asks for numpy.ndarray.ctypes"),
        (b"cnumpy\ndtype\n\x81.", "damaged"),
        (b"Pid\n.", "damaged"),
        (b"]\x94h\x00\x61.", "contains itself"),
        (b"\x80\x04]" + b"\x85" * 100_000 + b".", "nested more than 50 deep"),
        (b"\x80\x04})" + b"\x85" * 1_000_000 + b"Ns.", "tuple as a key"),
        (b"Nr\xff\xff\xff\x7f.", "None"),
    ],
)
def test_programs_that_no_pickler_writes(tmp_path, monkeypatch, program, reason):
    monkeypatch.chdir(tmp_path)
    if reason == "None":
        assert loads(program, "x") is None  # the standard reader fills 32 GB for this one
        return
    with pytest.raises(MMSAError, match=reason):
        loads(program, "x")
    assert not (tmp_path / "hacked").exists()


HUGE = 3_000_000_000
ANNOUNCING = {
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", HUGE),
    "BINBYTES8": b"\x8e" + struct.pack("<Q", HUGE),
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", HUGE),
    "FRAME": b"\x95" + struct.pack("<Q", HUGE),
    "BINBYTES": b"B" + struct.pack("<I", HUGE),
    "BINUNICODE": b"X" + struct.pack("<I", HUGE),
    "BINSTRING": b"T" + struct.pack("<i", HUGE // 2),
    "LONG4": b"\x8b" + struct.pack("<i", HUGE // 2),
    "BYTEARRAY8 in a frame": b"\x95" + struct.pack("<Q", 10) + b"\x96" + struct.pack("<Q", HUGE),
    "BINBYTES8 in a frame": b"\x95" + struct.pack("<Q", 10) + b"\x8e" + struct.pack("<Q", HUGE),
}


@pytest.mark.parametrize("name", ANNOUNCING)
def test_no_room_is_made_for_bytes_that_are_not_there(tmp_path, name):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x05" + ANNOUNCING[name] + b".")
    tracemalloc.start()
    try:
        with pytest.raises(MMSAError, match=r"x\.pkl is no pickle, or a damaged one"):
            load(tmp_path / "x.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_pickle_is_said(tmp_path):
    good = pickle.dumps({"a": np.arange(600.0)}, 4)
    for data in (b"", b"not a pickle", b"\x89HDF\r\n\x1a\n", good[:-1], good[: len(good) // 2]):
        (tmp_path / "x.pkl").write_bytes(data)
        with pytest.raises(MMSAError, match=r"x\.pkl is no pickle, or a damaged one \(."):
            load(tmp_path / "x.pkl")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "y.pkl")


SEEDS = [
    pickle.dumps({"a": np.arange(6.0), "b": ["x", b"y"], "c": np.array(["s"], object), "d": {1, 2}}, protocol)
    for protocol in PROTOCOLS
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 600), st.integers(0, 12), st.binary(max_size=12))
def test_damage_is_said_and_never_crashes(good, at, cut, noise):
    at %= len(good)
    try:
        loads(good[:at] + noise + good[at + cut :], "x")
    except MMSAError as error:
        assert str(error).startswith("x is ")  # noqa: PT017 - most damage is an error, some gives another valid pickle


OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
PIECES = [
    *OPCODES,
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"K\x01",
    b"U\x02f8",
    b"I3\n",
]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=25))
def test_any_program_ends_in_a_value_or_an_error(pieces):
    try:
        loads(b"".join(pieces) + b".", "x")
    except MMSAError:
        return


VALUES = {
    "big-endian": np.array([[1.5, np.nan, -0.0]], ">f8"),
    "not a number, with a message": np.array([0x7FF8_0000_DEAD_BEEF, 0xFFF0_0000_0000_0001], "u8").view("f8"),
    "Fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "transposed": np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(12.0)[::3],
    "0-d": np.array(3.5, "f2"),
    "empty": np.zeros((0, 3), ">f4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "objects": np.array([["a", "ü"], [b"b", None]], object),
    "no objects": np.array([], object),
    "words": np.array(["a", "bbb"]),
    "bytes": np.array([b"a", b"bbb"]),
    "scalars": [np.str_(""), np.str_("ü"), np.bytes_(b""), np.float32(-0.0), np.float64("nan"), np.bool_(True)],
    "plain": [1, True, None, 2.5, -0.0, float("nan"), 1 + 2j, "a\0\ud800", b"", b"\xff", (1, [2]), 1 << 80],
    "nested": {"a": {3: [{}, (), []]}, b"b": {4, 5}, 1.5: frozenset("x")},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_value_is_read_as_it_was_written(protocol):
    data = pickle.dumps(VALUES, protocol)
    assert identical(loads(data, "x"), VALUES)
    if protocol < 4:  # names end at a line's end there
        older = data.replace(b"numpy._core", b"numpy.core")
        assert older != data and identical(loads(older, "x"), VALUES)  # as numpy 1 writes them


def test_shared_values_stay_shared():
    shared = [1, 2]
    read = loads(pickle.dumps({"a": shared, "b": shared}), "x")
    assert read["a"] is read["b"]


floats = st.sampled_from([0.0, -0.0, 1.5, 0.1, np.nan, -np.nan, -np.inf, np.inf, 1e300])


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """Pickles with the differences that those in circulation have."""
    kind = draw(st.sampled_from(["<f4", "<f8", ">f8", ">f4", "<f2"]))
    L, T, D = (draw(st.integers(1, 4)) for _ in range(3))
    is_aligned, as_list, in_fortran = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    id_form = draw(st.sampled_from(["str", "bytes", "array", "numpy", "object", "rows", "parts"]))
    extra = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=3))
    data: dict[str, Any] = {}
    for split in draw(st.permutations(["train", "valid", "test"])):
        N = draw(st.integers(0 if split == "test" else 1, 3))

        def array(*shape: int) -> np.ndarray:
            size = int(np.prod(shape))
            values = draw(st.lists(floats, min_size=size, max_size=size))
            with np.errstate(over="ignore"):
                cast = np.array(values, np.float64).reshape(shape).astype(kind)
            return np.asfortranarray(cast) if in_fortran else cast

        names = [f"v{k}$_$0{k}" for k in range(N)]
        ids = {
            "str": names,
            "bytes": [name.encode() for name in names],
            "array": np.array(names, "U8"),
            "numpy": [np.str_(name) for name in names],
            "object": np.array(names, object),
            "rows": np.array(names, "S8").reshape(N, 1),
            "parts": [["v", str(k), "2.5"] for k in range(N)],
        }
        one: dict[str, Any] = {
            "id": ids[id_form],
            "text": array(N, L, D),
            "vision": array(N, L if is_aligned else T, 2),
        }
        if split == "train" or draw(st.booleans()):
            one["audio"] = array(N, L if is_aligned else T, D)
        one["regression_labels"] = array(N).tolist() if as_list else array(N)
        if draw(st.booleans()):
            one["text_bert"] = np.ones((N, 3, L), kind)
            one["raw_text"] = ["a\0b\ud800"] * N
            one["regression_labels_T"] = array(N, 1)
        if not is_aligned:
            lengths = [draw(st.integers(0, 5)) for _ in range(N)]
            one |= {"audio_lengths": lengths if as_list else np.array(lengths, ">i8"), "vision_lengths": lengths}
        if draw(st.booleans()):
            one["classification_labels"] = array(N)
        one |= {name: VALUES[name] for name in extra}
        data[split] = one if N else draw(st.sampled_from([one, {}, {key: np.array([]) for key in one}]))
    return data | {name: VALUES[name] for name in extra}


def test_exports_name_nothing_that_only_some_numpy_has(tmp_path):
    one = {"id": np.array(["a"]), "audio": np.ones((1, 2, 3), ">f4")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": one}))
    export(convert(tmp_path / "a.pkl", tmp_path / "a.h5"), tmp_path / "b.pkl")
    assert b"numpy.core" not in (data := (tmp_path / "b.pkl").read_bytes()) and b"numpy._core" not in data


@settings(max_examples=100, deadline=None)
@given(files())
def test_round_trip_keeps_every_bit(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    source, features, back = folder / "a.pkl", folder / "a.h5", folder / "b.pkl"
    source.write_bytes(pickle.dumps(data))
    convert(source, features)
    export(features, back)
    with back.open("rb") as file:
        assert identical(pickle.load(file), data)
    assert identical(load(back), data)
