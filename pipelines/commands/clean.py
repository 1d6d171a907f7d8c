from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.exits import Exit, UsageError

if TYPE_CHECKING:
    from mmfeat.shards import Store

SUMMARY = "remove results from a work folder that no corpus needs any more"
EXAMPLES = ("mmfeat clean mmfeat-work", "mmfeat clean mmfeat-work --yes")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="the work folder of `mmfeat extract` or `run`")
    parser.add_argument("--yes", action="store_true", help="remove them; otherwise only what would go is shown")


def run(args: argparse.Namespace) -> Exit:
    """Keeps what the latest run of every corpus uses: its clips as they are now, with that run's recipe."""
    from mmfeat.shards import Store
    from pipelines.journal import NAME, runs

    latest = {run.start["corpus"]: run for run in runs(args.workdir)}
    if not latest:
        raise UsageError(f"{args.workdir} is no work folder: it has no {NAME}, which every extraction writes")
    if running := [run for run in latest.values() if run.is_running]:
        raise UsageError(f"{running[0].start['corpus']} is being extracted into {args.workdir}: wait for its end")
    store = Store(args.workdir.resolve())
    keep = {path for run in latest.values() for path in _used(store, run.start)}
    useless = [path for path in store.files() if path not in keep]
    size = sum(path.stat().st_size for path in useless)
    what = f"{len(useless)} of {len(useless) + sum(path.exists() for path in keep)} files, {size / 2**20:.1f} MiB"
    if not args.yes:
        print(f"{what} are of no use to the latest run of {', '.join(latest)}; --yes removes them")
        return Exit.OK
    for path in useless:
        path.unlink()
    for folder in sorted({path.parent for path in useless}, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    print(f"{what} removed")
    return Exit.OK


def _used(store: Store, start: Mapping[str, Any]) -> list[Path]:
    from mmfeat import corpus
    from mmfeat.recipe import Recipe

    recipe = Recipe.model_validate(start["recipe"])
    fingerprints = recipe.fingerprints()
    expected: list[Path] = []
    for clip in map(recipe.locate, corpus.load(start["corpus"]).usable):
        heard = {"transcript": clip.transcriber} if clip.transcriber else {}
        expected += store.expected(clip, {**fingerprints, **heard})
    return expected
