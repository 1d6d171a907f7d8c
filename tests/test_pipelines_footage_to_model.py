"""The whole way: which steps run, which are skipped, and what is said at the end. Each step has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmc.planted import Plan, plant
from cmc.predict import Prediction
from pipelines import footage_to_model as module
from pipelines.exits import Exit
from pipelines.footage_to_model import footage_to_model

FIGURES = {"accuracy": [0.75, 0.05], "f1": [0.7, 0.0]}


class Steps:
    """Stands for extraction and for `cmc`: writes what they write and notes that it did."""

    def __init__(self, corpus: Path, status: int = 0):
        self.corpus, self.status, self.calls = corpus, status, []
        self.seed = 0

    def make_features(self, corpus, recipe, out: Path, *, stages, **options) -> Exit:
        def work() -> None:
            self.calls.append("features")
            plant(out, Plan({"train": 6, "valid": 4, "test": 4}, seed=self.seed))

        out.parent.mkdir(parents=True, exist_ok=True)
        stages.run("features", {"seed": self.seed}, [out], work)
        return Exit.OK

    def cmc(self, arguments: list[str]) -> None:
        step, *rest = arguments
        self.calls.append(" ".join([step, *(word for word in rest if word.startswith("--"))]))
        if self.status:
            raise module.StepError(self.status)
        run = Path(rest[rest.index("-o") + 1] if step == "train" else rest[0])
        (run / "seed-1").mkdir(parents=True, exist_ok=True)
        if step == "train":
            (run / "seeds.json").write_text('{"runs": ["seed-1"]}')
            (run / "seed-1" / "model.safetensors").write_bytes(b"weights")
        else:
            groups = ("overall", "consistent", "conflicting")
            figures = {
                "clips": dict.fromkeys(groups, 4),
                "cmc": dict.fromkeys(groups, FIGURES),
                "majority": {group: {"accuracy": 0.5, "f1": 0.4} for group in groups},
            }
            (run / "metrics.json").write_text(json.dumps(figures))
            (run / "confusion.png").write_bytes(b"png")

    def predict(self, run: Path, path: Path, text: str, start=None, end=None) -> Prediction:
        self.calls.append(f"predict {path.name} {text}")
        fused = {"negative": 0.1, "neutral": 0.2, "positive": 0.7}
        return Prediction(
            "positive",
            fused,
            dict.fromkeys(("text", "audio", "vision"), fused),
            {"text": 1.0, "audio": 0.0, "vision": 0.0},
            "ok",
        )


@pytest.fixture
def steps(tmp_path, monkeypatch) -> Steps:
    corpus = tmp_path / "corpus"
    (corpus / "Raw" / "test").mkdir(parents=True)
    (corpus / "Raw" / "test" / "0001.mp4").write_bytes(b"video")
    (corpus / "label.csv").write_text("video_id,clip_id,text,label,mode\ntest,0001,what a day,1,test\n")
    truth = tmp_path / "corpus.truth"
    truth.mkdir()
    (truth / "planted.csv").write_text("planted")
    made = Steps(corpus)
    monkeypatch.setattr(module, "make_features", made.make_features)
    monkeypatch.setattr(module, "_cmc", made.cmc)
    monkeypatch.setattr("cmc.predict.predict", made.predict)
    monkeypatch.setattr("cmc.seeds.best", lambda run: run / "seed-1")
    return made


ALL = ["features", "train --seeds --overwrite", "evaluate --truth", "predict 0001.mp4 what a day"]


def run(steps: Steps, out: Path) -> list[str]:
    steps.calls = []
    assert footage_to_model(steps.corpus, out) == Exit.OK
    return steps.calls


def test_a_second_run_does_nothing_and_says_the_same(steps, tmp_path, capsys):
    assert run(steps, tmp_path / "out") == ALL
    first = capsys.readouterr().out
    assert run(steps, tmp_path / "out") == []
    second = capsys.readouterr().out
    closing = first[first.index("Result on the test split") :]
    assert closing in second
    assert "75.0 ± 5.0 %" in closing and "50.0 %" in closing and "conflicting clips" in closing
    assert "is positive, says the model: 70% sure" in closing
    for name in ("features.h5", "metrics.json", "confusion.png", "prediction.json"):
        assert name in closing


def test_a_step_is_done_again_when_what_it_reads_changed(steps, tmp_path):
    out = tmp_path / "out"
    run(steps, out)
    (tmp_path / "corpus.truth" / "planted.csv").write_text("corrected")
    assert run(steps, out) == [ALL[2]]
    steps.seed = 1  # other features
    assert run(steps, out) == ALL[:3]
    (out / "prediction.json").unlink()
    assert run(steps, out) == [ALL[3]]


def test_training_that_was_interrupted_goes_on_instead_of_starting_anew(steps, tmp_path):
    steps.status = Exit.INTERRUPTED
    assert footage_to_model(steps.corpus, tmp_path / "out") == Exit.INTERRUPTED
    steps.status = 0
    assert run(steps, tmp_path / "out") == ["train --seeds --resume", *ALL[2:]]


def test_a_step_that_fails_ends_the_run_with_its_status(steps, tmp_path):
    steps.status = 4
    assert footage_to_model(steps.corpus, tmp_path / "out") == Exit.NOTHING_USABLE
    assert steps.calls == ALL[:2]
    assert not (tmp_path / "out" / "prediction.json").exists()


def test_without_planted_labels_none_are_used(steps, tmp_path):
    (tmp_path / "corpus.truth" / "planted.csv").unlink()
    assert run(steps, tmp_path / "out")[2] == "evaluate"


def test_the_example_is_a_test_clip_with_features(steps, tmp_path):
    run(steps, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert said["clip"] == "test$_$0001" and np.isclose(said["label"], 1)
