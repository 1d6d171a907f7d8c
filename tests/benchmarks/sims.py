"""Random clips in CH-SIMS's shapes, and stopwatches, for the benchmarks of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import BertConfig, BertModel

from cmc.config import MODALITIES
from cmc.data import Split, Task
from cmc.unimodal import TextModel

STEPS = {"text": 39, "audio": 400, "vision": 55}
COLUMNS = {"text": 768, "audio": 33, "vision": 709}
TASK = Task(("negative", "neutral", "positive"), True)
LENGTHS = ("sims", "even", "full")


def clips(number: int, lengths: str = "sims") -> Split:
    """Random features, tokens and labels.

    Lengths: `sims` as in that corpus, `even` spread evenly from a quarter to all of the padded length, `full` all of
    it. CH-SIMS's 2281 transcripts have 15.8 ± 7.3 characters, a word piece each, of gamma-like distribution, and clips
    last 3.67 s on average, which makes 10 steps of sound per character.
    """
    rng = np.random.default_rng(0)
    characters = rng.gamma(4.7, 3.4, number).round().clip(1, STEPS["text"] - 2)
    taken = {"text": characters + 2, "audio": 10 * characters, "vision": 10 * characters * 55 // 400}
    masks = {}
    for m, steps in STEPS.items():
        if lengths != "sims":
            taken[m] = rng.integers(steps // 4, steps + 1, number) if lengths == "even" else np.full(number, steps)
        masks[m] = torch.arange(steps) < torch.from_numpy(taken[m].clip(1, steps))[:, None]
    generator = torch.Generator().manual_seed(0)
    inputs = {m: torch.randn(number, STEPS[m], COLUMNS[m], generator=generator) for m in ("audio", "vision")}
    ids = torch.randint(5, 1000, (number, STEPS["text"]), generator=generator)
    tokens = torch.stack([ids * masks["text"], masks["text"].long(), 0 * ids], 1)
    labels = {"M": torch.randint(0, 3, (number,), generator=generator)}
    return Split(tuple(map(str, range(number))), inputs, dict(masks), tokens, labels)


def unmasked(split: Split) -> Split:
    """The same clips as the published code sees them: all as long as the padding."""
    return replace(split, masks=dict.fromkeys(MODALITIES))


def bert(layers: int, frozen: bool, attention: str = "sdpa") -> TextModel:
    """bert-base-chinese's shape with random weights."""
    torch.manual_seed(0)
    made = BertConfig(vocab_size=21128, num_hidden_layers=layers, attn_implementation=attention)
    return TextModel(BertModel(made), frozen)


@dataclass(frozen=True)
class Seconds:
    """Time taken, by the clock on the wall and summed over the processor's cores."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:8.2f} s, CPU {self.cpu:8.2f} s"

    def over(self, other: Seconds) -> str:
        return f"{self.wall / other.wall:6.1f} times faster, CPU time {self.cpu / other.cpu:6.1f} times less"


def timed(work: Callable[[], object], times: int = 1) -> Seconds:
    """The fastest of `times` runs."""
    taken = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Seconds(min(wall for wall, _ in taken), min(cpu for _, cpu in taken))
