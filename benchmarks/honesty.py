"""Whether intervals and verdicts keep their word, where the truth is known.

    python -m benchmarks coverage RUN             texts written by the model itself: how often does the
                                                  95 % interval hold its own bits per byte?
    python -m benchmarks alarms COMPARISON CELL   runs of one cell against each other: how often is a
                                                  difference found that is not there?

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

TEXTS, TOKENS = 200, 20_000  # written by a model, and tokens of each
COMPARISONS, SEEDS, LEAST_RUNS = 200, 5, 20


@torch.inference_mode()
def written(opened: LoadedModel) -> list[ByBlock]:
    """TEXTS texts drawn from the model, each with the nats that its tokens cost."""
    generator = torch.Generator().manual_seed(0)
    model, tokenizer = opened.model, opened.tokenizer
    sizes_V = np.array([len(tokenizer.surface(token)) for token in range(tokenizer.vocab_size)])
    tokens_B1 = torch.full((TEXTS, 1), tokenizer.newline_id)
    state_LSBH = model.initial_state(TEXTS)
    drawn, log_probs = [], []
    for _ in range(TOKENS):
        log_probs_B1V, state_LSBH = model.log_probs(tokens_B1, state_LSBH)
        tokens_B1 = torch.multinomial(log_probs_B1V[:, 0].exp(), 1, generator=generator)
        drawn.append(tokens_B1)
        log_probs.append(log_probs_B1V[:, 0].gather(1, tokens_B1))
    found = []
    for tokens_N, log_probs_N in zip(
        torch.cat(drawn, 1).numpy(), torch.cat(log_probs, 1).double().numpy(), strict=True
    ):
        by_block = ByBlock()
        covered_N3 = np.zeros((TOKENS, 3))
        covered_N3[:, 0] = sizes_V[tokens_N]
        by_block(Portion(0, tokens_N, log_probs_N, np.empty((TOKENS, 0))), covered_N3)
        found.append(by_block)
    return found


def coverage(run: Path) -> str:
    """How many of the texts' intervals hold the figure of all of them together."""
    sums_BK3 = [by_block.sums() for by_block in written(load_model(find(run, note)))]
    nats, size, _ = np.sum([sums_K3.sum(0) for sums_K3 in sums_BK3], 0)
    truth = nats / np.log(2) / size
    held, width = 0, 0.0
    for nats_K, bytes_K, _ in (sums_K3.T for sums_K3 in sums_BK3):
        interval = ratio_interval(nats_K / np.log(2), bytes_K).interval
        assert interval, "texts of TOKENS have blocks enough"
        low, high = interval
        held += low <= truth <= high
        width += (high - low) / TEXTS
    return (
        f"{TEXTS} texts of {TOKENS:,} tokens, {truth:.4f} bits per byte: {held / TEXTS:.1%} of the "
        f"intervals hold it; they are {width:.4f} wide"
    )


def alarms(comparison: Path, cell: str) -> str:
    """How often SEEDS runs of a cell are told from SEEDS others of it."""
    paths = sorted((comparison / "results").glob(f"{cell}-*.json"))
    blocks = [json.loads(path.read_text())["blocks"] for path in paths]
    if len(blocks) < LEAST_RUNS:
        sys.exit(f"{len(blocks)} runs of {cell}: {LEAST_RUNS} are needed")
    nats_SK, bytes_K = np.array([each["nats"] for each in blocks]), np.array(blocks[0]["bytes"])
    rng, found = np.random.default_rng(0), 0
    for _ in range(COMPARISONS):
        drawn = rng.permutation(len(blocks))[: 2 * SEEDS]
        difference = seeds_difference(nats_SK[drawn[:SEEDS]], nats_SK[drawn[SEEDS:]], bytes_K)
        found += direction(difference) != 0
    bits_S = nats_SK.sum(1) / np.log(2) / bytes_K.sum()
    return (
        f"{COMPARISONS} comparisons of {SEEDS} seeds, of {len(blocks)} runs of {cell} "
        f"({bits_S.mean():.4f} ± {bits_S.std(ddof=1):.4f} bits per byte): a difference is found in "
        f"{found / COMPARISONS:.1%}"
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("coverage").add_argument("run", type=Path)
    of_alarms = kinds.add_parser("alarms")
    of_alarms.add_argument("comparison", type=Path)
    of_alarms.add_argument("cell")
    given = parser.parse_args(arguments)
    said = coverage(given.run) if given.kind == "coverage" else alarms(given.comparison, given.cell)
    sys.stdout.write(said + "\n")
