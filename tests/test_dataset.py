"""The torch Dataset: the same clips in one process and in forked and spawned workers, whatever was read before."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch.utils.data import DataLoader

from mmfeat.dataset import FeatureDataset, collate
from mmfeat.layout import FeatureFile, LayoutError
from tests.feature_files import IDS, write_features

PAGE = Path(__file__).parents[1] / "data" / "README.md"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("features") / "f.h5")


def same(a: Any, b: Any) -> bool:
    """NaN equals NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
    return a == b


def test_a_clip_comes_without_padding(features: Path) -> None:
    data = FeatureDataset(features, "train")
    assert len(data) == 6
    with FeatureFile(features) as file:
        for row in range(6):
            clip = data[row]
            assert clip["id"] == IDS["train"][row] and clip["index"] == row
            for modality in ("audio", "vision"):
                steps = file.read("train", f"{modality}_lengths")[row]
                for key in (modality, f"{modality}_mask", f"{modality}_times"):
                    assert clip[key].numpy().tobytes() == file.read("train", key)[row, :steps].tobytes()
            pieces = file.read("train", "text_lengths")[row]
            assert clip["text_bert"].shape == (3, pieces) and clip["text"].shape == (pieces, 5)
            assert clip["text_bert"][1].all() and clip["text_bert"][0, -1] == 102
            assert clip["regression_labels"].item() == file.read("train", "regression_labels")[row]
            assert math.isnan(clip["regression_labels_A"])


def test_python_indexing(features: Path) -> None:
    data = FeatureDataset(features, "test", ["audio", "raw_text"])
    assert data[-1]["id"] == data[2]["id"] == "film9$_$2"
    assert data[-1]["index"] == 2 and data[0]["raw_text"] == "said in film9$_$0"
    assert set(data[0]) == {"id", "index", "audio", "raw_text"}
    assert [clip["id"] for clip in data] == IDS["test"]  # ends at IndexError
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"clip {index} of 3"):
            data[index]


def test_a_batch_is_padded_to_its_own_longest_clip(features: Path) -> None:
    data = FeatureDataset(features, "train")
    clips = [data[1], data[4]]
    batch = collate(clips)
    assert batch["id"] == [clip["id"] for clip in clips] and batch["index"].tolist() == [1, 4]
    for modality in ("text", "audio", "vision"):
        values, mask = batch[modality], batch[f"{modality}_mask"]
        longest = max(len(clip[modality]) for clip in clips)
        assert values.shape[:2] == mask.shape == (2, longest) and mask.dtype == torch.bool
        for row, clip in enumerate(clips):
            steps = len(clip[modality])
            assert torch.equal(values[row, :steps], clip[modality]) and not values[row, steps:].any()
            expected = clip.get(f"{modality}_mask", torch.ones(steps, dtype=torch.bool))
            assert torch.equal(mask[row, :steps], expected) and not mask[row, steps:].any()
    assert batch["text_bert"].shape == (2, 3, batch["text"].shape[1]) and batch["text_bert"].dtype == torch.int32
    assert torch.equal(batch["text_bert"][:, 1].bool(), batch["text_mask"])
    assert batch["audio_times"].shape == (*batch["audio"].shape[:2], 2)
    assert batch["regression_labels"].shape == batch["classification_labels"].shape == (2,)


def test_a_batch_without_any_step_has_one_that_was_not_measured(features: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "a") as file:
        file["train/vision_lengths"][:2] = 0
    data = FeatureDataset(path, "train")
    assert data[0]["vision"].shape == (0, 4)
    batch = collate([data[0], data[1]])
    assert batch["vision"].shape == (2, 1, 4) and not batch["vision"].any() and not batch["vision_mask"].any()


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_read_what_one_process_reads(features: Path, start: str, persistent: bool) -> None:
    data = FeatureDataset(features, "train")
    expected = list(DataLoader(data, batch_size=2, collate_fn=collate))
    assert data._open is not None  # the parent's handle is open when the workers start
    loader = DataLoader(
        data,
        batch_size=2,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=start,
        persistent_workers=persistent,
    )
    for _ in range(2):
        got = list(loader)
        assert len(got) == 3 and all(same(a, b) for a, b in zip(got, expected, strict=True))
        assert same(collate([data[0], data[1]]), expected[0])  # the parent still reads, also between epochs


def test_a_forked_process_opens_the_file_itself(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FeatureDataset(features, "train")
    first = data[0]
    parents = data._open
    monkeypatch.setattr("os.getpid", lambda: -1)  # as after a fork: all of memory is there, the process is another
    assert same(data[0], first) and data._open is not parents


def test_a_pickle_holds_no_handle(features: Path) -> None:
    data = FeatureDataset(features, "valid")
    clip = data[1]
    copy = pickle.loads(pickle.dumps(data))
    assert copy._open is None and data._open is not None
    assert same(copy[1], clip)


def test_a_relative_path_outlives_a_change_of_folder(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(features.parent)
    data = FeatureDataset(features.name, "test")
    monkeypatch.chdir(tmp_path)
    assert data[0]["id"] == "film9$_$0"


def test_what_is_not_there_is_named_at_once(features: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        FeatureDataset(tmp_path / "gone.h5", "train")
    with pytest.raises(LayoutError, match="no split 'dev'"):
        FeatureDataset(features, "dev")
    with pytest.raises(LayoutError, match="no 'smell'"):
        FeatureDataset(features, "train", ["smell"])
    with pytest.raises(LayoutError, match=r"'words' .* no row per clip"):
        FeatureDataset(features, "test", ["words"])


def test_the_page_says_how_to_use_it(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "FeatureDataset" in block]
    (features.parent / "features.h5").write_bytes(features.read_bytes())
    monkeypatch.chdir(features.parent)
    found: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), found)
    assert found["batch"]["audio"].ndim == 3
