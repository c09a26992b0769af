"""Calibration of intervals and verdicts, on data where the true value is known.

    python -m benchmarks coverage RUN             coverage of the 95 % interval on texts sampled from the
                                                  model itself
    python -m benchmarks alarms COMPARISON CELL   false alarms: significant differences between runs of
                                                  the same cell

COMPARISON is a directory of `gru-lm compare` with at least 20 seeds.

Shapes: B texts, V vocabulary, S seeds, K blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gru_lm.commands.load import LoadedModel, load_model
from gru_lm.evaluation.collectors import ByBlock
from gru_lm.evaluation.scoring import Portion
from gru_lm.evaluation.statistics import direction, ratio_interval, seeds_difference
from gru_lm.reporting.console import note
from gru_lm.training.directory import find

TEXTS, TOKENS = 200, 20_000  # sampled texts, and tokens of each
COMPARISONS, SEEDS, LEAST_RUNS = 200, 5, 20


@torch.inference_mode()
def sampled(loaded: LoadedModel) -> list[ByBlock]:
    """Sample TEXTS texts from the model; returns their nats and bytes by block."""
    generator = torch.Generator().manual_seed(0)
    model, tokenizer = loaded.model, loaded.tokenizer
    sizes_V = np.array([len(tokenizer.surface(token)) for token in range(tokenizer.vocab_size)])
    tokens_B1 = torch.full((TEXTS, 1), tokenizer.newline_id)
    state_LSBH = model.initial_state(TEXTS)
    drawn, log_probs = [], []
    for _ in range(TOKENS):
        log_probs_B1V, state_LSBH = model.log_probs(tokens_B1, state_LSBH)
        tokens_B1 = torch.multinomial(log_probs_B1V[:, 0].exp(), 1, generator=generator)
        drawn.append(tokens_B1)
        log_probs.append(log_probs_B1V[:, 0].gather(1, tokens_B1))
    texts = []
    for tokens_N, log_probs_N in zip(
        torch.cat(drawn, 1).numpy(), torch.cat(log_probs, 1).double().numpy(), strict=True
    ):
        by_block = ByBlock()
        covered_N3 = np.zeros((TOKENS, 3))
        covered_N3[:, 0] = sizes_V[tokens_N]
        by_block(Portion(0, tokens_N, log_probs_N, np.empty((TOKENS, 0))), covered_N3)
        texts.append(by_block)
    return texts


def coverage(run: Path) -> str:
    """Share of the texts whose interval contains the figure over all texts."""
    sums_BK3 = [by_block.sums() for by_block in sampled(load_model(find(run, note)))]
    nats, size, _ = np.sum([sums_K3.sum(0) for sums_K3 in sums_BK3], 0)
    truth = nats / np.log(2) / size
    covered, width = 0, 0.0
    for nats_K, bytes_K, _ in (sums_K3.T for sums_K3 in sums_BK3):
        interval = ratio_interval(nats_K / np.log(2), bytes_K).interval
        assert interval, "texts of TOKENS have enough blocks"
        low, high = interval
        covered += low <= truth <= high
        width += (high - low) / TEXTS
    return (
        f"{TEXTS} texts of {TOKENS:,} tokens, {truth:.4f} bits per byte: contained in "
        f"{covered / TEXTS:.1%} of the intervals, whose mean width is {width:.4f}"
    )


def alarms(comparison: Path, cell: str) -> str:
    """Share of comparisons of SEEDS runs with SEEDS other runs of a cell that find a difference."""
    paths = sorted((comparison / "results").glob(f"{cell}-*.json"))
    blocks = [json.loads(path.read_text())["blocks"] for path in paths]
    if len(blocks) < LEAST_RUNS:
        sys.exit(f"{len(blocks)} runs of {cell}: at least {LEAST_RUNS} are needed")
    nats_SK, bytes_K = np.array([each["nats"] for each in blocks]), np.array(blocks[0]["bytes"])
    rng, significant = np.random.default_rng(0), 0
    for _ in range(COMPARISONS):
        chosen = rng.permutation(len(blocks))[: 2 * SEEDS]
        difference = seeds_difference(nats_SK[chosen[:SEEDS]], nats_SK[chosen[SEEDS:]], bytes_K)
        significant += direction(difference) != 0
    bits_S = nats_SK.sum(1) / np.log(2) / bytes_K.sum()
    return (
        f"{COMPARISONS} comparisons of {SEEDS} seeds, of {len(blocks)} runs of {cell} "
        f"({bits_S.mean():.4f} ± {bits_S.std(ddof=1):.4f} bits per byte): significant in "
        f"{significant / COMPARISONS:.1%}"
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("coverage").add_argument("run", type=Path)
    of_alarms = kinds.add_parser("alarms")
    of_alarms.add_argument("comparison", type=Path)
    of_alarms.add_argument("cell")
    args = parser.parse_args(arguments)
    result = coverage(args.run) if args.kind == "coverage" else alarms(args.comparison, args.cell)
    sys.stdout.write(result + "\n")
