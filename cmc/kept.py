"""What the networks of stage 1 that stay with a run are good for after training.

A run pretrained by `generation` can make up a modality that a clip lacks; one pretrained by `cyclic` predicts from text
alone. Both read the text arrays as stage 1 did, whatever became of the text encoder in stage 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cmc import run as runs
from cmc.config import UsageError
from cmc.data import Batch, Split
from cmc.strategies.cyclic import Cyclic
from cmc.strategies.generation import Decoder, complete, lacking
from cmc.unimodal import Unimodal


@dataclass(frozen=True, eq=False)
class Completed:
    """A split whose batches get what its clips lack as they are read."""

    split: Split
    models: dict[str, Unimodal]
    decoder: Decoder
    fill: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, index: torch.Tensor) -> Batch:
        return complete(self.models, self.decoder, self.split.batch(index), self.fill)

    def batches(self, size: int) -> Iterator[Batch]:
        for batch in self.split.batches(size):
            yield complete(self.models, self.decoder, batch, self.fill)

    def made(self) -> dict[str, torch.Tensor]:
        """Modality → clips (N,) bool for which it is made up; without those of none."""
        missing = lacking({m: self.split.present(m) for m in self.models})
        return {m: missing[m] for m in self.fill if missing[m].any()}


def completed(folder: Path, record: runs.Record, split: Split, dropped: tuple[str, ...] = ()) -> Completed:
    """The split with what its clips lack made from what they have. Its text arrays are as stage 1 read them.

    A text encoder that stage 2 finetuned reads words, which cannot be made up: there, text stays missing. Raises
    UsageError where all of it was dropped, and RunError where the run has no network that makes features.
    """
    if record.config.pretrain != "generation":
        raise runs.RunError(
            f"{folder} cannot complete clips: it was pretrained by {record.config.pretrain}; "
            "`cmc train --pretrain generation` leaves a network that can"
        )
    fill = tuple(m for m in record.config.modalities if m != "text" or record.text_encoder is None)
    if lost := set(dropped) - set(fill):
        raise UsageError(
            f"--complete cannot make up {', '.join(lost)}: the run's own encoder reads words, and what is made are "
            "features; train with --text freeze"
        )
    decoder = Decoder({m: record.columns[m] for m in record.config.modalities}, record.config)
    runs.fill(decoder.eval(), runs.load_extra(folder), folder / runs.EXTRA)
    models = {m: model.to(split.tokens.device) for m, model in runs.load_unimodal(folder, record).items()}
    return Completed(split, models, decoder.to(split.tokens.device), fill)


@torch.inference_mode()
def text_logits(folder: Path, record: runs.Record, split: Split) -> NDArray[np.float32] | None:
    """What `cyclic` says of clips from their text alone, shape (N, K); None of other runs, and of clips without any.

    Rows of single clips without text are NaN.
    """
    if record.config.pretrain != "cyclic" or not split.present("text").any():
        return None
    network = Cyclic({m: record.columns[m] for m in record.config.modalities}, record.config)
    runs.fill(network.eval(), runs.load_extra(folder), folder / runs.EXTRA)
    text = runs.load_unimodal(folder, record)["text"].to(split.tokens.device)
    network.to(split.tokens.device)
    logits = torch.cat([network.predict(text, batch).logits for batch in split.batches(64)])
    return logits.masked_fill(~split.present("text")[:, None], torch.nan).cpu().numpy()


def reads_stage_1(record: runs.Record, complete: bool) -> bool:
    """Whether anything here will read a split's text arrays."""
    return complete or record.config.pretrain == "cyclic"
