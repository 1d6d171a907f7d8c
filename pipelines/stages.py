"""Steps that are skipped when their result is there and nothing that they depend on has changed: by content,
not by date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfeat.layout import canonical_json


@dataclass
class Stages:
    """What was made of what, kept in a small JSON file beside the results."""

    path: Path
    ran: list[str] = field(default_factory=list)
    """Stages that were not skipped."""

    def run(self, name: str, inputs: Mapping[str, Any], outputs: Iterable[Path], work: Callable[[], object]) -> bool:
        """Do `work` unless `outputs` are what it made of the same `inputs` before. Gives whether it was done.

        The outputs' digests are recorded only once `work` has returned, so a stage that was cut short is done
        again.
        """
        outputs = list(outputs)
        if self._is_current(name, inputs, outputs):
            return False
        self._write(self._read() | {name: {"inputs": canonical_json(inputs), "outputs": None}})
        work()
        if missing := [str(path) for path in outputs if not path.exists()]:
            raise FileNotFoundError(f"stage {name} has not written {', '.join(missing)}")
        made = {str(self._relative(path)): digest(path) for path in outputs}
        self._write(self._read() | {name: {"inputs": canonical_json(inputs), "outputs": made}})
        self.ran.append(name)
        return True

    def was_cut_short(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the last try of a stage had the same inputs and did not end, so that it may go on from there."""
        return self._read().get(name) == {"inputs": canonical_json(inputs), "outputs": None}

    def forget(self, name: str) -> None:
        """Have a stage done again: something changed that its inputs do not show."""
        self._write({key: value for key, value in self._read().items() if key != name})

    def _is_current(self, name: str, inputs: Mapping[str, Any], outputs: list[Path]) -> bool:
        before = self._read().get(name, {})
        if before.get("inputs") != canonical_json(inputs) or not all(path.exists() for path in outputs):
            return False
        if before["outputs"] is None:
            return False
        return before["outputs"] == {str(self._relative(path)): digest(path) for path in outputs}

    def _relative(self, path: Path) -> Path:
        folder = self.path.parent.resolve()
        path = path.resolve()
        return path.relative_to(folder) if path.is_relative_to(folder) else path

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}  # without a record everything is done again, which is right

    def _write(self, record: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
        part.replace(self.path)


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's file names and contents."""
    hasher = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        hasher.update(f"{file.relative_to(path)}\0{content}\n".encode())
    return hasher.hexdigest()


def source_digest(*packages: str) -> str:
    """sha256 over the Python files of packages: a stage whose code has changed is not current."""
    from importlib.util import find_spec

    hasher = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        for file in files:
            hasher.update(f"{file.name}\0{digest(file)}\n".encode())
    return hasher.hexdigest()
