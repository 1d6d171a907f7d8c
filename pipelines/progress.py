"""How far a long step is: a bar with an estimate in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

PLAIN_EVERY = 5.0
"""Seconds between two lines where there is no terminal."""
QUIET_EVERY = 60.0
"""The same while nothing is done."""


class Report(Protocol):
    """What a step calls as it goes on: how many are done, of how many, and anything worth saying beside
    it."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(label: str, unit: str = "clips", stream: TextIO | None = None) -> Iterator[Report]:
    """Show the progress of the step `label` on `stream` (stderr, so that a command's output stays clean)."""
    stream = stream or sys.stderr
    with _bar(label, unit, stream) if stream.isatty() else _lines(label, unit, stream) as report:
        yield report


@contextmanager
def _bar(label: str, unit: str, stream: TextIO) -> Iterator[Report]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        # A short window makes the estimate jump: clips differ in length, and workers finish in bursts.
        TimeRemainingColumn(),
    )
    console = Console(file=stream)
    bars = Progress(*columns, console=console, speed_estimate_period=120)
    bar, said = bars.add_task(label, total=None), Text(style="dim")
    with Live(Group(bars, said), console=console):

        def report(done: int, total: int, note: str = "") -> None:
            bars.update(bar, completed=done, total=total)
            said.plain = note

        yield report


@contextmanager
def _lines(label: str, unit: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    started = shown = clock()
    latest = last_shown = (0, 0, "")
    first: tuple[float, int] | None = None

    def show(left: str) -> None:
        nonlocal shown, last_shown
        shown, last_shown = clock(), latest
        done, total, note = latest
        parts = [f"{label}: {done} of {total} {unit}", note, left]
        print(", ".join(part for part in parts if part), file=stream, flush=True)

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal latest, first
        before, latest = latest, (done, total, note)
        if first is None and done:
            # What was there before, and the loading of models before the first result, say nothing about the speed.
            first = clock(), done
        said_otherwise = done == before[0] and note not in (before[2], last_shown[2])
        is_news = first and done > last_shown[0]
        if said_otherwise or clock() - shown >= (PLAIN_EVERY if is_news else QUIET_EVERY):
            left = 0.0
            if is_news and first and done > first[1]:
                left = (clock() - first[0]) / (done - first[1]) * (total - done)
            show(f"about {duration(left)} left" if left else "")

    yield report
    if latest != last_shown:
        show(f"{duration(clock() - started)} in all")


def duration(seconds: float) -> str:
    """`8 s`, `3 min 05 s`, `2 h 03 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
