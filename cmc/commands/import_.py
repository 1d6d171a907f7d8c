from __future__ import annotations

import argparse
from pathlib import Path

from cmc.commands.exits import OK
from cmc.commands.flags import add_threads, config_of, use_threads

SUMMARY = "published weights → run folder"
DESCRIPTION = """\
Make a run folder of the published code's multimodal weights, for cmc evaluate and cmc predict: a state dict (.pt, .pth,
.safetensors), its text encoder's weights included. Layers and width are read off it; give the settings that weights do
not tell, --heads before all. FEATURES is the file that it is to work on; its recipe must name the text encoder.

Pickles of whole modules, as the published code writes them, are refused, since loading one runs the code it names.
In the published code, torch.save(model.state_dict(), "weights.pt") writes the weights alone."""
EXAMPLES = (
    "mmfeat convert sims.pkl sims.h5 --text-model bert-base-chinese",
    "cmc import weights.pt sims.h5 -o runs/published --heads 4",
    "cmc evaluate runs/published sims.h5",
)
CONFIG = True
WITHOUT = ("precision",)  # of training


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="state dict")
    parser.add_argument("features", type=Path, metavar="FEATURES", help="feature file (.h5)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="folder for the run")
    parser.add_argument("--overwrite", action="store_true", help="replace what run there is")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from cmc import seeds
    from cmc.commands.flags import given_settings
    from cmc.importer import import_weights
    from cmc.report import percent
    from cmc.run import RunError

    use_threads(args)
    config = config_of(args, mode=given_settings(args).get("mode", "reference"))
    if any((args.out / name).exists() for name in ("run.json", seeds.INDEX)) and not args.overwrite:
        raise RunError(f"{args.out} holds a run: choose another folder, or --overwrite")
    (args.out / seeds.INDEX).unlink(missing_ok=True)
    record = import_weights(args.weights, args.features, args.out, config)
    print(
        f"{args.out}: {record.config.layers} layers, width {record.config.width}, {record.config.heads} heads; "
        f"validation accuracy {percent(record.validation['accuracy'])} %"
    )
    print(f"next: cmc evaluate {args.out} {args.given}")
    return OK
