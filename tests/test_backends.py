"""A backend's process, good and bad: a tiny one, served by this Python instead of one of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.backends import Backend, BackendError, environment
from mmfeat.backends.process import Server, probe
from mmfeat.backends.serving import wire
from mmfeat.registry import MissingBackendError
from mmfeat.track import Frame

SERVING = Path(wire.__file__).parent
NAMES = ("mean", "start", "clips")
SCRIPT = f"""
import ctypes, os, subprocess, sys, time
sys.path.insert(0, {str(SERVING)!r})
import numpy as np
from server import MissingError, serve

class Tiny:
    names = {NAMES!r}

    @staticmethod
    def load():
        print("imported, loudly")

    def __init__(self, settings):
        self.does, self.clips = settings.get("does", ""), 0
        if self.does == "lacks weights":
            raise MissingError("it has no weights; get them with")
        if self.does == "other names":
            self.names = ("other",)

    def start(self):
        self.rows, self.clips = [], self.clips + 1

    def frame(self, image, start, end):
        print("a line for every frame")
        if self.does and len(self.rows) == 1 and image.max() < 99:
            self.misbehave()
        self.rows.append((image.mean() if image.max() else np.nan, start, self.clips))

    def finish(self):
        rows = np.array(self.rows).reshape(-1, 3)
        if self.does == "no number":
            return np.full((len(rows), 3), np.inf), np.ones(len(rows), bool)
        if self.does == "too few rows":
            return rows[1:], np.ones(len(rows) - 1, bool)
        return rows, np.isfinite(rows[:, 0])

    def misbehave(self):
        print("about to misbehave", file=sys.stderr)
        if self.does == "exit":
            os._exit(7)
        if self.does == "segfault":
            ctypes.string_at(0)
        if self.does == "raise":
            raise ValueError("a picture that it cannot take")
        if self.does in ("hang", "keep the interpreter"):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            print("child", child.pid)
            (ctypes.PyDLL(None) if self.does == "keep the interpreter" else time).sleep(600)
        if self.does == "noise":  # on what was standard output when it started
            os.system("echo from a child")
            ctypes.CDLL(None).puts(b"from C")
        if self.does == "die with a child":
            print("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
            sys.stdout.flush()
            os._exit(7)

serve(Tiny)
"""


@dataclass(frozen=True)
class Tiny(Backend):
    path: Path = Path()

    @property
    def script(self) -> Path:
        return self.path


def backend(script: Path, **changes) -> Tiny:
    return Tiny(**{"name": "tiny", "requirement": "tiny", "packages": (), "pythons": (11, 99), "licence": "MIT",
                   "path": script, "frame_seconds": 30.0, **changes})  # fmt: skip


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "interpreter", lambda backend: Path(sys.executable))
    monkeypatch.setattr(environment, "environment", lambda backend: tmp_path)
    path = tmp_path / "serve_tiny.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def served(script: Path) -> Iterator[Callable[..., Server]]:
    servers = []

    def make(does: str = "", **changes) -> Server:
        servers.append(Server(backend(script, **changes), {"does": does}, NAMES))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def frames(*brightness: int, height: int = 4, width: int = 6) -> Iterator[Frame]:
    for k, level in enumerate(brightness):
        yield Frame(np.full((height, width, 3), level, np.uint8), k / 10, (k + 1) / 10)


def pid_of(server: Server) -> int:
    """Of the server, which its keeper has started."""
    assert server._process
    (child,) = psutil.Process(server._process._process.pid).children()
    return child.pid


def ends(pid: int) -> bool:
    """Whether a process is gone, or will be within seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


class TestClips:
    def test_rows_in_their_order_with_times_and_validity(self, served) -> None:
        track = served()(frames(10, 0, 30))
        assert track.names == NAMES
        np.testing.assert_allclose(track.values, [[10, 0, 1], [0, 0, 0], [30, 0.2, 1]], rtol=1e-6)
        assert track.valid.tolist() == [True, False, True]
        np.testing.assert_allclose(track.times, [[0, 0.1], [0.1, 0.2], [0.2, 0.3]])

    def test_one_process_serves_all_clips_and_starts_with_the_first_frame(self, served) -> None:
        server = served()
        assert len(server(frames())) == 0 and server._process is None  # nothing to ask
        server(frames(1))
        first = pid_of(server)
        assert server(frames(2, 3)).values[:, 2].tolist() == [2, 2]
        assert pid_of(server) == first

    def test_huge_frames_pass_whole_and_sizes_may_change(self, served) -> None:
        large = np.random.default_rng(0).integers(1, 255, (4320, 7680, 3), np.uint8)
        track = served()(iter([Frame(large, 0, 1), Frame(large[:1, :1], 1, 2), Frame(large[::7, ::5], 2, 3)]))
        expected = [large.mean(), large[0, 0].mean(), large[::7, ::5].mean()]
        np.testing.assert_allclose(track.values[:, 0], expected, rtol=1e-5)

    def test_what_the_backend_prints_does_not_touch_the_protocol(self, served) -> None:
        assert len(served("noise")(frames(*range(1, 50)))) == 49

    def test_closing_ends_the_process(self, served) -> None:
        server = served()
        server(frames(1))
        pid = pid_of(server)
        server.close()
        assert ends(pid)

    def test_a_server_that_is_forgotten_ends_its_process(self, script: Path) -> None:
        server = Server(backend(script), {}, NAMES)
        server(frames(1))
        pid = pid_of(server)
        del server
        assert ends(pid)


class TestFailures:
    """Each costs its clip; the next one gets a new process."""

    @pytest.mark.parametrize(
        ("does", "says"),
        [
            ("exit", r"tiny ended with status 7 at frame 1.*about to misbehave"),
            ("segfault", r"tiny was ended by SIGSEGV at frame 1.*about to misbehave"),
            ("raise", r"tiny failed at frame 1: ValueError: a picture that it cannot take"),
            ("no number", r"not finite in mean, start"),
            ("too few rows", r"gave \(1, 3\) values .* for 2 frames"),
        ],
    )
    def test_it_is_told_with_the_last_words(self, served, does: str, says: str) -> None:
        server = served(does)
        with pytest.raises(BackendError, match=says):
            server(frames(1, 2))
        if does in ("exit", "segfault", "raise"):
            assert server(frames(1, 200)).values[:, 2].tolist() == [1, 1]  # a new process: its first clip

    def test_a_hang_is_ended_with_its_children(self, served) -> None:
        server = served("hang", frame_seconds=1.5)
        with pytest.raises(BackendError, match=r"needed more than 1\.5 s for frame 1: killed.*child (\d+)") as caught:
            server(frames(1, 2))
        child = int(str(caught.value).rpartition("child ")[2].split()[0])
        assert ends(child)
        assert len(server(frames(1))) == 1

    def test_a_hang_in_the_middle_of_a_large_frame(self, tmp_path: Path, served) -> None:
        """It reads no more, so that our pipe is full: the limit holds for what we write, too."""
        server = served(frame_seconds=1.5)
        server._backend.path.write_text(
            SCRIPT.replace("serve(Tiny)", "Tiny.start = lambda self: time.sleep(600)\nserve(Tiny)")
        )
        with pytest.raises(BackendError, match=r"more than 1\.5 s for frame 0"):
            server(frames(1, height=1000, width=1000))

    def test_children_of_a_process_that_died_die_too(self, served) -> None:
        with pytest.raises(BackendError, match=r"status 7.*child \d+") as caught:
            served("die with a child")(frames(1, 2))
        assert ends(int(str(caught.value).rpartition("child ")[2].split()[0]))

    def test_frames_that_cannot_be_decoded_are_told_as_such_and_leave_no_half_clip(self, served) -> None:
        def broken() -> Iterator[Frame]:
            yield from frames(1)
            raise OSError("the file ends here")

        server = served()
        with pytest.raises(OSError, match="the file ends here"):
            server(broken())
        assert server(frames(1, 2)).values[:, 2].tolist() == [1, 1]

    def test_a_process_that_was_killed_between_clips_is_replaced(self, served) -> None:
        server = served()
        server(frames(1))
        pid, keeper = pid_of(server), server._process._keeper
        psutil.Process(pid).kill()
        assert ends(pid) and keeper.wait(10) is not None  # the keeper goes after what it kept
        assert server(frames(1)).values[0, 2] == 1

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            ("print('Welcome!'); time.sleep(9)", "broke the protocol while it started: no message, but b'Welc"),
            ("send(out, 'ready', protocol=99, versions={}, names=[])", "answers in protocol 99, not 1"),
            ("send(out, 'hm')", "answered 'hm' instead of 'ready'"),
            ("sys.stderr.write('No module named backend')", "ended with status 0 while it started.*No module named"),
        ],
    )  # fmt: skip
    def test_something_else_answers(self, served, script: Path, answer: str, says: str) -> None:
        script.write_text(
            f"import sys, time\nsys.path.insert(0, {str(SERVING)!r})\n"
            f"from wire import send\nout = sys.stdout.buffer\n{answer}\n"
        )
        with pytest.raises(BackendError, match=says):
            served()(frames(1))

    def test_other_columns_are_refused(self, served) -> None:
        with pytest.raises(BackendError, match="other columns than expected"):
            served("other names")(frames(1))

    def test_a_server_refuses_another_protocol(self, served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mmfeat.backends.process.PROTOCOL", 2)
        with pytest.raises(BackendError, match="asked in protocol 2, this is 1"):
            served()(frames(1))

    def test_missing_weights_stop_everything_and_name_the_command(self, served) -> None:
        with pytest.raises(MissingBackendError, match="no weights; get them with: get-weights --to"):
            served("lacks weights", weights=lambda folder: f"get-weights --to {folder}")(frames(1))


def test_versions_other_than_pinned_are_refused(script: Path, tmp_path: Path) -> None:
    class Pinned(Tiny):
        pins_file = tmp_path / "pins.txt"

    def server(pins: str) -> Server:
        Pinned.pins_file.write_text(pins)
        made = Pinned(name="tiny", requirement="numpy", packages=("numpy",), pythons=(11, 99), licence="", path=script)
        return Server(made, {}, NAMES)

    assert len(server(f"# pins\nnumpy=={np.__version__}\n")(frames(1))) == 1
    with pytest.raises(MissingBackendError, match=r"has numpy .*, not 0\.1: mmfeat backends install tiny"):
        server("numpy==0.1")(frames(1))


def test_a_probe_needs_no_weights(script: Path) -> None:
    assert probe(backend(script, packages=("numpy",)), Path(sys.executable)) == {"numpy": np.__version__}


@pytest.mark.parametrize("state", ["idle", "hang", "keep the interpreter"])
def test_a_server_ends_when_we_are_killed(script: Path, tmp_path: Path, state: str) -> None:
    """With the child that it has in the middle of a frame."""
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent(f"""
        import sys, threading, time
        from pathlib import Path
        from mmfeat.backends import environment
        from tests import test_backends as t
        environment.interpreter = lambda backend: Path(sys.executable)
        server = t.Server(t.backend(Path({str(script)!r})), {{"does": {state!r}}}, t.NAMES)
        server(t.frames(1))
        print(t.pid_of(server), flush=True)
        if {state != "idle"}:
            server(t.frames(1, 2))
        time.sleep(600)
        """)
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, env=here) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        if state != "idle":
            deadline = time.monotonic() + 20
            while not psutil.Process(pid).children() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert psutil.Process(pid).children()
        started = [pid, *(child.pid for child in psutil.Process(pid).children())]
        process.kill()
    assert all(ends(pid) for pid in started)


class TestWire:
    @settings(deadline=None)
    @given(
        st.sampled_from(["|u1", "<f4", "<f8", "|b1"]),
        st.lists(st.integers(0, 5), max_size=4),
        st.dictionaries(st.text(max_size=5), st.one_of(st.floats(allow_nan=False), st.text(max_size=9), st.none()))
        .filter(lambda fields: not {"kind", "dtype", "shape", "stream", "array"} & set(fields)),
    )  # fmt: skip
    def test_what_is_sent_arrives(self, dtype: str, shape: list[int], fields: dict) -> None:
        array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
        pipe = io.BytesIO()
        wire.send(pipe, "kind", array, **fields)
        wire.send(pipe, "next")
        pipe.seek(0)
        message = wire.receive(pipe)
        assert message and message.kind == "kind" and message.fields == fields and message.array is not None
        assert message.array.dtype == array.dtype
        np.testing.assert_array_equal(message.array, array)
        assert wire.receive(pipe) == ("next", {}, None) and wire.receive(pipe) is None

    @settings(deadline=None)
    @given(st.binary(max_size=60))
    def test_garbage_is_refused_not_waited_for(self, garbage: bytes) -> None:
        if garbage:
            with pytest.raises(wire.WireError):
                wire.receive(io.BytesIO(garbage))

    @settings(deadline=None)
    @given(st.integers(0, 200))
    def test_a_message_that_was_cut_off_is_no_message(self, kept: int) -> None:
        pipe = io.BytesIO()
        wire.send(pipe, "kind", np.arange(10.0))
        whole = pipe.getvalue()
        if 0 < kept < len(whole):
            with pytest.raises(wire.WireError, match="cut off"):
                wire.receive(io.BytesIO(whole[:kept]))

    @pytest.mark.parametrize(
        ("header", "body"),
        [
            ({"kind": "x", "dtype": "|O", "shape": [1]}, b"12345678"),
            ({"kind": "x", "dtype": "<f8", "shape": [2]}, b"12345678"),
            ({"kind": "x", "dtype": "<f8", "shape": [-1]}, b"12345678"),
            ({"kind": "x", "dtype": "<f8", "shape": "1"}, b"12345678"),
            ({"no": "kind"}, b""),
            ([], b""),
        ],
    )
    def test_arrays_that_do_not_fit_their_bytes_are_refused(self, header: object, body: bytes) -> None:
        text = json.dumps(header).encode()
        with pytest.raises(wire.WireError):
            wire.receive(io.BytesIO(b"MMB1" + wire._SIZES.pack(len(text), len(body)) + text + body))
