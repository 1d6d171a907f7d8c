from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit
from pipelines.show import show_clips, table

if TYPE_CHECKING:
    from mmfeat.layout import FeatureFile

SUMMARY = "show what is in a feature file and how it was made"
EXAMPLES = ("mmfeat info features.h5", "mmfeat info features.h5 --columns")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.h5", help="a feature file")
    parser.add_argument("--columns", action="store_true", help="list every column with its training statistics")


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.layout import FeatureFile

    with FeatureFile(args.file) as file:
        print(f"{args.file}: {len(file)} clips, {_form(file)}\n")
        _show_splits(file)
        _show_modalities(file)
        show_clips(file.clips())
        print()
        _show_making(file)
        if args.columns:
            _show_columns(file)
    return Exit.OK


def _form(file: FeatureFile) -> str:
    """What a row of sound or sight stands for."""
    recipe = file.recipe
    if not file.aligned and not recipe.get("grid_hz"):
        return "unaligned"
    rows = "aligned to wordpieces" if file.aligned else f"audio and vision on one clock of {recipe['grid_hz']:g} Hz"
    return f"{rows}, pooled by {recipe.get('pooling', 'mean')}"


def _show_splits(file: FeatureFile) -> None:
    import json

    import numpy as np

    from mmfeat.layout import CLASSES, REGRESSION, UNIMODAL, polarity

    names = json.loads(file.attrs["class_names"])
    rows = []
    for split in file.splits:
        labels = file.read(split, "classification_labels")
        count = Counter(np.where(labels < 0, polarity(file.read(split, REGRESSION)), labels).tolist())
        annotated = []
        for modality in UNIMODAL:
            known = sum(np.isfinite(file.read(split, UNIMODAL[modality])))
            if (split, CLASSES[modality]) in file:
                known = sum(file.read(split, CLASSES[modality]) >= 0)
            annotated.append(f"{modality} {known}")
        rows.append((split, len(labels), *(count[k] for k in range(len(names))), ", ".join(annotated)))
    columns = ("split", "clips", *names, "unimodal labels")
    table("Splits", columns, rows, numbers=columns[1:-1])
    print()


def _show_modalities(file: FeatureFile) -> None:
    rows = []
    for split in file.splits:
        for modality in ("text", "audio", "vision"):
            shape = file.dataset(split, modality).shape
            lengths = file.read(split, f"{modality}_lengths")
            measured = ""
            if (split, f"{modality}_mask") in file:
                mask = file.read(split, f"{modality}_mask")
                measured = f"{mask.sum() / max(1, lengths.sum()):.1%}"
            spread = f"{lengths.min()} / {lengths.mean():.0f} / {lengths.max()}" if len(lengths) else ""
            rows.append((split, modality, " x ".join(map(str, shape)), spread, measured))
    columns = ("split", "modality", "clips x steps x columns", "shortest / mean / longest", "valid steps")
    table("Features", columns, rows, numbers=columns[2:])
    print()


def _show_making(file: FeatureFile) -> None:
    import json

    recipe = file.recipe
    rows = []
    for part, fingerprint in file.fingerprints.items():
        section = recipe.get(part) or {}
        rows.append((part, section.get("extractor") or section.get("aligner") or "unknown", fingerprint))
    table(f"Recipe {recipe['name']!r}, language {file.attrs['language']}", ("part", "made by", "fingerprint"), rows)
    versions = json.loads(file.attrs["versions"])
    print(f"\nMade {file.attrs['created']} with {', '.join(f'{name} {v}' for name, v in versions.items())}")


def _show_columns(file: FeatureFile) -> None:
    for modality in ("audio", "vision"):
        mean, std = file.train_stats(modality)
        names = file.feature_names(modality)
        rows = [(name, f"{m:.4g}", f"{s:.4g}") for name, m, s in zip(names, mean, std, strict=True)]
        print()
        table(f"{modality}, over valid training steps", ("column", "mean", "std"), rows, numbers=("mean", "std"))
