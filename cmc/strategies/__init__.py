"""The ways to pretrain: each is one module with `pretrain(given) -> Pretrained` (see cmc.pretrain), and a line here.

Only the one that a run asks for is imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    module: str
    """Within this package."""
    summary: str
    makes_labels: bool = False
    """Whether it gives clips unimodal labels of its own; the others leave stage 2 with copies of M."""
    unlabelled: bool = False
    """Whether it learns from clips without any label."""
    reads: bool = False
    """Whether it has the features' text encoder, where one is named, read transcripts of its own making."""


STRATEGIES = {
    "plgm": Strategy("plgm", "pseudo labels that follow each classifier's doubts", makes_labels=True),
    "gt": Strategy("plgm", "annotated unimodal labels (CMC-GT)"),
    "mug": Strategy("mug", "labels corrected by a network that bi-level optimisation teaches", makes_labels=True),
    "ulgm": Strategy(
        "ulgm", "Self-MM: labels that are numbers, moved by distances to class centres", makes_labels=True
    ),
    "cyclic": Strategy("cyclic", "text is translated into vision and audio, and back"),
    "generation": Strategy("generation", "each modality's features from the others'", unlabelled=True),
    "masked": Strategy("masked", "hidden wordpieces and frames from what is left", unlabelled=True, reads=True),
    "none": Strategy("none", "no stage 1: fresh encoders, copies of the clip's label"),
    "copy": Strategy("plgm", "copies of the clip's label that never change: stage 1 without its method"),
}
"""Name → how; in the order of tables."""

PUBLISHED = ("plgm", "gt", "copy")
"""What reference mode has."""
