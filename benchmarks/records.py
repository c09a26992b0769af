"""Row 13: training on short records against running text, in tokens a second without padding.

The same model takes the same number of steps on both, in turns. A round reads whole chapters of records,
so that the time to draw and pack them counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.report import Row
from benchmarks.timing import Timings, Work
from gru_lm.config import Settings
from gru_lm.model.devices import choose_backend, fastest_precision
from gru_lm.planning.model import plan_model
from gru_lm.text.record_batches import RecordBatches, RecordTokens
from gru_lm.training.plan import Plan
from gru_lm.training.start import fresh_state, rehearsal_steps

MODELS = ((2, 128), (1, 256))  # layers and width
CELLS = ("gru", "lstm")
# Shortest and longest records, their end included, and the lowest speed relative to running text.
LISTS = {"names of 7 tokens": (4, 10, 0.6), "records of 20 tokens": (15, 25, 0.85)}
CHARACTERS, VOCABULARY = 27, 286
END, NEWLINE = 0, 1
TOKENS = 400_000
STEPS = 12  # in a round, at least, and a multiple of those of a chapter


def listed(shortest: int, longest: int) -> RecordTokens:
    """Random records with lengths drawn evenly."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest + 1, size=2 * TOKENS // (shortest + longest))
    ends = np.cumsum(lengths)
    tokens = rng.integers(NEWLINE + 1, CHARACTERS, size=int(ends[-1]), dtype=np.uint16)
    tokens[ends - 1] = END
    return RecordTokens(tokens, ends, NEWLINE)


def stepping(plan: Plan, tokens: np.ndarray | RecordTokens, steps: int) -> Work:
    """So many training steps of the real loop, for a new model."""
    counts_V = torch.zeros(VOCABULARY)
    counts_V[:CHARACTERS] = 1
    device = torch.device("cpu")
    config = plan.model_config(counts_V)
    backend = choose_backend(device)
    state = fresh_state(plan, config, counts_V, device=device, backend=backend, seed=0)
    running = rehearsal_steps(state, plan, tokens)

    def work() -> None:
        for _ in range(steps):
            next(running)

    return work


def rows() -> Iterator[Row]:
    text = np.random.default_rng(1).integers(CHARACTERS, size=TOKENS, dtype=np.uint16)
    lists = {name: listed(*lengths) for name, (*lengths, _) in LISTS.items()}
    worst = dict.fromkeys(LISTS, float("inf"))
    for layers, width in MODELS:
        for cell in CELLS:
            plan = plan_model(
                Settings(cell=cell, width=width, layers=layers, dropout=0.0, minutes=5.0),
                tokens=TOKENS,
                vocab_size=CHARACTERS,
                device="cpu",
                precision=fastest_precision(torch.device("cpu")),
            )
            works, shares = {"text": stepping(plan, text, STEPS)}, {}
            for name, records in lists.items():
                batches = RecordBatches(records=records, batch=plan.batch, bptt=plan.bptt, seed=0)
                steps = -(-STEPS // batches.steps) * batches.steps
                counts = [batches(step).count for step in range(20 * batches.steps)]
                # Work relative to a call on running text: tokens that are trained, without padding.
                shares[name] = steps * float(np.mean(counts)) / (STEPS * plan.batch * plan.bptt)
                works[name] = stepping(plan, records, steps)
            timings = Timings(works)
            ratios = {n: timings.ratio(n, "text", per_call=share) for n, share in shares.items()}
            rate = {
                name: shares.get(name, 1.0) * STEPS * plan.batch * plan.bptt / timings.seconds(name)
                for name in works
            }
            shown = ", ".join(f"{name} {ratio}" for name, ratio in ratios.items())
            yield Row(
                "",
                f"{cell}, {layers} x {width}, training on records over running text: {shown}",
                details={"tokens_per_second": rate},
            )
            for name, ratio in ratios.items():
                worst[name] = min(worst[name], ratio.median)
    for name, (_, _, bar) in LISTS.items():
        yield Row("13", f"training on {name} over running text, worst", worst[name], bar=bar)
