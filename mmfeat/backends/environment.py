"""Environments of backends: made on request, whole or not there.

`<cache>/backends/<name>/current.json` names the environment in use and is written last. An installation that was
interrupted leaves a folder that nothing names, which the next one removes; one that replaces another does not disturb
processes that still run in the old.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mmfeat.backends import BACKENDS, Backend, BackendError, scripts
from mmfeat.files import atomic, user_cache
from mmfeat.registry import MissingBackendError

Report = Callable[[str], None]


def backends_folder() -> Path:
    """`$MMFEAT_BACKENDS`, or `mmfeat/backends` in the user's cache folder."""
    if chosen := os.environ.get("MMFEAT_BACKENDS"):
        return Path(chosen).expanduser().absolute()
    return user_cache() / "backends"


def find(name: str) -> Backend:
    """Raises KeyError, naming all, where there is no backend `name`."""
    if name not in BACKENDS:
        raise KeyError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def state(backend: Backend) -> str:
    """Why its environment cannot be used; empty where it can."""
    current = _current(backend)
    if current is None:
        return "not installed"
    if current.get("pins") != backend.digest:
        return "installed for another version of mmfeat"
    return "" if _python(_folder(backend, current)).exists() else "its files are gone"


def interpreter(backend: Backend) -> Path:
    """The Python of its environment. Raises MissingBackendError, with the command, where there is none to use."""
    if why := state(backend):
        raise MissingBackendError(f"backend {backend.name!r} is {why}: mmfeat backends install {backend.name}")
    return _python(environment(backend))


def environment(backend: Backend) -> Path:
    """The folder of its environment. Raises MissingBackendError where there is none."""
    current = _current(backend)
    if current is None:
        raise MissingBackendError(f"backend {backend.name!r} is not installed: mmfeat backends install {backend.name}")
    return _folder(backend, current)


def install(backend: Backend, python: str = "", report: Report = lambda step: None) -> Path:
    """Make the environment of a backend with exactly its pinned packages, and have it answer once.

    An environment that is there already is replaced once the new one has answered. Raises BackendError where no
    fitting Python is found, pip cannot install, or what it installed does not work.
    """
    base = _base_python(backend, python)
    home = backends_folder() / backend.name
    home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=home, prefix=_prefix()))
    try:
        report(f"environment with {base}")
        _run([base, "-m", "venv", "--without-pip", str(folder)], f"{base} could not make an environment")
        report(f"pip installs {backend.pinned} and what it needs")
        _pip_install(backend, folder)
        report("it is asked for its version")
        from mmfeat.backends.process import probe

        versions = probe(backend, _python(folder))
        content = {"environment": folder.name, "pins": backend.digest, "versions": versions}
        with atomic(home / "current.json") as path:
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _clear(home, keep=folder)
    return folder


def remove(backend: Backend) -> bool:
    """Remove its environment, leftovers too, weights not. False where there was nothing."""
    home = backends_folder() / backend.name
    there = (home / "current.json").exists() or any(home.glob("*-*-*"))
    with contextlib.suppress(FileNotFoundError):
        (home / "current.json").unlink()  # first: what is half removed must not be found
    _clear(home)
    with contextlib.suppress(OSError):
        home.rmdir()  # unless weights are in it
    return there


def _current(backend: Backend) -> dict[str, Any] | None:
    try:
        content = json.loads((backends_folder() / backend.name / "current.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("environment"), str) else None


def _folder(backend: Backend, current: dict[str, Any]) -> Path:
    return backends_folder() / backend.name / Path(current["environment"]).name


def _python(folder: Path) -> Path:
    return scripts(folder) / ("python.exe" if sys.platform == "win32" else "python")


def _base_python(backend: Backend, chosen: str) -> str:
    """A Python that the pinned packages have wheels for: the chosen one, this one, or one on the PATH."""
    first, last = backend.pythons
    wanted = f"Python 3.{first}" if first == last else f"Python 3.{first} to 3.{last}"
    if chosen:
        major, minor = _python_version(chosen)
        if major != 3 or not first <= minor <= last:
            raise BackendError(f"{backend.name} needs {wanted}; {chosen} is {major}.{minor}")
        return chosen
    if first <= sys.version_info.minor <= last:
        return sys.executable
    for minor in range(last, first - 1, -1):
        with contextlib.suppress(BackendError):  # a name on the PATH may be a shim that leads nowhere
            if _python_version(f"python3.{minor}") == (3, minor):
                return f"python3.{minor}"
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise BackendError(
        f"{backend.name} needs {wanted}, and this is {here}: install one, or name it: "
        f"mmfeat backends install {backend.name} --python /path/to/python3.{last}"
    )


def _python_version(python: str) -> tuple[int, int]:
    trouble = f"{python} is no Python that can be started"
    said = _run([python, "-c", "import sys; print(*sys.version_info[:2])"], trouble).split()
    if len(said) != 2 or not all(part.isdigit() for part in said):
        raise BackendError(f"{trouble}: it said {' '.join(said)[:100]!r}")
    return int(said[0]), int(said[1])


def _pip_install(backend: Backend, folder: Path) -> None:
    """Our own pip installs into the environment, which so needs none; settings for pip hold as ever."""
    # What is asked for must not be a constraint, too: pip would call a missing package a conflict with itself.
    constraints = folder / "constraints.txt"
    pins = (f"{name}=={version}\n" for name, version in backend.pins.items() if name != backend.requirement.lower())
    constraints.write_text("".join(pins), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar", "off", "--constraint", str(constraints), backend.pinned]
    _run(command, f"pip could not install {backend.name}")


def _run(command: list[str], trouble: str) -> str:
    """Standard output of a command that must succeed. Raises BackendError with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BackendError(f"{trouble}: {error}") from None
    if done.returncode:
        raise BackendError(f"{trouble}: {_last_words(done.stdout, done.stderr)}")
    return done.stdout


def _last_words(output: str, errors: str) -> str:
    """What went wrong; pip tells of conflicts among what it does, then advises to loosen our pins."""
    conflict = output.partition("The conflict is caused by:")[2].partition("To fix this")[0]
    lines = (errors.strip() or output.strip() or "it said nothing").splitlines()
    telling = [line for line in lines if not line.startswith(("WARNING", "ERROR: ResolutionImpossible"))]
    broken = [line for line in lines if "connection broken" in line]
    return " ".join(" ".join([*conflict.splitlines(), *broken[-1:], *telling[-4:]]).split())


def _prefix() -> str:
    """Says who makes a folder, so that it is not taken for a leftover as long as they live."""
    return f"{platform.node().replace('-', '_')}-{os.getpid()}-"


def _clear(home: Path, keep: Path | None = None) -> None:
    """Remove the environments that nothing names, except those that a living process of this machine is making."""
    for folder in home.glob("*-*-*"):
        node, pid, _ = folder.name.split("-", 2)
        making = node == platform.node().replace("-", "_") and pid.isdigit() and int(pid) != os.getpid()
        if folder != keep and not (making and psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)
