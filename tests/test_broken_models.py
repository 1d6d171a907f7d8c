"""Folders that hold less than a model, or another one: refused before any clip, by name and in one line."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmfeat import models
from mmfeat.extractors import find
from mmfeat.extractors.word_vectors import open_vectors
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.registry import MissingBackendError
from mmfeat.transcribe import TranscribeConfig, Transcriber
from tests import tiny_models

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def without_tokenizer(folder: Path) -> None:
    for name in TOKENIZER:
        (folder / name).unlink(missing_ok=True)


def without_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.0.fc1" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def other_size(folder: Path) -> None:
    config = folder / "config.json"
    changed = config.read_text().replace('"hidden_size": 32', '"hidden_size": 64')
    assert changed != config.read_text()
    config.write_text(changed)


def text(folder: Path) -> Any:
    extractor = find("transformers")
    return extractor.make(extractor.config.model_validate({"model": str(folder)}))


def hear(folder: Path) -> Any:
    return Transcriber(TranscribeConfig(model=str(folder)), "en")


def refusal(make: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(MissingBackendError) as refused:
        make(folder)
    said = str(refused.value)
    assert str(folder) in said and "\n" not in said
    return said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_tokenizer, "holds no tokenizer.json or vocab.txt"),
        (other_size, "cannot be loaded"),
        (lambda folder: cut(folder / "model.safetensors"), "cannot be loaded"),
        (lambda folder: cut(folder / "tokenizer.json"), "no tokenizer that can be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokenizer that can be loaded"),
    ],
    ids=["no tokenizer", "other size", "cut weights", "cut tokenizer", "empty tokenizer"],
)
def test_text(tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(tiny_models.text(tmp_path / "bert"))
    assert says in refusal(text, tmp_path / "bert")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_tokenizer, "holds no tokenizer.json or vocab.json"),
        (without_weights, "hold no weights for model.decoder.layers.0.fc1"),
        (lambda folder: cut(folder / "model.safetensors"), "cannot be loaded"),
    ],
    ids=["no tokenizer", "some weights", "cut weights"],
)
def test_speech_recognition(tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(tiny_models.recogniser(tmp_path / "whisper"))
    assert says in refusal(hear, tmp_path / "whisper")


def test_an_image_encoder_is_no_text_encoder(tmp_path: Path) -> None:
    folder = tiny_models.image("clip", tmp_path / "clip")
    for name in TOKENIZER[:2]:
        tiny_models.text(tmp_path / "bert")
        (folder / name).write_bytes((tmp_path / "bert" / name).read_bytes())
    assert "is no text encoder" in refusal(text, folder)


def test_no_name_is_no_model() -> None:
    with pytest.raises(MissingBackendError, match="`model` is empty"):
        models.resolve("")


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    vectors = tiny_models.vectors(tmp_path / "vectors.txt")
    assert models.digest("~/vectors.txt") == models.digest(str(vectors))


def test_the_same_model_has_one_fingerprint_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_models.text(tmp_path / "bert")
    shutil.copytree(tmp_path / "bert", tmp_path / "copy")
    (tmp_path / "copy/README.txt").write_text("says nothing of what the model computes")
    monkeypatch.chdir(tmp_path)

    def recipe(model: str) -> Recipe:
        return load_recipe("default").changed(text={"extractor": "transformers", "model": model}, words=None)

    names = ("bert", "bert/", str(tmp_path / "bert"), "copy")
    assert len({recipe(name).fingerprints()["text"] for name in names}) == 1
    assert recipe("bert").resolved()["text"]["model"] == str(tmp_path / "bert")
    assert load_recipe("default").resolved()["text"]["model"] == "all-MiniLM-L6-v2"
    (tmp_path / "copy/config.json").write_text((tmp_path / "copy/config.json").read_text() + " ")
    assert recipe("copy").fingerprints()["text"] != recipe("bert").fingerprints()["text"]


def test_word_vectors_in_archives_of_a_mac_and_with_upper_case_endings(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "V.ZIP", "w") as archive:
        archive.write(tiny_models.vectors(tmp_path / "v.txt"), "v.txt")
        archive.writestr("__MACOSX/._v.txt", "resource fork")
    assert "hello" in open_vectors(tmp_path / "V.ZIP")
