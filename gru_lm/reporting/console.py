"""The terminal: progress and notes on stderr, results on stdout. The only importer of rich.

On a terminal there is a live bar with an ETA; elsewhere a plain line now and then, without escape
codes or carriage returns. rich honours NO_COLOR and TERM=dumb. Knows nothing of what the figures mean.
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

FIRST_LINE = 2.0  # seconds before a plain progress line; the next ones come ever more slowly
SLOWEST = 60.0

_stderr = RichConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Advance(Protocol):
    """How work reports that `amount` more of it is done, with an optional line of figures."""

    def __call__(self, amount: float, figures: str = "") -> None: ...


def note(text: str) -> None:
    """A line on stderr."""
    _stderr.print(text)


def warn(text: str) -> None:
    """A line on stderr that should not be overlooked."""
    _stderr.print(f"warning: {text}", style="yellow")


def error(text: str, *, why: str | None = None, hint: str | None = None) -> None:
    """What went wrong, why, and what mends it: at most three lines on stderr."""
    _stderr.print(f"error: {_one_line(text)}", style="bold red")
    if why:
        _stderr.print(_one_line(why))
    if hint:
        _stderr.print(f"hint: {_one_line(hint)}")


def result(text: str) -> None:
    """A result on stdout. What is not Unicode in it, of the name of a file, is written as \\udcXX."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def result_json(value: Mapping[str, Any]) -> None:
    """A result on stdout, as one line of JSON, marked as ours."""
    result(json.dumps(marked(value), ensure_ascii=False, allow_nan=False))


def marked(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with the mark that layout.py knows JSON of ours by: the version that wrote it."""
    return {JSON_MARK: __version__, **value}


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn on a terminal, tab-separated in a pipe. The first column is text."""
    rows = [[_plain(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (headers, *rows):
            result("\t".join(row))
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        drawn.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    RichConsole(highlight=False, markup=False).print(drawn)


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Advance]:
    """Show progress on `what` while inside; yields the function that advances it."""
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
    """Progress as plain lines: the first after two seconds, then each after twice the pause."""

    def __init__(self, what: str, total: float | None) -> None:
        self.what, self.total = what, total
        self.done = 0.0
        # When the first part was done, and how much it was. The pace is measured from there on: before,
        # there were preparations, and of what is resumed the first part is all that was done before.
        self.first: tuple[float, float] | None = None
        self.pause = FIRST_LINE
        self.due = time.monotonic() + self.pause

    def __call__(self, amount: float, figures: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        since, before = self.first = self.first or (now, self.done)
        if now < self.due:
            return
        self.pause = min(2 * self.pause, SLOWEST)
        self.due = now + self.pause
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
    # A name from somebody's file must not steer the terminal, nor part a row.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
