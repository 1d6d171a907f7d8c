from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.extract import add_transcribe, recipe_of
from pipelines.exits import Exit
from pipelines.progress import duration
from pipelines.show import table

SUMMARY = "extract one media file and show what was measured"
EXAMPLES = (
    'mmfeat clip interview.mp4 --text "what a lovely day"',
    'mmfeat clip interview.mp4 --text "what a lovely day" --plot clip.png',
    "mmfeat clip long.mkv --start 12.5 --end 15",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("media", type=Path, metavar="MEDIA", help="any video or audio file")
    parser.add_argument("--text", default="", help="what is said in it")
    parser.add_argument("--recipe", default="default", metavar="NAME|FILE.yaml", help="what to extract, and how")
    add_transcribe(parser)
    parser.add_argument("--start", type=float, metavar="SECONDS", help="cut the clip out of a longer file: from")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="cut the clip out of a longer file: to")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw frames with landmarks, sound with words, pitch and measures"
    )


def run(args: argparse.Namespace) -> Exit:
    import mmfeat

    recipe = recipe_of(args)
    recipe.check()  # which names all that is missing, not only what is asked for first
    found = mmfeat.extract(args.media, args.text, recipe, start=args.start, end=args.end)
    reason = f" ({found.reason})" if found.reason else ""
    print(f"{args.media}: {duration(found.seconds)}, {found.status}{reason}")
    if found.sound:
        print(f"sound as recorded: {found.sound}")
    print()
    for modality, track in found.tracks.items():
        valid = track.values[track.valid]
        if not len(valid):
            print(f"{modality}: nothing measured in {len(track)} steps\n")
            continue
        rows = [
            (name, f"{column.mean():.4g}", f"{column.std():.4g}", f"{column.min():.4g}", f"{column.max():.4g}")
            for name, column in zip(track.names, valid.T, strict=True)
        ]
        share = track.valid.mean()
        title = f"{modality}: {len(track)} steps of {len(track.names)} columns, {share:.0%} valid"
        table(title, ("column", "mean", "std", "min", "max"), rows, numbers=("mean", "std", "min", "max"))
        print()
    print(f"text: {len(found.text.ids)} wordpieces, {found.text.values.shape[1]} columns")
    if found.transcript:
        print(f"heard: {found.transcript}")
    for word in found.words:
        print(f"  {word.start:7.3f} {word.end:7.3f}  {word.text}")
    if args.plot:
        from mmfeat.plot import plot_clip

        plot_clip(args.media, args.text or found.transcript, recipe, args.plot, args.start, args.end)
        print(f"\n{args.plot}: drawn")
    return Exit.OK
