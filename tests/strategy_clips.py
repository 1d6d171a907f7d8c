"""Small clips whose features all follow one number of the clip, for tests of the strategies of stage 1."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cmc.config import MODALITIES
from cmc.data import Batch, Split, Task

COLUMNS = {"text": 5, "audio": 3, "vision": 4}
STEPS = {"text": 6, "audio": 9, "vision": 7}
TASK = Task(("negative", "neutral", "positive"), True)


def split(clips: int, seed: int = 0) -> Split:
    """Clips of `COLUMNS` and up to `STEPS` steps; each step is the clip's number and noise."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(clips, 1, 1, generator=draw)
    inputs = {m: 3 * own + torch.randn(clips, STEPS[m], COLUMNS[m], generator=draw) + 5 for m in MODALITIES}
    lengths = {m: torch.randint(2, STEPS[m] + 1, (clips, 1), generator=draw) for m in MODALITIES}
    masks: dict[str, Tensor | None] = {m: torch.arange(STEPS[m]) < lengths[m] for m in MODALITIES}
    ids = torch.randint(5, 50, (clips, STEPS["text"]), generator=draw)
    attended = (torch.arange(STEPS["text"]) < lengths["text"]).long()
    tokens = torch.stack([ids * attended, attended, 0 * ids], 1)
    labels = {key: torch.randint(0, 3, (clips,), generator=draw) for key in "MTAV"}
    return Split(tuple(map(str, range(clips))), dict(inputs), masks, tokens, labels)


def whole(split: Split) -> Batch:
    return split.batch(torch.arange(len(split)))


def spoilt(split: Split, modality: str, clips: slice = slice(None), padding: bool = False) -> Split:
    """Another content in measured steps of a modality, or in its padding."""
    values, mask = split.inputs[modality], split.masks[modality]
    assert isinstance(values, Tensor) and mask is not None
    values = values.clone()
    rows = torch.zeros(mask.shape, dtype=torch.bool)
    rows[clips] = True
    values[rows & (~mask if padding else mask)] += 100.0
    return replace(split, inputs={**split.inputs, modality: values})
