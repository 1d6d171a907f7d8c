"""Where a model lies and how it is called changes no fingerprint, what it holds does: for all that name one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmfeat import models
from mmfeat.extractors import ENTRIES, find, vision_openface3, vision_pyfeat
from mmfeat.recipe import load_recipe


def encoder(folder: Path) -> Path:
    """What fingerprints read of a transformers or timm model."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(name.encode())
    return folder


def file(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.file").write_bytes(b"content")
    return folder / "model.file"


def weights(names: tuple[str, ...]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(name.encode())
        return folder

    return make


PLACES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "glove": ("vectors", file),
    "image": ("model", encoder),
    "mediapipe": ("model", file),
    "openface3": ("weights", weights(vision_openface3.WEIGHTS)),
    "pyfeat": ("weights", weights(vision_pyfeat.WEIGHTS)),
    "ssl": ("model", encoder),
    "timm": ("model", encoder),
    "transformers": ("model", encoder),
}
"""Extractor → the setting that names its model, and what makes one."""
WORDS = {"ctc": ("model", encoder)}


@pytest.fixture(autouse=True)
def _all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ENTRIES["glove"]), "missing", lambda entry: [])


def fingerprint(name: str, field: str, path: Path) -> str:
    if name in WORDS:
        return load_recipe("default").changed(words={"aligner": name, field: str(path)}).fingerprints()["words"]
    part = ENTRIES[name].modality
    section = {"extractor": name, field: str(path)}
    return load_recipe("default").changed(**{part: section}, words=None).fingerprints()[part]


@pytest.mark.parametrize("name", [*PLACES, *WORDS])
def test_the_content_counts_and_its_place_does_not(name: str, tmp_path: Path) -> None:
    field, make = (PLACES | WORDS)[name]
    path = make(tmp_path / "a/place")
    before = fingerprint(name, field, path)
    moved = tmp_path / "b/another"
    moved.parent.mkdir()
    (shutil.copytree if path.is_dir() else shutil.copy)(path, moved)
    assert fingerprint(name, field, moved) == before
    for content in sorted(moved.iterdir()) if moved.is_dir() else [moved]:
        kept = content.read_bytes()
        content.write_bytes(kept[::-1] + b"!")
        assert fingerprint(name, field, moved) != before, content
        content.write_bytes(kept)
    assert fingerprint(name, field, moved) == before == fingerprint(name, field, path)


def test_which_file_of_an_archive_is_meant_counts(tmp_path: Path) -> None:
    (tmp_path / "vectors.zip").write_bytes(b"content")
    prints = {
        load_recipe("default").changed(text=section, words=None).fingerprints()["text"]
        for section in (
            {"extractor": "glove", "vectors": str(tmp_path / "vectors.zip"), "member": member} for member in "ab"
        )
    }
    assert len(prints) == 2


def test_every_extractor_that_names_a_model_is_here() -> None:
    """A setting that changes what `models` names, or that is left out of the identity for it, is in the table above."""
    naming = set()
    for name in ENTRIES:
        config: Any = find(name).config
        if {"model", "weights", "vectors"} & set(config.model_fields):
            naming.add(name)
    assert naming == set(PLACES)


def test_a_copy_of_a_registered_file_is_that_file(tmp_path: Path) -> None:
    (path,) = models.pull(["silero_vad"])
    shutil.copy(path, tmp_path / "mine")
    assert models.digest(str(tmp_path / "mine")) == models.digest("silero_vad")
