from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipelines.exits import Exit, UsageError
from pipelines.show import table

SUMMARY = "find when each word of a transcript is spoken"
EXAMPLES = (
    'mmfeat align interview.mp4 --text "what a lovely day"',
    'mmfeat align speech.wav --text "go forward ten meters" --json > words.json',
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("media", type=Path, metavar="MEDIA", help="any video or audio file")
    parser.add_argument("--text", required=True, help="what is said in it")
    parser.add_argument("--recipe", default="default", metavar="NAME|FILE.yaml", help="its `words` section is used")
    parser.add_argument("--start", type=float, metavar="SECONDS", help="cut the clip out of a longer file: from")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="cut the clip out of a longer file: to")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.media import MediaError, open_media
    from mmfeat.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    if recipe.words is None:
        raise UsageError(f"recipe {recipe.name!r} has no `words` section")
    with open_media(args.media, args.start, args.end) as media:
        media.skip_video()
        sound = media.waveform()
    if sound is None or not len(sound.samples):
        raise MediaError(f"{args.media} has no sound")
    words = recipe.make("words")(sound, args.text)
    rows = [{"word": w.text, "start": w.start, "end": w.end, "confidence": w.confidence} for w in words]
    if args.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        shown = [(w.text, f"{w.start:.3f}", f"{w.end:.3f}", f"{w.confidence:.2f}") for w in words]
        columns = ("word", "start", "end", "confidence")
        table(f"{args.media}, seconds", columns, shown, numbers=columns[1:])
    return Exit.OK
