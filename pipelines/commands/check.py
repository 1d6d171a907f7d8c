from __future__ import annotations

import argparse
from collections import Counter
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit
from pipelines.show import plural, table

if TYPE_CHECKING:
    from mmfeat.corpus import Corpus

SUMMARY = "list everything that is wrong with a corpus, at once"
EXAMPLES = ("mmfeat check demo/corpus", "mmfeat check CH-SIMS --label-range -1 1")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with label.csv and Raw/")
    parser.add_argument(
        "--label-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="labels outside are errors (default: -3 3, the widest in use)",
    )


def run(args: argparse.Namespace) -> Exit:
    from mmfeat import corpus

    limits = tuple(args.label_range) if args.label_range else corpus.LABEL_RANGE
    loaded = corpus.load(args.corpus, limits)
    show_problems(loaded)
    show_summary(loaded)
    if not loaded.usable:
        print("No clip can be used.")
        return Exit.NOTHING_USABLE
    return Exit.SOME_FAILED if any(problem.fatal for problem in loaded.problems) else Exit.OK


def show_problems(corpus: Corpus) -> None:
    """Every problem with its line of label.csv; nothing where there is none."""
    if not corpus.problems:
        return
    rows = [
        (problem.row, problem.clip, "refused" if problem.fatal else "note", problem.kind, problem.message)
        for problem in corpus.problems
    ]
    table(f"Problems in {corpus.root / 'label.csv'}", ("line", "clip", "", "kind", "what"), rows, numbers=("line",))
    print()


def show_summary(corpus: Corpus) -> None:
    from mmfeat.corpus import SPLITS

    classes = corpus.class_names or ("negative", "neutral", "positive")

    def row(name: str) -> tuple[object, ...]:
        clips = [clip for clip in corpus.usable if clip.split == name]
        counts = Counter(c.classes.get("label") or classes[(c.label > 0) - (c.label < 0) + 1] for c in clips)
        unimodal = sum("label_T" in clip.classes or not isnan(clip.label_T) for clip in clips)
        return name, len(clips), *(counts[class_name] for class_name in classes), unimodal

    columns = ("split", "usable clips", *classes, "with unimodal labels")
    table(f"{corpus.root}", columns, map(row, SPLITS), numbers=columns[1:])
    refused = len(corpus.clips) - len(corpus.usable)
    notes = sum(not problem.fatal for problem in corpus.problems)
    print(
        f"{plural(len(corpus.clips), 'row')}, {refused} refused, {plural(notes, 'note')}. "
        "Refused rows are left out of the features, with their reason."
        if refused
        else f"{plural(len(corpus.clips), 'row')}, all usable, {plural(notes, 'note')}."
    )
