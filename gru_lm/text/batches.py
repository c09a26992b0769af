"""Training batches as a pure function of the step number: resuming needs no loader state.

The text is treated as circular and split into B equal parts. Stream b starts at part b and advances by
T tokens per step, indefinitely: after one epoch it continues into the next stream's part. Hence the
carried state always matches the preceding text, no token is skipped, and the only discontinuity is the
end of the text.

Occasionally a stream's state is reset to zero, to train the model on the state from which evaluation and
sampling start. Resets happen at arbitrary positions, so that a zero state means the start of a document
only after a newline. Independent of models and devices.

Shapes: B batch (streams), T time (length of truncated backpropagation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESET = 0.01  # probability of a state reset, per stream and step


@dataclass(frozen=True)
class Batch:
    """One batch: inputs_BT, targets_BT (int64), and reset_B, the streams whose state to zero first.

    `starts_BT`, if any, marks the inputs at which a sequence starts, before which the state is zero;
    targets of -1 are then padding.
    """

    inputs_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    reset_B: NDArray[np.bool_]
    starts_BT: NDArray[np.bool_] | None = None

    @property
    def count(self) -> int:
        """The number of targets, without padding."""
        if self.starts_BT is None:
            return self.targets_BT.size
        return int(np.count_nonzero(self.targets_BT >= 0))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The training batches of a token array.

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
        """Return the batch of step `position`, counted from 0 across epochs."""
        size = len(self.tokens)
        starts_B = np.arange(self.batch) * size // self.batch + position * self.bptt
        window_BT = self.tokens[(starts_B[:, None] + np.arange(self.bptt + 1)) % size]
        window_BT = window_BT.astype(np.int64)
        reset_B = np.random.default_rng((self.seed, position)).random(self.batch) < RESET
        return Batch(window_BT[:, :-1], window_BT[:, 1:], reset_B)
