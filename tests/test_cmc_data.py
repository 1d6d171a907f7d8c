"""Feature file → tensors: masks, labels, values that are not finite, trimming, named classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional

from cmc.data import DataError, Split, load, open_features, shorten, task_of, text_mask
from cmc.planted import Plan, plant
from cmc.train import content_digest
from mmfeat.layout import FeatureFile

CLIPS = {"train": 12, "valid": 6, "test": 6}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    plant(path, Plan(CLIPS, missing=0.3, annotated=True, seed=4))
    return path


def changed(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def read(path: Path, split: str = "train", masked: bool = True) -> Split:
    with open_features(path) as file:
        return load(file, split, task_of(file), masked)


def test_masks_and_labels(planted: Path) -> None:
    split = read(planted)
    with FeatureFile(planted) as file:
        assert (split.masks["audio"].numpy() == file.read("train", "audio_mask")).all()
        assert (split.label("M").numpy() == np.sign(file.read("train", "regression_labels")) + 1).all()
        assert (split.label("A").numpy() == np.sign(file.read("train", "regression_labels_A")) + 1).all()
    assert not split.present("audio").all() and split.present("text").all()


def test_reference_mode_has_no_masks(planted: Path) -> None:
    assert read(planted, masked=False).masks == dict.fromkeys(("text", "audio", "vision"))


def test_batches_are_trimmed_and_lose_nothing(planted: Path) -> None:
    split = read(planted)
    lengths = split.masks["vision"].int() * torch.arange(1, split.masks["vision"].shape[1] + 1)
    shortest = lengths.amax(1).argsort()[:3]
    batch = split.batch(shortest)
    assert batch.inputs["vision"].shape[1] == max(1, int(lengths[shortest].max()))
    kept = split.inputs["vision"][shortest][split.masks["vision"][shortest]]
    assert torch.equal(batch.inputs["vision"][batch.masks["vision"]], kept)
    assert batch.tokens.shape[2] == int(split.tokens[shortest, 1].sum(1).max())


def test_order_is_the_generators(planted: Path) -> None:
    split = read(planted)
    orders = [[b.index.tolist() for b in split.batches(5, torch.Generator().manual_seed(seed))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(row for batch in orders[0] for row in batch) == list(range(12))


def test_batches_by_length_hold_every_clip_once_and_little_padding() -> None:
    lengths = torch.randint(2, 40, (400,), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < lengths[:, None]
    masks: dict[str, torch.Tensor | None] = {"text": mask, "audio": None, "vision": None}
    split = Split(tuple(map(str, range(400))), {}, masks, mask.long()[:, None].expand(-1, 3, -1), None)
    generator = torch.Generator().manual_seed(1)
    one, two = ([b.index.tolist() for b in split.batches(16, generator, by_length=True)] for _ in range(2))
    assert one != two and all(sorted(row for b in found for row in b) == list(range(400)) for found in (one, two))
    longest = [int(lengths[batch].max()) for batch in one]
    padded = sum(n * len(batch) for n, batch in zip(longest, one, strict=True))
    assert padded < 1.15 * int(lengths.sum())
    assert longest != sorted(longest), "the batches themselves are shuffled"
    again = [b.index.tolist() for b in split.batches(16, torch.Generator().manual_seed(1), by_length=True)]
    assert again == one


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_steps_that_are_not_finite_are_masked(planted: Path, bad: float) -> None:
    before = read(planted)
    row = int(before.masks["audio"].any(1).nonzero()[0])
    step = int(before.masks["audio"][row].nonzero()[0])

    def spoil(file: h5py.File) -> None:
        file["train/audio"][row, step, 1] = bad

    after = read(changed(planted, spoil))
    assert before.masks["audio"][row, step] and not after.masks["audio"][row, step]
    assert (after.masks["audio"] != before.masks["audio"]).sum() == 1
    assert all(torch.isfinite(values).all() for values in after.inputs.values())
    published = read(planted, masked=False)
    assert published.inputs["audio"][row, step, 1] == 0 and published.masks["audio"] is None


def test_unlabelled_clips_are_left_out(planted: Path) -> None:
    def unlabel(file: h5py.File) -> None:
        file["train/regression_labels"][3] = np.nan

    assert len(read(changed(planted, unlabel))) == 11

    def unlabel_all(file: h5py.File) -> None:
        file["valid/regression_labels"][:] = np.nan

    with pytest.raises(DataError, match="no labelled clip in split 'valid'"):
        read(changed(planted, unlabel_all), "valid")


def test_labels_are_read_only_where_a_task_is_given(planted: Path) -> None:
    with open_features(planted) as file:
        split = load(file, "test", None)
    with pytest.raises(DataError, match="not read"):
        split.label("M")


def test_named_classes(planted: Path) -> None:
    def rename(file: h5py.File) -> None:
        file.attrs["class_names"] = json.dumps(["anger", "joy"])
        for split in CLIPS:
            file[split]["regression_labels"][:] = np.nan
            file[split]["classification_labels"][:] = np.arange(CLIPS[split]) % 2

    with open_features(changed(planted, rename)) as file:
        task = task_of(file)
        assert task.class_names == ("anger", "joy") and not task.is_polarity
        assert load(file, "train", task).label("M").tolist() == [0, 1] * 6


def test_nothing_to_learn(planted: Path) -> None:
    def empty(file: h5py.File) -> None:
        file["train/regression_labels"][:] = np.nan

    with open_features(changed(planted, empty)) as file, pytest.raises(DataError, match="neither regression labels"):
        task_of(file)


def test_a_file_without_validation_is_refused(planted: Path) -> None:
    def remove(file: h5py.File) -> None:
        del file["valid"]

    with pytest.raises(DataError, match="no split valid"):
        open_features(changed(planted, remove))


def test_an_empty_transcript_is_a_missing_modality() -> None:
    tokens = torch.zeros(2, 3, 6, dtype=torch.long)
    tokens[0, :2, :2] = 1
    tokens[1, :2, :4] = 1
    assert text_mask(tokens).sum(1).tolist() == [0, 4]
    tokens[:, 0] = 0  # vectors of words, of which no token ids are known: there is no [CLS] and no [SEP]
    assert text_mask(tokens).sum(1).tolist() == [2, 4]


def test_long_clips_are_averaged_in_windows_of_their_own() -> None:
    x = torch.arange(20.0).view(2, 10, 1)
    mask = torch.arange(10) < torch.tensor([[9], [4]])
    mask[0, 1] = False
    tokens = torch.zeros(2, 3, 4, dtype=torch.long)
    split = Split(("a", "b"), {"audio": x, "vision": x}, {"audio": mask, "vision": None, "text": None}, tokens, None)
    short = shorten(split, 4)
    assert short.inputs["audio"][0, :3, 0].tolist() == [1.0, 4.0, 7.0], "windows of 3, without the step not measured"
    assert short.inputs["audio"][1, :, 0].tolist() == [10.0, 11.0, 12.0, 13.0], "short enough: as it was"
    assert short.masks["audio"].tolist() == [[True, True, True, False], [True] * 4]
    assert short.inputs["vision"] is x, "without masks nothing is averaged"
    longer = replace(split, inputs={m: functional.pad(x, (0, 0, 0, 7)) for m in ("audio", "vision")})
    longer = replace(longer, masks={**split.masks, "audio": functional.pad(mask, (0, 7))})
    assert torch.equal(shorten(longer, 4).inputs["audio"], short.inputs["audio"]), "padding changes nothing"


@pytest.mark.parametrize("key", ["text", "vision_mask", "regression_labels", "regression_labels_T"])
def test_whatever_training_reads_tells_two_files_apart_and_the_test_split_does_not(tmp_path, key):
    path = tmp_path / "planted.h5"
    plant(path, Plan({"train": 6, "valid": 4, "test": 4}, annotated=True))

    def digest() -> str:
        with FeatureFile(path) as file:
            return content_digest(file)

    before = digest()
    with h5py.File(path, "r+") as file:
        file["test"][key][0] = file["test"][key][1]
        file["test"][key][1] = 0
    assert digest() == before
    with h5py.File(path, "r+") as file:
        file["valid"][key][0] = np.logical_not(file["valid"][key][0])
    assert digest() != before
