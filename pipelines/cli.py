"""`mmfeat …`: one module per command; each loads what it needs only when it runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from mmfeat import __version__
from pipelines import exits
from pipelines.commands import (
    align,
    backends,
    check,
    clean,
    clip,
    cluster,
    convert,
    demo,
    doctor,
    extract,
    info,
    merge,
    models,
    recipe,
    run,
    status,
    validate,
)
from pipelines.exits import Exit

COMMANDS = (
    run,
    check,
    extract,
    status,
    info,
    validate,
    convert,
    merge,
    clip,
    align,
    recipe,
    cluster,
    clean,
    models,
    backends,
    doctor,
    demo,
)

_DESCRIPTION = """\
From raw footage to multimodal features and a trained CMC model.

A corpus is a folder with label.csv and Raw/<video_id>/<clip_id>.<any extension>."""

_EXAMPLES = """\
examples:
  mmfeat demo demo/corpus                       a small corpus of real videos, made on the spot
  mmfeat run demo/corpus -o demo/results        everything: features, training, evaluation, one prediction
  mmfeat check CORPUS                           what is wrong with label.csv and its files
  mmfeat extract CORPUS -o features.h5          features only
  cmc train features.h5 -o RUN                  training only"""


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        "mmfeat",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n\n{exits.HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"mmfeat {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        examples = "\n".join(f"  {line}" for line in module.EXAMPLES)
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
            epilog=f"examples:\n{examples}\n\n{exits.HELP}",
            formatter_class=_Formatter,
        )
        module.configure(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return whole


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples as written, and every default beside its option."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.help or ""
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS, []):
            shown += " (default: %(default)s)"
        return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Expected errors are one line on stderr; every exit status is in `pipelines.exits`."""
    args = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file may be any bytes
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("\nmmfeat: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # `mmfeat info … | head`: the reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:
        status = exits.expected(error)
        if args.debug or status is None:
            raise
        print(f"mmfeat: {exits.message(error)}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
