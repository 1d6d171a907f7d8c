"""The flag of commands that write files where a user's own may lie."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from pipelines.exits import UsageError


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace what files there are")


def check_overwrite(args: argparse.Namespace, files: Iterable[Path]) -> None:
    """Raises UsageError where one of the files to write is there already, unless the call is to replace it."""
    if not args.overwrite and (there := [str(path) for path in files if path.exists()]):
        exist = "exists" if len(there) == 1 else "exist"
        raise UsageError(f"{' and '.join(there)} {exist}: choose another name, or --overwrite")
