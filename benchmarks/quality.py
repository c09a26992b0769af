"""Quality for the time: what `gru-lm train` reaches in so many minutes, on real texts, several seeds.

    python -m benchmarks quality RESULTS.json TEXT --minutes 2.75 --seeds 5 [options of train]
    python -m benchmarks regret RESULTS.json TEXT --minutes 1 [options of train]

Runs the command as users do, one run at a time, and adds each result to RESULTS.json as soon as there
is one: a benchmark of hours may be interrupted and goes on. `quality` reports the carried stream's
figures with Student's interval over the seeds, and beside them those of windows that start cold, as
nanoGPT measures. `regret` compares the plan with settings made by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gru_lm.opened import open_model, own_text
from gru_lm.reporting.console import note
from gru_lm.training.runs import find

WINDOWS = 2000  # that start cold, of each length
LENGTHS = (64, 256)
# Sizes and rates that somebody who knows the field might choose, around the planner's and away from it.
BY_HAND = (
    {"layers": 1, "width": 128, "lr": 0.007},
    {"layers": 1, "width": 256, "lr": 0.005},
    {"layers": 1, "width": 256, "lr": 0.0025},
    {"layers": 2, "width": 192, "lr": 0.005},
    {"layers": 2, "width": 256, "lr": 0.005, "dropout": 0.1},
    {"layers": 2, "width": 384, "lr": 0.004},
    {"layers": 1, "width": 256, "lr": 0.007, "batch": 48, "bptt": 48},
)
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t, two-sided, for so many runs


def train(text: str, options: Sequence[str]) -> dict[str, Any]:
    """One run by the command line, then evaluated: its figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.monotonic()
        printed = _gru_lm("train", text, "--out", str(run), *options, "--json")
        wall = time.monotonic() - began
        exact = _gru_lm("eval", str(run), "--json")
        opened = open_model(find(run, note))
        return {
            "options": list(options),
            "wall_seconds": round(wall, 2),
            "tokens": printed["tokens"],
            "tokens_per_second": printed["tokens_per_second"],
            "parameters": printed["parameters"],
            "plan": {name: opened.checkpoint.meta["config"][name] for name in ("layers", "width")},
            "nats_per_token": exact["nats_per_token"],
            "bits_per_byte": exact["bits_per_byte"],
            "perplexity": exact["perplexity"],
            **{f"cold_{length}": round(cold(opened, length), 4) for length in LENGTHS},
        }


@torch.inference_mode()
def cold(opened: Any, length: int) -> float:
    """Mean nats a token of random windows of held-out text, read from the zero state on."""
    part = own_text(opened, "valid", stop=lambda: None)
    text = "".join(piece for document in part.documents for piece in document.pieces())
    tokens_N = np.asarray(opened.tokenizer.encode_text(text), dtype=np.int64)
    starts = np.random.default_rng(0).integers(len(tokens_N) - length, size=WINDOWS)
    total = 0.0
    for some in np.array_split(starts, 20):
        window_BT = torch.from_numpy(tokens_N[some[:, None] + np.arange(length + 1)])
        state = opened.model.initial_state(len(some))
        log_probs_BT, _ = opened.model.target_log_probs(window_BT[:, :-1], window_BT[:, 1:], state)
        total -= float(log_probs_BT.double().sum())
    return total / (WINDOWS * length)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval of a few runs."""
    mean = statistics.mean(values)
    if len(values) not in T95:
        return f"{mean:.4f}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("kind", choices=("quality", "regret"))
    parser.add_argument("results", type=Path)
    parser.add_argument("text")
    parser.add_argument("--minutes", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    known, rest = parser.parse_known_args(arguments)
    found = json.loads(known.results.read_text()) if known.results.exists() else []
    common = ["--minutes", known.minutes, *rest]
    if known.kind == "quality":
        wanted = [[*common, "--seed", str(seed)] for seed in range(known.seeds)]
    else:
        wanted = [common] + [common + _flags(by_hand) for by_hand in BY_HAND]
    name = Path(known.text).name
    runs = []
    for options in wanted:
        old = [each for each in found if (each["text"], each["options"]) == (name, options)]
        result = old[0] if old else {"text": name} | train(known.text, options)
        if not old:
            found.append(result)
            known.results.write_text(json.dumps(found, indent=1) + "\n")
        runs.append(result)
        sys.stdout.write(
            f"{result['nats_per_token']:.4f} nats  {result['bits_per_byte']:.4f} bits/byte  ppl "
            f"{result['perplexity']:.2f}  cold {result['cold_64']:.4f} {result['cold_256']:.4f}  "
            f"{result['plan']['layers']} x {result['plan']['width']}  {result['tokens']:,} tokens  "
            f"{result['wall_seconds']:.1f} s  {' '.join(options)}\n"
        )
        sys.stdout.flush()
    if known.kind == "quality":
        for figure in ("nats_per_token", "bits_per_byte", *(f"cold_{n}" for n in LENGTHS)):
            sys.stdout.write(f"{figure}: {interval([run[figure] for run in runs])}\n")
    else:
        planned, *others = (run["bits_per_byte"] for run in runs)
        regret = planned / min(others) - 1
        sys.stdout.write(f"regret: {regret:+.2%} against the best of {len(others)}\n")


def _flags(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _gru_lm(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "gru_lm", *arguments], stdout=subprocess.PIPE, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
