"""A gru-lm process that waits at a given point for a signal: python hold_at.py POINT ARGS...

At the point it creates the file `here`, and continues once a signal handler has run (SIGNALS times, if
set). A test can thus deliver a signal at exactly that point.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gru_lm import atomic, cli
from gru_lm.commands.train import fit
from gru_lm.signals import StopFlag
from gru_lm.text import store
from gru_lm.training import directory as run_directory
from gru_lm.training import optimizers

came: list[int] = []
wanted = int(os.environ.get("SIGNALS", "1"))
original_handle = StopFlag.handle


def handle(self: StopFlag, signum: int, frame: Any) -> None:
    came.append(signum)
    original_handle(self, signum, frame)


def hold() -> None:
    """Announce the point, and wait for the signal."""
    if not Path("here").exists():
        Path("here").touch()
        deadline = time.monotonic() + 60
        while len(came) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)


def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Wait before a call of `owner.name`."""
    original = getattr(owner, name)

    def held(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            hold()
        return original(*args, **options)

    setattr(owner, name, held)


POINTS: dict[str, Callable[[], None]] = {
    "tokenising": lambda: before(store, "_packed"),
    "first step": lambda: before(optimizers.Schedule, "__call__"),
    "mid-step": lambda: before(
        optimizers.Schedule, "__call__", lambda _, progress: progress >= 0.5
    ),
    "validation": lambda: before(fit, "measure_tokens"),
    "sampling": lambda: before(fit, "complete"),
    "saving": lambda: before(
        atomic, "write_bytes", lambda path, _: path.name == "step-00000004.safetensors"
    ),
    "renaming": lambda: before(atomic.Path, "rename", lambda path, _: "00000004" in path.name),
    "linking the best": lambda: before(run_directory.atomic, "link"),
}


def main() -> int:
    StopFlag.handle = handle  # type: ignore[method-assign]
    POINTS[sys.argv[1]]()
    return cli.run(sys.argv[2:], started=time.monotonic())


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.exit(main())
