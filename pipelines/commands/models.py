from __future__ import annotations

import argparse

from pipelines.exits import Exit, UsageError
from pipelines.show import table

SUMMARY = "list or pull the small model files that extractors use"
EXAMPLES = ("mmfeat models list", "mmfeat models pull", "mmfeat models pull face_landmark")


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="list|pull", required=True)
    actions.add_parser("list", help="names, licences, sizes, and which are here")
    pull = actions.add_parser("pull", help="download into the cache; every file's sha256 is checked")
    pull.add_argument(
        "names", nargs="*", metavar="NAME", help="models to pull (default: all but those of optional extractors)"
    )


def run(args: argparse.Namespace) -> Exit:
    return _list() if args.action == "list" else _pull(args.names)


def _list() -> Exit:
    from mmfeat import models

    rows = [
        (
            name,
            models.state(name),
            f"{info.size / 1e6:.1f}",
            info.licence,
            info.summary,
        )
        for name, info in models.MODELS.items()
    ]
    table(f"Models in {models.cache()}", ("name", "", "MB", "licence", "what it is"), rows, numbers=("MB",))
    return Exit.OK


def _pull(names: list[str]) -> Exit:
    from mmfeat import models

    if unknown := [name for name in names if name not in models.MODELS]:
        raise UsageError(f"no model {', '.join(unknown)}; there are: {', '.join(models.MODELS)}")
    models.pull(names or None, report=lambda name, state: print(f"{name}: {state}", flush=True))
    return Exit.OK
