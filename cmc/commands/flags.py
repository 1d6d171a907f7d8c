"""Flags that several commands share: the config's, and torch's threads."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def add_threads(command: argparse.ArgumentParser) -> None:
    # The matrices are small: more threads gain little, cost much on a busy machine, and change weights' last digits.
    command.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of torch (1): weights then do not depend on how many cores there are; recorded with the run",
    )


def use_threads(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)


def add_config_flags(command: argparse.ArgumentParser) -> None:
    """One flag per field of the config: `--out-dropout 0.3`, `--no-fusion`, `--use text audio`."""
    from cmc.config import Config

    group = command.add_argument_group("config", "Defaults are those of calibrated mode.")
    defaults = Config().model_dump()
    for name, field in Config.model_fields.items():
        default, kind = defaults[name], field.annotation
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        options: dict[str, Any] = {"help": f"{field.description} ({shown})", "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            members = [member for member in get_args(kind) if member is not Ellipsis]
            if get_origin(members[0]) is Literal:
                options |= {"nargs": "+", "choices": get_args(members[0])}
            else:
                options |= {"nargs": len(members), "type": members[0], "metavar": ("T", "A", "V")}
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper() if kind else None}
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"config_{name}", **options)


def config_of(args: argparse.Namespace, **more: Any) -> Any:
    from cmc.config import Config

    prefix = "config_"
    given = {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}
    return Config(**(given | more))
