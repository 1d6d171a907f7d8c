from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit, UsageError

if TYPE_CHECKING:
    from mmfeat.shards import Store
    from pipelines.journal import Run

SUMMARY = "remove results from a work folder that no corpus needs any more"
EXAMPLES = ("mmfeat clean mmfeat-work", "mmfeat clean mmfeat-work --yes")

RECENT = 24 * 3600.0
"""Seconds for which a run of another machine that has not ended is taken for running, and a file that is half written
for one that somebody writes."""
_HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{8}-\d+-[0-9a-f]{12}\.\w+")
"""As `mmfeat.files.atomic` names it."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="the work folder of `mmfeat extract` or `run`")
    parser.add_argument("--yes", action="store_true", help="remove them; otherwise only what would go is shown")
    parser.add_argument(
        "--force",
        action="store_true",
        help="also where a run of another machine may be going on, and results of corpora that are gone",
    )


def run(args: argparse.Namespace) -> Exit:
    """Keeps what the latest run of every corpus uses: its clips as they are now, with that run's recipe."""
    from mmfeat.corpus import CorpusError
    from mmfeat.shards import Store
    from pipelines.journal import NAME, runs

    found = runs(args.workdir)
    if not found:
        raise UsageError(f"{args.workdir} is no work folder: it has no {NAME}, which every extraction writes")
    _refuse_where_somebody_works(args.workdir, found, args.force)
    latest = {run.start["corpus"]: run for run in found}
    store = Store(args.workdir.resolve())
    keep: set[Path] = set()
    for run in latest.values():
        try:
            keep |= _used(store, run)
        except CorpusError as error:
            if args.force:
                print(f"{error}: its results go")
            else:
                print(f"{error}: the results of its recipe stay; --force removes what no other corpus uses")
                keep |= _of_recipe(store, run)
    youngest = float("inf") if args.force else time.time() - RECENT
    useless = [path for path in store.files() if path not in keep and not _is_being_written(path, youngest)]
    size = sum(path.stat().st_size for path in useless)
    what = f"{len(useless)} of {len(useless) + sum(path.exists() for path in keep)} files, {size / 2**20:.1f} MiB"
    if not args.yes:
        print(f"{what} are of no use to the latest run of {', '.join(latest)}; --yes removes them")
        return Exit.OK
    for path in useless:
        path.unlink(missing_ok=True)
    folders = {path.parent for path in useless}
    for folder in sorted(folders | {folder.parent for folder in folders}, reverse=True):
        if folder != store.workdir and not any(folder.iterdir()):
            folder.rmdir()
    print(f"{what} removed")
    return Exit.OK


def _refuse_where_somebody_works(workdir: Path, runs: list[Run], force: bool) -> None:
    """Raises UsageError. Of each machine and corpus the latest run counts: one before it was killed."""
    for run in {(run.start["corpus"], run.start["host"]): run for run in runs}.values():
        corpus, host = run.start["corpus"], run.start["host"]
        if run.is_running:
            raise UsageError(f"{corpus} is being extracted into {workdir}: wait for its end")
        if not force and run.is_elsewhere and run.last_event > time.time() - RECENT:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.last_event))
            raise UsageError(
                f"{host} may be extracting {corpus} into {workdir}: its run has not ended, and was last heard of "
                f"{when}; wait for its end, or give --force if it was killed"
            )


def _used(store: Store, run: Run) -> set[Path]:
    """Where results of the corpus of a run lie. Raises CorpusError where it cannot be read."""
    from mmfeat import corpus
    from mmfeat.recipe import Recipe

    recipe = Recipe.model_validate(run.start["recipe"])
    fingerprints = recipe.fingerprints()
    expected: set[Path] = set()
    for clip in map(recipe.locate, corpus.load(run.start["corpus"]).usable):
        heard = {"transcript": clip.transcriber} if clip.transcriber else {}
        expected.update(store.expected(clip, {**fingerprints, **heard}))
    return expected


def _of_recipe(store: Store, run: Run) -> set[Path]:
    """All results with the recipe of a run, whatever corpus they are of."""
    from mmfeat.recipe import Recipe

    recipe = Recipe.model_validate(run.start["recipe"])
    folders = {f"{part}-{fingerprint}" for part, fingerprint in recipe.fingerprints().items()}
    return {
        path
        for path in store.files()
        if (folder := path.relative_to(store.workdir).parts[0]) in folders or folder.startswith("transcript-")
    }


def _is_being_written(path: Path, since: float) -> bool:
    """Whether a file is half written, and was begun after `since`: another machine may be at it."""
    if not _HALF_WRITTEN.fullmatch(path.name):
        return False
    try:
        return path.stat().st_mtime > since
    except FileNotFoundError:  # it has its name now
        return True
