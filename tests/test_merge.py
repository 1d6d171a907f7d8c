"""Merging joins modalities by id, takes everything that belongs to a modality along, and refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmfeat import layout
from mmfeat.layout import FeatureFile
from mmfeat.merge import Merged, MergeError, merge
from pipelines.cli import main
from tests.feature_files import COLUMNS, FINGERPRINTS, IDS, write_features

OTHER = FINGERPRINTS | {"audio": "a1"}
SHUFFLED = {split: [*ids[1:], ids[0]] for split, ids in IDS.items()}


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_features(tmp_path / "a.h5", versions={"numpy": "1", "librosa": "1"})


@pytest.fixture
def b(tmp_path: Path) -> Path:
    """The same clips in another order, with another audio recipe."""
    columns = COLUMNS | {"audio": 7}
    versions = {"numpy": "1", "librosa": "2"}
    return write_features(tmp_path / "b.h5", SHUFFLED, fingerprints=OTHER, columns=columns, versions=versions)


def merged(a: Path, b: Path, intersect: bool = False, **take: Path) -> tuple[Merged, FeatureFile]:
    done = merge([a, b], a.with_name("out.h5"), take, intersect)
    return done, FeatureFile(done.out)


def test_a_modality_comes_over_by_id(a: Path, b: Path) -> None:
    done, out = merged(a, b, audio=b)
    assert done.clips == 11 and not done.left_out
    assert {part: source.path for part, source in done.sources.items()} == {
        "text": a,
        "audio": b,
        "vision": a,
        "words": a,
    }
    with out, FeatureFile(a) as first, FeatureFile(b) as second:
        for split, ids in IDS.items():
            assert out.read(split, "id").tolist() == ids
            theirs = [SHUFFLED[split].index(id) for id in ids]
            assert theirs != sorted(theirs)  # by position, other clips would come
            for key in first.keys(split):
                if key == "words":
                    assert out.words(split) == first.words(split)
                    continue
                got = out.read(split, key)
                expected = second.read(split, key)[theirs] if key.startswith("audio") else first.read(split, key)
                assert got.dtype == expected.dtype and got.shape == expected.shape
                assert got.tolist() == expected.tolist() if got.dtype == object else got.tobytes() == expected.tobytes()
        assert out.feature_names("audio") == [f"audio{k}" for k in range(7)]
        assert out.feature_names("vision") == first.feature_names("vision")
        for modality, source in (("audio", second), ("vision", first)):
            for got, expected in zip(out.train_stats(modality), source.train_stats(modality), strict=True):
                assert got.tobytes() == expected.tobytes()
        assert out.fingerprints == FINGERPRINTS | {"audio": "a1"}
        assert out.recipe["audio"] == second.recipe["audio"] and out.recipe["vision"] == first.recipe["vision"]
        assert json.loads(out.attrs["versions"]) == {"numpy": "1", "librosa": "1 (text, vision, words), 2 (audio)"}
        assert json.loads(out.attrs["merged"])["audio"]["file"] == "b.h5"
        assert json.loads(out.attrs["truncated"]) == {"text": 0, "audio": 0, "vision": 0}
        assert [clip.id for clip in out.clips()] == [clip.id for clip in first.clips()]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_is_not_merged_into_itself(a: Path, b: Path, link: bool) -> None:
    out = b
    if link:
        out = b.with_name("link.h5")
        out.symlink_to(b)
    before = b.read_bytes()
    with pytest.raises(MergeError, match="one of the files to merge"):
        merge([a, b], out, {"audio": b})
    assert b.read_bytes() == before


def test_words_of_the_other_file_are_renumbered(a: Path, b: Path) -> None:
    with h5py.File(b, "a") as file:
        for split in IDS:
            words = file[f"{split}/words"][:]
            words["confidence"] = words["clip"] / 10
            file[f"{split}/words"][:] = words
        file.attrs["fingerprints"] = json.dumps(OTHER | {"words": "w1"})
    _, out = merged(a, b, audio=b, words=b)
    with out:
        for split, ids in IDS.items():
            for id, words in zip(ids, out.words(split), strict=True):
                assert [word[3] for word in words] == [pytest.approx(SHUFFLED[split].index(id) / 10)]


def test_what_was_made_in_the_same_way_needs_no_choice_and_the_rest_does(a: Path, b: Path) -> None:
    with pytest.raises(MergeError, match=r"different ways.* audio \(--take audio=\S*a.h5 or --take audio=\S*b.h5\)"):
        merge([a, b], a.with_name("out.h5"))
    with pytest.raises(MergeError, match=r"nothing would be taken from \S*b.h5"):
        merge([a, b], a.with_name("out.h5"), {"audio": a})
    with pytest.raises(MergeError, match="not among the files"):
        merge([a, b], a.with_name("out.h5"), {"audio": a.with_name("c.h5")})
    with pytest.raises(MergeError, match="two different files"):
        merge([a, a], a.with_name("out.h5"))
    assert not a.with_name("out.h5").exists()


def test_a_file_of_one_modality_gives_that_one(a: Path, b: Path) -> None:
    """As a file per modality would."""
    for path, gone in ((a, "audio"), (b, "vision")):
        with h5py.File(path, "a") as file:
            for split in IDS:
                for key in (gone, f"{gone}_lengths", f"{gone}_mask", f"{gone}_times"):
                    del file[f"{split}/{key}"]
            del file[f"meta/feature_names/{gone}"], file[f"meta/train_stats/{gone}"]
    done, out = merged(a, b)
    out.close()
    assert done.sources["audio"].path == b and done.sources["vision"].path == a
    with h5py.File(a, "a") as file:
        for split in IDS:
            del file[f"{split}/vision"]
    with pytest.raises(MergeError, match="none of the files has vision"):
        merge([a, b], done.out)


class TestClipsThatDiffer:
    def fewer(self, path: Path) -> Path:
        ids = {"train": [*IDS["train"][2:], "film7$_$9"], "test": IDS["test"], "valid": IDS["valid"]}
        return write_features(path, ids, fingerprints=OTHER)

    def test_they_are_named(self, a: Path, tmp_path: Path) -> None:
        b = self.fewer(tmp_path / "b.h5")
        with pytest.raises(MergeError) as raised:
            merge([a, b], tmp_path / "out.h5", {"audio": b})
        said = str(raised.value)
        assert "a.h5 lacks film7$_$9" in said and "b.h5 lacks film0$_$0, film0$_$1" in said
        assert "--intersect keeps the 9 that" in said

    def test_a_clip_that_failed_there_is_named_with_its_reason(self, a: Path, tmp_path: Path) -> None:
        b = self.fewer(tmp_path / "b.h5")
        with h5py.File(b, "a") as file:
            clips = [*FeatureFile(b).clips(), layout.ClipStatus("film0$_$1", "train", "failed", "file is empty")]
            del file["meta/clips"]
            layout.write_clips(file, clips)
        with pytest.raises(MergeError, match=r"film0\$_\$1 \(failed there: file is empty\)"):
            merge([a, b], tmp_path / "out.h5", {"audio": b})

    def test_the_common_ones_can_be_kept(self, a: Path, tmp_path: Path) -> None:
        b = self.fewer(tmp_path / "b.h5")
        done, out = merged(a, b, intersect=True, audio=b)
        with out, FeatureFile(a) as first, FeatureFile(b) as second:
            assert done.left_out == ["film0$_$0", "film0$_$1", "film7$_$9"] and done.clips == 9
            assert out.read("train", "id").tolist() == IDS["train"][2:]
            assert (out.read("train", "vision") == first.read("train", "vision")[2:]).all()
            assert (out.read("train", "audio") == second.read("train", "audio")[:4]).all()
            for modality in layout.TIMED:  # of the clips that are there now
                mean, std = out.train_stats(modality)
                kept = out.read("train", modality)[out.read("train", f"{modality}_mask")]
                np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-5)
                np.testing.assert_allclose(std, kept.std(0), rtol=1e-5)
            statuses = {clip.id: clip for clip in out.clips()}
            assert statuses["film0$_$0"].status == "failed" and "not in every file" in statuses["film0$_$0"].reason
            assert [len(words) for words in out.words("train")] == [1] * 4

    def test_nothing_in_common(self, a: Path, tmp_path: Path) -> None:
        b = write_features(tmp_path / "b.h5", {"train": ["other$_$1"]}, fingerprints=OTHER)
        with pytest.raises(MergeError, match="no clip is in all of"):
            merge([a, b], tmp_path / "out.h5", {"audio": b}, intersect=True)

    def test_an_id_that_occurs_twice(self, a: Path, tmp_path: Path) -> None:
        b = write_features(tmp_path / "b.h5", IDS | {"valid": ["film0$_$0", *IDS["valid"]]}, fingerprints=OTHER)
        with pytest.raises(MergeError, match=r"b.h5 has ids more than once.*film0\$_\$0"):
            merge([a, b], tmp_path / "out.h5", {"audio": b}, intersect=True)

    def test_another_split(self, a: Path, tmp_path: Path) -> None:
        b = write_features(
            tmp_path / "b.h5",
            IDS | {"train": IDS["train"][1:], "test": [IDS["train"][0], *IDS["test"]]},
            fingerprints=OTHER,
        )
        with pytest.raises(MergeError, match=r"another split .*film0\$_\$0 \(now test\)"):
            merge([a, b], tmp_path / "out.h5", {"audio": b}, intersect=True)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("regression_labels", 0.77), ("regression_labels_A", 0.5), ("classification_labels", 1), ("raw_text", "else")],
    )
    def test_another_label_or_transcript(self, a: Path, b: Path, key: str, value: object) -> None:
        with h5py.File(a, "a") as file:
            file["train/classification_labels"][3] = 0
        with h5py.File(b, "a") as file:
            row = SHUFFLED["train"].index("film1$_$3")
            file["train/classification_labels"][row] = 0
            file[f"train/{key}"][row] = value
        with pytest.raises(MergeError, match=rf"differ in {key} of film1\$_\$3: make both from one label.csv"):
            merge([a, b], a.with_name("out.h5"), {"audio": b}, intersect=True)


def test_a_converted_pickle_may_know_less(a: Path, b: Path) -> None:
    """Neither its language nor every label; what it says must agree."""
    with h5py.File(b, "a") as file:
        file.attrs["language"] = "unknown"
        for split in IDS:
            file[f"{split}/regression_labels_T"][:] = np.nan
            file[f"{split}/classification_labels"][:] = -1
    for paths in ((a, b), (b, a)):
        if paths[0] == b:
            with pytest.raises(MergeError, match="differ in regression_labels_T"):
                merge(paths, a.with_name("out.h5"), {"audio": a})
            continue
        merge(paths, a.with_name("out.h5"), {"audio": b})
        with FeatureFile(a.with_name("out.h5")) as out:
            assert out.attrs["language"] == out.recipe["language"] == "en"
            assert np.isfinite(out.read("train", "regression_labels_T")).all()
    with h5py.File(b, "a") as file:
        file.attrs["language"] = "zh"
    with pytest.raises(MergeError, match="differ in language: en and zh"):
        merge([a, b], a.with_name("out.h5"), {"audio": b})


def test_states_of_a_clip_follow_their_modality(a: Path, b: Path) -> None:
    def mark(path: Path, **found: tuple[str, str]) -> None:
        with h5py.File(path, "a") as file:
            table = file["meta/clips"][:]
            for row, id in enumerate(table["id"]):
                table[row]["status"], table[row]["reason"] = found.get(id.decode().replace("$_$", "_"), ("ok", ""))
            file["meta/clips"][:] = table

    mark(a, film0_0=("no_face+no_audio", "from a"), film0_1=("no_audio", ""), film1_2=("damaged", "half a file"))
    mark(b, film0_0=("no_face+no_text", "from b"), film0_1=("ok", ""), film1_3=("no_audio", ""))
    _, out = merged(a, b, audio=b)
    with out:
        statuses = {clip.id: (clip.status, clip.reason) for clip in out.clips()}
    assert statuses["film0$_$0"] == ("no_face", "from a") and statuses["film0$_$1"] == ("ok", "")
    assert statuses["film1$_$2"] == ("damaged", "half a file") and statuses["film1$_$3"] == ("no_audio", "")


class TestAligned:
    def test_rows_of_the_same_wordpieces_join(self, tmp_path: Path) -> None:
        a = write_features(tmp_path / "a.h5", aligned=True)
        b = write_features(tmp_path / "b.h5", SHUFFLED, aligned=True, fingerprints=OTHER)
        _, out = merged(a, b, audio=b)
        with out:
            assert out.aligned
        with h5py.File(b, "a") as file:
            file["test/text_bert"][SHUFFLED["test"].index("film9$_$1"), 0, 1] += 1
        with pytest.raises(MergeError, match=r"different wordpieces.*film9\$_\$1;"):
            merged(a, b, audio=b)

    def test_not_with_an_unaligned_file(self, a: Path, tmp_path: Path) -> None:
        b = write_features(tmp_path / "b.h5", aligned=True, fingerprints=OTHER)
        with pytest.raises(MergeError, match=r"a.h5 is unaligned, \S*b.h5 is aligned: the steps of one are wordpieces"):
            merge([a, b], tmp_path / "out.h5", {"audio": b})


def test_a_merge_that_fails_leaves_the_old_file(a: Path, b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = a.with_name("out.h5")
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(layout, "write_clips", full)
    with pytest.raises(OSError, match="disk full"):
        merge([a, b], out, {"audio": b})
    assert out.read_bytes() == b"old" and sorted(path.name for path in out.parent.iterdir()) == [
        "a.h5",
        "b.h5",
        "out.h5",
    ]


def test_the_command(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = a.with_name("out.h5")
    assert main(["merge", str(a), str(b), "-o", str(out), "--take", f"audio={b}"]) == 0
    said = capsys.readouterr().out
    assert "11 clips" in said and [line.split()[:3] for line in said.splitlines() if line.startswith("audio")] == [
        ["audio", str(b), "a1"]
    ]
    written = out.read_bytes()
    assert main(["merge", str(a), str(b), "-o", str(out), "--take", f"audio={b}"]) == 2
    assert f"{out} exists: choose another name, or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == written
    assert main(["merge", str(a), str(b), "-o", str(a), "--take", f"audio={b}"]) == 2
    assert "is one of the files to merge" in capsys.readouterr().err
    out = a.with_name("other.h5")
    assert main(["merge", str(a), str(b), "-o", str(out)]) == 2
    assert "--take audio=" in capsys.readouterr().err
    for wrong in (f"smell={b}", "audio", "audio="):
        assert main(["merge", str(a), str(b), "-o", str(out), "--take", wrong]) == 2
        assert "PART=FILE.h5" in capsys.readouterr().err
    fewer = write_features(a.with_name("fewer.h5"), IDS | {"train": IDS["train"][1:]}, fingerprints=OTHER)
    assert main(["merge", str(a), str(fewer), "-o", str(out), "--take", f"audio={fewer}", "--intersect"]) == 0
    assert "1 clip left out, not in every file: film0$_$0" in capsys.readouterr().out
    assert main(["merge", str(a), str(b), "-o", str(out), "--take", f"audio={b}", "--overwrite"]) == 0
    assert "11 clips" in capsys.readouterr().out


def test_rows_of_one_clock_and_rows_per_frame_do_not_mix(a: Path, b: Path) -> None:
    with h5py.File(b, "a") as file:
        file.attrs["recipe"] = json.dumps(json.loads(file.attrs["recipe"]) | {"grid_hz": 10.0, "pooling": "mean"})
    with pytest.raises(MergeError, match=r"differ in how rows are made.*10\.0, 'mean'"):
        merge([a, b], a.with_name("out.h5"), {"audio": b})
