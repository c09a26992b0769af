"""Find the best learning rate of each cell, as a multiple of the planner's for a GRU of equal width.

    python -m benchmarks rates RESULTS.json TEXT --tokenizer char [--steps 700 --seeds 2 ...]

Trains every cell, with as many parameters as a GRU of WIDTH, for a fixed number of steps (independent of
other load on the machine) at each factor in FACTORS; extends the grid while the best factor is at an end
of it. Adds each run to RESULTS.json when it is done, and skips runs already there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gru_lm.commands.compare.matching import plan_cells
from gru_lm.commands.train.run import train
from gru_lm.config import Settings
from gru_lm.config_layers import settings
from gru_lm.errors import DivergedError
from gru_lm.model.cells import CELLS
from gru_lm.reporting.console import marked
from gru_lm.signals import never

LAYERS, WIDTH = 2, 62  # of the GRU
FACTORS = (0.5, 1.0, 2.0, 4.0)
LEAST, MOST = 0.125, 16.0
VALIDATED = 100_000  # characters


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("kind", choices=("rates",))
    parser.add_argument("results", type=Path)
    parser.add_argument("text")
    parser.add_argument("--tokenizer", default="char")
    parser.add_argument("--characters", type=int)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=[*CELLS])
    given = parser.parse_args(arguments)
    config = settings(
        {"text": [given.text], "tokenizer": given.tokenizer, "characters": given.characters},
        {"layers": LAYERS, "width": WIDTH, "steps": given.steps, "eval_every": given.steps},
        {"valid_characters": VALIDATED, "threads": 1},
    )
    plans = {
        cell: prepared.settings
        for cell, prepared in plan_cells(config, [*CELLS], match="parameters", stop=never).items()
    }
    assert plans["gru"].lr is not None
    for cell in given.cells:
        plan = plans[cell]
        assert plan.width is not None
        # The planner's rate for a GRU of this width.
        planned = plans["gru"].lr * ((plans["gru"].width or 0) / plan.width) ** 0.5

        def mean(
            factor: float, plan: Settings = plan, cell: str = cell, planned: float = planned
        ) -> float:
            key = {"text": Path(given.text).name, "tokenizer": given.tokenizer, "cell": cell}
            key |= {"width": plan.width, "steps": given.steps, "times": factor}
            return statistics.mean(
                _bits(
                    given.results,
                    key | {"seed": seed},
                    replace(plan, lr=factor * planned, seed=seed),
                )
                for seed in range(given.seeds)
            )

        bits = {factor: mean(factor) for factor in FACTORS}
        while True:
            best = min(bits, key=lambda factor: bits[factor])
            beyond = best * 2 if best == max(bits) else best / 2 if best == min(bits) else None
            if beyond is None or not LEAST <= beyond <= MOST:
                break
            bits[beyond] = mean(beyond)
        shown = ", ".join(f"x{factor:g} {bits[factor]:.4f}" for factor in sorted(bits))
        sys.stdout.write(f"{cell}, width {plan.width}: {shown}; best at x{vertex(bits):.2f}\n")
        sys.stdout.flush()


def vertex(bits: dict[float, float]) -> float:
    """Minimum of the parabola through the best factor and its neighbours, in the logarithm."""
    factors = sorted(bits)
    at = factors.index(min(bits, key=lambda each: bits[each]))
    if not 0 < at < len(factors) - 1:
        return factors[at]
    left, middle, right = (bits[each] for each in factors[at - 1 : at + 2])
    bend = left - 2 * middle + right
    return factors[at] * 2 ** ((left - right) / (2 * bend) if 0 < bend < math.inf else 0.0)


def _bits(results: Path, key: dict[str, Any], config: Settings) -> float:
    """Bits per byte of the held-out text after a run; infinite if it diverged."""
    runs = json.loads(results.read_text()) if results.exists() else []
    for each in runs:
        if key.items() <= each.items():
            return math.inf if each["bits_per_byte"] is None else each["bits_per_byte"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            trained = train(config, out=Path(folder) / "run")
            figures = {"parameters": trained["parameters"], **trained["valid"]}
        except DivergedError:
            figures = {"parameters": None, "bits_per_byte": None}
    outcome = {name: figures[name] for name in ("parameters", "bits_per_byte")}
    row = marked(key | {"lr": config.lr} | outcome)
    results.write_text(json.dumps([*runs, row], indent=1) + "\n")
    return outcome["bits_per_byte"] if outcome["bits_per_byte"] is not None else math.inf
