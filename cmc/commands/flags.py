"""Flags that several commands share: the config's, and torch's threads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

_PREFIX = "config_"


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


def add_device(command: argparse.ArgumentParser) -> None:
    # Not a setting of the run: what was trained on one device is evaluated on any.
    command.add_argument("--device", default="cpu", metavar="NAME", help="where to compute: cpu, cuda, cuda:1 (cpu)")


def add_workers(command: argparse.ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="trainings at a time, in processes; with --device cuda they take turns in the GPUs (1)",
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, such as tcp://host:8786")


def use_threads(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)


def add_config_flags(command: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """One flag per field of the config: `--out-dropout 0.3`, `--no-fusion`, `--use text audio`.

    `without` names fields that the command can do nothing with.
    """
    from cmc.config import Config

    group = command.add_argument_group("config", "Defaults are those of calibrated mode.")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings from a JSON or YAML file; flags go before, but a file's mode cannot be changed: its other "
        "settings were made for that one",
    )
    defaults = Config().model_dump()
    for name, field in Config.model_fields.items():
        if name in without:
            continue
        default, kind = defaults[name], field.annotation
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        options: dict[str, Any] = {"help": f"{field.description} ({shown})", "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif isinstance(field.json_schema_extra, dict):
            options["choices"] = field.json_schema_extra["choices"]
        elif get_origin(kind) is tuple:
            members = [member for member in get_args(kind) if member is not Ellipsis]
            if get_origin(members[0]) is Literal:
                options |= {"nargs": "+", "choices": get_args(members[0])}
            else:
                options |= {"nargs": len(members), "type": members[0], "metavar": ("T", "A", "V")}
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper() if kind else None}
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"{_PREFIX}{name}", **options)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The config's settings that the call names: those of its flags, and of the file that --config names.

    Raises UsageError where the file cannot be used, or is of another mode than the flags: a file that names every
    setting, as those of `cmc tune` do, would leave nothing to the other mode but its name.
    """
    flags = {name.removeprefix(_PREFIX): value for name, value in vars(args).items() if name.startswith(_PREFIX)}
    stored = _read(args.config) if args.config else {}
    if stored.get("mode", flags.get("mode")) != flags.get("mode", stored.get("mode")):
        from cmc.config import UsageError

        raise UsageError(
            f"{args.config} holds settings for {stored['mode']} mode, and --mode asks for {flags['mode']}: "
            "give the settings by flags, or drop one of the two"
        )
    return stored | flags


def as_flags(settings: Mapping[str, Any]) -> str:
    """The flags that give these settings, for a command to type."""
    said = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            said.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            said.append(" ".join((f"--{flag}", *map(str, values))))
    return " ".join(said)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    from cmc.config import Config, UsageError

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is neither JSON nor YAML: {error}") from None
    if not isinstance(settings, dict) or not settings:
        raise UsageError(f"{path} holds no settings, such as `layers: 2`")
    if unknown := [str(name) for name in settings if name not in Config.model_fields]:
        raise UsageError(f"{path}: no setting {', '.join(unknown)}; there are: {', '.join(Config.model_fields)}")
    return settings


def config_of(args: argparse.Namespace, **more: Any) -> Any:
    from cmc.config import Config

    return Config(**(given_settings(args) | more))
