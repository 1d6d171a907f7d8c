"""Training on another device: what can be said of it where there is none."""

from __future__ import annotations

import pytest
import torch

from cmc.cli import main
from cmc.data import load, task_of
from cmc.planted import Plan, plant
from mmfeat.layout import FeatureFile


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "nowhere"], "there is no device 'nowhere' here"),
        (["--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (["--precision", "bf16"], "bf16 is for --device cuda"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(tmp_path, capsys, arguments, says):
    plant(tmp_path / "f.h5", Plan({"train": 8, "valid": 4, "test": 4}))
    assert main(["train", str(tmp_path / "f.h5"), "-o", str(tmp_path / "run"), "--text", "freeze", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_split_goes_to_a_device_whole(tmp_path, stream):
    """The meta device holds no values, but says which tensors stayed behind."""
    plant(tmp_path / "f.h5", Plan({"train": 8, "valid": 4, "test": 4}))
    with FeatureFile(tmp_path / "f.h5") as file:
        split = load(file, "train", task_of(file), stream=stream)
    moved = split.to(torch.device("meta"))
    tensors = [moved.tokens, *moved.labels.values(), *(mask for mask in moved.masks.values() if mask is not None)]
    tensors += [values for values in moved.inputs.values() if isinstance(values, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(tensors) == (11 if stream == "never" else 8)
    assert moved.present("audio").device.type == "meta"
