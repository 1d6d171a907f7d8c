"""Other devices: what can be said of them where there is none.

Torch's meta device has no values. What is computed on it says which tensors stayed behind, and refuses to wait for one.
"""

from __future__ import annotations

import json
from pathlib import Path

import distributed
import pytest
import torch

from cmc import run as runs
from cmc.cli import main
from cmc.cluster import own_device, pool
from cmc.data import load, task_of
from cmc.evaluate import evaluate
from cmc.planted import Plan, plant
from cmc.training import devices, find_device
from mmfeat.layout import FeatureFile

META = torch.device("meta")
TINY = ["--text", "freeze", "--layers", "1", "--heads", "2", "--width", "8", "--epochs", "1", "--pretrain-epochs", "1"]


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("device") / "f.h5"
    plant(path, Plan({"train": 16, "valid": 8, "test": 8}))
    return path


@pytest.fixture(scope="module")
def run(features) -> Path:
    folder = features.with_name("run")
    assert main(["train", str(features), "-o", str(folder), *TINY]) == 0
    return folder


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta"])
@pytest.mark.parametrize("command", ["train", "tune", "compare", "ablate", "evaluate", "predict"])
def test_a_device_that_is_not_there_is_one_line_that_says_what_is(features, run, tmp_path, capsys, command, device):
    out = tmp_path / "out"
    arguments = {
        "evaluate": [str(run), str(features)],
        "predict": [str(run), str(features)],
    }.get(command, [str(features), "-o", str(out), *TINY])
    assert main([command, *arguments, "--device", device]) == 2
    error = capsys.readouterr().err
    assert f"there is no device '{device}' here, only cpu" in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "tune", "compare", "ablate"])
def test_bf16_on_a_cpu_is_refused(features, tmp_path, capsys, command):
    out = tmp_path / "out"
    assert main([command, str(features), "-o", str(out), *TINY, "--precision", "bf16"]) == 2
    assert "bf16 is for --device cuda" in capsys.readouterr().err
    assert not out.exists()


def test_devices_are_named_as_torch_does(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices()[:3] == ["cpu", "cuda:0", "cuda:1"]
    with pytest.raises(ValueError, match=r"no device 'cuda:2' here, only cpu, cuda:0, cuda:1"):
        find_device("cuda:2")


def test_what_a_run_says_does_not_depend_on_what_it_was_trained_on(features, run, tmp_path):
    """As if it had been trained in bf16 on a GPU: it is evaluated on a CPU, in float32."""
    expected = evaluate(run, features)
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (elsewhere / file.name).write_bytes(file.read_bytes())
    record = json.loads((run / "run.json").read_text())
    record["config"]["precision"], record["versions"]["device"] = "bf16", "cuda"
    (elsewhere / "run.json").write_text(json.dumps(record))
    assert not any(branch.bf16 for branch in runs.load_model(elsewhere, runs.read(elsewhere)).branches.values())
    assert evaluate(elsewhere, features) == expected


@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_split_goes_to_a_device_whole(features, stream):
    with FeatureFile(features) as file:
        split = load(file, "train", task_of(file), stream=stream)
    moved = split.to(META)
    tensors = [moved.tokens, *moved.labels.values(), *(mask for mask in moved.masks.values() if mask is not None)]
    tensors += [values for values in moved.inputs.values() if isinstance(values, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(tensors) == (11 if stream == "never" else 8)
    assert moved.present("audio").device.type == "meta"


def test_workers_take_turns_in_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cuda") == "cuda"  # this process is no worker

    def on_worker(name: object) -> list[str]:
        monkeypatch.setattr(distributed, "get_worker", lambda: type("Worker", (), {"name": name}))
        return [own_device(device) for device in ("cuda", "cuda:1", "cpu")]

    assert [on_worker(k)[0] for k in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert on_worker(0) == ["cuda:0", "cuda:1", "cpu"]
    assert on_worker("tcp://10.0.0.7:3456")[0] == "cuda"  # whoever set it up says which GPU it sees


def _with_two_gpus() -> str:
    torch.cuda.device_count = lambda: 2
    return own_device("cuda")


def test_real_workers_get_different_gpus():
    with pool(2) as workers:
        client = distributed.default_client()
        found = [client.submit(_with_two_gpus, workers=[one], pure=False) for one in client.nthreads()]
        assert sorted(one.result() for one in found) == ["cuda:0", "cuda:1"] and workers.slots == 2
