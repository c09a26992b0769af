"""Training batches as a pure function of an integer position: resuming needs no loader state.

The text is a circle cut into B equal arcs. Stream b starts at arc b and runs on, T tokens a step, for
ever: after one epoch it goes on in the next stream's arc. So the carried state always fits the text,
no token is left out, and there is no seam between epochs but the end of the text itself.

Now and then a stream's state is reset to zero, wherever it is, so that the zero state is not foreign to
the model: after the end of a line it means a start, as for the first token of a document; elsewhere it
must not be mistaken for one. Knows nothing of models or devices.

Shapes: B batch (streams), T time (steps of backpropagation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESET = 0.01  # the probability that a stream starts anew at a step


@dataclass(frozen=True)
class Batch:
    """inputs_BT predict targets_BT (int64); reset_B says whose state must first be zeroed."""

    inputs_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    reset_B: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of one token store.

    >>> batches = Batches(tokens=np.arange(10), batch=2, bptt=3, seed=0)
    >>> batches(1).targets_BT
    array([[4, 5, 6],
           [9, 0, 1]])
    """

    tokens: NDArray[np.integer]
    batch: int
    bptt: int
    seed: int

    def __call__(self, position: int) -> Batch:
        """The batch of step `position`, counted from 0 over all epochs."""
        size = len(self.tokens)
        starts_B = np.arange(self.batch) * size // self.batch + position * self.bptt
        window_BT = self.tokens[(starts_B[:, None] + np.arange(self.bptt + 1)) % size]
        window_BT = window_BT.astype(np.int64)
        reset_B = np.random.default_rng((self.seed, position)).random(self.batch) < RESET
        return Batch(window_BT[:, :-1], window_BT[:, 1:], reset_B)
