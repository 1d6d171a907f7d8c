"""Curves for TensorBoard: `tensorboard --logdir RUN`.

Events lie in the folder `tensorboard` of the run. They are written anew from the history when training goes on, so that
no epoch is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmc.config import Config, UsageError

FOLDER = "tensorboard"


class MissingTensorBoardError(UsageError):
    """The package that writes the events is not installed."""


def forget(folder: Path) -> None:
    """Remove the curves of the run in `folder`."""
    for path in (folder / FOLDER).glob("events.out.tfevents.*"):
        path.unlink()
    if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()


class Board:
    """Writes the events of the run in `folder`, which replace older ones. Raises MissingTensorBoardError."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingTensorBoardError(
                f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            ) from None
        self._folder, self._kind = folder / FOLDER, SummaryWriter
        self._writer: Any = None

    def row(self, stage: str, row: Mapping[str, float]) -> None:
        """One epoch of a stage's history, as `<stage>/<name>`."""
        if self._writer is None:  # not before, or training that is refused would cost the older curves
            for path in self._folder.glob("events.out.tfevents.*"):
                path.unlink()
            self._writer = self._kind(str(self._folder))
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(f"{stage}/{name}", value, int(row["epoch"]))
        self._writer.flush()  # a kill loses nothing that was seen

    def result(self, config: Config, figures: Mapping[str, float]) -> None:
        """The run's settings, and what it reached with them on the validation split."""
        settings = {
            name: " ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in config.model_dump(mode="json").items()
        }
        # A run name of its own would put the settings beside the run instead of to it.
        self._writer.add_hparams(settings, {f"validation/{n}": v for n, v in figures.items()}, run_name=".")

        self._writer.close()


def write(
    folder: Path, config: Config, history: Mapping[str, Sequence[Mapping[str, float]]], figures: Mapping[str, float]
) -> None:
    """The events of a run that is finished: its history, stage by stage, and what it reached."""
    board = Board(folder)
    for stage, rows in history.items():
        for row in rows:
            board.row(stage, row)
    board.result(config, figures)
