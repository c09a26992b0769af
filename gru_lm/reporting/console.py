"""Terminal output: progress and notes on stderr, results on stdout. The only module that imports rich.

Progress is a live bar with an ETA on a terminal, and otherwise occasional plain lines without escape
codes or carriage returns. NO_COLOR and TERM=dumb are respected (by rich). The content of messages and
tables is left to the callers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gru_lm import __version__
from gru_lm.layout import JSON_MARK

FIRST_INTERVAL = 2.0  # seconds before the first plain progress line; each interval doubles ...
MAX_INTERVAL = 60.0  # ... up to this

_stderr = RichConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Advance(Protocol):
    """Callback that reports progress by `amount`, with an optional line of figures to display."""

    def __call__(self, amount: float, figures: str = "") -> None: ...


def note(text: str) -> None:
    """Print a line on stderr."""
    _stderr.print(text)


def warn(text: str) -> None:
    """Print a highlighted warning on stderr."""
    _stderr.print(f"warning: {text}", style="yellow")


def error(text: str, *, why: str | None = None, hint: str | None = None) -> None:
    """Print an error on stderr: what went wrong, why, and how to fix it, one line each."""
    _stderr.print(f"error: {_one_line(text)}", style="bold red")
    if why:
        _stderr.print(_one_line(why))
    if hint:
        _stderr.print(f"hint: {_one_line(hint)}")


def result(text: str) -> None:
    """Print a result on stdout; file names that are not UTF-8 are escaped as \\udcXX."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def result_json(value: Mapping[str, Any]) -> None:
    """Print a result on stdout as one line of JSON. Raises ValueError for NaN and infinities."""
    result(json.dumps(marked(value), ensure_ascii=False, allow_nan=False))


def marked(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the version of gru-lm first, by which layout.py recognises our JSON."""
    return {JSON_MARK: __version__, **value}


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, aligned on a terminal and tab-separated in a pipe.

    The first column is left-aligned, the others are right-aligned.
    """
    rows = [[_plain(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (headers, *rows):
            result("\t".join(row))
        return
    rich_table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        rich_table.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        rich_table.add_row(*row)
    RichConsole(highlight=False, markup=False).print(rich_table)


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Advance]:
    """Show progress of `what` inside the block; yields the function that advances it."""
    if _stderr.is_terminal and not _stderr.is_dumb_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_stderr, transient=True, refresh_per_second=4) as bar:
            task = bar.add_task(what, total=total, figures="")

            def advance(amount: float, figures: str = "") -> None:
                if figures:
                    bar.update(task, advance=amount, figures=figures)
                else:
                    bar.update(task, advance=amount)

            yield advance
        return
    yield _Lines(what, total)


class _Lines:
    """Progress as plain lines, at intervals that double from FIRST_INTERVAL to MAX_INTERVAL."""

    def __init__(self, what: str, total: float | None) -> None:
        self.what, self.total = what, total
        self.done = 0.0
        # Time and amount of the first report. The pace is measured from there: the time before includes
        # preparation, and the first report of a resumed task covers all earlier work.
        self.first: tuple[float, float] | None = None
        self.interval = FIRST_INTERVAL
        self.due = time.monotonic() + self.interval

    def __call__(self, amount: float, figures: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        since, before = self.first = self.first or (now, self.done)
        if now < self.due:
            return
        self.interval = min(2 * self.interval, MAX_INTERVAL)
        self.due = now + self.interval
        line = self.what
        if self.total:
            line += f" {min(1.0, self.done / self.total):4.0%}"
            if self.done > before:
                left = (now - since) * max(0.0, self.total - self.done) / (self.done - before)
                line += f", {int(left) // 60}:{int(left) % 60:02d} left"
        note(f"{line}  {figures}".rstrip())


def _one_line(text: str) -> str:
    return _plain(" ".join(text.split()))


def _plain(text: str) -> str:
    # Escape control characters, which could come from a file name and break the terminal or a row.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
