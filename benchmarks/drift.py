"""Gains from adaptation under language drift: State of the Union messages, old model, later texts.

    python -m benchmarks drift RUN [--minutes 10] [options of train]

Trains RUN on the messages before SPLIT, unless it exists. Then evaluates every EVERY-th year from SPLIT
on, grouped by SPAN years: without adaptation, with the neural cache, and with dynamic evaluation, at
default settings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import gru_lm
from gru_lm.layout import holds_checkpoint
from gru_lm.text.corpora import corpus_paths

SPLIT, SPAN, EVERY = 1890, 20, 10  # years


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("kind", choices=("drift",))
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", default="10")
    args, options = parser.parse_known_args(arguments)
    by_span: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in corpus_paths("sotu"):
            year = int(path.stem.split("-")[1])
            if year < SPLIT:
                shutil.copy(path, folder)
            elif (year - SPLIT) % EVERY == 0:
                by_span.setdefault((year - SPLIT) // SPAN, []).append(str(path))
        if not holds_checkpoint(args.run):
            budget = ["--minutes", args.minutes]
            gru_lm("train", folder, "--out", str(args.run), *budget, *options, "--json")
    sys.stdout.write("years\tbits per byte\tcache\tdynamic\n")
    for span, files in by_span.items():
        adapted = ["--cache", "--dynamic", "sgd", "--json"]
        result = gru_lm("eval", str(args.run), *files, *adapted)
        plain, years = result["bits_per_byte"], SPLIT + span * SPAN
        gains = (f"{row['bits_per_byte'] / plain - 1:+.1%}" for row in result["adapted"])
        sys.stdout.write("\t".join((f"{years}-{years + SPAN - 1}", f"{plain:.4f}", *gains)) + "\n")
        sys.stdout.flush()
