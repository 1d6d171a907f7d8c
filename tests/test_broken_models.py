"""Folders that hold less than a model, or another one: refused before any clip, by name and in one line."""

from __future__ import annotations

import gzip
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmfeat import model_files, models
from mmfeat.extractors import find
from mmfeat.extractors.word_vectors import open_vectors
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.registry import MissingBackendError
from mmfeat.transcribe import TranscribeConfig, Transcriber
from pipelines.cli import main
from tests import tiny_models
from tests.media_files import tone, write_media

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
    folder = tiny_models.image("vit", tmp_path / "vit")
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


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def as_index(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(content)


def as_bin(content: bytes) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        no_weights(folder)
        (folder / "pytorch_model.bin").write_bytes(content)

    return damage


def lost_part(folder: Path) -> None:
    parts = '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(parts)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: cut(folder / "model.safetensors"), r"model.safetensors has \d+ bytes, not the \d+ that its"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is empty"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>" * 20), "cut off, or no safetensors file"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            r"pointer of git-lfs, not the file itself \(git lfs pull\)",
        ),
        (lambda folder: cut(folder / "tokenizer.json"), "tokenizer.json is no JSON"),
        (no_weights, "holds no weights"),
        (lost_part, "model-2.safetensors is missing, which model.safetensors.index.json names"),
        (as_index("[]"), "model.safetensors.index.json is no index of weights"),
        (as_index('{"weight_map": null}'), "model.safetensors.index.json is no index of weights"),
        (as_index("{}"), "model.safetensors.index.json is no index of weights"),
        (as_bin(b"<html>not found</html>"), "pytorch_model.bin is no file of torch's"),
        (as_bin(bytes(1000)), "pytorch_model.bin is no file of torch's"),
        (lambda folder: (folder / "config.json").write_text("{}", encoding="utf-16"), "config.json is no JSON"),
    ],
    ids=[
        "cut",
        "empty",
        "a web page",
        "git-lfs",
        "cut tokenizer",
        "no weights",
        "lost part",
        "index of a list",
        "index of nothing",
        "empty index",
        "a web page as .bin",
        "zeros as .bin",
        "utf-16",
    ],
)
def test_damage_is_found_before_a_clip_is_begun(
    tmp_path: Path, damage: Callable[[Path], Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line, and no worker was started for it."""
    models.pull()
    write_media(tmp_path / "corpus/Raw/v/1.mp4", sound=tone(0.2))
    (tmp_path / "corpus/label.csv").write_text("video_id,clip_id,text,label,mode\nv,1,hello,1,train\n")
    folder = tiny_models.text(tmp_path / "bert")
    (tmp_path / "r.yaml").write_text(
        "vision: {extractor: facemesh}\naudio: {extractor: librosa}\n"
        f"text: {{extractor: transformers, model: {folder}}}\n"
    )
    load_recipe(tmp_path / "r.yaml").check()
    damage(folder)
    out = tmp_path / "out/f.h5"
    assert main(["extract", str(tmp_path / "corpus"), "-o", str(out), "--recipe", str(tmp_path / "r.yaml")]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmfeat:")]
    assert re.search(says, said) and str(folder) in said and "copy it again from where it was published" in said
    assert not (out.parent / "mmfeat-work/workers.log").exists()


def test_what_transformers_does_not_load_is_not_judged(tmp_path: Path) -> None:
    folder = tiny_models.text(tmp_path / "bert")
    (folder / "notes.json").write_text("{")
    (folder / "eval_results.json").write_text("")
    (folder / "log.json").write_text("{}\n{}")
    (folder / "training_args.bin").write_bytes(b"abc")
    (folder / "x.json").mkdir()
    (folder / "1.safetensors").mkdir()
    models.check(str(folder))
    assert models.digest(str(folder))


def test_a_program_that_is_not_there_is_missed_before_a_clip_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENFACE_DIR", "/nowhere")
    models.pull()
    recipe = load_recipe("default").changed(vision={"extractor": "openface2"})
    with pytest.raises(MissingBackendError, match=r"FeatureExtraction \(not in OPENFACE_DIR=/nowhere\)"):
        recipe.check()
    recipe.changed(vision={"extractor": "openface2", "csv_folder": "OpenFace"}).check()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.bin", b"PK\x03\x04 and no end", "cut off"),
        ("pytorch_model.bin", b"\x80\x02 torch before 1.6", ""),
        ("pytorch_model.bin", b"<html>", "no file of torch's"),
        ("a.pt", b"<html>", "no file of torch's"),
        ("a.bin", b"3000000 300\n", ""),  # word2vec's, and many others
        ("a.task", b"PK\x03\x04 and no end", "cut off"),
        ("a.gz", b"hello 1 2", "no gzip file"),
        ("a.gz", gzip.compress(b"hello 1 2", mtime=0), ""),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", "no header"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}", ""),
        ("a.safetensors", (2**62).to_bytes(8, "little") + b"{}", "cut off"),
        ("a.json", b"[" * 200_000, "no JSON"),
        ("a.json", b"\xff\xfe\xfd", "no JSON"),
        ("a.txt", b"hello 1 2", ""),
    ],
)
def test_damage_by_kind(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = model_files.damage(tmp_path / name)
    assert says in found if says else not found
