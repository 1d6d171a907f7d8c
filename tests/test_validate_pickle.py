"""Pickles of MMSA, in the forms that are about, are checked as feature files are, as far as they can be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmfeat.layout import FeatureFile
from mmfeat.mmsa import MMSAError
from mmfeat.mmsa.read import convert
from mmfeat.validate import Report, validate
from mmfeat.validate.structure import ROWS
from tests.feature_files import IDS, write_features

Found = set[tuple[str, str, str, str, tuple[str, ...]]]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("right") / "f.h5")


def found(report: Report) -> Found:
    return {(f.severity, f.check, f.split, f.what, f.clips) for f in report.findings}


def test_what_is_no_pickle_of_features(tmp_path: Path) -> None:
    path = tmp_path / "f.pkl"
    path.write_bytes(b"no pickle")
    with pytest.raises(MMSAError):
        validate(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(MMSAError, match="none of the splits"):
        validate(path)


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(MMSAError, match=r"os\.system"):
        validate(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


class TestPickle:
    @pytest.fixture
    def content(self, right: Path) -> dict[str, dict[str, Any]]:
        """As MMSA-FET writes it: lists, float64 token ids, no masks."""
        with FeatureFile(right) as file:
            keys = ("raw_text", "text", "audio", "vision", "audio_lengths", "vision_lengths", "regression_labels")
            data = {split: {key: file.read(split, key) for key in keys} for split in file.splits}
            for split, arrays in data.items():
                arrays["id"] = file.read(split, "id").tolist()
                arrays["audio_lengths"] = arrays["audio_lengths"].tolist()
                arrays["text_bert"] = file.read(split, "text_bert").astype(np.float64)
                arrays["classification_labels"] = file.read(split, "classification_labels").astype(np.float64)
        return data

    def check(self, content: object, tmp_path: Path) -> Report:
        path = tmp_path / "f.pkl"
        path.write_bytes(pickle.dumps(content))
        return validate(path)

    def test_nothing_is_found_in_one_that_is_right(self, content: dict[str, Any], tmp_path: Path) -> None:
        report = self.check(content, tmp_path)
        assert report.findings == [] and report.format == "MMSA" and report.clips["train"] == 6
        assert any("masks" in note for note in report.left_out)
        convert(tmp_path / "f.pkl", tmp_path / "back.h5")
        assert validate(tmp_path / "back.h5").findings == []

    def test_the_forms_that_are_about(self, content: dict[str, Any], tmp_path: Path) -> None:
        for split, arrays in content.items():
            arrays["id"] = [[*id.split("$_$"), "0.5"] for id in IDS[split]]  # MOSEI: video, start, end
            arrays["regression_labels"] = arrays["regression_labels"][:, None]
            arrays["vision"] = arrays["vision"].mean(1)  # one vector per clip
            del arrays["vision_lengths"]
            arrays["text"] = arrays["text"] + 1  # BERT gives vectors for padding, too
        assert self.check(content, tmp_path).findings == []

    def test_faults(self, content: dict[str, Any], tmp_path: Path) -> None:
        train, test = content["train"], content["test"]
        train["audio"][0, 0, 0] = -np.inf
        train["vision"][1, 0, 0] = np.nan
        train["audio_lengths"][2] -= 1
        train["text_bert"][3, 0, 1] = 0.5
        train["regression_labels"][4] = np.nan
        train["classification_labels"][4] = -1
        test["vision"] = test["vision"].astype(np.float64)
        test["vision"][1] = 0
        test["id"][2] = "film9"
        test["classification_labels"][0] = (test["classification_labels"][0] + 1) % 3
        del content["valid"]["text"], content["valid"]["text_bert"], content["valid"]["audio_lengths"]
        report = self.check(content, tmp_path)
        assert found(report) == {
            ("warning", "minus-infinity", "train", "audio", ("film0$_$0",)),
            ("error", "non-finite", "train", "vision", ("film0$_$1",)),
            ("error", "padding-values", "train", "audio", ("film1$_$2",)),
            ("error", "tokens", "train", "text_bert", ("film1$_$3",)),
            ("warning", "label-missing", "train", "regression_labels", ("film2$_$4",)),
            ("warning", "float64", "test", "vision", ()),
            ("warning", "all-zero", "test", "vision", ("film9$_$1",)),
            ("warning", "id-form", "test", "", ("film9",)),
            ("warning", "label-contradiction", "test", "classification_labels", ("film9$_$0",)),
            ("error", "missing-key", "valid", "text or text_bert", ()),
            ("error", "missing-key", "valid", "audio_lengths", ()),
        }

    def test_an_aligned_one_is_known_by_its_shapes(self, tmp_path: Path) -> None:
        with FeatureFile(write_features(tmp_path / "f.h5", aligned=True)) as file:
            keys = ("id", "raw_text", "text", "text_bert", "audio", "vision", "regression_labels")
            content = {split: {key: file.read(split, key) for key in keys} for split in file.splits}
        assert self.check(content, tmp_path).findings == []

    def test_ragged_lists_and_wrong_shapes(self, content: dict[str, Any], tmp_path: Path) -> None:
        content["train"]["audio"] = [clip[: 3 + row] for row, clip in enumerate(content["train"]["audio"])]
        content["test"]["vision"] = content["test"]["vision"][:2]
        content["valid"]["regression_labels"] = ["a", "b"]
        assert {finding[:4] for finding in found(self.check(content, tmp_path))} == {
            ("error", "dtype", "train", "audio"),
            ("error", "shape", "train", "audio"),
            ("error", "shape", "test", "vision"),
            ("error", "dtype", "valid", "regression_labels"),
        }


VALUES = hnp.arrays(
    st.sampled_from(["f4", "f8", "i4", "u1", "?", "S3"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
)
KEYS = st.sampled_from(list(ROWS))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=KEYS, value=VALUES | st.none() | st.text() | st.lists(st.lists(st.integers(0, 3))))
def test_whatever_a_pickle_holds_is_a_finding(right: Path, tmp_path: Path, key: str, value: Any) -> None:
    with FeatureFile(right) as file:
        keys = ("id", "raw_text", "text", "text_bert", "audio", "vision", "audio_lengths", "vision_lengths")
        data = {split: {name: file.read(split, name) for name in keys} for split in file.splits}
    data["train"][key] = value
    (tmp_path / "any.pkl").write_bytes(pickle.dumps(data))
    validate(tmp_path / "any.pkl")
