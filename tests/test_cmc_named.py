"""Named classes all the way from label.csv to a prediction. MELD's seven are the example."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cmc import run as runs
from cmc.ablate import ablate
from cmc.cli import main
from cmc.data import DataError, load, open_features, task_of
from cmc.evaluate import evaluate
from cmc.planted import NAMES, Plan, plant
from cmc.predict import classify
from mmfeat.corpus import CorpusError
from mmfeat.corpus import load as load_corpus
from mmfeat.layout import FeatureFile
from mmfeat.pack import pack
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.shards import Store
from pipelines.cli import main as mmfeat
from tests.test_shards_pack import FINGERPRINTS, fill

SEVEN = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
COLUMNS = ["video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "mode"]
QUICK = ["--layers", "1", "--pretrain-epochs", "4", "--epochs", "3", "--text", "freeze"]


pytestmark = pytest.mark.usefixtures("one_thread")


def corpus(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A corpus of (label, unimodal labels joined by blanks, split)."""
    (root / "Raw" / "v").mkdir(parents=True)
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for k, (label, unimodal, split) in enumerate(rows):
            writer.writerow(["v", str(k), "so good", label, *((unimodal.split() + [""] * 3)[:3]), split])
            (root / "Raw" / "v" / f"{k}.mp4").write_bytes(b"media")
    return root


def test_names_in_label_csv(tmp_path: Path) -> None:
    found = load_corpus(corpus(tmp_path, [("joy", "joy anger", "train"), ("anger", "", "train"), ("calm", "", "test")]))
    assert found.class_names == ("anger", "calm", "joy"), "alphabetical, whatever the order of rows"
    first = found.clips[0]
    assert first.classes == {"label": "joy", "label_T": "joy", "label_A": "anger"} and np.isnan(first.label)
    notes = [problem.message for problem in found.problems if problem.kind == "class"]
    assert notes == ["no training clip is 'calm' (1 in test): it cannot be learnt"]


def test_a_row_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    rows = [("joy", "", "train"), ("fear", "jyo", "train"), ("2", "", "train"), ("", "", "train")]
    found = load_corpus(corpus(tmp_path / "names", rows))
    assert [clip.refused for clip in found.clips] == [
        "",
        "label_T is 'jyo', no clip's label",
        "label is '2', a number, where most labels are names",
        "label is empty",
    ]
    assert found.class_names == ("joy",)
    found = load_corpus(corpus(tmp_path / "numbers", [("1", "", "train"), ("-1", "", "train"), ("joy", "", "train")]))
    assert found.class_names == () and found.clips[2].refused == "label is 'joy', not a number"


def test_transcripts_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="has 101 different names, more than 100"):
        load_corpus(corpus(tmp_path, [(f"what was said {k}", "", "train") for k in range(101)]))


def test_two_spellings_are_noted(tmp_path: Path) -> None:
    found = load_corpus(corpus(tmp_path, [("joy", "", "train"), ("Joy", "", "train")]))
    assert found.class_names == ("Joy", "joy") and len(found.usable) == 2
    assert "differ in upper and lower case only" in found.problems[0].message


@pytest.fixture
def meld(shared_data: Path, tmp_path: Path) -> Path:
    """MELD's own csv files in our layout, with a file for the first dialogues."""
    root = tmp_path / "meld"
    root.mkdir()
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["video_id", "clip_id", "text", "label", "mode", "start", "end"])
        for name, split in (("train", "train"), ("dev", "valid"), ("test", "test")):
            with (shared_data / "labels" / f"{name}_sent_emo.csv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    video, clip = f"{name}{row['Dialogue_ID']}", row["Utterance_ID"]
                    times = row["StartTime"], row["EndTime"]
                    writer.writerow([video, clip, row["Utterance"], row["Emotion"], split, *times])
                    if int(row["Dialogue_ID"]) < 3:
                        (root / "Raw" / video).mkdir(parents=True, exist_ok=True)
                        (root / "Raw" / video / f"{clip}.mp4").write_bytes(b"media")
    return root


def test_meld(meld: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load_corpus(meld)
    assert {clip.classes["label"] for clip in found.clips} == set(SEVEN) and len(found.clips) == 13_708
    emotions = Counter(clip.classes["label"] for clip in found.clips if clip.split == "train")
    assert emotions["neutral"] == 4710 and emotions["fear"] == 268, "as MELD's paper counts them"
    assert {problem.kind for problem in found.problems} <= {"file", "times", "class"}
    assert len(found.usable) == len(list(meld.rglob("*.mp4")))
    assert mmfeat(["check", str(meld)]) == 3
    shown = capsys.readouterr().out
    assert all(name in shown for name in found.class_names)


def packed(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The feature file of a corpus whose usable clips all have the same made-up features."""
    monkeypatch.setattr(Recipe, "fingerprints", lambda self: dict(FINGERPRINTS))
    found, store = load_corpus(root), Store(folder / "work")
    for clip in found.usable:
        fill(store, clip)
    return pack(found, load_recipe("default"), store, folder / "features.h5").path


def test_names_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("joy", "joy anger", "train"), ("anger", "", "train"), ("calm", "", "valid"), ("2", "", "train")]
    with FeatureFile(packed(corpus(tmp_path / "corpus", rows), tmp_path, monkeypatch)) as file:
        assert json.loads(file.attrs["class_names"]) == ["anger", "calm", "joy"]
        assert file.read("train", "classification_labels").tolist() == [2, 0]
        assert file.read("valid", "classification_labels").tolist() == [1]
        assert file.read("train", "classification_labels_T").tolist() == [2, -1]
        assert file.read("train", "classification_labels_A").tolist() == [0, -1]
        assert np.isnan(file.read("train", "regression_labels")).all()


def test_meld_is_packed_by_name(meld: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {clip.id: clip.classes["label"] for clip in load_corpus(meld).usable}
    with FeatureFile(packed(meld, tmp_path, monkeypatch)) as file:
        names = json.loads(file.attrs["class_names"])
        assert names == sorted(set(labels.values()))
        for split in file.splits:
            found = [names[k] for k in file.read(split, "classification_labels")]
            assert found == [labels[id] for id in file.read(split, "id")]
        assert task_of(file).class_names == tuple(names)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seven") / "features.h5"
    plant(path, Plan({"train": 84, "valid": 35, "test": 42}, signal=5.0, annotated=True, classes=7, seed=2))
    return path


@pytest.fixture(scope="module")
def finished(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(features), "-o", str(folder), *QUICK]) == 0
    return folder


def test_seven_classes_end_to_end(finished: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmfeat(["info", str(features)]) == 0
    assert "surprise" in capsys.readouterr().out
    assert main(["evaluate", str(finished), str(features)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SEVEN) and "Has0" not in shown and "MAE" not in shown
    result = json.loads((finished / "metrics.json").read_text())
    assert tuple(result["per_class"]) == SEVEN == NAMES[:7]
    assert np.shape(result["confusion"]) == (7, 7) and np.sum(result["confusion"]) == 42
    assert result["cmc"]["overall"]["accuracy"] > 2 * result["majority"]["overall"]["accuracy"]
    assert "regression" not in result and result["clips"]["consistent"] + result["clips"]["conflicting"] == 42
    record = runs.read(finished)
    assert record.calibration.class_values is None and np.sum(record.majority) == 84


def test_prediction_names_the_seven(finished: Path, features: Path) -> None:
    with FeatureFile(features) as file:
        keys = ("text", "text_bert", "audio", "audio_mask", "vision", "vision_mask")
        rows = {key: file.read("test", key)[0] for key in keys}
    found = classify(finished, runs.read(finished), rows)
    assert tuple(found.fused) == SEVEN and found.label == max(found.fused, key=lambda name: found.fused[name])
    assert sum(found.fused.values()) == pytest.approx(1, abs=1e-5) and found.value is None


def test_annotated_names_teach_the_modalities(features: Path, tmp_path: Path) -> None:
    with open_features(features) as file:
        split = load(file, "train", task_of(file))
        assert (split.label("A").numpy() == file.read("train", "classification_labels_A")).all()
    assert not torch.equal(split.label("A"), split.label("M"))
    assert main(["train", str(features), "-o", str(tmp_path), *QUICK, "--pretrain", "gt"]) == 0
    assert evaluate(tmp_path, features)["experts"]["audio"]["accuracy_own_label"] is not None


def test_ablation_reads_names_from_a_csv(features: Path, tmp_path: Path) -> None:
    settings = {"layers": 1, "pretrain_epochs": 1, "epochs": 1, "text": "freeze"}
    truth = features.with_name("features_truth.csv")
    results = ablate(features, tmp_path / "out", settings, 1, truth, ["CMC"]).results
    copied = results["CMC"][0]["recovered"]["audio"]["copying M"]
    with FeatureFile(features) as file:
        own, clip = (file.read("train", f"classification_labels{key}") for key in ("_A", ""))
    assert copied == pytest.approx(np.mean(own == clip))


def test_a_file_that_numbers_its_classes_otherwise(finished: Path, features: Path, tmp_path: Path) -> None:
    """Classes are matched by name: the same clips under other numbers get the same figures."""
    path, order = tmp_path / "other.h5", [3, 1, 0, 6, 5, 2, 4]
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["class_names"] = json.dumps([SEVEN[k] for k in order])
        for key in ("classification_labels", *(f"classification_labels_{letter}" for letter in "TAV")):
            file["test"][key][:] = np.argsort(order)[file["test"][key][:]]
    ours, theirs = evaluate(finished, features), evaluate(finished, path)
    assert ours | {"features": ""} == theirs | {"features": ""}


def test_a_class_that_the_run_does_not_know(finished: Path, features: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["class_names"] = json.dumps(["rage", *SEVEN[1:]])
    with pytest.raises(DataError, match="has clips of rage; the classes are anger, disgust"):
        evaluate(finished, path)


def test_a_class_without_training_clips(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "unseen.h5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        labels = file["train/classification_labels"]
        labels[:] = np.where(labels[:] == 3, 4, labels[:])
    assert main(["train", str(path), "-o", str(tmp_path / "run"), *QUICK]) == 0
    assert "no training clip is 'joy'" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), str(path)]) == 0
    assert "no training clip is 'joy'" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["class_clips"]["train"][3] == 0 < result["class_clips"]["split"][3]


def test_polarity_and_names_are_not_mixed(finished: Path, features: Path, tmp_path: Path) -> None:
    polar = tmp_path / "polar.h5"
    plant(polar, Plan({"train": 24, "valid": 12, "test": 12}))
    with FeatureFile(features) as named, h5py.File(polar, "a") as file:
        file.attrs["fingerprints"] = named.attrs["fingerprints"]  # so that nothing but the labels differs
    with pytest.raises(runs.RunError, match=r"the run predicts anger, .* has no classes for labels"):
        evaluate(finished, polar)
    assert main(["train", str(polar), "-o", str(tmp_path / "run"), *QUICK]) == 0
    with pytest.raises(runs.RunError, match=r"predicts negative, neutral, positive; .* has no numbers"):
        evaluate(tmp_path / "run", features)


def test_unknown_names_in_a_truth_csv(finished: Path, features: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text(features.with_name("features_truth.csv").read_text().replace("joy", "jyo"))
    with pytest.raises(DataError, match="'jyo' is none of the classes anger"):
        evaluate(finished, features, truth=truth)
