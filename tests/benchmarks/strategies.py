"""Stage 1 at CH-SIMS's shapes: CPU seconds of an epoch, by strategy, and how many times PLGM's that is.

An epoch is a pass over the clips with its validation and its labels. A strategy that learns in phases has one line for
each kind of epoch: the median, and the dearest.

    OMP_NUM_THREADS=1 python tests/benchmarks/strategies.py --clips 192
    OMP_NUM_THREADS=1 python tests/benchmarks/strategies.py --strategies plgm mug --epochs 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from sims import COLUMNS, LENGTHS, STEPS, TASK, clips

from cmc.config import MODALITIES, Config
from cmc.data import Split
from cmc.pretrain import Given, pretrain
from cmc.strategies import STRATEGIES
from cmc.training import seed_everything
from cmc.unimodal import Unimodal


def sims(number: int, lengths: str) -> Split:
    """Clips with numbers for labels, and random rows for what an encoder makes of their text."""
    split = clips(number, lengths)
    text = torch.randn(number, STEPS["text"], COLUMNS["text"], generator=torch.Generator().manual_seed(1))
    M = split.label("M")
    labels = dict.fromkeys("MTAV", M)
    return replace(split, inputs={**split.inputs, "text": text}, labels=labels, values=0.8 * (M - 1))


def epochs(strategy: str, train: Split, valid: Split, config: Config) -> list[float]:
    """CPU seconds of each, but for the first, which warms up."""
    config = config.model_copy(update={"pretrain": strategy})
    seed_everything(0)
    models = {m: Unimodal(m, COLUMNS[m], TASK.classes, config) for m in MODALITIES}
    taken = [time.process_time()]

    def report(stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        taken.append(time.process_time())

    pretrain(Given(models, train, valid, config, TASK, report=report))
    return [end - start for start, end in pairwise(taken[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=4, help="that are judged, besides those that prepare")
    parser.add_argument("--lengths", choices=LENGTHS, default="sims", help="of clips, see sims.py")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=[s for s in STRATEGIES if s != "none"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, valid = sims(args.clips, args.lengths), sims(args.clips // 4, args.lengths)
    config = Config(text="freeze", pretrain_epochs=args.epochs)
    reference = None
    for strategy in args.strategies:
        taken = torch.tensor(epochs(strategy, train, valid, config))
        median, most = float(taken.median()), float(taken.max())
        reference = reference or median
        print(
            f"{strategy:12}median {median:6.2f} s, dearest {most:6.2f} s: {median / reference:.1f} and "
            f"{most / reference:.1f} times {args.strategies[0]}'s",
            flush=True,
        )


if __name__ == "__main__":
    main()
