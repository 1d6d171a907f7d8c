"""Stage 2 with its text encoder finetuned, seconds per epoch: ours against the published steps, in one run.

The published steps compute all padding, with attention written out and Adam parameter by parameter; 5 layers, 64 clips
a batch. Ours is measured with the same layers and batches, and as it is by default.

    python tests/benchmarks/stage2.py                          # 384 clips: minutes
    python tests/benchmarks/stage2.py --clips 128 --threads 1
"""

from __future__ import annotations

import argparse

import torch
from sims import COLUMNS, LENGTHS, TASK, Seconds, bert, clips, timed, unmasked

from cmc.config import MODALITIES, Config
from cmc.data import Split
from cmc.finetune import Finetuning
from cmc.fusion import Multimodal


def epoch(split: Split, config: Config, encoder_layers: int, attention: str) -> Seconds:
    """One epoch, after a batch to warm up."""
    encoder = bert(encoder_layers, frozen=False, attention=attention)
    model = Multimodal(COLUMNS, 3, config, encoder)
    labels = {"train": {m: split.label("M") for m in MODALITIES}}
    stage = Finetuning(model, split, split, labels, config, TASK)
    stage.train_epoch([split.batch(torch.arange(min(config.batch_size, len(split))))])
    order = torch.Generator().manual_seed(0)
    return timed(lambda: stage.train_epoch(split.batches(config.batch_size, order, by_length=config.calibrated)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument("--lengths", choices=LENGTHS, default="sims", help="of clips, see sims.py")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    split = clips(args.clips, args.lengths)
    theirs = epoch(unmasked(split), Config(mode="reference"), args.encoder_layers, "eager")
    print(f"published steps         {theirs} an epoch", flush=True)
    for name, config in (
        ("same layers and batches", Config(layers=5, batch_size=64)),
        ("default settings", Config()),
    ):
        ours = epoch(split, config, args.encoder_layers, "sdpa")
        print(f"{name:24}{ours}: {theirs.over(ours)}", flush=True)


if __name__ == "__main__":
    main()
