"""From shards to the feature file: order, lengths and statistics from the training split, atomic replacement."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmfeat import clip as clip_module
from mmfeat import pack as pack_module
from mmfeat import pack_block
from mmfeat import shards as shards_module
from mmfeat.corpus import Clip, Corpus
from mmfeat.files import atomic
from mmfeat.layout import FeatureFile, LayoutError
from mmfeat.pack import NothingUsableError, pack
from mmfeat.recipe import Recipe, load_recipe
from mmfeat.shards import Shard, ShardError, Store

FINGERPRINTS = {"vision": "v0", "audio": "a0", "text": "t0", "words": "w0"}


def make_clip(root: Path, name: str, split: str = "train", label: float = 1.0, text: str = "so good", **more) -> Clip:
    path = root / f"{name}.mp4"
    path.write_bytes(name.encode())
    return Clip("v", name, split, path, text, label, **more)


def track_shard(steps: int, columns: int, scale: float = 1.0, status: str = "ok") -> Shard:
    starts = np.arange(steps) * 0.04
    values = scale * np.arange(1, steps * columns + 1, dtype=np.float32).reshape(steps, columns)
    arrays = {"times": np.stack([starts, starts + 0.04], 1), "values": values, "valid": np.ones(steps, bool)}
    names = tuple(f"c{k}" for k in range(columns))
    details = {"steps": steps, "columns": columns}
    return Shard(status, seconds=steps * 0.04, arrays=arrays, details=details, names=names)


def text_shard(pieces: int) -> Shard:
    ids = np.arange(101, 101 + pieces, dtype=np.int32)
    spans = np.array([(0, 0), (0, 2), *[(3, 7)] * (pieces - 3), (0, 0)], np.int32)
    arrays = {"ids": ids, "segments": 0 * ids, "spans": spans, "values": np.ones((pieces, 3), np.float32)}
    return Shard("ok", arrays=arrays, details={"steps": pieces, "columns": 3})


def words_shard() -> Shard:
    words = [
        {"text": "so", "start": 0.0, "end": 0.1, "confidence": 0.9, "span": [0, 2]},
        {"text": "good", "start": 0.1, "end": 0.2, "confidence": 0.8, "span": [3, 7]},
    ]
    return Shard("ok", details={"words": words})


def fill(store: Store, clip: Clip, vision: int = 5, audio: int = 9, pieces: int = 4, scale: float = 1.0) -> None:
    store.write(clip, "vision", "v0", track_shard(vision, 2, scale))
    store.write(clip, "audio", "a0", track_shard(audio, 3, scale))
    store.write(clip, "text", "t0", text_shard(pieces))
    store.write(clip, "words", "w0", words_shard())


def many(folder: Path) -> tuple[Store, Corpus]:
    """Eleven training clips."""
    store = Store(folder / "work")
    clips = [make_clip(folder, f"c{k}", label=float(k - 5)) for k in range(11)]
    for k, clip in enumerate(clips):
        fill(store, clip, vision=1 + k % 4, audio=1 + k, scale=float(k))
    return store, Corpus(folder, clips, [])


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The default recipe with known fingerprints, so that no model is needed."""
    monkeypatch.setattr(Recipe, "fingerprints", lambda self: dict(FINGERPRINTS))
    return load_recipe("default")


class TestStore:
    def test_a_part_is_done_once_and_only_its_own_change_undoes_it(self, tmp_path: Path) -> None:
        store, clip = Store(tmp_path / "work"), make_clip(tmp_path, "one")
        assert store.missing(clip, FINGERPRINTS) == ("vision", "audio", "text", "words")
        fill(store, clip)
        assert store.missing(clip, FINGERPRINTS) == ()
        assert store.missing(clip, FINGERPRINTS | {"audio": "a1"}) == ("audio",)
        assert store.missing(replace(clip, label=-1.0, split="test"), FINGERPRINTS) == ()
        assert store.missing(replace(clip, text="so bad"), FINGERPRINTS) == ("text", "words")
        assert store.missing(replace(clip, end=0.1), FINGERPRINTS) == ("vision", "audio", "words")
        assert clip.path
        clip.path.write_bytes(b"another recording")
        assert store.missing(clip, FINGERPRINTS) == ("vision", "audio", "words")

    def test_files_of_another_format_are_not_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store, clip = Store(tmp_path / "work"), make_clip(tmp_path, "one")
        fill(store, clip)
        monkeypatch.setattr(shards_module, "_FORMAT", shards_module._FORMAT + 1)
        assert store.missing(clip, FINGERPRINTS) == ("vision", "audio", "text", "words")

    def test_failures_are_remembered_and_can_be_tried_again(self, tmp_path: Path) -> None:
        store, clip = Store(tmp_path / "work"), make_clip(tmp_path, "one")
        fill(store, clip)
        store.fail(clip, "vision", "v1", "the decoder died")
        changed = FINGERPRINTS | {"vision": "v1"}
        assert store.missing(clip, changed) == ()
        assert store.missing(clip, changed, retry_failed=True) == ("vision",)
        assert store.read(clip, "vision", "v1").reason == "the decoder died"
        store.write(clip, "vision", "v1", track_shard(1, 2))
        assert store.read(clip, "vision", "v1").status == "ok"

    def test_round_trip_is_exact_and_the_store_travels(self, tmp_path: Path) -> None:
        store, clip = Store(tmp_path / "work"), make_clip(tmp_path, "one", text='naïve "你好"')
        shard = track_shard(7, 4)
        pickle.loads(pickle.dumps(store)).write(clip, "vision", "v0", shard)
        back = store.read(clip, "vision", "v0")
        assert back.details == shard.details
        for key, value in shard.arrays.items():
            np.testing.assert_array_equal(back.arrays[key], value)
        assert store.read(clip, "vision", "v0", arrays=False).arrays == {}

    @pytest.mark.parametrize("left", [0, 100])
    def test_a_damaged_shard_is_named_and_made_again(self, tmp_path: Path, left: int) -> None:
        store, clip = Store(tmp_path / "work"), make_clip(tmp_path, "one")
        path = store.write(clip, "vision", "v0", track_shard(7, 4))
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ShardError, match="extracts it again"):
            store.read(clip, "vision", "v0")
        assert store.missing(clip, {"vision": "v0"}) == ("vision",)

    def test_an_interrupted_write_leaves_nothing_behind(self, tmp_path: Path) -> None:
        target = tmp_path / "file"
        target.write_text("old")

        def interrupted() -> None:
            with atomic(target) as temporary:
                temporary.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}"])
def test_a_torn_note_of_failure_is_no_result(tmp_path: Path, recipe: Recipe, content: bytes) -> None:
    store, clip = Store(tmp_path / "work"), make_clip(tmp_path, "c")
    store.fail(clip, "audio", "a0", "broken").write_bytes(content)
    assert store.missing(clip, {"audio": "a0"}) == ("audio",)
    with pytest.raises(FileNotFoundError, match="extract it first"):
        store.read(clip, "audio", "a0")


class TestPack:
    def corpus(self, root: Path, store: Store) -> Corpus:
        clips = [
            make_clip(root, "d", "train", 0.5, label_T=-1.0),
            make_clip(root, "b", "test", -1.0),
            make_clip(root, "a", "train", 0.0, annotation="Neutral"),
            make_clip(root, "c", "valid", 1.0),
        ]
        for clip, vision in zip(clips, (4, 12, 6, 5), strict=True):
            fill(store, clip, vision, scale=1000.0 if clip.split == "test" else 1.0)
        return Corpus(root, clips, [])

    def test_keys_order_dtypes_and_padding(self, tmp_path: Path, recipe: Recipe) -> None:
        store = Store(tmp_path / "work")
        report = pack(self.corpus(tmp_path, store), recipe, store, tmp_path / "f.h5")
        assert report.ok == 4 and not report.failed
        with FeatureFile(report.path) as file:
            assert file.splits == ["train", "valid", "test"] and not file.aligned
            assert file.read("train", "id").tolist() == ["v$_$d", "v$_$a"]  # as in label.csv, not sorted
            assert file.read("train", "vision").shape == (2, 6, 2)  # the longest training clip, not the test clip's 12
            assert file.read("test", "vision_lengths").tolist() == [6]
            assert report.truncated == {"audio": 0, "vision": 1, "text": 0}
            assert file.read("train", "vision_mask").sum(axis=1).tolist() == [4, 6]
            assert (file.read("train", "vision")[0, 4:] == 0).all()
            bert = file.read("train", "text_bert")
            assert bert.shape == (2, 3, 50) and bert.dtype == np.int32
            assert bert[0, 0, :5].tolist() == [101, 102, 103, 104, 0] and bert[0, 1].sum() == 4
            dtypes = {key: file.read("train", key).dtype for key in ("text", "audio", "vision", "regression_labels")}
            assert set(dtypes.values()) == {np.dtype("f4")}
            assert file.read("train", "classification_labels").tolist() == [2, 1]
            unimodal = file.read("train", "regression_labels_T")
            assert unimodal[0] == -1 and np.isnan(unimodal[1])
            assert file.read("train", "annotations").tolist() == ["", "Neutral"]
            assert file.feature_names("vision") == ["c0", "c1"]
            assert file.words("train")[0][1] == ("good", *map(pytest.approx, (0.1, 0.2, 0.8)))
            assert file.recipe["audio"]["hop_length"] == 512 and file.fingerprints == FINGERPRINTS
            assert Recipe.model_validate(file.recipe)
        with h5py.File(report.path) as file:
            assert file["train/vision"].chunks is None and file["train/vision"].shape[1:] == (6, 2)
            assert not any(file.compression for file in (file["train/vision"], file["train/audio"]))

    def test_statistics_come_from_valid_training_steps_only(self, tmp_path: Path, recipe: Recipe) -> None:
        store = Store(tmp_path / "work")
        corpus = self.corpus(tmp_path, store)
        masked = track_shard(6, 2, scale=1e6)
        valid = np.array([True] * 3 + [False] * 3)
        masked = replace(masked, arrays={**masked.arrays, "valid": valid})
        store.write(corpus.clips[2], "vision", "v0", masked)
        with FeatureFile(pack(corpus, recipe, store, tmp_path / "f.h5").path) as file:
            mean, std = file.train_stats("vision")
            rows = file.read("train", "vision")[file.read("train", "vision_mask")]
        assert len(rows) == 4 + 3
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(std, rows.std(0), rtol=1e-5)

    @pytest.mark.parametrize(("size", "block"), [(1, 1), (1, 4), (1000, 1), (1000, 2)])
    def test_blocks_of_any_size_give_the_same_file(
        self, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, size: int, block: int
    ) -> None:
        """One clip at a time, and sizes that the number of clips is no multiple of."""
        store, corpus = many(tmp_path)
        whole = pack(corpus, recipe, store, tmp_path / "whole.h5").path
        monkeypatch.setattr(pack_block, "_BYTES", size)
        monkeypatch.setattr(pack_block, "_BLOCK", block)
        monkeypatch.setattr(pack_module, "_WORDS_HELD", 3)
        parts = pack(corpus, recipe, store, tmp_path / "parts.h5").path
        with FeatureFile(whole) as one, FeatureFile(parts) as other:
            assert one.words("train") == other.words("train") and len(one.words("train")[10]) == 2
            for key in set(one.keys("train")) - {"words"}:
                np.testing.assert_array_equal(one.read("train", key), other.read("train", key))
            for ours, theirs in zip(one.train_stats("audio"), other.train_stats("audio"), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    def test_clips_without_a_modality_do_not_shorten_the_others(self, tmp_path: Path, recipe: Recipe) -> None:
        store = Store(tmp_path / "work")
        corpus = self.corpus(tmp_path, store)
        unseen = [make_clip(tmp_path, f"unseen{k}") for k in range(60)]
        for clip in unseen:
            fill(store, clip)
            store.write(clip, "vision", "v0", track_shard(0, 2, status="no_video"))
        whole = Corpus(tmp_path, [*corpus.clips, *unseen], [])
        with FeatureFile(pack(whole, recipe, store, tmp_path / "f.h5").path) as file:
            assert file.read("train", "vision").shape == (62, 6, 2)
            assert file.read("train", "vision_mask")[2:].sum() == 0

    def test_test_clips_change_nothing_that_training_sees(self, tmp_path: Path, recipe: Recipe) -> None:
        store = Store(tmp_path / "work")
        corpus = self.corpus(tmp_path, store)
        pack(corpus, recipe, store, tmp_path / "with.h5")
        pack(
            Corpus(tmp_path, [c for c in corpus.clips if c.split != "test"], []), recipe, store, tmp_path / "without.h5"
        )
        with h5py.File(tmp_path / "with.h5") as one, h5py.File(tmp_path / "without.h5") as two:
            for name in ("train", "valid", "meta/train_stats/vision", "meta/train_stats/audio"):
                for key in one[name]:
                    np.testing.assert_array_equal(one[name][key][:], two[name][key][:])

    def test_aligned(self, tmp_path: Path, recipe: Recipe) -> None:
        store = Store(tmp_path / "work")
        corpus = self.corpus(tmp_path, store)
        unfound = Shard("no_words", "words not found: too noisy", details={"words": []})
        store.write(corpus.clips[0], "words", "w0", unfound)
        report = pack(corpus, recipe, store, tmp_path / "f.h5", aligned=True)
        assert [(clip.id, clip.status) for clip in report.failed] == [("v$_$d", "failed")]
        assert "too noisy" in report.failed[0].reason
        with FeatureFile(report.path) as file:
            assert file.aligned
            assert file.read("train", "audio").shape == (1, 50, 3) and file.read("train", "vision").shape == (1, 50, 2)
            assert file.read("train", "vision_mask")[0, :5].tolist() == [False, True, True, False, False]
            assert file.read("train", "vision_lengths").tolist() == [4]
        unaligned = pack(corpus, recipe, store, tmp_path / "u.h5")
        assert [clip.status for clip in unaligned.clips] == ["no_words", "ok", "ok", "ok"]

    def test_failed_clips_are_listed_with_their_reason_and_left_out(self, tmp_path: Path, recipe: Recipe) -> None:
        store = Store(tmp_path / "work")
        corpus = self.corpus(tmp_path, store)
        store.fail(corpus.clips[2], "audio", "a0", "ignored: a result is there")
        refused = Clip("v", "x", "train", None, "t", 1.0, refused="no file Raw/v/x.*")
        broken = make_clip(tmp_path, "broken")
        for part, fingerprint in FINGERPRINTS.items():
            store.fail(broken, part, fingerprint, "not a readable media file")
        whole = Corpus(tmp_path, [refused, *corpus.clips, broken], [])
        with FeatureFile(pack(whole, recipe, store, tmp_path / "f.h5").path) as file:
            clips = {clip.id: (clip.status, clip.reason) for clip in file.clips()}
            assert len(file) == 4 and len(clips) == 6
        assert clips["v$_$x"] == ("failed", "no file Raw/v/x.*")
        assert clips["v$_$broken"] == ("failed", "not a readable media file")

    def test_nothing_usable_writes_no_file_and_keeps_the_old_one(self, tmp_path: Path, recipe: Recipe) -> None:
        refused = Clip("v", "x", "train", None, "t", 1.0, refused="no file")
        out = tmp_path / "f.h5"
        with pytest.raises(NothingUsableError):
            pack(Corpus(tmp_path, [refused], []), recipe, Store(tmp_path), out)
        assert not out.exists()

    def test_words_are_written_in_parts(self, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(tmp_path / "work")
        corpus = self.corpus(tmp_path, store)
        found = []
        for held in (1, 3, 1000):
            monkeypatch.setattr(pack_module, "_WORDS_HELD", held)
            pack(corpus, recipe, store, tmp_path / "f.h5")
            with FeatureFile(tmp_path / "f.h5") as file:
                found.append({split: file.words(split) for split in file.splits})
        assert found[0] == found[1] == found[2] and all(found[0]["train"])

    def test_a_crash_while_packing_leaves_the_old_file(
        self, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, out = Store(tmp_path / "work"), tmp_path / "f.h5"
        corpus = self.corpus(tmp_path, store)
        pack(corpus, recipe, store, out)
        before = out.read_bytes()
        monkeypatch.setattr(pack_block, "_put_track", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            pack(corpus, recipe, store, out)
        assert out.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"no HDF5")
    with pytest.raises(LayoutError, match="not a readable HDF5"):
        FeatureFile(tmp_path / "a.h5")
    h5py.File(tmp_path / "b.h5", "w").close()
    with pytest.raises(LayoutError, match="not a feature file"):
        FeatureFile(tmp_path / "b.h5")
    with pytest.raises(FileNotFoundError):
        FeatureFile(tmp_path / "c.h5")


def test_summary_joins_the_states_of_the_parts() -> None:
    shards = {
        "vision": Shard("no_face+damaged", "reading stopped", 2.0),
        "audio": Shard("ok+damaged".removeprefix("ok+"), "reading stopped", 2.0),
        "text": Shard("ok"),
    }
    assert clip_module.summary(shards) == ("no_face+damaged", "reading stopped", 2.0)
    shards["text"] = Shard("failed", "too long")
    assert clip_module.summary(shards) == ("failed", "too long", 2.0)
