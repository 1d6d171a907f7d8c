from __future__ import annotations

import argparse

from pipelines.exits import Exit, UsageError
from pipelines.show import table

SUMMARY = "install or remove backends that need an environment of their own"
EXAMPLES = ("mmfeat backends list", "mmfeat backends install pyfaceau", "mmfeat backends path pyfaceau")


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="list|install|remove|path", required=True)
    actions.add_parser("list", help="names, licences, and which are installed")
    install = actions.add_parser("install", help="make the environment with pip, packages exactly as pinned")
    install.add_argument("name", metavar="NAME")
    install.add_argument("--python", default="", help="the Python to make it with, where this one does not fit")
    remove = actions.add_parser("remove", help="remove the environment; weights stay")
    remove.add_argument("name", metavar="NAME")
    path = actions.add_parser("path", help="print the environment's folder, or that of all of them")
    path.add_argument("name", metavar="NAME", nargs="?", default="")


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.backends import BACKENDS, environment

    if getattr(args, "name", "") and args.name not in BACKENDS:
        raise UsageError(f"no backend {args.name!r}; there are: {', '.join(BACKENDS)}")
    if args.action == "list":
        return _list()
    if args.action == "install":
        return _install(args.name, args.python)
    if args.action == "remove":
        removed = environment.remove(BACKENDS[args.name])
        print(f"{args.name}: {'removed' if removed else 'was not installed'}")
        return Exit.OK
    print(environment.environment(BACKENDS[args.name]) if args.name else environment.backends_folder())
    return Exit.OK


def _list() -> Exit:
    from mmfeat.backends import BACKENDS, environment

    rows = [
        (
            name,
            environment.state(backend) or "ready",
            backend.pinned,
            f"3.{backend.pythons[0]} to 3.{backend.pythons[1]}",
            backend.licence,
        )
        for name, backend in BACKENDS.items()
    ]
    table(f"Backends in {environment.backends_folder()}", ("name", "", "package", "Python", "licence"), rows)
    return Exit.OK


def _install(name: str, python: str) -> Exit:
    from mmfeat.backends import BACKENDS, environment

    backend = BACKENDS[name]
    print(f"{name}: licence: {backend.licence}", flush=True)
    folder = environment.install(backend, python, report=lambda step: print(f"{name}: {step}", flush=True))
    print(f"{name}: ready in {folder}")
    if command := backend.weights(folder):
        print(f"{name}: its weights, once you have read their licence: {command}")
    return Exit.OK
