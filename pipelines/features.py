"""A corpus to its feature file, with everything said on the way: problems, progress, and what became of each clip."""

from __future__ import annotations

import hashlib
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmfeat.dask_client import default_workers
from mmfeat.pack import PackReport, pack
from mmfeat.shards import ShardError, Store
from pipelines.commands.check import show_problems
from pipelines.exits import Exit, UsageError, message
from pipelines.extract import Extraction, extract_corpus
from pipelines.journal import Journal, who
from pipelines.limits import DEFAULT, Limits
from pipelines.progress import duration, progress
from pipelines.run_report import write_report
from pipelines.schedule import stop_on_interrupt
from pipelines.show import plural, show_clips, table
from pipelines.stages import Stages, source_digest

if TYPE_CHECKING:
    from mmfeat.corpus import Corpus
    from mmfeat.recipe import Recipe
    from pipelines.cluster.jobs import ClusterFile


@dataclass(frozen=True)
class Options:
    """How a corpus is worked on, whatever is extracted from it."""

    workers: int | None = None
    """Processes to start here; None: one per core."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, instead."""
    batch: ClusterFile | None = None
    """Jobs of a batch system, instead."""
    retry_failed: bool = False
    limits: Limits = DEFAULT
    keep_damaged: bool = True
    log_json: bool = False
    """Events as JSON lines on standard error, in place of progress."""


DEFAULT_OPTIONS = Options()


def make_features(
    corpus: Corpus,
    recipe: Recipe,
    out: Path,
    *,
    workdir: Path | None = None,
    aligned: bool = False,
    options: Options = DEFAULT_OPTIONS,
    stages: Stages | None = None,
) -> Exit:
    """Extract what is missing, pack it into `out`, and print what happened.

    With `stages`, packing is skipped where it would write what is there. Results that turn out to be damaged are
    extracted again, once.
    Raises what `extract_corpus` and `pack` raise.
    """
    workdir = workdir or default_workdir(out)
    try:
        return _make_features(corpus, recipe, out, workdir, aligned, options, stages)
    except ShardError as error:
        if not options.log_json:
            print(f"{message(error)}. That is done now.", file=sys.stderr)
        once = replace(options, retry_failed=False)
        return _make_features(corpus, recipe, out, workdir, aligned, once, stages)


def _make_features(
    corpus: Corpus,
    recipe: Recipe,
    out: Path,
    workdir: Path,
    aligned: bool,
    options: Options,
    stages: Stages | None,
) -> Exit:
    if aligned and recipe.words is None:
        raise UsageError(f"recipe {recipe.name!r} has no `words` section, so nothing can be aligned to words")
    if aligned and recipe.grid_hz:
        raise UsageError("rows are wordpieces (--aligned) or ticks of a clock (--grid, `grid_hz`): choose one")
    show_problems(corpus)
    with (
        Journal(workdir, echo=sys.stderr if options.log_json else None) as journal,
        stop_on_interrupt(_announce) as stop,
        nullcontext(_say_nothing) if options.log_json else progress("Extracting") as report,
    ):
        journal.write(
            "start",
            corpus=str(corpus.root.resolve()),
            recipe=recipe.model_dump(mode="json"),
            out=str(out.resolve()),
            **who(),
        )
        extraction = extract_corpus(
            corpus,
            recipe,
            workdir,
            workers=options.workers,
            scheduler=options.scheduler,
            batch=options.batch,
            retry_failed=options.retry_failed,
            limits=options.limits,
            stop=stop,
            report=report,
            journal=journal,
        )
        journal.write(
            "end",
            done=extraction.done,
            failed=extraction.failed,
            left=extraction.todo - extraction.done,
            parts=extraction.parts,
            seconds=round(extraction.wall, 3),
        )
    if stages and extraction.done:
        stages.forget("features")
    if extraction.reused:
        print(f"{plural(extraction.reused, 'clip')} of {len(corpus.clips)} had been extracted before.")
    if extraction.interrupted:
        left = extraction.todo - extraction.done
        print(f"Stopped with {plural(left, 'clip')} left. The same command continues there.", file=sys.stderr)
        return Exit.INTERRUPTED

    def write() -> None:
        began = time.monotonic()
        with nullcontext(_say_nothing) if options.log_json else progress("Packing") as report:
            packed = pack(
                corpus,
                recipe,
                Store(workdir.resolve()),
                out,
                aligned=aligned,
                keep_damaged=options.keep_damaged,
                report=report,
                workers=options.workers or default_workers(),
            )
        show_result(extraction, packed, time.monotonic() - began)
        page = write_report(corpus, recipe, out, workdir, report_path(out))
        print(f"{page}: the same with pictures, for a browser.")

    inputs = {
        "clips": hashlib.sha256(repr(corpus.clips).encode()).hexdigest(),
        "recipe": recipe.resolved(),
        "fingerprints": recipe.fingerprints(),
        "aligned": aligned,
        "keep_damaged": options.keep_damaged,
        "code": source_digest("mmfeat"),
    }
    if stages is None:
        write()
    elif not stages.run("features", inputs, [out], write):
        print(f"{out} is up to date.")
    return _status(out)


def report_path(out: Path) -> Path:
    """Where the page about a feature file lies."""
    return out.with_name(f"{out.stem}_report.html")


def default_workdir(out: Path) -> Path:
    """Beside the feature file, and one for all that lie there: the aligned and the unaligned form share shards."""
    return out.with_name("mmfeat-work")


def _status(out: Path) -> Exit:
    from mmfeat.clip import FAILED
    from mmfeat.layout import FeatureFile

    with FeatureFile(out) as file:
        return Exit.SOME_FAILED if any(clip.status == FAILED for clip in file.clips()) else Exit.OK


def _say_nothing(done: int, total: int, note: str = "") -> None:
    """Progress for nobody to see."""


def _announce() -> None:
    print("\nFinishing the clips that are running; Ctrl-C again stops at once.", file=sys.stderr)


def show_result(extraction: Extraction, packed: PackReport, packing: float) -> None:
    """Clips by status and reason, and where the time went."""
    show_clips(packed.clips)
    if extraction.done:
        total = sum(extraction.stages.values()) or 1.0
        spent = [
            (stage, f"{seconds:.1f}", f"{seconds / total:.0%}") for stage, seconds in extraction.stages.most_common()
        ]
        print()
        table("Time, summed over workers", ("stage", "seconds", "share"), spent, numbers=("seconds", "share"))
        print(
            f"\n{plural(extraction.done, 'clip')}, {duration(extraction.footage)} of footage in "
            f"{duration(extraction.wall)}: {extraction.real_time_factor:.1f} times real time."
        )
    packed_clips, failed = plural(packed.ok, "clip"), len(packed.failed)
    print(f"\n{packed.path}: {packed_clips} packed in {duration(packing)}, {failed} failed.")
    if failed and not extraction.done:
        print("What failed in an earlier run is tried again with --retry-failed.")
    for modality, count in packed.truncated.items():
        if count:
            print(f"{plural(count, 'clip')} longer than the padded length lost the end of their {modality}.")
