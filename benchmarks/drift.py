"""What adaptation gains as language drifts: State of the Union messages, by a model of the old ones.

    python -m benchmarks drift RUN [--minutes 10] [options of train]

Trains RUN on the messages before TAUGHT (unless it is there), then measures those of every EVERY-th year
from there on, SPAN years together: plainly, with the neural cache, and by dynamic evaluation, with the
usual settings.
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

TAUGHT, SPAN, EVERY = 1890, 20, 10  # years


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("kind", choices=("drift",))
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", default="10")
    given, options = parser.parse_known_args(arguments)
    by_span: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in corpus_paths("sotu"):
            year = int(path.stem.split("-")[1])
            if year < TAUGHT:
                shutil.copy(path, folder)
            elif (year - TAUGHT) % EVERY == 0:
                by_span.setdefault((year - TAUGHT) // SPAN, []).append(str(path))
        if not holds_checkpoint(given.run):
            budget = ["--minutes", given.minutes]
            gru_lm("train", folder, "--out", str(given.run), *budget, *options, "--json")
    sys.stdout.write("years\tbits per byte\tcache\tdynamic\n")
    for span, files in by_span.items():
        adapted = ["--cache", "--dynamic", "sgd", "--json"]
        found = gru_lm("eval", str(given.run), *files, *adapted)
        plain, years = found["bits_per_byte"], TAUGHT + span * SPAN
        gains = (f"{row['bits_per_byte'] / plain - 1:+.1%}" for row in found["adapted"])
        sys.stdout.write("\t".join((f"{years}-{years + SPAN - 1}", f"{plain:.4f}", *gains)) + "\n")
        sys.stdout.flush()
