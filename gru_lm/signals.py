"""Signal handling by a polled flag.

The handler does no I/O: it only records the signal. Long-running code polls `StopFlag.check` between
units of work (a training step, a validation batch, a tokenized block, a sampled token), then saves and
exits. A second Ctrl-C interrupts immediately. Independent of training and of the terminal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gru_lm.errors import Stopped

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Stop = Callable[[], None]  # polled between units of work; raises Stopped after a signal


def never() -> None:
    """Do nothing: the default `stop`, for callers that handle no signals."""


def unheard(_: object) -> None:
    """Default for `progress` and `note` callbacks: ignores its argument."""


class StopFlag:
    """The first signal received, if any.

    >>> flag = StopFlag()
    >>> flag.signum is None
    True
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Record the first signal (the signal handler); raise KeyboardInterrupt on a later SIGINT."""
        del frame
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum

    def check(self) -> None:
        """Raise Stopped if a signal has been received."""
        if self.signum is not None:
            raise Stopped(self.signum)


@contextmanager
def watch_signals() -> Iterator[StopFlag]:
    """Record SIGINT, SIGTERM and SIGHUP in the flag; restore the previous handlers on exit."""
    flag = StopFlag()
    previous = {signum: signal.getsignal(signum) for signum in WATCHED}
    for signum in WATCHED:
        # Signals ignored by the parent stay ignored: SIGHUP under nohup, SIGINT after a shell's `&`.
        if previous[signum] is not signal.SIG_IGN:
            signal.signal(signum, flag.handle)
    try:
        yield flag
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
