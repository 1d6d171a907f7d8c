"""What becomes of MMSA's pickles as feature files, and of feature files as MMSA's pickles."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cmc.planted import Plan, plant
from mmfeat.layout import MODALITIES, REGRESSION, UNIMODAL, FeatureFile
from mmfeat.mmsa import MMSAError, as_feature_file
from mmfeat.mmsa.read import convert
from mmfeat.mmsa.unpickle import load
from mmfeat.mmsa.write import DIALECTS, export
from pipelines.cli import main

SPLITS = ("train", "valid", "test")


def tokens(lengths: list[int], steps: int, kind: str = "f8") -> np.ndarray:
    """text_bert with [CLS], words and [SEP]."""
    found = np.zeros((len(lengths), 3, steps), kind)
    for row, length in enumerate(lengths):
        found[row, 0, :length] = [101, *range(1000, 1000 + length - 2), 102]
        found[row, 1, :length] = 1
    return found


def unaligned() -> dict[str, Any]:
    """Two clips with what published files have in them: −inf, a frame of zeros, lengths as lists, float64 tokens."""
    audio = np.ones((2, 6, 2), np.float32)
    audio[0, 1, 0], audio[0, 2], audio[0, 4:] = -np.inf, 0, 0
    vision = np.full((2, 5, 3), 2, np.float32)
    vision[1, 3] = np.nan
    return {
        "id": ["v$_$1", "v$_$2"],
        "raw_text": ["one two", "three"],
        "annotations": ["Positive", "Negative"],
        "text": np.ones((2, 4, 2), np.float32),
        "text_bert": tokens([4, 3], 4),
        "audio": audio,
        "vision": vision,
        "audio_lengths": [4, 6],
        "vision_lengths": [5, 9],
        "regression_labels": np.array([0.5, -0.2]),
        "classification_labels": np.array([2, 0]),
    }


def aligned() -> dict[str, Any]:
    """No lengths; no sound and no picture at [CLS] and [SEP]."""
    one = unaligned()
    inside = one["text_bert"][:, 1, :, None] > 0
    inside[:, 0] = inside[0, 3] = inside[1, 2] = False
    one["audio"] = np.where(inside, np.ones((2, 4, 2), np.float32), 0)
    one["vision"] = np.where(inside, np.full((2, 4, 3), 2, np.float32), 0)
    del one["audio_lengths"], one["vision_lengths"]
    return one


def converted(folder: Path, *splits: dict[str, Any], **more: str) -> Path:
    """The feature file of a pickle with these splits; the last one stands for those that are not given."""
    whole = dict(zip(SPLITS, [*splits, *[splits[-1]] * (3 - len(splits))], strict=True))
    (folder / "a.pkl").write_bytes(pickle.dumps(whole))
    return convert(folder / "a.pkl", folder / "a.h5", **more)


def mask(file: FeatureFile, modality: str) -> list[str]:
    return ["".join("x" if step else "." for step in row) for row in file.read("train", f"{modality}_mask")]


def test_measured_is_what_is_inside_the_length_finite_and_not_zero(tmp_path: Path) -> None:
    with FeatureFile(converted(tmp_path, unaligned())) as file:
        assert not file.aligned
        assert mask(file, "audio") == ["x..x..", "xxxxxx"]
        assert mask(file, "vision") == ["xxxxx", "xxx.x"]
        assert file.read("train", "audio")[0, 1, 0] == -np.inf  # kept; training leaves masked steps out
        assert file.read("train", "audio_lengths").tolist() == [4, 6]
        assert file.read("train", "vision_lengths").tolist() == [5, 5]  # cut as the array is
        assert file.read("train", "text_lengths").tolist() == [4, 3]
        assert file.read("train", "text_bert").dtype == np.int32
        mean, std = file.train_stats("vision")
        assert mean.tolist() == [2, 2, 2] and std.tolist() == [0, 0, 0]  # the step that is not a number left out


def test_without_lengths_a_clip_ends_at_its_last_row_that_is_not_zero(tmp_path: Path) -> None:
    one = unaligned()
    del one["audio_lengths"], one["vision_lengths"]
    with FeatureFile(converted(tmp_path, one)) as file:
        assert mask(file, "audio") == ["x..x..", "xxxxxx"]
        assert file.read("train", "audio_lengths").tolist() == [4, 6]


def test_aligned_files_have_the_lengths_of_the_text(tmp_path: Path) -> None:
    with FeatureFile(converted(tmp_path, aligned())) as file:
        assert file.aligned
        assert mask(file, "audio") == mask(file, "vision") == [".xx.", ".x.."]
        assert file.read("train", "vision_lengths").tolist() == [4, 3]


def test_labels_and_strings(tmp_path: Path) -> None:
    one = unaligned() | {
        "id": [b"v$_$1", np.array(["w", "2", "3.5"])],
        "raw_text": np.array([["one\0"], ["two"]]),
        "regression_labels": [0.5, -0.2],
        "regression_labels_T": np.array([[1.0], [np.nan]]),
    }
    with FeatureFile(converted(tmp_path, one, language="en")) as file:
        assert file.read("train", "id").tolist() == ["v$_$1", "w$_$2_3.5"]
        assert file.read("train", "raw_text").tolist() == ["one", "two"]
        assert file.read("train", "classification_labels").tolist() == [2, 0]
        np.testing.assert_array_equal(file.read("train", "regression_labels_T"), np.array([1, np.nan], "f4"))
        assert np.isnan(file.read("train", "regression_labels_A")).all()
        assert file.attrs["language"] == "en" and json.loads(file.attrs["class_names"])[0] == "negative"


def test_a_file_with_classes_only(tmp_path: Path) -> None:
    one = unaligned() | {"classification_labels": np.array([4.0, np.nan])}
    del one["regression_labels"]
    with FeatureFile(converted(tmp_path, one)) as file:
        assert file.read("train", "classification_labels").tolist() == [4, -1]
        assert json.loads(file.attrs["class_names"]) == ["0", "1", "2", "3", "4"]


def test_what_a_split_does_not_have_is_masked(tmp_path: Path) -> None:
    """MMSA-FET leaves out what failed, and writes arrays of shape (0,) for a split without clips."""
    no_audio, empty = unaligned(), {key: np.array([]) for key in unaligned()}
    del no_audio["audio"], no_audio["audio_lengths"], no_audio["text_bert"]
    with FeatureFile(converted(tmp_path, no_audio, unaligned(), empty)) as file:
        assert file.read("train", "audio").shape == (2, 1, 2) and mask(file, "audio") == [".", "."]
        assert file.read("test", "audio").shape == (0, 1, 2)
        assert not file.read("train", "text_bert")[:, 0].any()  # not known
        assert file.read("train", "text_lengths").tolist() == [4, 4]
    with FeatureFile(converted(tmp_path, unaligned(), {}, {})) as file:
        assert file.splits == list(SPLITS) and len(file) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"raw_text": ["a"]}, "train: 1 rows of 'raw_text' for 2 ids"),
        ({"audio": np.ones((3, 6, 2))}, "train: 3 rows of 'audio' for 2 ids"),
        ({"audio": np.ones((2, 6, 2, 1))}, r"'audio' has shape \(2, 6, 2, 1\), not \(clips, steps, columns\)"),
        ({"vision": [[[1.0]], [[1.0], [2.0]]]}, "'vision' does not hold one array of numbers"),
        ({"text_bert": np.ones((2, 4))}, "'text_bert' has shape"),
        ({"text_bert": tokens([4, 3], 4) + 0.5}, "no token ids"),
        ({"text_bert": tokens([4, 3], 5)}, "4 steps of 'text' for 5 wordpieces"),
        ({"regression_labels": np.ones((2, 2))}, "not one number per clip"),
        ({"audio_lengths": [[1, 2], [3, 4]]}, "not one number per clip"),
        ({"id": np.array(3)}, "'id'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(MMSAError, match=said):
        converted(tmp_path, unaligned() | wrong)
    assert not (tmp_path / "a.h5").exists()


def test_splits_that_differ_and_files_without_splits(tmp_path: Path) -> None:
    with pytest.raises(MMSAError, match="splits differ in columns of 'audio'"):
        converted(tmp_path, unaligned(), unaligned() | {"audio": np.ones((2, 6, 5))})
    no_id = unaligned()
    del no_id["id"]
    with pytest.raises(MMSAError, match="train: no 'id'"):
        converted(tmp_path, no_id)
    for whole in ({"audio": np.ones(3)}, [1], {"train": 3}):
        (tmp_path / "b.pkl").write_bytes(pickle.dumps(whole))
        with pytest.raises(MMSAError, match="none of the splits train, valid, test"):
            convert(tmp_path / "b.pkl", tmp_path / "b.h5")


def test_a_text_model_makes_the_text_finetunable(tmp_path: Path) -> None:
    with FeatureFile(converted(tmp_path, unaligned(), text_model="bert-base-chinese")) as file:
        assert file.recipe["text"] == {"extractor": "transformers", "model": "bert-base-chinese", "layer": -1}
    one = unaligned()
    del one["text_bert"]
    with pytest.raises(MMSAError, match="no text_bert, so there are no token ids of bert"):
        converted(tmp_path, one, text_model="bert-base-chinese")


odd = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.lists(st.none() | st.text(max_size=2) | st.floats() | st.lists(st.integers(), max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    arrays(st.sampled_from(["f4", ">f8", "i8", "?", "c16", "U2"]), array_shapes(min_dims=0, max_dims=4, min_side=0)),
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*unaligned(), "regression_labels_T"]), odd, min_size=1, max_size=3))
def test_whatever_a_key_holds_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, wrong: dict[str, Any]
) -> None:
    try:
        converted(tmp_path_factory.getbasetemp(), unaligned() | wrong)
    except MMSAError as error:
        assert "a.pkl" in str(error)  # noqa: PT017 - some of it is fine


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A feature file with unimodal labels and one without."""
    folder = tmp_path_factory.mktemp("planted")
    for annotated in (True, False):
        plan = Plan({"train": 24, "valid": 12, "test": 12}, missing=0.3, annotated=annotated)
        plant(folder / f"{annotated}.h5", plan)
    return {annotated: folder / f"{annotated}.h5" for annotated in (True, False)}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_has_what_mmsa_reads(tmp_path: Path, planted: dict[bool, Path], dialect: str) -> None:
    config = export(planted[True], tmp_path / "a.pkl", dialect)
    with (tmp_path / "a.pkl").open("rb") as pickled, FeatureFile(planted[True]) as file:
        data = pickle.load(pickled)
        for split in SPLITS:
            one = data[split]
            for key in (*MODALITIES, REGRESSION):
                assert one[key].dtype == np.float32 and one[key].tobytes() == file.read(split, key).tobytes()
                assert one[key].flags.writeable
            assert (one["text_bert"] == file.read(split, "text_bert")).all()
            assert one["id"] == file.read(split, "id").tolist() and type(one["audio_lengths"][0]) is int
            lengths = file.read(split, "audio_lengths")
            assert not lengths.all()  # some clips have no sound, and MMSA cannot pack a sequence of no steps
            assert one["audio_lengths"] == [max(1, length) for length in lengths]
            assert ("regression_labels_T" in one) == ("sims" in dialect)
            if "sims" in dialect:
                for key in UNIMODAL.values():
                    assert one[key].tobytes() == file.read(split, key).tobytes()
    assert config and json.loads(config.read_text(encoding="utf-8")) == {
        "dataset_name": {"simsv2": "sims"}.get(dialect, dialect),
        "featurePath": str(tmp_path / "a.pkl"),
        "need_data_aligned": False,
        "seq_lens": [12, 24, 16],
        "feature_dims": [16, 8, 10],
        "train_samples": 24,
        "num_classes": 3,
        "language": "en",
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7.0])
def test_what_was_not_measured_is_zero_in_every_dialect(
    tmp_path: Path, planted: dict[bool, Path], value: float
) -> None:
    """MMSA has no masks, and would train on whatever lies there."""
    path = Path(shutil.copy(planted[True], tmp_path / "f.h5"))
    with h5py.File(path, "r+") as file:
        for m in ("audio", "vision"):
            values, there = file[f"train/{m}"][:], file[f"train/{m}_mask"][:]
            there[there.any(1).argmax(), 0] = False  # inside of a clip too
            values[~there] = value
            file[f"train/{m}"][:], file[f"train/{m}_mask"][:] = values, there
        if not np.isfinite(value):
            file["valid/text"][1, 2, 3] = file["valid/audio"][0, 0, 0] = value
    for dialect in DIALECTS:
        export(path, tmp_path / "a.pkl", dialect)
        written = load(tmp_path / "a.pkl")
        with FeatureFile(path) as file:
            for m in ("audio", "vision"):
                there = file.read("train", f"{m}_mask")
                assert not written["train"][m][~there].any() and written["train"][m][there].any(1).all()
                assert (written["train"][m][there] == file.read("train", m)[there]).all()
        assert all(np.isfinite(written[split][m]).all() for split in SPLITS for m in MODALITIES)
        assert np.isfinite(value) or written["valid"]["text"][1, 2, 3] == 0


def test_a_dialect_of_unimodal_labels_is_refused_without_them(
    tmp_path: Path, planted: dict[bool, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["convert", str(planted[False]), str(tmp_path / "a.pkl")]
    assert main([*call, "--dialect", "simsv2"]) == 2
    said = capsys.readouterr().err
    assert "dialect 'simsv2'" in said and "48 of 48 clips lack one: use --dialect mosi or --dialect mosei" in said
    assert not list(tmp_path.iterdir())
    assert main(call) == 0
    assert "regression_labels_T" not in load(tmp_path / "a.pkl")["train"]
    assert json.loads((tmp_path / "a.mmsa.json").read_text(encoding="utf-8"))["dataset_name"] == "mosi"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"valid/{REGRESSION}", np.nan, "1 of 48 clips have no regression label"),
        ("valid", None, "no clips in split 'valid'"),
    ],
)
def test_what_mmsa_could_not_train_on_is_refused(
    tmp_path: Path, planted: dict[bool, Path], key: str, value: float | None, said: str
) -> None:
    path = tmp_path / "b.h5"
    path.write_bytes(planted[True].read_bytes())
    with h5py.File(path, "a") as file:
        if value is None:
            del file[key]
        else:
            file[key][3] = value
    with pytest.raises(MMSAError, match=said):
        export(path, tmp_path / "b.pkl", "mosi")
    assert not (tmp_path / "b.pkl").exists()


def test_vectors_without_token_ids_get_none(tmp_path: Path) -> None:
    one = unaligned()
    del one["text_bert"]
    export(converted(tmp_path, one), tmp_path / "b.pkl", "mosi")
    assert "text_bert" not in load(tmp_path / "b.pkl")["train"]


def test_mmsa_is_not_sent_for_lengths_that_a_restored_file_lacks(tmp_path: Path) -> None:
    without = {key: value for key, value in unaligned().items() if not key.endswith("lengths")}
    for one in (unaligned(), without):
        config = export(converted(tmp_path, one), tmp_path / "b.pkl")
        assert config is not None
        assert json.loads(config.read_text(encoding="utf-8"))["need_data_aligned"] is (one is without)


def test_a_restored_file_is_described_too_where_mmsa_can_load_it(tmp_path: Path) -> None:
    config = export(converted(tmp_path, aligned(), text_model="bert-base-chinese", language="zh"), tmp_path / "b.pkl")
    assert config is not None
    settings = json.loads(config.read_text(encoding="utf-8"))
    assert settings["need_data_aligned"] and settings["language"] == "cn"
    assert settings["pretrained"] == "bert-base-chinese"
    assert export(converted(tmp_path, aligned(), {}), tmp_path / "c.pkl") is None
    for wrong in ({"audio": np.ones((2, 3))}, {"raw_text": None}):  # one vector per clip; a key that is not there
        one = {key: value for key, value in (aligned() | wrong).items() if value is not None}
        assert export(converted(tmp_path, one), tmp_path / "c.pkl") is None
        assert export(tmp_path / "a.h5", tmp_path / "c.pkl", "mosi") is not None


@pytest.mark.parametrize(("language", "said"), [("", None), ("zh", "cn"), ("en", "en")])
def test_the_config_names_a_language_where_one_is_known(tmp_path: Path, language: str, said: str | None) -> None:
    config = export(converted(tmp_path, aligned(), language=language), tmp_path / "c.pkl", "mosi")
    assert config and json.loads(config.read_text(encoding="utf-8")).get("language") == said


def test_from_mmsa_to_a_dialect_of_mmsa(tmp_path: Path) -> None:
    """Aligned data get lengths, which MMSA needs where a model takes them as unaligned."""
    export(converted(tmp_path, aligned()), tmp_path / "b.pkl", "mosei")
    data = load(tmp_path / "b.pkl")["train"]
    assert data["audio_lengths"] == data["vision_lengths"] == [4, 3]
    (tmp_path / "b.pkl").rename(tmp_path / "c.pkl")
    with FeatureFile(convert(tmp_path / "c.pkl", tmp_path / "c.h5")) as file:
        assert file.aligned and mask(file, "audio") == [".xx.", ".x.."]


def test_the_command_says_what_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "a.h5", "b.h5"]) == 2
    assert "one of the two must end in .pkl" in capsys.readouterr().err
    assert main(["convert", "a.pkl", "b.h5", "--dialect", "mosi"]) == 2
    assert main(["convert", "a.h5", "b.pkl", "--text-model", "x"]) == 2
    assert main(["convert", str(tmp_path / "a.pkl"), str(tmp_path / "b.h5")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(dict.fromkeys(SPLITS, unaligned())))
    assert main(["convert", str(tmp_path / "a.pkl"), str(tmp_path / "b.h5")]) == 0
    assert main(["info", str(tmp_path / "b.h5")]) == 0
    assert "Recipe 'mmsa'" in capsys.readouterr().out


def test_files_that_are_there_are_kept(
    tmp_path: Path, planted: dict[bool, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pickled, config, features = tmp_path / "own.pkl", tmp_path / "own.mmsa.json", tmp_path / "f.h5"
    own = pickle.dumps(dict.fromkeys(SPLITS, unaligned()))
    pickled.write_bytes(own)
    assert main(["convert", str(pickled), str(features)]) == 0
    converted = features.read_bytes()
    capsys.readouterr()

    assert main(["convert", str(pickled), str(features)]) == 2
    assert f"{features} exists: choose another name, or --overwrite" in capsys.readouterr().err
    assert main(["convert", str(features), str(pickled), "--dialect", "mosi"]) == 2
    assert f"{pickled} exists" in capsys.readouterr().err
    config.write_text("mine")
    assert main(["convert", str(features), str(pickled), "--dialect", "mosi"]) == 2
    assert f"{pickled} and {config} exist:" in capsys.readouterr().err
    pickled.unlink()
    assert main(["convert", str(features), str(pickled), "--dialect", "mosi"]) == 2
    assert (config.read_text(), features.read_bytes()) == ("mine", converted) and not pickled.exists()

    assert main(["convert", str(features), str(pickled), "--dialect", "mosi", "--overwrite"]) == 0
    assert json.loads(config.read_text())["dataset_name"] == "mosi"
    del (lacking := unaligned())["regression_labels"]
    (tmp_path / "lacking.pkl").write_bytes(pickle.dumps(dict.fromkeys(SPLITS, lacking)))
    assert main(["convert", str(tmp_path / "lacking.pkl"), str(features), "--overwrite"]) == 0
    assert main(["convert", str(features), str(pickled), "--overwrite"]) == 0
    assert not config.exists()  # MMSA cannot load this one, and it described the other


def test_cmc_takes_a_pickle(
    tmp_path: Path, planted: dict[bool, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cmc.cli import main as cmc

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert as_feature_file(planted[True]) == planted[True]
    pickled, run = tmp_path / "a.pkl", tmp_path / "run"
    export(planted[True], pickled, "sims")
    short = ["--layers", "1", "--epochs", "1", "--pretrain-epochs", "1"]
    settings = tmp_path / "lr.yaml"
    settings.write_text("lr: 0.002")  # says nothing of text
    assert cmc(["train", str(pickled), "-o", str(run), *short, "--config", str(settings)]) == 0
    shown = capsys.readouterr()
    assert f"converting {pickled} to " in shown.err and "text stays as it is" in shown.err
    assert f"next: cmc evaluate {run} {pickled}" in shown.out
    settings.write_text("text: finetune")
    assert cmc(["train", str(pickled), "-o", str(tmp_path / "other"), *short, "--config", str(settings)]) == 2
    assert "text stays as it is" not in capsys.readouterr().err
    assert cmc(["evaluate", str(run), str(pickled)]) == 0
    assert "converted before" in capsys.readouterr().err
    call = ["ablate", str(pickled), "-o", str(tmp_path / "ablation"), "--seeds", "1", "--variants", "text only", *short]
    assert cmc(call) == 0
    assert "text only" in capsys.readouterr().out
    (cached,) = (tmp_path / "cache").rglob("*.h5")
    assert as_feature_file(pickled) == cached
    pickled.write_bytes(b"x")  # other content, other file
    assert cmc(["train", str(pickled), "-o", str(run)]) == 2
    assert f"{pickled} is no pickle" in capsys.readouterr().err
    assert [*(tmp_path / "cache").rglob("*.h5")] == [cached]
