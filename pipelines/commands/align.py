from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.exits import Exit, UsageError
from pipelines.show import table

if TYPE_CHECKING:
    from mmfeat.recipe import Recipe
    from mmfeat.track import Waveform, Word

ENDINGS = ".json, .TextGrid, .ctm, .srt, .vtt, .csv"
PICTURES = (".png", ".svg", ".pdf")
SUMMARY = "find when each word of a transcript is spoken"
EXAMPLES = (
    'mmfeat align interview.mp4 --text "what a lovely day"',
    "mmfeat align interview.mp4 --text-file said.txt -o words.TextGrid --plot words.png",
    'mmfeat align speech.wav --text "go forward" --words speech.srt -o speech.TextGrid',
    'mmfeat align speech.wav --text "你好" --language zh --model models/wav2vec2-chinese',
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("media", type=Path, metavar="MEDIA", help="any video or audio file")
    said = parser.add_mutually_exclusive_group(required=True)
    said.add_argument("--text", help="what is said in it")
    said.add_argument("--text-file", type=Path, metavar="FILE", help="what is said in it, in a file of text")
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help=f"write {ENDINGS}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the sound, the words and their confidence; .png, .svg, .pdf"
    )
    parser.add_argument("--language", type=_name, metavar="CODE", help="ISO 639-1; otherwise the recipe's")
    parser.add_argument(
        "--aligner", type=_name, metavar="NAME", help="pocketsphinx, ctc or given; otherwise the recipe's"
    )
    parser.add_argument(
        "--model", type=_name, metavar="NAME|FOLDER", help="a transformers CTC model, for the aligner ctc"
    )
    parser.add_argument("--words", type=_file, metavar="FILE", help="a file of word times, for the aligner given")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the aligner; repeatable"
    )
    parser.add_argument("--recipe", default="default", metavar="NAME|FILE.yaml", help="its `words` section is used")
    parser.add_argument(
        "--start", type=float, metavar="SECONDS", help="only from here; times still count from MEDIA's start"
    )
    parser.add_argument("--end", type=float, metavar="SECONDS", help="only up to here")


def _name(written: str) -> str:
    if not written.strip():  # an unset variable of a shell, which is not to choose anything silently
        raise argparse.ArgumentTypeError("it is empty")
    return written


def _file(written: str) -> Path:
    return Path(_name(written))


def run(args: argparse.Namespace) -> Exit:
    """Times count from the start of MEDIA, also with --start: so do the files of words that --words reads."""
    from mmfeat.words import formats
    from mmfeat.words.transcript import tokens

    if args.out and args.out.suffix.lower() not in formats.WRITERS:
        raise UsageError(f"-o {args.out}: the ending must be one of {ENDINGS}")
    if args.plot and args.plot.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {args.plot}: the ending must be one of {', '.join(PICTURES)}")
    text, recipe = _text(args), _recipe(args)
    if not tokens(text):
        raise UsageError(f"{'--text' if args.text is not None else args.text_file}: there is no word in it to align")
    sound = _sound(args)
    origin = args.start or 0.0
    found = _words(args, recipe, sound, text)
    words = [replace(word, start=word.start + origin, end=word.end + origin) for word in found]
    if args.out:
        formats.write(words, args.out, sound.seconds + origin)
    if args.plot:
        from mmfeat.plot_words import PictureError, plot_words

        try:
            plot_words(sound, words, args.plot, origin, title=args.media.name)
        except PictureError as error:
            raise UsageError(f"--plot: {error}") from None
    if args.json:
        print(json.dumps(formats.rows(words), ensure_ascii=False, indent=1))
        return Exit.OK
    shown = [(w.text, f"{w.start:.3f}", f"{w.end:.3f}", f"{w.confidence:.2f}") for w in words]
    columns = ("word", "start", "end", "confidence")
    table(f"{args.media}, seconds", columns, shown, numbers=columns[1:])
    if written := [str(path) for path in (args.out, args.plot) if path]:
        print(f"\n{', '.join(written)}: written")
    return Exit.OK


def _text(args: argparse.Namespace) -> str:
    if args.text is not None:
        return args.text
    from mmfeat.words.formats import decode

    try:
        return decode(args.text_file.read_bytes())
    except ValueError as error:
        raise UsageError(f"{args.text_file}: {error}") from None


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe with what the command line says of its `words` section."""
    import yaml

    from mmfeat.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    section = dict(recipe.words or {})
    of_option = "given" if args.words is not None else "ctc" if args.model is not None else section.get("aligner")
    name = args.aligner if args.aligner is not None else of_option
    if name is None:
        raise UsageError(f"recipe {recipe.name!r} has no `words` section: choose an aligner with --aligner")
    if name != section.get("aligner"):
        section = {"aligner": name}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: a setting is written KEY=VALUE")
        key = key.strip()
        if key == "aligner":
            raise UsageError(f"--set {setting}: the aligner is chosen with --aligner")
        try:
            section[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            section[key] = value
    if args.model is not None:
        section["model"] = args.model
    if args.words is not None and name != "given":
        raise UsageError(f"--words is for the aligner given, not for {name}")
    return recipe.changed(words=section, language=recipe.language if args.language is None else args.language)


def _sound(args: argparse.Namespace) -> Waveform:
    from mmfeat.media import CutError, MediaError, open_media

    try:
        with open_media(args.media, args.start, args.end) as media:
            media.skip_video()
            sound = media.waveform()
    except CutError as error:
        raise UsageError(f"{args.media}: {error}") from None
    except MediaError as error:
        raise MediaError(f"{args.media}: {error}") from None
    if sound is None or not len(sound.samples):
        raise MediaError(f"{args.media} has no sound")
    return sound


def _words(args: argparse.Namespace, recipe: Recipe, sound: Waveform, text: str) -> list[Word]:
    from mmfeat.corpus import Clip
    from mmfeat.words import AlignmentError

    given = {"words": args.words} if args.words else {}
    clip = Clip("", args.media.stem, "test", args.media, text, math.nan, start=args.start, end=args.end, given=given)
    clip = recipe.locate(clip)
    aligner: Any = recipe.make("words")
    try:
        return aligner(sound, text, clip) if "words" in clip.given else aligner(sound, text)
    except AlignmentError as error:
        raise AlignmentError(f"{args.media}: {error}") from None
