"""Signals become a flag, and nothing else.

The handler does no I/O: it notes the signal, and whoever works polls `StopFlag.check` between two
units of work (a step, a validation batch, a tokenised chunk, a sampled token), saves and leaves. A
second Ctrl-C leaves at once. Knows nothing of training or of terminals.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gru_lm.errors import Stopped

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Stop = Callable[[], None]  # what is polled: it raises Stopped once we are to leave


def never() -> None:
    """The default of a `stop`: nobody asks us to."""


class StopFlag:
    """Which signal asked us to leave, if any.

    >>> flag = StopFlag()
    >>> flag.signum is None
    True
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: note the first signal; a second SIGINT interrupts at once."""
        del frame
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signum is not None:
            raise Stopped(self.signum)


@contextmanager
def watch_signals() -> Iterator[StopFlag]:
    """While inside, SIGINT, SIGTERM and SIGHUP set the flag; then the old handlers are back."""
    flag = StopFlag()
    previous = {signum: signal.getsignal(signum) for signum in WATCHED}
    for signum in WATCHED:
        # A parent that ignores SIGHUP (nohup) or SIGINT (a shell's &) means it.
        if previous[signum] is not signal.SIG_IGN:
            signal.signal(signum, flag.handle)
    try:
        yield flag
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
