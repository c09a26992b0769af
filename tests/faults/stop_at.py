"""A gru-lm process that stops, as after SIGTERM, right after a step: python stop_at.py STEP ARGS..."""

from __future__ import annotations

import signal
import sys
from typing import Any

from gru_lm import cli
from gru_lm.commands.train import fit
from gru_lm.errors import Stopped


def main() -> int:
    step, args = int(sys.argv[1]), sys.argv[2:]
    original = fit.Trainer.__post_init__

    def with_stop(self: fit.Trainer) -> None:
        original(self)
        original_stop = self.stop

        def stop() -> None:
            original_stop()
            if self.state.step >= step:
                raise Stopped(signal.SIGTERM)

        self.stop = stop

    fit.Trainer.__post_init__ = with_stop  # type: ignore[method-assign]
    return cli.run(args, started=0.0)


if __name__ == "__main__":
    result: Any = main()
    sys.exit(result)
