from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.exits import Exit
from pipelines.show import table

SUMMARY = "say what is installed, what is missing, and the command that gets it"
EXAMPLES = ("mmfeat doctor",)

PACKAGES = (
    "numpy", "av", "opencv-python-headless", "ai-edge-litert", "librosa", "torch", "transformers", "pocketsphinx",
    "espeakng-loader", "h5py", "dask", "distributed", "safetensors",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load", action="store_true", help="load every model of the default recipe too: seconds")


def run(args: argparse.Namespace) -> Exit:
    table("Packages", ("package", "version"), _versions())
    print()
    table("Extractors and aligners", ("name", "for", "state", "what it is"), _backends())
    print()
    table("Models", ("model", "state"), _models())
    print()
    table("Machine", ("what", "here"), _machine())
    print()
    trouble = default_recipe_trouble(args.load)
    print(f"The default recipe cannot run: {trouble}" if trouble else "The default recipe can run.")
    return Exit.SOME_FAILED if trouble else Exit.OK


def default_recipe_trouble(load: bool) -> str:
    """Why the default recipe cannot run on this machine; empty where its packages and models are there, and, with
    `load`, can be loaded."""
    from mmfeat.recipe import RecipeError, load_recipe
    from mmfeat.registry import MissingBackendError

    try:
        recipe = load_recipe("default")
        recipe.check()
        for part in recipe.parts() if load else ():
            recipe.make(part)
    except (MissingBackendError, RecipeError) as error:
        return str(error)
    return ""


def _versions() -> Iterator[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    from mmfeat import __version__

    yield "python", platform.python_version()
    yield "mmfeat", __version__
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, f"missing: pip install {package}"


def _backends() -> Iterator[tuple[str, str, str, str]]:
    from mmfeat import extractors, words

    for extractor in extractors.ENTRIES.values():
        source = f" ({extractor.distribution})" if extractor.distribution else ""
        yield extractor.name, extractor.modality, _state(extractor), extractor.summary + source
    for name, reason in extractors.BROKEN.items():
        yield name, "", f"broken: {reason}", ""
    for aligner in words.ENTRIES.values():
        yield aligner.name, "words", _state(aligner), aligner.summary


def _state(entry: Any) -> str:
    if missing := entry.missing():
        return f"missing {', '.join(missing)}: {entry.install}"
    program = entry.program.missing() if entry.program else ""
    return f"missing {program}" if program else "ready"


def _models() -> Iterator[tuple[str, str]]:
    from mmfeat import models

    for name in models.MODELS:
        state = models.state(name)
        yield name, state if state == "here" else f"{state}: mmfeat models pull {name}"


def _machine() -> Iterator[tuple[str, str]]:
    import psutil

    from mmfeat import models
    from mmfeat.dask_client import default_workers

    yield "cores that may be used", str(default_workers())
    memory = psutil.virtual_memory()
    yield "memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"
    for what, folder in (("disk here", Path.cwd()), ("disk of the model cache", models.cache())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        yield what, f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB free at {folder}"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "MMFEAT_MODELS", os.environ.get("MMFEAT_MODELS", "not set")
