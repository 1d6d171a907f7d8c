"""From a feature file to a run and its figures, through the commands; what a run may and may not depend on."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from cmc import run as runs
from cmc import train as training
from cmc.cli import main
from cmc.config import MODALITIES, Config
from cmc.data import load
from cmc.evaluate import evaluate, predict_split
from cmc.finetune import Finetuning
from cmc.planted import Plan, plant
from cmc.predict import classify
from mmfeat.layout import FeatureFile
from mmfeat.mmsa.read import convert

PLAN = Plan({"train": 36, "valid": 12, "test": 15}, signal=4.0, missing=0.1, seed=5)
QUICK = ["--layers", "1", "--pretrain-epochs", "3", "--epochs", "2", "--batch-size", "12"]
FROZEN = [*QUICK, "--text", "freeze"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, PLAN)
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, as a local folder."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=70, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def with_encoder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, PLAN, encoder)
    return path


@pytest.fixture(scope="module")
def finished(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(features), "-o", str(folder), *FROZEN]) == 0
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_folder(finished: Path, features: Path) -> None:
    record = runs.read(finished)
    assert record.status == "finished" and record.config.text == "freeze"
    assert set(record.best_epochs) == {"pretrain_text", "pretrain_audio", "pretrain_vision", "finetune"}
    assert record.versions["threads"] == "1" and len(record.history["finetune"]) <= 2
    labels = runs.load_pseudo_labels(finished)
    assert labels["train_A"].shape == (36, 3) and labels["train_id"][0] == "train$_$0000"
    np.testing.assert_allclose(labels["valid_T"].sum(1), 1, rtol=1e-5)
    assert set(runs.load_unimodal(finished, record)) == set(MODALITIES)
    assert not [path for path in finished.iterdir() if path.suffix in (".pt", ".pkl", ".bin")]


def test_evaluate(finished: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = features.with_name("features_truth.csv")
    assert main(["evaluate", str(finished), str(features), "--truth", str(truth)]) == 0
    shown = capsys.readouterr().out
    assert "majority class" in shown and "conflicting" in shown and "Has0: positive or not" in shown
    result = json.loads((finished / "metrics.json").read_text())
    assert result["clips"]["overall"] == 15
    assert result["clips"]["consistent"] + result["clips"]["conflicting"] == 15
    assert sum(result["router"].values()) == pytest.approx(1, abs=1e-5)
    assert np.sum(result["confusion"]) == 15
    assert (finished / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_without_a_modality(finished: Path, features: Path) -> None:
    main(["evaluate", str(finished), str(features)])
    whole = (finished / "metrics.json").read_bytes()
    assert main(["evaluate", str(finished), str(features), "--drop", "audio"]) == 0
    result = json.loads((finished / "metrics_without_audio.json").read_text())
    assert result["router"]["audio"] == 0 and result["clips"] == {"overall": 15}
    assert (finished / "metrics.json").read_bytes() == whole  # the figures of whole clips are still those


def test_a_read_model_predicts_what_the_trained_one_did(features: Path, tmp_path: Path) -> None:
    config = Config(layers=1, pretrain_epochs=1, epochs=1, text="freeze", batch_size=12)
    material = training.open_material(features, config)
    training.seed_everything(config.seed)
    fitted = training.fit(material, config)
    ids = {"train": material.train.ids, "valid": material.valid.ids}
    runs.write(tmp_path, fitted.record, fitted.weights, fitted.unimodal, fitted.states, ids)
    again = runs.load_model(tmp_path, runs.read(tmp_path))
    expected = predict_split(fitted.model, material.valid)
    assert np.array_equal(predict_split(again, material.valid).logits, expected.logits)
    assert runs.read(tmp_path) == fitted.record


def test_same_seed_same_weights_other_seed_others(finished: Path, features: Path, tmp_path: Path) -> None:
    assert main(["train", str(features), "-o", str(tmp_path / "again"), *FROZEN]) == 0
    assert main(["train", str(features), "-o", str(tmp_path / "other"), *FROZEN, "--seed", "7"]) == 0
    assert same(weights(finished), weights(tmp_path / "again"))
    assert not same(weights(finished), weights(tmp_path / "other"))


def test_test_labels_reach_nothing(finished: Path, features: Path, tmp_path: Path) -> None:
    """Scrambled test labels: bit-identical weights and pseudo labels."""
    scrambled = tmp_path / "scrambled.h5"
    scrambled.write_bytes(features.read_bytes())
    with h5py.File(scrambled, "r+") as file:
        for key in file["test"]:
            if "labels" in key:
                file["test"][key][:] = file["test"][key][:][::-1] * -1
        file["test/audio"][:] = 0
    assert main(["train", str(scrambled), "-o", str(tmp_path / "run"), *FROZEN]) == 0
    assert same(weights(finished), weights(tmp_path / "run"))
    ours, theirs = runs.load_pseudo_labels(finished), runs.load_pseudo_labels(tmp_path / "run")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_training_opens_no_test_split(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = FeatureFile.dataset

    def watch(self: FeatureFile, split: str, key: str) -> Any:
        asked.append(split)
        return original(self, split, key)

    monkeypatch.setattr(FeatureFile, "dataset", watch)
    assert main(["train", str(features), "-o", str(tmp_path / "run"), *FROZEN]) == 0
    assert set(asked) == {"train", "valid"}


def test_a_finished_run_is_kept(finished: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "run.json").read_bytes()
    assert main(["train", str(features), "-o", str(finished), *FROZEN]) == 0
    assert "already trained" in capsys.readouterr().out
    assert main(["train", str(features), "-o", str(finished), *FROZEN, "--lr", "0.01"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "run.json").read_bytes() == before


def test_interrupt_leaves_a_usable_run(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(layers=1, text="freeze", batch_size=12)

    def interrupt(stage: str, epoch: int, epochs: int, figures: Any) -> None:
        if stage == "finetune" and epoch == 2:
            raise KeyboardInterrupt

    record = training.train(features, tmp_path / "run", config.model_copy(update={"pretrain_epochs": 2}), interrupt)
    assert record.status == "interrupted" and len(record.history["finetune"]) == 2
    assert evaluate(tmp_path / "run", features)["clips"] == {"overall": 15}
    record = training.train(features, tmp_path / "early", config, _interrupt_stage_1)
    assert record.status == "interrupted" and "finetune" not in record.history
    assert evaluate(tmp_path / "early", features)["clips"] == {"overall": 15}


def _interrupt_stage_1(stage: str, epoch: int, epochs: int, figures: Any) -> None:
    raise KeyboardInterrupt


def test_several_seeds(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    assert main(["train", str(features), "-o", str(folder), *FROZEN, "--seeds", "2"]) == 0
    assert main(["evaluate", str(folder), str(features)]) == 0
    assert "2 seeds" in capsys.readouterr().out
    together = json.loads((folder / "metrics.json").read_text())
    single = [json.loads((folder / f"seed-{s}" / "metrics.json").read_text()) for s in (1111, 1112)]
    accuracies = [result["cmc"]["overall"]["accuracy"] for result in single]
    mean, spread = together["cmc"]["overall"]["accuracy"]
    assert mean == pytest.approx(np.mean(accuracies)) and spread == pytest.approx(np.std(accuracies, ddof=1))


def test_finetuned_text_encoder(with_encoder: Path, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["train", str(with_encoder), "-o", str(folder), *QUICK, "--lr-text", "0.001"]) == 0
    pretrained = BertModel.from_pretrained(encoder).state_dict()
    own = weights(folder)
    prefix = "branches.text.text_model.model."
    moved = [n for n, t in pretrained.items() if not torch.equal(own[prefix + n], t)]
    assert "encoder.layer.0.attention.self.query.weight" in moved
    assert evaluate(folder, with_encoder)["clips"] == {"overall": 15}


def test_cached_text_is_what_the_frozen_encoder_gives(with_encoder: Path) -> None:
    from cmc.text_encoder import cache, encoder_name, load_encoder

    with FeatureFile(with_encoder) as file:
        split = load(file, "train", None)
        again = cache(split, load_encoder(encoder_name(file.recipe), frozen=True))
    mask = split.masks["text"]
    torch.testing.assert_close(again.inputs["text"][mask], split.inputs["text"][mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["calibrated", "reference"])
def test_annotated_labels_train_the_encoder_in_both_stages(mode: str, encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    plant(path, Plan({"train": 16, "valid": 8, "test": 8}, annotated=True), encoder)
    arguments = ["train", str(path), "-o", str(tmp_path / "run"), *QUICK, "--pretrain", "gt", "--mode", mode]
    assert main(arguments) == 0
    unimodal = load_file(tmp_path / "run" / "unimodal.safetensors")
    assert any(name.startswith("text.branch.text_model.") for name in unimodal)
    assert main(["evaluate", str(tmp_path / "run"), str(path)]) == 0


def test_reference_mode_trains_on_a_feature_file(with_encoder: Path, tmp_path: Path) -> None:
    assert main(["train", str(with_encoder), "-o", str(tmp_path / "run"), *QUICK, "--mode", "reference"]) == 0
    assert runs.read(tmp_path / "run").config.label_momentum == (0.8, 0.99, 0.99)


@pytest.mark.parametrize("mode", ["reference", "calibrated"])
def test_one_vector_per_clip_trains_with_a_last_batch_of_one(mode: str, tmp_path: Path) -> None:
    """Such a batch has a single row to normalise."""
    draw = np.random.default_rng(0)
    clips = {"train": 13, "valid": 6, "test": 6}
    splits = {
        name: {
            "id": [f"{name}$_${k}" for k in range(n)],
            **{m: draw.standard_normal((n, 4)).astype(np.float32) for m in MODALITIES},
            "regression_labels": np.arange(n, dtype=np.float32) % 3 - 1,
        }
        for name, n in clips.items()
    }
    (tmp_path / "u.pkl").write_bytes(pickle.dumps(splits))
    path = convert(tmp_path / "u.pkl", tmp_path / "u.h5")
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *FROZEN, "--mode", mode]) == 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_one_modality(features: Path, tmp_path: Path) -> None:
    assert main(["train", str(features), "-o", str(tmp_path), *FROZEN, "--use", "vision"]) == 0
    result = evaluate(tmp_path, features)
    assert set(result["experts"]) == {"vision"}


def test_named_classes(features: Path, tmp_path: Path) -> None:
    path = tmp_path / "named.h5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["class_names"] = json.dumps(["anger", "calm", "joy", "fear"])
        for group in (file[split] for split in PLAN.clips):
            group["classification_labels"][:] = (group["regression_labels"][:] > 0) * 2 + np.arange(
                len(group["id"])
            ) % 2
            group["regression_labels"][:] = np.nan
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *FROZEN]) == 0
    result = evaluate(tmp_path / "run", path)
    assert set(result["cmc"]["overall"]) == {"accuracy", "f1"} and np.shape(result["confusion"]) == (4, 4)


def test_one_clip_is_classified_as_in_its_split(finished: Path, features: Path) -> None:
    record = runs.read(finished)
    with FeatureFile(features) as file:
        split = load(file, "test", None)
        keys = ("text", "text_bert", "audio", "audio_mask", "vision", "vision_mask")
        rows = {key: file.read("test", key)[2] for key in keys}
    expected = predict_split(runs.load_model(finished, record), split).logits[2]
    found = classify(finished, record, rows)
    powers = np.exp((expected - expected.max()) / record.calibration.temperature)
    np.testing.assert_allclose(list(found.fused.values()), powers / powers.sum(), atol=1e-5)
    assert found.temperature == record.calibration.temperature != 1
    silent = classify(finished, record, rows | {"audio": rows["audio"][:0], "audio_mask": rows["audio_mask"][:0]})
    assert silent.modalities["audio"] is None and silent.router["audio"] == 0


def test_other_features_are_refused(
    finished: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.h5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprints"] = json.dumps(
            dict.fromkeys(("text", "vision"), PLAN.fingerprint) | {"audio": "changed"}
        )
    assert main(["evaluate", str(finished), str(path)]) == 2
    assert "features of audio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "absent.h5", "-o", "run"], 2, "no feature file"),
        (["train", "{features}", "-o", "run", "--width", "30"], 2, "not a multiple of heads"),
        (["train", "{features}", "-o", "run", "--label-momentum", *"222"], 2, "--label-momentum: each must be"),
        (["train", "{features}", "-o", "run"], 2, "--text freeze"),
        (["train", "{features}", "-o", "run", "--text", "freeze", "--pretrain", "gt"], 2, "--pretrain plgm"),
        (["evaluate", "absent", "{features}"], 2, "no finished run"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str],
    status: int,
    message: str,
    features: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(features=features) for argument in arguments]) == status
    assert message in capsys.readouterr().err


def test_nothing_usable(features: Path, tmp_path: Path) -> None:
    path = tmp_path / "unlabelled.h5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        file["train/regression_labels"][:] = np.nan
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *FROZEN]) == 4
    assert not (tmp_path / "run").exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, cmc.cli; cmc.cli.parser().format_help();"
        "print([m for m in ('torch', 'numpy', 'h5py', 'rich', 'pydantic', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in Config.model_fields)


def test_an_encoder_that_is_not_there_is_named(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, absent = tmp_path / "features.h5", str(tmp_path / "absent-encoder")
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        recipe = json.loads(file.attrs["recipe"]) | {"text": {"extractor": "transformers", "model": absent}}
        file.attrs["recipe"] = json.dumps(recipe)
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *QUICK]) == 2
    shown = capsys.readouterr().err
    assert "absent-encoder" in shown and "get it with: cp -r FOLDER" in shown
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *FROZEN]) == 0


def test_clips_that_were_trained_on_are_not_tested(finished: Path, features: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped.h5"
    swapped.write_bytes(features.read_bytes())
    with h5py.File(swapped, "r+") as file:
        file.move("train", "old")
        file.move("test", "train")
        file.move("old", "test")
    before = sorted(path.name for path in finished.iterdir())
    assert main(["evaluate", str(finished), str(swapped)]) == 2
    assert sorted(path.name for path in finished.iterdir()) == before


def test_one_class_is_nothing_to_train_on(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = tmp_path / "same.h5"
    same.write_bytes(features.read_bytes())
    with h5py.File(same, "r+") as file:
        file["train/regression_labels"][:] = 1.0
    assert main(["train", str(same), "-o", str(tmp_path / "run"), *FROZEN]) == 4
    assert "the same label" in capsys.readouterr().err


def test_training_that_diverges_says_so_and_leaves_nothing(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["train", str(features), "-o", str(tmp_path / "run"), *FROZEN]
    assert main([*call, "--lr", "1e30"]) == 2
    assert (
        "stage 1 diverged: the loss of text, audio, vision is not finite; lower --lr 1e+30" in capsys.readouterr().err
    )
    figures = Finetuning.figures
    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "figures", lambda stage: figures(stage) | {"valid": float("nan")})
        assert main(call) == 2
    assert "stage 2 diverged: the loss is not finite" in capsys.readouterr().err
    assert main(call) == 0, "no unfinished run is in the way"


def test_a_run_folder_that_is_a_file_is_named(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").touch()
    assert main(["train", str(features), "-o", str(tmp_path / "afile"), *FROZEN]) == 2
    assert "afile" in (shown := capsys.readouterr().err) and shown.count("\n") == 1


@pytest.mark.parametrize(
    "given",
    [
        {"label_momentum": (2, 2, 2)},
        {"ema_momentum": (0.5, -0.1, 0.5)},
        {"ema_gamma": (-1, 1, 1)},
        {"lr": float("inf")},
        {"label_gamma": float("nan")},
    ],
)
def test_impossible_settings_are_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Config(**given)
    assert caught.value.errors()[0]["loc"][0] == next(iter(given))
