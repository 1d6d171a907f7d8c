"""Training on a GPU: clips a second, what of that is data, operations per step, memory, and what bf16 changes.

Random clips in CH-SIMS's shapes (39/400/55 steps, 768/33/709 columns) and lengths. Every figure is of whole epochs,
after one to warm up, with the device waited for before the clock is read. The share of data is measured too: the same
epoch's batches made and thrown away.

    python tests/benchmarks/gpu.py                                      # on cuda
    python tests/benchmarks/gpu.py --device cpu --as-gpu --clips 64     # the same steps where there is none
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sims import COLUMNS, LENGTHS, STEPS, TASK, bert, clips
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import cmc.attention
import cmc.unimodal
from cmc.config import MODALITIES, Config
from cmc.data import Split, shorten
from cmc.finetune import Finetuning
from cmc.fusion import Multimodal
from cmc.strategies.plgm import Pretraining
from cmc.training import find_device, seed_everything
from cmc.unimodal import Unimodal

READS = ("_local_scalar_dense", "nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize")
"""What makes the host wait for a device."""


@dataclass(frozen=True)
class Bench:
    device: torch.device
    clips: int
    epochs: int
    encoder_layers: int
    lengths: str

    def split(self, steps: int, text: bool) -> Split:
        """On the CPU; with `text`, a text encoder's output is there."""
        made = clips(self.clips, self.lengths)
        if text:
            hidden = torch.randn(self.clips, STEPS["text"], COLUMNS["text"], generator=torch.Generator().manual_seed(1))
            made = replace(made, inputs={"text": hidden, **made.inputs})
        return shorten(made, steps) if steps else made

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the fastest of some epochs, after one to warm up."""
        work()
        found = []
        for _ in range(self.epochs):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - started)
        return min(found)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def as_gpu() -> None:
    """From here on a CPU takes the steps that a GPU does: all padding, bfloat16, torch's attention."""
    cmc.unimodal.packs = lambda device: False
    cmc.unimodal.has_bf16 = lambda device: True
    cmc.attention._LONGEST = 0


def stage_1(bench: Bench, config: Config) -> None:
    """Clips a second in training; the share of data with arrays on the device, and with arrays sent batch by batch."""
    seed_everything(config.seed, bench.device.type)
    here = bench.split(config.steps, text=True)
    there = here.to(bench.device)
    models = {m: Unimodal(m, COLUMNS[m], TASK.classes, config).to(bench.device) for m in MODALITIES}
    stage = Pretraining(models, there, there.select(torch.arange(len(there)) < 8), config, TASK)
    show(bench, "stage 1", config, stage.train_epoch, there, replace(there, inputs=here.inputs), by_length=False)


def stage_2(bench: Bench, config: Config) -> None:
    """The same of stage 2, whose text encoder is finetuned."""
    seed_everything(config.seed, bench.device.type)
    here = bench.split(config.steps, text=False)
    there = here.to(bench.device)
    encoder = bert(bench.encoder_layers, frozen=False)
    model = Multimodal(COLUMNS, TASK.classes, config, encoder).to(bench.device)
    labels = {"train": {m: there.label("M") for m in MODALITIES}}
    stage = Finetuning(model, there, there, labels, config, TASK)
    epoch = lambda number, batches, steps: stage.train_epoch(batches)  # noqa: E731
    show(bench, "stage 2", config, epoch, there, replace(there, inputs=here.inputs), by_length=True)


def show(bench: Bench, name: str, config: Config, epoch: Callable, split: Split, sent: Split, by_length: bool) -> None:
    """One line of figures. `epoch` takes a number, batches and how many there are; `sent` has its arrays elsewhere."""
    order, size = torch.Generator().manual_seed(0), config.batch_size
    steps = -(-len(split) // size)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    whole = bench.seconds(lambda: epoch(1, split.batches(size, order, by_length), steps))
    memory = ""
    if bench.device.type == "cuda":
        memory = f"; {torch.cuda.max_memory_allocated(bench.device) / 2**20:.0f} MB at most"
    data = bench.seconds(lambda: [None for _ in split.batches(size, order, by_length)])
    shares = f"data {100 * data / whole:.1f} %"
    if bench.device.type != "cpu":
        later = bench.seconds(lambda: epoch(1, sent.batches(size, order, by_length), steps))
        shares += f", {len(split) / later:.0f} clips/s where arrays are sent batch by batch"
    operations, waits = count(bench, lambda: epoch(1, [split.batch(torch.arange(size))], steps))
    print(
        f"{name}, {config.precision:8} {size:4} clips a batch: {len(split) / whole:8.0f} clips/s, "
        f"{1000 * whole / steps:7.2f} ms a step; {shares}; {operations} operations a step, {waits} waits{memory}",
        flush=True,
    )


def count(bench: Bench, step: Callable[[], object]) -> tuple[int, int]:
    """Kernels of an epoch of one step, and how often the host waits for the device in it: on a CPU, as far as can be
    told, operations that are no mere views, and those that read a value."""
    if bench.device.type != "cuda":
        with Operations() as found:
            step()
        return found.work, found.reads
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        step()
    events = profiled.events()
    return sum(one.device_type == DeviceType.CUDA for one in events), sum(one.name in READS for one in events)


class Operations(TorchDispatchMode):
    """Counts what torch is told to do, forward, backward and by the optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.work = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.work += not func.is_view
        self.reads += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


def precision(bench: Bench, epochs: int) -> None:
    """Largest difference that bf16 makes to validation logits: with the same weights, and with weights trained in it.

    Trained weights are asked in float32, as a run's are.
    """
    logits: dict[str, Tensor] = {}
    for name in ("float32", "bf16"):
        config = Config(precision=name, text="freeze")
        seed_everything(config.seed, bench.device.type)
        train = bench.split(config.steps, text=True)
        valid = train.select(torch.arange(len(train)) < 64).to(bench.device)
        train = train.to(bench.device)
        model = Multimodal(COLUMNS, TASK.classes, config).to(bench.device)
        logits[f"same weights, {name}"] = said(model, valid, config)
        labels = {"train": {m: train.label("M") for m in MODALITIES}}
        stage, order = Finetuning(model, train, valid, labels, config, TASK), torch.Generator().manual_seed(0)
        for _ in range(epochs):
            stage.train_epoch(train.batches(config.batch_size, order))
        for branch in model.branches.values():
            branch.bf16 = False
        logits[f"after {epochs} epochs, {name}"] = said(model, valid, config)
    for kind in ("same weights", f"after {epochs} epochs"):
        one, other = logits[f"{kind}, float32"], logits[f"{kind}, bf16"]
        same = (one.argmax(1) == other.argmax(1)).float().mean()
        print(
            f"bf16 against float32, {kind}: validation logits differ by {(one - other).abs().max():.1e} at most "
            f"(they spread by {one.std():.1e}), {100 * same:.1f} % of classes agree",
            flush=True,
        )


@torch.no_grad()
def said(model: nn.Module, split: Split, config: Config) -> Tensor:
    """Logits (N, K)."""
    return torch.cat([model.eval()(batch).logits for batch in split.batches(config.batch_size)]).cpu()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--clips", type=int, default=1536)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[Config().batch_size, 64, 256])
    parser.add_argument("--epochs", type=int, default=3, help="of which the fastest counts, after one to warm up")
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument("--lengths", choices=LENGTHS, default="sims", help="of clips, see sims.py")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--as-gpu", action="store_true", help="on a CPU: compute what a GPU does")
    args = parser.parse_args(argv)
    device = find_device(args.device)
    torch.set_num_threads(1)  # as cmc does
    if args.as_gpu:
        as_gpu()
    bench = Bench(device, args.clips, args.epochs, args.encoder_layers, args.lengths)
    for number, run in ((1, stage_1), (2, stage_2)):
        for name in ("float32", "bf16") if number in args.stages else ():
            for size in args.batch_sizes:
                if size <= args.clips and (name == "float32" or device.type != "cpu" or args.as_gpu):
                    run(bench, Config(precision=name, batch_size=size))
    precision(bench, args.epochs)


if __name__ == "__main__":
    main()
