from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.overwrite import add_overwrite, check_overwrite
from pipelines.exits import Exit, UsageError
from pipelines.show import plural, table

SUMMARY = "join modalities of several feature files, clip by clip"
EXAMPLES = (
    "mmfeat merge a.h5 b.h5 -o c.h5 --take audio=b.h5",
    "mmfeat merge a.h5 b.h5 c.h5 -o d.h5 --take audio=b.h5 --take vision=c.h5 --intersect",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE.h5",
        help="feature files; the first gives the order, transcripts and labels, and the others must agree with it",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.h5", help="feature file to write")
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="PART=FILE.h5",
        help="take text, audio, vision or words (word times) from this one of the files; "
        "needed only for a part that was made in different ways",
    )
    parser.add_argument(
        "--intersect", action="store_true", help="keep the clips that all files have; otherwise they must have the same"
    )
    add_overwrite(parser)


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.merge import NAMED, PARTS, merge

    take: dict[str, Path] = {}
    for choice in args.take:
        part, _, path = choice.partition("=")
        if part not in PARTS or not path:
            raise UsageError(f"--take {choice}: it is PART=FILE.h5, with PART one of {', '.join(PARTS)}")
        if part in take:
            raise UsageError(f"--take {part} is given twice")
        take[part] = Path(path)
    if args.output.resolve() not in {path.resolve() for path in args.files}:  # which is never right
        check_overwrite(args, [args.output])
    merged = merge(args.files, args.output, take, args.intersect)
    rows = [(part, source.path, source.fingerprint) for part, source in merged.sources.items()]
    table(f"{args.output}: {plural(merged.clips, 'clip')}", ("part", "taken from", "fingerprint"), rows)
    if merged.left_out:
        named = ", ".join(merged.left_out[:NAMED]) + (", …" if len(merged.left_out) > NAMED else "")
        print(f"\n{plural(len(merged.left_out), 'clip')} left out, not in every file: {named}")
    return Exit.OK
