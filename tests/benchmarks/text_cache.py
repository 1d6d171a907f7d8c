"""The text cache, clips per second: ours against the bare encoder on the same clips, in one run.

The bare encoder is given batches of clips of one and the same length, so that it computes no padding at all.

    python tests/benchmarks/text_cache.py
    python tests/benchmarks/text_cache.py --clips 128 --threads 1
"""

from __future__ import annotations

import argparse

import torch
from sims import LENGTHS, bert, clips, timed

from cmc.data import Split
from cmc.text_encoder import cache
from cmc.unimodal import TextModel


@torch.inference_mode()
def bare(split: Split, encoder: TextModel, batch_size: int = 64) -> None:
    lengths = split.tokens[:, 1].sum(1)
    for length in lengths.unique():
        for rows in (lengths == length).nonzero().flatten().split(batch_size):
            encoder.model(input_ids=split.tokens[rows, 0, :length])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument("--lengths", choices=LENGTHS, default="sims", help="of clips, see sims.py")
    parser.add_argument("--repeat", type=int, default=3, help="times that both are run in turn; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    split, encoder = clips(args.clips, args.lengths), bert(args.encoder_layers, frozen=True).eval()
    cache(split.select(torch.arange(args.clips) < 8), encoder)
    rounds = [(timed(lambda: bare(split, encoder)), timed(lambda: cache(split, encoder))) for _ in range(args.repeat)]
    for name, clock in (("wall", lambda s: s.wall), ("CPU", lambda s: s.cpu)):
        plain, ours = (min(clock(taken[k]) for taken in rounds) for k in (0, 1))
        print(
            f"{name:5} bare encoder {args.clips / plain:7.1f} clips/s, cache {args.clips / ours:7.1f} clips/s: "
            f"{plain / ours:.0%} of bare throughput"
        )


if __name__ == "__main__":
    main()
