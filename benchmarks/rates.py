"""The best learning rate of each cell, as a multiple of the planner's for a GRU of the same width.

    python -m benchmarks rates RESULTS.json TEXT --tokenizer char [--steps 700 --seeds 2 ...]

Trains every cell at the parameters of a GRU of WIDTH for a fixed number of steps (so that other load on
the machine does not matter), at each of TIMES; while the best is the lowest or highest, at one further.
Adds each run to RESULTS.json as soon as it is done; a run that is there is not trained again.
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
from gru_lm.config import Settings, settings
from gru_lm.errors import DivergedError
from gru_lm.model.cells import CELLS
from gru_lm.reporting.console import marked
from gru_lm.signals import never

LAYERS, WIDTH = 2, 62  # of the GRU
TIMES = (0.5, 1.0, 2.0, 4.0)
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
    asked = settings(
        {"text": [given.text], "tokenizer": given.tokenizer, "characters": given.characters},
        {"layers": LAYERS, "width": WIDTH, "steps": given.steps, "eval_every": given.steps},
        {"valid_characters": VALIDATED, "threads": 1},
    )
    plans = {
        cell: prepared.settings
        for cell, prepared in plan_cells(asked, [*CELLS], match="parameters", stop=never).items()
    }
    assert plans["gru"].lr is not None
    for cell in given.cells:
        plan = plans[cell]
        assert plan.width is not None
        # The rule's for a GRU of this width.
        usual = plans["gru"].lr * ((plans["gru"].width or 0) / plan.width) ** 0.5

        def mean(
            times: float, plan: Settings = plan, cell: str = cell, usual: float = usual
        ) -> float:
            key = {"text": Path(given.text).name, "tokenizer": given.tokenizer, "cell": cell}
            key |= {"width": plan.width, "steps": given.steps, "times": times}
            return statistics.mean(
                _bits(
                    given.results, key | {"seed": seed}, replace(plan, lr=times * usual, seed=seed)
                )
                for seed in range(given.seeds)
            )

        found = {times: mean(times) for times in TIMES}
        while True:
            best = min(found, key=lambda times: found[times])
            beyond = best * 2 if best == max(found) else best / 2 if best == min(found) else None
            if beyond is None or not LEAST <= beyond <= MOST:
                break
            found[beyond] = mean(beyond)
        shown = ", ".join(f"x{times:g} {found[times]:.4f}" for times in sorted(found))
        sys.stdout.write(f"{cell}, width {plan.width}: {shown}; best at x{vertex(found):.2f}\n")
        sys.stdout.flush()


def vertex(found: dict[float, float]) -> float:
    """Where a parabola through the best and its neighbours, over the logarithm, is lowest."""
    times = sorted(found)
    at = times.index(min(found, key=lambda each: found[each]))
    if not 0 < at < len(times) - 1:
        return times[at]
    left, middle, right = (found[each] for each in times[at - 1 : at + 2])
    bend = left - 2 * middle + right
    return times[at] * 2 ** ((left - right) / (2 * bend) if 0 < bend < math.inf else 0.0)


def _bits(results: Path, key: dict[str, Any], chosen: Settings) -> float:
    """Bits per byte of the held-out text after a run; infinite where it diverged."""
    book = json.loads(results.read_text()) if results.exists() else []
    for each in book:
        if key.items() <= each.items():
            return math.inf if each["bits_per_byte"] is None else each["bits_per_byte"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = train(chosen, out=Path(folder) / "run")
            figures = {"parameters": done["parameters"], **done["valid"]}
        except DivergedError:
            figures = {"parameters": None, "bits_per_byte": None}
    kept = {name: figures[name] for name in ("parameters", "bits_per_byte")}
    results.write_text(json.dumps([*book, marked(key | {"lr": chosen.lr} | kept)], indent=1) + "\n")
    return kept["bits_per_byte"] if kept["bits_per_byte"] is not None else math.inf
