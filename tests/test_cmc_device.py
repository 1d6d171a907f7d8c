"""Other devices: what can be said of them where there is none.

Torch's meta device has no values. What is computed on it says which tensors stayed behind, and refuses to wait for one.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import pytest
import torch

from cmc import journal
from cmc import run as runs
from cmc.cli import main
from cmc.cluster import own_device, pool
from cmc.config import MODALITIES, Config
from cmc.data import Split, Task, load, task_of
from cmc.evaluate import evaluate
from cmc.finetune import Finetuning
from cmc.fusion import Multimodal
from cmc.journal import Journal
from cmc.planted import Plan, plant
from cmc.pretrain import Stage
from cmc.pretrain import run as run_stage
from cmc.rows import SHARE_OF_DEVICE
from cmc.strategies import STRATEGIES
from cmc.strategies.cyclic import Cycle
from cmc.strategies.generation import Generation
from cmc.strategies.masked import Masked
from cmc.strategies.mug import MUG
from cmc.strategies.plgm import Pretraining
from cmc.strategies.ulgm import ULGM
from cmc.training import Means, devices, find_device
from cmc.unimodal import Unimodal
from mmfeat.layout import FeatureFile
from tests import strategy_clips

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


@pytest.fixture
def on_meta(features, monkeypatch) -> tuple[dict[str, Split], dict[str, Split]]:
    """Training and validation split here and there."""
    with FeatureFile(features) as file:
        here = {name: load(file, name, task_of(file)) for name in ("train", "valid")}
    there = {name: split.to(META) for name, split in here.items()}
    for name, split in there.items():
        vars(split)["lengths"] = here[name].lengths  # what is asked of a device once per split
    # What is asked of it once per epoch, and what torch has for real accelerators alone.
    monkeypatch.setattr(Means, "over", lambda self, clips: dict.fromkeys(self._found, 0.0))
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(_plain_adam, torch.optim.Adam))
    return here, there


def _plain_adam(adam, groups, fused):
    return adam(groups)


def test_an_epoch_of_stage_1_neither_waits_for_the_device_nor_leaves_a_tensor_behind(on_meta):
    """Losses, averages and pseudo labels included: on the meta device both would raise."""
    here, there = on_meta
    config, task = Config(text="freeze", layers=2, width=8, heads=2), _task()
    models = {m: Unimodal(m, here["train"].inputs[m].shape[2], 3, config).to(META) for m in MODALITIES}
    stage = Pretraining(models, there["train"], there["valid"], config, task)
    epoch = config.label_warmup + 1
    losses = stage.train_epoch(epoch, there["train"].batches(4, torch.Generator().manual_seed(0)), steps=4)
    assert set(losses) == {*MODALITIES, "contrast"} == set(stage.validate(epoch))
    made = [*stage.states("train").values(), *stage.averages["audio"].model.state_dict().values()]
    assert {tensor.device.type for tensor in made} == {"meta"}


def test_an_epoch_of_stage_2_neither_waits_for_the_device_nor_leaves_a_tensor_behind(on_meta):
    here, there = on_meta
    config = Config(text="freeze", layers=2, width=8, heads=2, top_k=2)
    columns = {m: values.shape[2] for m, values in here["train"].inputs.items()}
    labels = {name: {m: split.label("M") for m in MODALITIES} for name, split in there.items()}
    model = Multimodal(columns, 3, config).to(META)
    stage = Finetuning(model, there["train"], there["valid"], labels, config, _task())
    assert stage.train_epoch(there["train"].batches(4)) == 0.0
    assert {parameter.grad.device.type for parameter in model.parameters()} == {"meta"}


def _task() -> Task:
    return Task(("negative", "neutral", "positive"), True)


STAGES: dict[str, type[Stage]] = {
    "plgm": Pretraining,
    "mug": MUG,
    "ulgm": ULGM,
    "cyclic": Cycle,
    "generation": Generation,
    "masked": Masked,
}


def _parts(value: Any) -> Iterator[Any]:
    """What a stage is made of, but for its optimisers, whose state torch brings to where the weights are."""
    yield value
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)
    elif type(value).__module__.startswith("cmc.") and not isinstance(value, Config | torch.nn.Module):
        yield from _parts(vars(value))


def _sent_to_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor | torch.nn.Module | Split):
        return value.to(META)
    if isinstance(value, dict):
        return {name: _sent_to_meta(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sent_to_meta(part) for part in value)
    if type(value).__module__.startswith("cmc.") and not isinstance(value, Config | Task):
        vars(value).update(_sent_to_meta(vars(value)))
    return value


def _devices(value: Any) -> set[str]:
    found = set()
    for part in _parts(value):
        tensors = [part] if isinstance(part, torch.Tensor) else []
        tensors += part.state_dict().values() if isinstance(part, torch.nn.Module) else []
        found |= {tensor.device.type for tensor in tensors}
    return found


@pytest.mark.filterwarnings("ignore:.*meta parameter.*is a no-op")
@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_goes_on_from_is_on_its_device(name, monkeypatch):
    """A journal gives states back on the CPU, whatever they were written from."""
    train, valid = (
        replace(clips, values=torch.randn(len(clips)))
        for clips in (strategy_clips.split(12), strategy_clips.split(6, seed=1))
    )
    config = Config(pretrain=name, text="freeze", layers=1, width=8, heads=2, pretrain_epochs=3, label_warmup=0)

    def made() -> Stage:
        models = {m: Unimodal(m, columns, 3, config) for m, columns in strategy_clips.COLUMNS.items()}
        return STAGES[name](models, train, valid, config, strategy_clips.TASK)

    stage = made()
    stage.warmup = min(stage.warmup, 1)  # MUG's labels are made at the end of it
    seen: list[dict[str, Any]] = []

    class Writes(Journal):
        def write(self, stage, row, state, last):
            seen.append(state())

    class Reads(Journal):
        def restore(self, stage):
            return seen[-1]

    run_stage(stage, journal=Writes())
    assert _devices(seen[-1]) == {"cpu"}
    again = _sent_to_meta(made())
    again.warmup = stage.warmup
    found = run_stage(again, journal=Reads())  # which is at its end at once
    assert len(found.history) == len(seen) and _devices(vars(again)) == {"meta"}
    kept = [found.weights, found.states, found.values, found.extra]
    assert _devices(kept) == {"meta"}
    assert found.states["train"].keys() == found.weights.keys() == strategy_clips.COLUMNS.keys()


def test_generators_of_gpus_that_are_gone_are_left(monkeypatch):
    """A run goes on where fewer GPUs are to be seen than when it was written."""
    states, found = journal.generators(), {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: found.update({device: state}))
    journal.set_generators(states | {"cuda": [torch.zeros(16), torch.ones(16)]})
    assert list(found) == [0] and not found[0].any()


def test_every_strategy_that_learns_in_epochs_goes_on_on_its_device():
    assert set(STAGES) == {strategy.module for strategy in STRATEGIES.values()} - {"none"}


def test_arrays_without_room_on_the_device_stay_and_go_batch_by_batch(on_meta, monkeypatch):
    here = on_meta[0]
    needed = sum(values.nbytes for values in here["train"].inputs.values())
    for free, where in ((needed / SHARE_OF_DEVICE, "meta"), (needed / SHARE_OF_DEVICE - 1, "cpu")):
        monkeypatch.setattr("cmc.data.free_memory", lambda device, free=free: free)
        split = here["train"].to(META)
        vars(split)["lengths"] = here["train"].lengths
        assert {values.device.type for values in split.inputs.values()} == {where}
        batch = next(split.batches(4))
        assert {values.device.type for values in (*batch.inputs.values(), batch.tokens)} == {"meta"}
        assert batch.inputs["audio"].shape == here["train"].batch(torch.arange(4)).inputs["audio"].shape


def test_the_benchmark_runs_on_a_cpu_as_on_a_gpu():
    """Its figures are for whoever has a GPU; here, that it runs, and that a step reads nothing from the device."""
    script = Path(__file__).parent / "benchmarks" / "gpu.py"
    arguments = [
        "--device",
        "cpu",
        "--as-gpu",
        "--clips",
        "16",
        "--batch-sizes",
        "8",
        "--epochs",
        "1",
        "--encoder-layers",
        "1",
    ]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rates = [line for line in done.stdout.splitlines() if line.startswith("stage 1")]
    assert len(rates) == 2 and all("8 clips a batch" in line and ", 0 waits" in line for line in rates)
    assert sum(line.startswith("stage 2") for line in done.stdout.splitlines()) == 2
    differences = re.findall(r"logits differ by (\S+) at most \(they spread by (\S+)\)", done.stdout)
    assert len(differences) == 2 and all(0 < float(one) < 0.2 * float(spread) for one, spread in differences)


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
