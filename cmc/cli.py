"""`cmc …`: one module per command; each loads what it needs only when it runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cmc.commands import ablate, compare, evaluate, exits, import_, plant, predict, train, tune
from cmc.commands.features import accept_pickle
from cmc.commands.flags import add_config_flags

COMMANDS = (train, evaluate, predict, tune, compare, ablate, import_, plant)


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The whole parser; the flags of the config are there when `arguments` ask for a command that has them."""
    whole = argparse.ArgumentParser("cmc", description="Calibrated multimodal consensus: train, evaluate, predict.")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2].rstrip("_")
        examples = "\n".join(f"  {line}" for line in module.EXAMPLES)
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=f"examples:\n{examples}\n\n{exits.HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(command)
        if getattr(module, "CONFIG", False) and name in arguments[:1]:
            add_config_flags(command, getattr(module, "WITHOUT", ()))
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    # Idle OpenMP threads that spin make training many times slower where other programs want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser(arguments).parse_args(arguments)
    try:
        accept_pickle(args)
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exits.INTERRUPTED
    except Exception as error:
        status = exits.expected(error)
        if status is None or args.debug:
            raise
        print(f"cmc: {exits.message(error)}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
