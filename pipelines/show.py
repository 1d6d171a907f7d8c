"""Tables on standard output, for people; wide cells are folded, never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmfeat.layout import ClipStatus

NAMED = 3
"""Clips named per reason; all of them are in the feature file's /meta/clips."""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `numbers` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Content is shown as it is: a clip or a path may hold what rich would take for markup.
    shown = Table(box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a file has no width, and a path folded in two cannot be copied
    console.print(Text(title, "bold"), shown, sep="\n", soft_wrap=False)


def show_clips(clips: Iterable[ClipStatus]) -> None:
    """How many clips there are of each status and reason, and which: the first few by name."""
    named: dict[tuple[str, str], list[str]] = {}
    for clip in clips:
        named.setdefault((clip.status, clip.reason), []).append(clip.id)
    rows = []
    for (status, reason), ids in sorted(named.items(), key=lambda item: -len(item[1])):
        which = "" if status == "ok" else ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        rows.append((len(ids), status, reason, which))
    table("Clips of label.csv", ("clips", "status", "reason", "which"), rows, numbers=("clips",))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
