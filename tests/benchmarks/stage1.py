"""Stage 1, seconds per epoch: ours against a plain implementation of the published steps, in one run.

The plain one runs the frozen text encoder for the live and for the averaged model in every batch, moves the average of
all weights, the encoder's among them, and finds each clip's reversed label in Python loops; 5 layers, 64 clips a batch,
as published for CH-SIMS. Ours is measured with the same layers and batches, and as it is by default.

    python tests/benchmarks/stage1.py                          # 384 clips: minutes
    python tests/benchmarks/stage1.py --clips 64 --threads 1 --lengths full
"""

from __future__ import annotations

import argparse
import copy

import torch
from sims import COLUMNS, LENGTHS, TASK, Seconds, bert, clips, timed, unmasked
from torch import Tensor, nn

from cmc.config import MODALITIES, Config
from cmc.data import Split, shorten
from cmc.losses import cross_entropy, supcon_published
from cmc.pseudo_labels import momentum
from cmc.strategies.plgm import Pretraining
from cmc.text_encoder import cache
from cmc.training import optimizer
from cmc.unimodal import TextModel, Unimodal


def plain_epoch(models: dict[str, Unimodal], averaged: dict[str, Unimodal], split: Split, config: Config) -> None:
    """One epoch of the published steps."""
    adam = optimizer(models.values(), config)
    states = {m: nn.functional.one_hot(split.label("M"), 3).float() for m in models}
    for batch in split.batches(config.batch_size):
        outputs = {m: model(batch) for m, model in models.items()}
        with torch.no_grad():
            for model in averaged.values():
                model(batch)
        classes = {m: states[m][batch.index].argmax(1) for m in models}
        loss = torch.stack([cross_entropy(o.logits, classes[m]) for m, o in outputs.items()]).sum()
        h = torch.cat([o.h for o in outputs.values()])
        loss = loss + supcon_published(h, (torch.cat(list(classes.values())) > 1).long())
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for m, model in models.items():
                for mean, live in zip(averaged[m].parameters(), model.parameters(), strict=True):
                    mean.mul_(0.9).add_(live, alpha=0.1)
        for m, output in outputs.items():
            for row, p in zip(batch.index.tolist(), output.logits.softmax(1), strict=True):
                states[m][row] = plain_update(states[m][row], p.detach())


def plain_update(state: Tensor, p: Tensor) -> Tensor:
    base = nn.functional.one_hot(state.argmax(), 3).float()
    gaps = [float((p - nn.functional.one_hot(torch.tensor(k), 3)).norm()) for k in range(3)]
    other = nn.functional.one_hot(torch.tensor(gaps.index(min(gaps))), 3).float()
    gap_base, gap_other = float((p - base).norm()), float((p - other).norm())
    alpha = (gap_base - gap_other) / (gap_base + gap_other)
    m = momentum(0.99, 0.5, 1)
    return m * state + (1 - m) * ((1 - alpha) * base + alpha * other)


class Ours:
    """An epoch of stage 1 with labels for all clips, at one setting."""

    def __init__(self, split: Split, config: Config):
        self.split, self.config = split, config
        models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in MODALITIES}
        self.stage = Pretraining(models, split, split.select(torch.arange(len(split)) < 8), config, TASK)
        self.order, self.epoch = torch.Generator().manual_seed(0), config.label_warmup

    def __call__(self) -> None:
        self.epoch += 1
        size = self.config.batch_size
        self.stage.train_epoch(self.epoch, self.split.batches(size, self.order), -(-len(self.split) // size))
        self.stage.validate(self.epoch)


def plain(split: Split, encoder: TextModel, config: Config) -> Seconds:
    models = {m: Unimodal(m, COLUMNS[m], 3, config, encoder if m == "text" else None) for m in MODALITIES}
    averaged = {m: copy.deepcopy(model).eval() for m, model in models.items()}
    return timed(lambda: plain_epoch(models, averaged, unmasked(split), config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3, help="of ours, after one to warm up")
    parser.add_argument("--lengths", choices=LENGTHS, default="sims", help="of clips, see sims.py")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder, split = bert(args.encoder_layers, frozen=True), clips(args.clips, args.lengths)
    theirs = plain(split, encoder, Config(mode="reference"))
    print(f"{'published steps':36}{theirs} an epoch", flush=True)
    cached = cache(split, encoder)
    for name, config in (
        ("same layers and batches, --steps 0", Config(layers=5, batch_size=64, steps=0)),
        ("same layers and batches", Config(layers=5, batch_size=64)),
        ("default settings, --steps 0", Config(steps=0)),
        ("default settings", Config()),
    ):
        ours = Ours(shorten(cached, config.steps) if config.steps else cached, config)
        ours()
        seconds = timed(ours, args.epochs)
        print(f"{name:36}{seconds}: {theirs.over(seconds)}", flush=True)


if __name__ == "__main__":
    main()
