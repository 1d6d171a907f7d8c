"""What `cmc evaluate` writes: calibration, labels as numbers, pictures, several seeds, hidden modalities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pytest

from cmc import run as runs
from cmc.calibration import expected_values, fit_temperature, negative_log_likelihood, probabilities
from cmc.cli import main
from cmc.config import MODALITIES
from cmc.data import load, open_features, task_of
from cmc.evaluate import ROUTER_BINS, evaluate, predict_split
from cmc.metrics import calibration_error, reliability
from cmc.planted import VALUES, Plan, plant
from mmfeat.layout import FeatureFile

PLAN = Plan({"train": 48, "valid": 24, "test": 30}, signal=5.0, missing=0.1, seed=5)
QUICK = ["--layers", "1", "--pretrain-epochs", "8", "--epochs", "3", "--batch-size", "12", "--text", "freeze"]
QUICK += ["--lr", "0.005", "--label-momentum", "0.2", "0.2", "0.2", "--label-warmup", "0"]  # labels turn so soon


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of all sizes, so that a class's mean is none of them."""
    path = tmp_path_factory.mktemp("planted") / "features.h5"
    plant(path, PLAN)
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        for split in PLAN.clips:
            labels = file[split]["regression_labels"]
            labels[:] = labels[:] / VALUES[2] * rng.choice([0.2, 0.4, 0.6, 1.0], len(labels))
    return path


@pytest.fixture(scope="module")
def finished(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(features), "-o", str(folder), *QUICK]) == 0
    return folder


def logits_and_labels(run: Path, path: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The run's logits of a split, the clips' classes and their labels."""
    with FeatureFile(path) as file:
        data = load(file, split, task_of(file))
        values = file.read(split, "regression_labels")
    return predict_split(runs.load_model(run, runs.read(run)), data).logits, data.label("M").numpy(), values


def test_temperature_is_of_the_validation_split(finished: Path, features: Path) -> None:
    found = runs.read(finished).calibration
    logits, classes, _ = logits_and_labels(finished, features, "valid")
    temperature, note = fit_temperature(logits, classes)
    assert found.temperature == pytest.approx(temperature, rel=1e-6) and found.note == note
    assert temperature != 1


def test_calibration_before_and_after(finished: Path, features: Path) -> None:
    result, record = evaluate(finished, features), runs.read(finished)
    logits, classes, _ = logits_and_labels(finished, features, "test")
    for name, temperature in (("before", 1.0), ("after", record.calibration.temperature)):
        figures = result["calibration"][name]
        bins = reliability(classes, probabilities(logits, temperature))
        assert figures["nll"] == pytest.approx(negative_log_likelihood(classes, logits, temperature))
        assert figures["ece"] == pytest.approx(calibration_error(bins))
        assert np.array(result["reliability"][name]) == pytest.approx(bins)
    assert result["calibration"]["before"] != result["calibration"]["after"]


def test_labels_as_numbers(finished: Path, features: Path) -> None:
    """Σ p·v with v of the training split, MAE and r against the test labels, and the training mean beside them."""
    result, record = evaluate(finished, features), runs.read(finished)
    with FeatureFile(features) as file:
        train = file.read("train", "regression_labels")
    means = [train[np.sign(train) == sign].mean() for sign in (-1, 0, 1)]
    assert record.calibration.class_values == pytest.approx(means)
    logits, _, values = logits_and_labels(finished, features, "test")
    predicted = expected_values(probabilities(logits, record.calibration.temperature), means)
    overall = result["regression"]["overall"]
    assert overall["mae"] == pytest.approx(np.abs(predicted - values).mean(), rel=1e-5)
    assert overall["r"] == pytest.approx(np.corrcoef(predicted, values)[0, 1], rel=1e-5)
    baseline = result["regression_baseline"]["overall"]
    assert baseline == {"mae": pytest.approx(np.abs(values - train.mean()).mean(), rel=1e-5), "r": None}


def test_pseudo_labels_are_those_of_the_stored_file(finished: Path, features: Path) -> None:
    result, stored = evaluate(finished, features), runs.load_pseudo_labels(finished)
    with open_features(features) as file:
        train = load(file, "train", task_of(file))
    for m, letter in zip(MODALITIES, "TAV", strict=True):
        there, own = train.present(m).numpy(), train.label("M").numpy()
        pseudo = stored[f"train_{letter}"].argmax(1)
        counts = np.array(result["pseudo_labels"][m])
        assert counts.sum() == there.sum() and (counts.sum(1) == np.bincount(own[there], minlength=3)).all()
        assert result["relabelled"][m] == pytest.approx(np.mean(pseudo[there] != own[there]))
    assert any(result["relabelled"].values())


def test_router_weights_are_counted_once_per_clip_that_has_the_modality(finished: Path, features: Path) -> None:
    truth = features.with_name("features_truth.csv")
    result = evaluate(finished, features, truth=truth)
    spread = result["router_histogram"]
    with open_features(features) as file:
        test = load(file, "test", task_of(file))
    for m in MODALITIES:
        assert len(spread["overall"][m]) == ROUTER_BINS and sum(spread["overall"][m]) == test.present(m).sum()
        for parts in (("negative", "neutral", "positive"), ("consistent", "conflicting")):
            assert np.array_equal(sum(np.array(spread[part][m]) for part in parts), spread["overall"][m])


def picture(path: Path) -> np.ndarray:
    return matplotlib.image.imread(path)


def test_files_and_pictures(finished: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished), str(features)]) == 0
    named = ["confusion.png", "metrics.json", "pseudo_labels.png", "reliability.png", "router.png"]
    shown = capsys.readouterr().out
    assert all(str(finished / name) in shown for name in named)
    before = {name: (finished / name).read_bytes() for name in named}
    for name in named:
        if name.endswith(".png"):
            pixels = picture(finished / name)
            assert min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10
    assert main(["evaluate", str(finished), str(features), "--drop", "vision", "--drop", "audio"]) == 0
    assert main(["evaluate", str(finished), str(features), "--split", "valid"]) == 0
    assert {name: (finished / name).read_bytes() for name in named} == before
    for suffix in ("_valid", "_without_audio_without_vision"):
        assert all((finished / f"{name}{suffix}.png").is_file() for name in ("confusion", "router", "reliability"))
    assert json.loads((finished / "metrics_valid.json").read_text())["split"] == "valid"


def test_hidden_modalities(finished: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(finished), str(features), "--json"]
    assert main([*arguments, "--drop", "vision", "--drop", "audio", "--drop", "audio"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["dropped"] == ["audio", "vision"] and result["router"] == {"text": 1, "audio": 0, "vision": 0}
    assert result["experts"]["audio"] == {"clips": 0, "accuracy_clip_label": None, "accuracy_own_label": None}
    assert main([*arguments, "--drop", "vision", "--drop", "audio", "--drop", "text"]) == 2
    assert "leaves nothing to predict from" in capsys.readouterr().err
    assert main(["train", str(features), "-o", str(tmp_path), *QUICK, "--use", "vision"]) == 0
    assert main(["evaluate", str(tmp_path), str(features), "--drop", "audio"]) == 2
    assert "the run does not use it; it uses vision" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), str(features)]) == 0
    assert not (tmp_path / "router.png").exists() and not (tmp_path / "metrics_without_audio.json").exists()


def test_several_seeds_together(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    assert main(["train", str(features), "-o", str(folder), *QUICK, "--seeds", "2"]) == 0
    assert main(["evaluate", str(folder), str(features)]) == 0
    assert "CMC, MAE" in capsys.readouterr().out
    together = json.loads((folder / "metrics.json").read_text())
    single = [json.loads((folder / f"seed-{s}" / "metrics.json").read_text()) for s in (1111, 1112)]

    def check(path: tuple[str, ...]) -> None:
        values: list[Any] = []
        for result in single:
            for key in path:
                result = result[key]
            values.append(result)
        joined: Any = together
        for key in path:
            joined = joined[key]
        assert joined == pytest.approx([np.mean(values), np.std(values, ddof=1)])

    check(("regression", "overall", "mae"))
    check(("calibration", "after", "nll"))
    check(("per_class", "neutral", "recall"))
    check(("relabelled", "audio"))
    for key in ("confusion", "reliability"):
        totals = [np.sum(result[key] if key == "confusion" else result[key]["before"]) for result in single]
        assert np.sum(together[key] if key == "confusion" else together[key]["before"]) == pytest.approx(sum(totals))
    assert together["regression_baseline"] == single[0]["regression_baseline"]
    assert all((folder / f"{name}.png").is_file() for name in ("confusion", "router", "reliability", "pseudo_labels"))


def test_a_group_without_clips_has_no_figures(
    finished: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.csv"
    rows = [f"test,{row:04d},1,1,1" for row in range(30)]
    truth.write_text("\n".join(["video_id,clip_id,label_T,label_A,label_V", *rows]))
    arguments = ["evaluate", str(finished), str(features), "--truth", str(truth)]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert printed["clips"]["conflicting"] == 0 and printed["cmc"]["conflicting"]["accuracy"] is None
    assert printed["regression"]["conflicting"] == {"mae": None, "r": None}
    assert main(arguments) == 0
    assert "nan" not in capsys.readouterr().out


def test_a_run_without_plgm_has_no_pseudo_labels(features: Path, tmp_path: Path) -> None:
    assert main(["train", str(features), "-o", str(tmp_path), *QUICK, "--pretrain", "copy"]) == 0
    assert main(["evaluate", str(tmp_path), str(features)]) == 0
    assert "pseudo_labels" not in json.loads((tmp_path / "metrics.json").read_text())
    assert not (tmp_path / "pseudo_labels.png").exists()


def test_a_small_validation_split_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.h5"
    plant(path, Plan({"train": 24, "valid": 6, "test": 12}))
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *QUICK]) == 0
    assert main(["evaluate", str(tmp_path / "run"), str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "at temperature 1.000" in shown and "not fitted: 6 validation clips, fewer than 10" in shown
