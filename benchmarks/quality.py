"""Quality at a fixed time budget: results of `gru-lm train` on real texts, over several seeds.

    python -m benchmarks quality RESULTS.json TEXT --minutes 2.75 --seeds 5 [options of train]
    python -m benchmarks regret RESULTS.json TEXT --minutes 1 [options of train]
    python -m benchmarks ablation RESULTS.json TEXT --minutes 1 --seeds 3 [--variants NAME ...]

Runs the command-line tool, one run at a time, and appends each result to RESULTS.json at once, so that
an interrupted benchmark resumes where it stopped. `quality` reports figures of `eval` (state carried
through the text) with Student's interval over the seeds, and those of random windows without preceding
context, which is how nanoGPT evaluates. `regret` compares the planner with settings chosen by hand;
`ablation` compares the default with variants, paired by seed. Both use the validation figures of the
runs.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gru_lm.commands.load import load_model, own_text
from gru_lm.reporting.console import marked, note
from gru_lm.training.directory import find

WINDOWS = 2000  # from the zero state, for each length
LENGTHS = (64, 256)
# Settings an expert might choose, both close to the planner's and further away.
BY_HAND = (
    {"layers": 1, "width": 128, "lr": 0.007},
    {"layers": 1, "width": 256, "lr": 0.005},
    {"layers": 2, "width": 192, "lr": 0.005},
    {"layers": 2, "width": 256, "lr": 0.005, "dropout": 0.1},
    {"layers": 2, "width": 384, "lr": 0.004},
    {"layers": 1, "width": 256, "lr": 0.007, "batch": 48, "bptt": 48},
)
# Options that change one default each.
VARIANTS = {
    "adamw": ["--optimizer", "adamw"],
    "not residual": ["--no-residual"],
    "48 streams": ["--batch", "48"],  # the default for new subword text
    "96 steps": ["--bptt", "96"],
    "tied": ["--tied"],  # the default for large vocabularies
    "not tied": ["--no-tied"],
    "float32": ["--precision", "float32"],
    "linear": ["--schedule", "linear"],
    "constant and averaged": ["--schedule", "constant", "--average", "0.999"],
    "averaged": ["--average", "0.999"],
    "weight drop": ["--weight-drop", "0.1"],
    # For texts read many times:
    "no dropout": ["--dropout", "0"],
    "not locked": ["--no-locked"],
    "no weight drop": ["--weight-drop", "0"],
    "embedding dropout": ["--embedding-dropout", "0.1"],
    "activation penalties": ["--ar", "1", "--tar", "1"],
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % quantile of Student's t, by runs


def train(text: str, options: Sequence[str], *, exact: bool) -> dict[str, Any]:
    """Train one run; returns its figures, from its last validation or, if `exact`, from `eval`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.monotonic()
        printed = gru_lm("train", text, "--out", str(run), *options, "--json")
        wall = time.monotonic() - started
        loaded = load_model(find(run, note))
        valid, windows = printed["valid"], {}
        if exact:
            valid = gru_lm("eval", str(run), "--json")
            windows = {f"cold_{length}": round(cold(loaded, length), 4) for length in LENGTHS}
        return {
            "wall_seconds": round(wall, 2),
            "tokens": printed["tokens"],
            "tokens_per_second": printed["tokens_per_second"],
            "parameters": printed["parameters"],
            "plan": {name: loaded.checkpoint.meta["config"][name] for name in ("layers", "width")},
            "nats_per_token": valid["nats_per_token"],
            "bits_per_byte": valid["bits_per_byte"],
            "perplexity": valid["perplexity"],
            **windows,
        }


@torch.inference_mode()
def cold(loaded: Any, length: int) -> float:
    """Mean nats per token over random windows of validation text, each from the zero state."""
    part = own_text(loaded, "valid", stop=lambda: None)
    text = "".join(piece for document in part.documents for piece in document.pieces())
    tokens_N = np.asarray(loaded.tokenizer.encode_text(text), dtype=np.int64)
    starts = np.random.default_rng(0).integers(len(tokens_N) - length, size=WINDOWS)
    total = 0.0
    for starts_B in np.array_split(starts, 20):
        window_BT = torch.from_numpy(tokens_N[starts_B[:, None] + np.arange(length + 1)])
        state = loaded.model.initial_state(len(starts_B))
        log_probs_BT, _ = loaded.model.target_log_probs(window_BT[:, :-1], window_BT[:, 1:], state)
        total -= float(log_probs_BT.double().sum())
    return total / (WINDOWS * length)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval over a few runs."""
    mean = statistics.mean(values)
    if len(values) not in T95:
        return f"{mean:.4f}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("kind", choices=("quality", "regret", "ablation"))
    parser.add_argument("results", type=Path)
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    args, common = parser.parse_known_args(arguments)
    book = Book(args.results, args.text, exact=args.kind == "quality")

    def seeded(options: Sequence[str]) -> list[dict[str, Any]]:
        return [book.run([*options, "--seed", str(seed)]) for seed in range(args.seeds)]

    if args.kind == "quality":
        runs = seeded(common)
        for figure in ("nats_per_token", "bits_per_byte", *(f"cold_{n}" for n in LENGTHS)):
            sys.stdout.write(f"{figure}: {interval([run[figure] for run in runs])}\n")
    elif args.kind == "regret":
        planned, *others = (
            book.run(common + _flags(by_hand))["bits_per_byte"] for by_hand in ({}, *BY_HAND)
        )
        regret = planned / min(others) - 1
        sys.stdout.write(f"regret: {regret:+.2%} against the best of {len(others)}\n")
    else:
        plain = [run["nats_per_token"] for run in seeded(common)]
        sys.stdout.write(f"default: {interval(plain)}\n")
        for name in args.variants:
            others = [run["nats_per_token"] for run in seeded(common + VARIANTS[name])]
            differences = [other - own for other, own in zip(others, plain, strict=True)]
            sys.stdout.write(
                f"{name}: {statistics.mean(others):.4f}, difference {interval(differences)}\n"
            )


@dataclass(frozen=True)
class Book:
    """Results of runs on a text, stored in a file; runs found there are not repeated.

    Use a separate file for another version of the planner, another machine, or another text of the same
    name.
    """

    path: Path
    text: str
    exact: bool

    def run(self, options: Sequence[str]) -> dict[str, Any]:
        """Look up or train one run, print its figures and return them."""
        stored = json.loads(self.path.read_text()) if self.path.exists() else []
        # File names only: folders differ between machines.
        name, named = Path(self.text).name, [Path(option).name for option in options]
        key = {"text": name, "options": named, "exact": self.exact}
        matching = [each for each in stored if key.items() <= each.items()]
        if matching:
            result: dict[str, Any] = matching[0]
        else:
            figures = train(self.text, options, exact=self.exact)
            result = marked(key | figures)
            self.path.write_text(json.dumps([*stored, result], indent=1) + "\n")
        cold = "".join(f"{key} {value:.4f}  " for key, value in result.items() if "cold" in key)
        sys.stdout.write(
            f"{result['nats_per_token']:.4f} nats  {result['bits_per_byte']:.4f} bits/byte  ppl "
            f"{result['perplexity']:.2f}  {cold}"
            f"{result['plan']['layers']} x {result['plan']['width']}  {result['tokens']:,} tokens  "
            f"{result['wall_seconds']:.1f} s  {' '.join(named)}\n"
        )
        sys.stdout.flush()
        return result


def _flags(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def gru_lm(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "gru_lm", *arguments], stdout=subprocess.PIPE, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
