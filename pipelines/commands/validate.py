from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.exits import Exit
from pipelines.show import plural, table

if TYPE_CHECKING:
    from mmfeat.validate import Finding, Report

SUMMARY = "check a feature file, or a pickle of MMSA, for everything that can be wrong with it"
EXAMPLES = ("mmfeat validate features.h5", "mmfeat validate unaligned_39.pkl --label-range -1 1 --json > report.json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a feature file (.h5), or features of MMSA (.pkl)")
    parser.add_argument(
        "--label-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="labels outside are errors (default: -3 3, the widest in use)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> Exit:
    from mmfeat.corpus import LABEL_RANGE
    from mmfeat.validate import validate

    report = validate(args.file, tuple(args.label_range) if args.label_range else LABEL_RANGE)
    if args.json:
        _print_json(report)
    else:
        _print_table(report)
    return Exit.SOME_FAILED if report.errors else Exit.OK


def _print_json(report: Report) -> None:
    import json

    content = asdict(report) | {
        "path": str(report.path),
        "errors": report.errors,
        "warnings": len(report.findings) - report.errors,
    }
    print(json.dumps(content, ensure_ascii=False, indent=1))


def _print_table(report: Report) -> None:
    clips = ", ".join(f"{split} {count}" for split, count in report.clips.items()) or "none"
    print(f"{report.path}, features of {report.format}, clips: {clips}")
    if report.separator:
        print(f"Separator of transcripts {report.separator}")
    for note in report.left_out:
        print(f"Not checked: {note}")
    if report.findings:
        print()
        rows = [
            (f.severity, f.check, f.split, f"{f.meaning}: {f.advice}", f.count or "", _which(f))
            for f in report.findings
        ]
        table("Findings", ("", "check", "split", "what it is: what to do", "clips", "which"), rows, numbers=("clips",))
    print(f"\n{plural(report.errors, 'error')}, {plural(len(report.findings) - report.errors, 'warning')}")


def _which(finding: Finding) -> str:
    return ", ".join(finding.clips) + (", …" if finding.count > len(finding.clips) else "")
