from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.overwrite import add_overwrite, check_overwrite
from pipelines.exits import Exit, UsageError

SUMMARY = "turn MMSA's pickled features into a feature file, or a feature file into MMSA's"
EXAMPLES = (
    "mmfeat convert unaligned_39.pkl sims.h5 --text-model bert-base-chinese --language zh",
    "mmfeat convert sims.h5 again.pkl",
    "mmfeat convert features.h5 features.pkl --dialect mosi",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FROM", help=".pkl of MMSA or MMSA-FET, or a feature file (.h5)")
    parser.add_argument("out", type=Path, metavar="TO", help="the other: .h5 or .pkl")
    parser.add_argument(
        "--dialect",
        choices=("sims", "simsv2", "mosi", "mosei"),
        help="data set as which MMSA is to load the .pkl; sims and simsv2 need unimodal labels",
    )
    parser.add_argument(
        "--text-model", metavar="NAME", help="encoder that made a .pkl's text and token ids, to finetune it"
    )
    parser.add_argument("--language", metavar="CODE", help="of a .pkl's transcripts, ISO 639-1")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.mmsa import is_pickle

    if is_pickle(args.source) == is_pickle(args.out):
        raise UsageError(f"one of the two must end in .pkl, the other in .h5: {args.source}, {args.out}")
    if is_pickle(args.source):
        from mmfeat.mmsa.read import convert

        if args.dialect:
            raise UsageError("--dialect is for writing a .pkl")
        check_overwrite(args, [args.out])
        print(convert(args.source, args.out, args.text_model or "", args.language or ""))
        print(f"next: cmc train {args.out} -o RUN{'' if args.text_model else ' --text freeze'}")
        return Exit.OK

    from mmfeat.mmsa.write import config_of, export

    if args.text_model or args.language:
        raise UsageError("--text-model and --language are for reading a .pkl")
    check_overwrite(args, [args.out, config_of(args.out)])
    config = export(args.source, args.out, args.dialect or "")
    print(args.out)
    if config:
        print(f"{config}: the config that MMSA_run needs for it")
    else:
        print("no config for MMSA, which cannot load this file: see docs/mmsa.md, or name a --dialect")
    return Exit.OK
