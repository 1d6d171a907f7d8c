"""Every check finds what it is for, names the clips, and finds nothing in a file that is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmfeat import layout
from mmfeat import validate as package
from mmfeat.layout import FeatureFile, LayoutError
from mmfeat.validate import Report, validate
from mmfeat.validate.findings import CHECKS
from mmfeat.validate.structure import ROWS
from pipelines.cli import main
from tests.feature_files import IDS, write_features

Found = set[tuple[str, str, str, str, tuple[str, ...]]]
FIRST = ("film0$_$0",)
"""The clip in row 0 of the training split; row 1 of test is film9$_$1."""


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("right") / "f.h5")


@pytest.fixture
def path(right: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copy(right, tmp_path / "f.h5"))


def found(report: Report) -> Found:
    """Severity, check, split, what, clips; the count must be that of the clips where all are named."""
    assert all(finding.count >= len(finding.clips) for finding in report.findings)
    return {(f.severity, f.check, f.split, f.what, f.clips) for f in report.findings}


@pytest.mark.parametrize("aligned", [False, True])
def test_nothing_is_found_in_a_file_that_is_right(tmp_path: Path, aligned: bool) -> None:
    report = validate(write_features(tmp_path / "f.h5", aligned=aligned))
    assert report.findings == [] and report.left_out == []
    assert report.clips == {"train": 6, "valid": 2, "test": 3}
    assert report.separator == "102: every clip begins with 101, [CLS] of BERT"


def put(key: str, where: Any, value: Any) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        file[key][where] = value

    return spoil


def masked(file: h5py.File) -> None:
    """The second step of every clip was not measured."""
    file["train/audio"][0, 1, 0] = -np.inf


def backwards(file: h5py.File) -> None:
    file["train/vision_times"][0, :3] = [(0.2, 0.3), (0.1, 0.2), (0.1, 0.2)]


def cut(file: h5py.File) -> None:
    """The last wordpiece is lost, consistently."""
    length = file["train/text_lengths"][0] - 1
    file["train/text_bert"][0, :2, length], file["train/text"][0, length] = 0, 0
    file["train/text_lengths"][0] = length


def gap(file: h5py.File) -> None:
    """A wordpiece in the middle is not attended to."""
    file["train/text_bert"][0, 1, 1] = 0


def ending_in_zeros(file: h5py.File) -> None:
    file["test/audio"][1, file["test/audio_lengths"][1] - 1] = 0


def vectorless(file: h5py.File) -> None:
    for split in IDS:
        file[f"{split}/text"][:] = 0


def unworded(file: h5py.File) -> None:
    words = file["test/words"][:]
    words[1]["span_end"] = 99
    words[2]["end"] = -1
    file["test/words"][:] = words


def in_clips(**values: object) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        table = file["meta/clips"][:]
        for name, value in values.items():
            table[0][name] = value
        file["meta/clips"][:] = table

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (put("train/audio", (0, 0, 1), np.nan), {("error", "non-finite", "train", "audio", FIRST)}),
        (put("train/text", (0, 0, 1), np.inf), {("error", "non-finite", "train", "text", FIRST)}),
        (masked, {("warning", "non-finite-masked", "train", "audio", FIRST)}),
        (put("test/vision", 1, 0), {("error", "all-zero", "test", "vision", ("film9$_$1",))}),
        (put("test/text", 1, 0), {("error", "all-zero", "test", "text", ("film9$_$1",))}),
        (put("test/vision_mask", 1, False), {("warning", "absent", "test", "vision", ("film9$_$1",))}),
        (put("test/vision_lengths", 1, 0), {
            ("error", "padding-values", "test", "vision", ("film9$_$1",)),
            ("error", "length-mask", "test", "vision", ("film9$_$1",)),
        }),
        (put("test/vision_lengths", 1, 99), {("error", "length-range", "test", "vision", ("film9$_$1",))}),
        (put("test/audio_lengths", 1, -1), {
            ("error", "length-range", "test", "audio", ("film9$_$1",)),
            ("error", "padding-values", "test", "audio", ("film9$_$1",)),
            ("error", "length-mask", "test", "audio", ("film9$_$1",)),
        }),
        (put("train/text_lengths", 0, 2), {
            ("error", "length-mask", "train", "text", FIRST),
            ("error", "padding-values", "train", "text", FIRST),
        }),
        (put("train/vision_times", (0, 0), (0.5, 0.4)), {("error", "times", "train", "vision", FIRST)}),
        (put("train/vision_times", (0, 0, 1), np.nan), {("error", "times", "train", "vision", FIRST)}),
        (backwards, {("error", "times", "train", "vision", FIRST)}),
        (unworded, {("error", "words", "test", "words", ("film9$_$1", "film9$_$2"))}),
        (gap, {
            ("error", "attention-gap", "train", "text_bert", FIRST),
        }),
        (put("train/text_bert", slice(None), 0), {("error", "length-mask", "train", "text", tuple(IDS["train"][:3]))}),
        (ending_in_zeros, {("warning", "trailing-zeros", "test", "audio", ("film9$_$1",))}),
        (vectorless, {("warning", "no-vectors", "", "text", ())}),
        (lambda file: file["test"].pop("id"), {
            ("error", "missing-key", "test", "id", ()),
        }),
        (cut, {("error", "no-separator", "train", "text_bert", FIRST)}),
        (put("train/text_bert", (0, 2, 0), 7), {("error", "tokens", "train", "text_bert", FIRST)}),
        (put("train/text_bert", (0, 0, 1), -5), {("error", "tokens", "train", "text_bert", FIRST)}),
        (put("train/id", 0, "film0"), {
            ("error", "id-form", "train", "", ("film0",)),
            ("error", "clip-table", "train", "", ("film0",)),
            ("error", "clip-table", "train", "", FIRST),
        }),
        (put("test/regression_labels", 0, 3.5), {
            ("error", "label-range", "test", "regression_labels", ("film9$_$0",)),
            ("error", "label-contradiction", "test", "classification_labels", ("film9$_$0",)),
        }),
        (put("test/regression_labels_A", 0, np.inf), {
            ("error", "label-range", "test", "regression_labels_A", ("film9$_$0",)),
        }),
        (put("test/classification_labels", 0, 3), {
            ("error", "label-class", "test", "classification_labels", ("film9$_$0",)),
            ("error", "label-contradiction", "test", "classification_labels", ("film9$_$0",)),
        }),
        (put("meta/train_stats/vision/mean", 2, 9.0), {("error", "train-stats", "", "vision", ())}),
        (put("meta/train_stats/audio/std", 0, np.nan), {("error", "train-stats", "", "audio", ())}),
        (put("meta/feature_names/audio", 1, "audio0"), {("error", "column-names", "", "audio", ())}),
        (in_clips(status="failed"), {("error", "clip-table", "train", "", FIRST)}),
        (in_clips(split="test"), {("error", "clip-table", "train", "", FIRST)}),
        (lambda file: file.attrs.pop("recipe"), {("error", "head", "", "recipe", ())}),
        (lambda file: file.attrs.modify("versions", "{"), {("error", "head", "", "versions", ())}),
        (lambda file: file.pop("test"), {
            ("warning", "missing-split", "", "test", ()),
            ("error", "clip-table", "test", "", tuple(IDS["test"])),
        }),
        (lambda file: file["test"].pop("audio_mask"), {("error", "missing-key", "test", "audio_mask", ())}),
        (lambda file: file["test"].pop("words"), {("error", "missing-key", "test", "words", ())}),
        (lambda file: file["test"].pop("regression_labels_T"), set()),
        (lambda file: file["meta"].pop("train_stats"), {
            ("error", "missing-key", "", "/meta/train_stats/audio", ()),
            ("error", "missing-key", "", "/meta/train_stats/vision", ()),
        }),
        (lambda file: file["meta"].pop("clips"), {("error", "missing-key", "", "/meta/clips", ())}),
    ],
)  # fmt: skip
def test_one_fault_is_found_and_nothing_else(path: Path, spoil: Callable[[h5py.File], None], expected: Found) -> None:
    with h5py.File(path, "a") as file:
        spoil(file)
    statistics = {("error", "train-stats", "", modality, ()) for modality in layout.TIMED}  # follow from training rows
    assert found(validate(path)) - (statistics - expected) == expected


def test_what_is_said_of_another_version_and_of_an_absent_modality(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(path, "a") as file:
        file["test/vision_mask"][1] = False
    (absent,) = (finding for finding in validate(path).findings if finding.check == "absent")
    assert "other modalities are used" in absent.advice
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    assert main(["validate", str(path)]) == 2
    shown = capsys.readouterr()
    assert "version 99" in shown.out + shown.err and "int64" not in shown.out + shown.err


def replace(file: h5py.File, key: str, values: np.ndarray) -> None:
    del file[key]
    file[key] = values


class TestStructure:
    def test_types(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            replace(file, "test/text_bert", file["test/text_bert"][:].astype(np.float64))
            replace(file, "test/audio", file["test/audio"][:].astype(np.float64))
            replace(file, "test/id", np.arange(3))
        report = validate(path)
        assert {finding[:4] for finding in found(report)} >= {
            ("error", "dtype", "test", "text_bert"),
            ("error", "dtype", "test", "audio"),
            ("error", "dtype", "test", "id"),
        }
        assert any("float64, not float32" in finding.meaning for finding in report.findings)

    def test_shapes(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            replace(file, "test/audio_mask", file["test/audio_mask"][:, :-1])
            replace(file, "valid/text_bert", file["valid/text_bert"][:, :2])
            replace(file, "train/regression_labels", file["train/regression_labels"][:-1])
            replace(file, "train/vision", file["train/vision"][:, :, 0])
            replace(file, "valid/audio", file["valid/audio"][..., :2])
        report = validate(path)
        shapes = {(f.split, f.what): f.meaning for f in report.findings if f.check == "shape"}
        assert "6 x 8 where 6 x steps x columns is due" in shapes.pop(("train", "vision")).replace(
            "vision x", "steps x"
        )
        assert "5 where 6 is due" in shapes.pop(("train", "regression_labels"))
        assert "2 x 2 x 10 where 2 x 3 x 10 is due" in shapes.pop(("valid", "text_bert"))
        assert "where 3 x 12 is due" in shapes.pop(("test", "audio_mask"))
        assert "train 12 x 3, valid 12 x 2, test 12 x 3" in shapes.pop(("", "audio"))
        assert not shapes

    def test_rows_of_an_aligned_file_are_wordpieces(self, tmp_path: Path) -> None:
        path = write_features(tmp_path / "f.h5")
        with h5py.File(path, "a") as file:
            file.attrs["aligned"] = True
        assert {finding.what for finding in validate(path).findings if finding.check == "shape"} == {"aligned"}

    def test_empty_split(self, tmp_path: Path) -> None:
        path = write_features(tmp_path / "f.h5", IDS | {"valid": []})
        assert found(validate(path)) == {("error", "empty-split", "valid", "", ())}

    def test_padding_longer_than_any_clip(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            for split in IDS:
                for key in ("audio", "audio_mask", "audio_times"):
                    old = file[f"{split}/{key}"][:]
                    replace(file, f"{split}/{key}", np.concatenate([old, np.zeros_like(old[:, :2])], 1))
        (finding,) = validate(path).findings
        assert (finding.severity, finding.check) == ("warning", "padded-length")
        assert finding.meaning == "audio is padded to 14 steps, the longest clip has 12"

    def test_column_names_do_not_fit(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            replace(file, "meta/feature_names/audio", np.array([b"a", b"b"]))
        assert {finding.check for finding in validate(path).findings} == {"column-names"}


class TestIds:
    def test_the_same_clip_in_two_splits_and_twice_in_one(self, tmp_path: Path) -> None:
        ids = {"train": ["a$_$1", "a$_$2", "b$_$1"], "valid": ["c$_$1", "c$_$1", "c$_$1"], "test": ["a$_$2", "d$_$1"]}
        report = validate(write_features(tmp_path / "f.h5", ids))
        assert ("error", "id-in-two-splits", "test", "train", ("a$_$2",)) in found(report)
        assert ("error", "id-duplicate", "valid", "", ("c$_$1",)) in found(report)
        assert not any(finding.check == "video-in-two-splits" for finding in report.findings)

    def test_the_same_video_in_two_splits(self, tmp_path: Path) -> None:
        ids = {"train": ["a$_$1", "b$_$1"], "valid": ["c$_$1"], "test": [f"a$_${n}" for n in range(2, 9)]}
        (finding,) = validate(write_features(tmp_path / "f.h5", ids)).findings
        assert (finding.severity, finding.check, finding.split, finding.what) == (
            "warning",
            "video-in-two-splits",
            "test",
            "train",
        )
        assert finding.count == 7 and finding.clips == ("a$_$2", "a$_$3", "a$_$4")


class TestSeparator:
    def test_it_is_what_most_clips_end_with_where_the_vocabulary_is_not_berts(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            for split in IDS:
                tokens = file[f"{split}/text_bert"][:]
                tokens[:, 0][tokens[:, 0] == 101], tokens[:, 0][tokens[:, 0] == 102] = 0, 2
                file[f"{split}/text_bert"][:] = tokens
            length = file["valid/text_lengths"][1]
            file["valid/text_bert"][1, 0, length - 1] = 777
        report = validate(path)
        assert report.separator == "2: 10 of 11 clips end with it"
        assert found(report) == {("error", "no-separator", "valid", "text_bert", ("film8$_$1",))}

    def test_it_is_not_guessed_where_clips_end_with_many_tokens(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            for split in IDS:
                tokens = file[f"{split}/text_bert"][:]
                tokens[:, 0] = tokens[:, 1] * np.random.default_rng(0).integers(1, 30000, tokens[:, 0].shape)
                file[f"{split}/text_bert"][:] = tokens
        report = validate(path)
        assert report.findings == [] and report.separator == ""
        assert any(note.startswith("[SEP]") for note in report.left_out)

    def test_all_transcripts_cut_are_found_by_their_beginning(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            for split in IDS:
                tokens = file[f"{split}/text_bert"][:]
                tokens[:, 0][tokens[:, 0] == 102] = 999
                file[f"{split}/text_bert"][:] = tokens
        assert sum(finding.count for finding in validate(path).findings if finding.check == "no-separator") == 11


def test_named_classes_need_no_regression_label(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["class_names"] = '["joy","anger","fear","calm","surprise"]'
        for split, ids in IDS.items():
            file[f"{split}/regression_labels"][:] = np.nan
            file[f"{split}/classification_labels"][:] = np.arange(len(ids)) % 5
    assert validate(path).findings == []
    with h5py.File(path, "a") as file:
        file["test/classification_labels"][:] = [-1, 5, 4]
    assert found(validate(path)) == {
        ("warning", "label-missing", "test", "regression_labels", ("film9$_$0",)),
        ("error", "label-class", "test", "classification_labels", ("film9$_$1",)),
    }


def test_blocks_of_any_size_find_the_same_and_none_is_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(path, "a") as file:
        file["train/audio"][3, 0] = np.nan
        file["train/vision"][5, 0, 0] = np.nan
        file["test/text"][2] = 0
    whole = found(validate(path))
    monkeypatch.setattr(package, "_BLOCK", 1)
    sizes = []
    read = package.Source.read

    def spy(source: Any, split: str, key: str, rows: slice) -> Any:
        sizes.append(rows.stop - rows.start)
        return read(source, split, key, rows)

    monkeypatch.setattr(package.Source, "read", spy)
    monkeypatch.setattr(package, "_WORDS", 1)
    assert found(validate(path)) == whole and len(whole) >= 3
    assert set(sizes) == {1}


class TestUnreadable:
    def test_files_of_other_kinds(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            validate(tmp_path / "gone.h5")
        (tmp_path / "a.h5").write_bytes(b"no HDF5")
        with pytest.raises(LayoutError, match="not a readable HDF5"):
            validate(tmp_path / "a.h5")

    def test_damage_inside_names_the_rows(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def damaged(*_: object) -> None:
            raise OSError("wrong checksum")

        monkeypatch.setattr(h5py.Dataset, "__getitem__", damaged)
        with FeatureFile(path) as file:
            source = package.Source(path, file, {"test": {"audio": file.dataset("test", "audio")}})
            with pytest.raises(LayoutError, match=r"rows 0 to 3 of test/audio cannot be read: wrong checksum"):
                source.read("test", "audio", slice(0, 3))

    def test_a_truncated_file(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(LayoutError):
            validate(path)


ANYTHING = st.one_of(
    hnp.arrays(
        st.sampled_from(["f4", "f8", "i4", "u1", "?", "S3"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    hnp.arrays("f4", st.sampled_from([(6,), (6, 12, 3), (6, 3, 10)]), elements=st.floats(width=32)),
)
KEYS = st.sampled_from([key for key in ROWS if key != "id"])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=KEYS, value=ANYTHING)
def test_whatever_a_file_holds_is_a_finding(right: Path, tmp_path: Path, key: str, value: np.ndarray) -> None:
    path = Path(shutil.copy(right, tmp_path / "any.h5"))
    with h5py.File(path, "a") as file:
        file["train"].pop(key, None)
        file[f"train/{key}"] = value
    report = validate(path)
    kind = ROWS[key][1]
    if kind != "text" and (value.dtype != np.dtype(kind) or value.shape[:1] != (6,)):
        assert any(finding.split == "train" and finding.what == key for finding in report.findings)


class TestCommand:
    def test_statuses(self, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["validate", str(path)]) == 0
        assert "0 errors, 0 warnings" in capsys.readouterr().out
        with h5py.File(path, "a") as file:
            file["test/vision_mask"][1] = False
        assert main(["validate", str(path)]) == 0
        assert "0 errors, 1 warning" in capsys.readouterr().out
        with h5py.File(path, "a") as file:
            file["train/audio"][0, 0, 1] = np.nan
        assert main(["validate", str(path)]) == 3
        said = capsys.readouterr().out
        assert "non-finite" in said and "film0$_$0" in said and "mask the step" in said
        assert main(["validate", str(tmp_path / "gone.h5")]) == 2
        (tmp_path / "bad.pkl").write_bytes(b"no")
        assert main(["validate", str(tmp_path / "bad.pkl")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 2 and "bad.pkl" in said

    def test_json(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["validate", str(path), "--label-range", "0.01", "0.02", "--json"]) == 3
        report = json.loads(capsys.readouterr().out)
        assert report["errors"] == len(report["findings"]) and report["warnings"] == 0 and report["clips"]["test"] == 3
        (finding,) = [
            one for one in report["findings"] if one["split"] == "test" and one["what"] == "regression_labels"
        ]
        assert finding["check"] == "label-range" and finding["count"] == 3 and finding["clips"] == IDS["test"]
        assert all(finding["meaning"] and finding["advice"] for finding in report["findings"])


def test_every_check_is_known_by_what_it_means_and_what_to_do() -> None:
    source = "".join(path.read_text() for path in Path(package.__file__).parent.glob("*.py"))
    for name, check in CHECKS.items():
        assert check.meaning and check.advice
        assert source.count(f'"{name}"') >= 2, f"{name} is never found"
