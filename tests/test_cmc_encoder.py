"""Text encoders that are not there, or not whole: named, with why and what helps, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from cmc.cli import main
from cmc.planted import Plan, plant
from cmc.text_encoder import load_encoder
from mmfeat.models import MissingModelError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TINY = ["--layers", "1", "--heads", "2", "--width", "8", "--epochs", "1", "--pretrain-epochs", "1"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=70, max_position_embeddings=32, **SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture
def features(tmp_path: Path, encoder: Path) -> Path:
    plant(tmp_path / "f.h5", Plan({"train": 8, "valid": 4, "test": 4}), encoder)
    return tmp_path / "f.h5"


def without_a_layer(folder: Path) -> None:
    kept = {n: t for n, t in load_file(folder / "model.safetensors").items() if "layer.1.attention" not in n}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def without_pooler(folder: Path) -> None:
    kept = {n: t for n, t in load_file(folder / "model.safetensors").items() if "pooler" not in n}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def of_other_size(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_size": 16', '"hidden_size": 32'))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "is not on this machine"),
        (without_weights, "has no weights"),
        (without_a_layer, "is not whole"),
        (cut, "cannot be loaded"),
        (of_other_size, "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "is not on this machine"),
    ],
)
def test_what_is_wrong_with_an_encoder_is_one_line(
    features: Path,
    encoder: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    says: str,
) -> None:
    damage(encoder)
    assert main(["train", str(features), "-o", str(encoder.with_name("run")), *TINY]) == 2
    error = capsys.readouterr().err
    assert f"text encoder '{encoder}' {says}" in error and f"get it with: cp -r FOLDER {encoder}" in error
    assert error.count("\n") == 1 and not encoder.with_name("run").exists()


@pytest.mark.parametrize("command", ["tune", "compare", "ablate"])
def test_other_commands_say_it_before_anything_is_trained(
    features: Path, encoder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    without_weights(encoder)
    assert main([command, str(features), "-o", str(encoder.with_name("out")), *TINY]) == 2
    error = capsys.readouterr().err
    assert f"text encoder '{encoder}' has no weights" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "command"),
    [("all-MiniLM-L6-v2", "mmfeat models pull all-MiniLM-L6-v2"), ("nobody/nothing", "hf download nobody/nothing")],
)
def test_the_command_that_gets_an_encoder(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        MissingModelError, match=f"text encoder '{name}' is not on this machine .*get it with: {command}"
    ):
        load_encoder(name)


def test_a_pooler_that_is_missing_is_not_missed(encoder: Path) -> None:
    whole = load_encoder(str(encoder))
    without_pooler(encoder)
    tokens = torch.ones(1, 3, 4, dtype=torch.long)
    assert torch.equal(load_encoder(str(encoder)).eval()(tokens), whole.eval()(tokens))


def test_frozen_text_needs_no_encoder_and_the_message_says_so(
    features: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(encoder)
    run = encoder.with_name("run")
    assert main(["train", str(features), "-o", str(run), *TINY]) == 2
    assert "or train with --text freeze" in capsys.readouterr().err
    assert main(["train", str(features), "-o", str(run), *TINY, "--text", "freeze"]) == 0
    with h5py.File(features, "a") as file:  # as if text were another layer's output, which is not the encoder's last
        file.attrs["recipe"] = file.attrs["recipe"].replace('"layer":-1', '"layer":1')
        assert '"layer":1' in file.attrs["recipe"]
    assert main(["train", str(features), "-o", str(run), *TINY, "--text", "freeze", "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "is not on this machine" in error and "--text freeze" not in error
