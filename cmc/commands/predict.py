from __future__ import annotations

import argparse
from pathlib import Path

from cmc.commands.exits import OK
from cmc.commands.flags import add_device

SUMMARY = "one clip → probabilities"
DESCRIPTION = """\
Classify one clip: extracts its features with the recipe that the run stores."""
EXAMPLES = (
    'cmc predict runs/first clip.mp4 --text "what a lovely day"',
    'cmc predict runs/first clip.mp4 --text "what a lovely day" --json',
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("clip", type=Path, metavar="CLIP", help="video or sound file")
    parser.add_argument("--text", default="", help="what is said in it")
    parser.add_argument("--start", type=float, metavar="SECONDS", help="where the clip begins within the file")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="where it ends")
    parser.add_argument(
        "--complete", action="store_true", help="make up what the clip lacks from what it has (--pretrain generation)"
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from cmc import seeds
    from cmc.predict import predict

    folder = seeds.best(args.folder)
    prediction = predict(folder, args.clip, args.text, args.start, args.end, args.complete, args.device)
    if args.json:
        print(json.dumps(prediction.plain(), indent=1, ensure_ascii=False))
    else:
        from cmc.report import show_prediction

        show_prediction(prediction)
    return OK
