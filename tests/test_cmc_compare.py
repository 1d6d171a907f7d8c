"""Comparing strategies: every one trains, shares of labels are nested, validation decides, results are reused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc import compare as compared
from cmc.cli import main
from cmc.compare import COMPARED, Comparison, Plan, compare, curve, p_value, recovery
from cmc.config import Config, UsageError
from cmc.planted import Plan as Planted
from cmc.planted import plant
from cmc.trial import keep_labels, open_annotated

QUICK = ["--layers", "1", "--pretrain-epochs", "1", "--epochs", "1", "--text", "freeze"]
SMALL = Config(layers=1, pretrain_epochs=1, epochs=1, text="freeze")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    plant(path, Planted({"train": 30, "valid": 12, "test": 12}, signal=4.0))
    return path


def test_every_strategy(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, out = features.with_name("features_truth.csv"), tmp_path / "out"
    call = ["compare", str(features), "-o", str(out), "--truth", str(truth), "--seeds", "2", *QUICK]
    assert main(call) == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "comparison.json").read_text())
    assert list(summary["strategies"]) == list(COMPARED) and all(name in shown for name in COMPARED)
    assert "best on validation: " in shown and "best on validation: gt" not in shown and "left out" not in shown
    assert "gt learnt from --truth" in shown and summary["bound"] == ["gt"]
    assert (
        f"next: cmc train {features} -o RUN --layers 1 --pretrain-epochs 1 --epochs 1 --text freeze --pretrain" in shown
    )
    for figures in (per_share["1"] for per_share in summary["strategies"].values()):
        assert set(figures["test"]) == {"overall", "consistent", "conflicting"} and figures["seeds"] == 2
    made = summary["strategies"]["plgm"]["1"]["recovered"]
    assert set(made) == {"text", "audio", "vision", "mean"} and not summary["strategies"]["none"]["1"]["recovered"]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG") and not (out / "curve.png").exists()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*-1111.json")}
    assert len(stamps) == len(COMPARED)
    assert main(call) == 0
    assert capsys.readouterr().out == shown
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_learning_curve(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    call = ["compare", str(features), "-o", str(out), "--seeds", "1", *QUICK, "--strategies", "none", "copy"]
    assert main([*call, "--labelled", "20%"]) == 0
    per_share = json.loads((out / "comparison.json").read_text())["strategies"]["copy"]
    assert list(per_share) == ["0.2", "0.45", "1"]
    labelled = [figures["labelled"] for figures in per_share.values()]
    assert 6 <= labelled[0] <= 8 and 14 <= labelled[1] <= 16 and labelled[2] == 30  # rounded up in each of 3 classes
    assert (out / "curve.png").exists() and "45 %" in capsys.readouterr().out
    assert main([*call, "--labelled", "0.5", "20%"]) == 0
    assert list(json.loads((out / "comparison.json").read_text())["strategies"]["copy"]) == ["0.2", "0.5"]


def test_shares_are_nested_and_lose_no_class(features: Path) -> None:
    material = open_annotated(features, SMALL, None)
    kept = [set(keep_labels(material, share, 7, rest=False).train.ids) for share in (0.01, 0.3, 0.7, 1.0)]
    assert len(kept[0]) == 3 and kept[0] < kept[1] < kept[2] < kept[3] == set(material.train.ids)
    assert set(keep_labels(material, 0.3, 8, rest=False).train.ids) != kept[1]
    with_rest = keep_labels(material, 0.3, 7, rest=True)
    assert len(with_rest.train.label("M").unique()) == 3
    [others] = with_rest.unlabelled
    assert others.labels is None and set(others.ids) == set(material.train.ids) - kept[1]
    assert with_rest.valid is material.valid


def test_only_strategies_that_can_learn_from_unlabelled_clips_get_them(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def trial(path, config, truth, report, unlabelled, share, device):
        seen[config.pretrain] = unlabelled
        return {"clips": {}, "cmc": {}, "majority": {}, "recovered": {}, "validation": {"accuracy": 0.5}}

    monkeypatch.setattr(compared, "trial", trial)
    plant(tmp_path / "p.h5", Planted({"train": 9, "valid": 3, "test": 3}, unlabelled=7))
    more = tmp_path / "p_unlabelled.h5"
    compare(Plan(tmp_path / "p.h5", SMALL, ("none", "masked"), 1, unlabelled=more), tmp_path / "out")
    assert seen == {"none": None, "masked": more}


def test_what_cannot_learn_from_the_corpus_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = tmp_path / "named.h5"
    plant(named, Planted({"train": 40, "valid": 16, "test": 16}, classes=4))
    call = ["compare", str(named), "-o", str(tmp_path / "out"), "--seeds", "1", *QUICK, "--strategies"]
    assert main([*call, "gt", "ulgm", "none"]) == 0
    shown = capsys.readouterr().out
    assert "left out: gt" in shown and "no annotated unimodal labels (--truth" in shown and "left out: ulgm" in shown
    assert "best on validation: none" in shown
    assert main([*call, "gt"]) == 2


def test_validation_decides_and_test_does_not() -> None:
    def results(validation: list[float], test: float) -> dict[float, list[dict]]:
        return {1.0: [{"validation": {"accuracy": a}, "cmc": {"overall": {"accuracy": test}}} for a in validation]}

    found = Comparison({"a": results([0.6, 0.61, 0.62], 0.9), "b": results([0.8, 0.82, 0.81], 0.1)})
    assert found.best() == ["b"]
    close = Comparison({"a": results([0.6, 0.7, 0.8], 0.9), "b": results([0.8, 0.7, 0.63], 0.1)})
    assert close.best() == ["b", "a"]
    assert Comparison({"a": results([0.6], 0.9), "b": results([0.8], 0.1)}).best() == ["b"]  # nothing to test with
    few = {0.1: results([0.8, 0.82, 0.81], 0.9)[1.0]}
    assert Comparison({"a": results([0.6, 0.61, 0.62], 0.1), "b": few}).best() == ["a"]  # b has a tenth of the labels
    assert Comparison({"gt": results([0.9], 0.9)}, bound=("gt",)).best() == []


def test_p_value_is_of_pairs() -> None:
    assert p_value([0.5], [0.4]) is None
    assert p_value([0.5, 0.6], [0.5, 0.6]) == 1.0 and p_value([0.5, 0.6], [0.4, 0.5]) == 0.0
    # t = 2 / (1 / sqrt(3)) = 3.4641 with two degrees of freedom.
    assert p_value([3.0, 3.0, 6.0], [2.0, 1.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)


def test_recovery_means_over_modalities() -> None:
    def result(text: float, audio: float) -> dict:
        copied = {"copying M": 0.5}
        return {"recovered": {"text": {"pseudo labels": text} | copied, "audio": {"pseudo labels": audio} | copied}}

    found = recovery([result(0.8, 0.6), result(1.0, 0.6)])
    assert found["text"]["made"][0] == pytest.approx(0.9) and found["mean"]["made"][0] == pytest.approx(0.75)
    assert found["mean"]["copying"] == (0.5, 0.0) and found["audio"]["p"] == 0.0
    assert recovery([{"recovered": {}}]) == {}


def test_curve() -> None:
    assert curve(0.1) == [0.1, 0.32, 1.0] and curve(1.0) == [1.0]


def test_unlabelled_clips_that_do_not_fit_are_refused_before_training(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["compare", str(features), "-o", str(tmp_path / "out"), *QUICK, "--unlabelled"]
    plant(tmp_path / "other.h5", Planted({"train": 9, "valid": 3, "test": 3}, signal=2.0))
    assert main([*call, str(tmp_path / "other.h5"), "--strategies", "none", "masked"]) == 2
    assert main([*call, str(features), "--strategies", "none"]) == 2
    shown = capsys.readouterr().err
    assert "other.h5" in shown and "none of none learns from --unlabelled clips" in shown and "epoch" not in shown


def test_shares_that_are_close_have_rows_of_their_own() -> None:
    assert compared._row("none", 0.1231) != compared._row("none", 0.1232)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--strategies", "magic"], "no strategy magic; there are: plgm"),
        (["--labelled", "0"], "no share of labels"),
        (["--labelled", "150%"], "no share of labels"),
    ],
)
def test_wrong_calls(
    more: list[str], says: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["compare", str(features), "-o", str(tmp_path / "out"), *more])
    except SystemExit as end:
        status = end.code  # type: ignore[assignment]
    assert status == 2 and says in capsys.readouterr().err


def test_workers_give_the_same_results(features: Path, tmp_path: Path) -> None:
    call = ["compare", str(features), "--seeds", "2", *QUICK, "--strategies", "none", "copy", "-o"]
    assert main([*call, str(tmp_path / "one")]) == 0
    assert main([*call, str(tmp_path / "two"), "--workers", "2"]) == 0

    def figures(folder: Path) -> dict:
        return {path.name: json.loads(path.read_text())["cmc"] for path in sorted(folder.glob("*-111?.json"))}

    assert len(figures(tmp_path / "one")) == 4 and figures(tmp_path / "one") == figures(tmp_path / "two")


def test_a_wrong_share_is_refused_in_python(features: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 0 %"):
        compare(Plan(features, SMALL, shares=(0.0,)), tmp_path)
