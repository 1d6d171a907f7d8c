"""Environments of backends, made with pip from a folder that holds one tiny wheel instead of the index."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from importlib import resources
from pathlib import Path

import psutil
import pytest

from mmfeat import backends
from mmfeat.backends import BACKENDS, Backend, BackendError, environment
from mmfeat.backends.process import Server
from mmfeat.extractors import ENTRIES, find
from mmfeat.registry import MissingBackendError
from pipelines.cli import main
from tests.test_backends import NAMES, SCRIPT, Tiny, frames, pid_of


def build_wheel(folder: Path, version: str = "1.0", works: bool = True) -> None:
    """A package `tinyface`, which brings numpy along by leading the way to ours."""
    folder.mkdir(exist_ok=True)
    info = f"tinyface-{version}.dist-info"
    members = {
        "tinyface.py": "" if works else "raise ImportError('built for another machine')",
        "tinyface.pth": sysconfig.get_path("purelib") + "\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinyface\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"tinyface-{version}-py3-none-any.whl", "w") as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)


class TinyFace(Tiny):
    @property
    def pins_file(self) -> Path:
        return self.path.with_name("pins.txt")


def tinyface(folder: Path, version: str = "1.0", pythons: tuple[int, int] = (11, 99)) -> TinyFace:
    (folder / "serve.py").write_text(SCRIPT.replace('print("imported, loudly")', "import tinyface"))
    (folder / "pins.txt").write_text(f"# exactly\ntinyface=={version}\n")
    return TinyFace("tiny", "tinyface", ("tinyface",), pythons, "MIT, say", lambda env: f"{env}/get", 30.0,
                    path=folder / "serve.py")  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyFace:
    """The only backend that there is, and a pip that knows only its wheel."""
    build_wheel(tmp_path / "wheels")
    for name, value in surroundings(tmp_path).items():
        monkeypatch.setenv(name, value)
    backend = tinyface(tmp_path)
    monkeypatch.setattr(backends, "BACKENDS", {"tiny": backend})
    monkeypatch.setattr(environment, "BACKENDS", {"tiny": backend})
    return backend


def surroundings(folder: Path) -> dict[str, str]:
    return {
        "MMFEAT_BACKENDS": str(folder / "backends"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder / "wheels"),
    }


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "backends" / "tiny").iterdir())


def test_from_nothing_to_rows_and_back(
    tiny: TinyFace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "tinyface.py").write_text("raise ImportError('of another environment')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "ours"))  # must not lead it away from its own packages
    server = Server(tiny, {}, NAMES)
    with pytest.raises(MissingBackendError, match="'tiny' is not installed: mmfeat backends install tiny"):
        server(frames(1))
    assert main(["backends", "list"]) == 0 and "not installed" in capsys.readouterr().out

    assert main(["backends", "install", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "licence: MIT, say" in said and "tinyface==1.0" in said and re.search(r"weights.*: \S+/get\n", said)
    assert main(["backends", "list"]) == 0 and re.search(r"tiny\s+ready\s+tinyface==1\.0", capsys.readouterr().out)
    assert main(["backends", "path", "tiny"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    python = environment.interpreter(tiny)
    assert python.is_relative_to(folder) and folders(tmp_path) == [*sorted(["current.json", folder.name])]
    assert server(frames(5)).values[0, 0] == 5
    assert psutil.Process(pid_of(server)).cmdline()[0] == str(python)

    (tmp_path / "backends" / "tiny" / "weights").mkdir()
    assert main(["backends", "remove", "tiny"]) == 0
    assert folders(tmp_path) == ["weights"] and "removed" in capsys.readouterr().out
    assert main(["backends", "remove", "tiny"]) == 0 and "was not installed" in capsys.readouterr().out
    server.close()


def test_a_killed_installation_is_not_taken_for_a_whole_one(tiny: TinyFace, tmp_path: Path) -> None:
    """Killed after pip and before the question, when all its files are there."""
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from mmfeat.backends import environment
        from tests.test_backend_environments import tinyface
        def report(step):
            if "asked" in step:
                os.kill(os.getpid(), signal.SIGKILL)
        environment.install(tinyface(Path({str(tmp_path)!r})), report=report)
        """)
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=here, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = folders(tmp_path)
    assert list((tmp_path / "backends" / "tiny" / leftover).rglob("tinyface.py"))
    assert environment.state(tiny) == "not installed"

    environment.install(tiny)
    assert environment.state(tiny) == "" and leftover not in folders(tmp_path)


def test_what_cannot_be_installed_says_why_and_disturbs_nothing(tiny: TinyFace, tmp_path: Path) -> None:
    before = environment.install(tiny)
    newer = tinyface(tmp_path, "2.0")
    assert environment.state(newer) == "installed for another version of mmfeat"
    with pytest.raises(MissingBackendError, match=r"another version of mmfeat: mmfeat backends install tiny"):
        environment.interpreter(newer)
    with pytest.raises(
        BackendError, match=r"pip could not install tiny: .*No matching distribution found for tinyface==2.0"
    ):
        environment.install(newer)
    build_wheel(tmp_path / "wheels", "2.0", works=False)
    with pytest.raises(BackendError, match=r"tiny failed while it started: ImportError: built for another machine"):
        environment.install(newer)
    assert environment.state(tiny) == "" and environment.environment(tiny) == before
    assert len(folders(tmp_path)) == 2

    build_wheel(tmp_path / "wheels", "2.0")
    environment.install(newer)
    assert environment.state(newer) == "" and len(folders(tmp_path)) == 2 and not before.exists()


def test_a_python_that_its_packages_have_no_wheels_for_is_refused(tiny: TinyFace, tmp_path: Path) -> None:
    other = tinyface(tmp_path, pythons=(5, 6))
    with pytest.raises(BackendError, match=r"tiny needs Python 3\.5 to 3\.6, and this is 3\.\d+: .*--python /path/to/"):
        environment.install(other)
    with pytest.raises(BackendError, match=r"tiny needs Python 3\.5 to 3\.6; .*python\S* is 3\.\d+"):
        environment.install(other, python=sys.executable)
    with pytest.raises(BackendError, match="no-such-python is no Python"):
        environment.install(other, python="no-such-python")
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho I am no Python >&2\nexit 3\n")
    false.chmod(0o755)
    with pytest.raises(BackendError, match="is no Python that can be started: I am no Python"):
        environment.install(other, python=str(false))
    assert not (tmp_path / "backends").exists()


def test_usage(tiny: TinyFace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends", "install", "tinny"]) == 2
    assert "no backend 'tinny'; there are: tiny" in capsys.readouterr().err
    assert main(["backends", "path", "tiny"]) == 2
    assert "mmfeat backends install tiny" in capsys.readouterr().err


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
class TestShipped:
    def test_its_pins_name_all_it_promises(self, backend: Backend) -> None:
        assert {backend.requirement.lower(), *map(str.lower, backend.packages)} <= set(backend.pins)
        assert all(re.fullmatch(r"\d[\w.]*", version) for version in backend.pins.values())
        assert resources.files("mmfeat").joinpath("backends", "pins", f"{backend.name}.txt").is_file()
        assert backend.licence and backend.script.is_file()

    def test_its_extractor_is_listed_with_the_one_command(
        self, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MMFEAT_BACKENDS", str(tmp_path))
        assert ENTRIES[backend.name].modality == "vision"
        with pytest.raises(MissingBackendError, match=rf"not installed.*: mmfeat backends install {backend.name}$"):
            find(backend.name)


def test_the_fingerprint_changes_with_a_pin_and_not_with_their_order(tmp_path: Path) -> None:
    def digest(pins: str) -> str:
        backend = tinyface(tmp_path)
        backend.pins_file.write_text(pins)
        return backend.digest

    assert digest("a==1\nb==2\n") == digest("# said otherwise\nb==2\na==1\n") != digest("a==1\nb==3\n")


def test_the_folder_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMFEAT_BACKENDS", str(tmp_path))
    assert environment.backends_folder() == tmp_path
    monkeypatch.delenv("MMFEAT_BACKENDS")
    assert environment.backends_folder().parts[-2:] == ("mmfeat", "backends")
