from __future__ import annotations

import argparse
import json
import textwrap

from pipelines.exits import Exit

SUMMARY = "print a recipe with every setting, its default and what it means"
EXAMPLES = ("mmfeat recipe > mine.yaml", "mmfeat recipe mine.yaml")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", default="default", metavar="NAME|FILE.yaml", help="default: `default`")


def run(args: argparse.Namespace) -> Exit:
    """What is printed is a recipe again: the very same one, spelled out."""
    from mmfeat.recipe import PARTS, load_recipe

    recipe = load_recipe(args.recipe)
    spelled_out = recipe.resolved()

    def show(name: str, value: object, meaning: str | None, indent: str = "") -> None:
        for line in textwrap.wrap(meaning or "", 110):
            print(f"{indent}# {line}")
        print(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}")  # JSON is YAML on one line

    for name, field in type(recipe).model_fields.items():
        if name not in PARTS or not spelled_out[name]:
            show(name, spelled_out[name], field.description)
            continue
        print(f"{name}:  # {field.description}")
        fields = type(recipe.config(name)).model_fields
        for setting, value in spelled_out[name].items():
            show(setting, value, fields[setting].description if setting in fields else None, "  ")
    return Exit.OK
