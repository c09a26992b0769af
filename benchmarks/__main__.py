"""Speed as ratios measured in one run, as a table and as JSON; and, by name, quality and honesty.

    python -m benchmarks                             under 10 minutes: make bench
    python -m benchmarks slow [TRAIN.txt VALID.txt]  words with adaptive softmax; tokenising 1 GB
    python -m benchmarks quality|regret|ablation ... see quality.py
    python -m benchmarks coverage|alarms ...         see honesty.py
    python -m benchmarks drift ...                   see drift.py
    python -m benchmarks rates ...                   see rates.py

benchmarks/README.md says what the numbered rows mean. Each name has its own --help.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.report import Row

RESULTS = Path(__file__).with_name("results")
CHARACTERS = 200_000  # of the text that is evaluated and sampled
# Whose arguments are their own.
MODULES = {
    **dict.fromkeys(("quality", "regret", "ablation"), "quality"),
    **dict.fromkeys(("coverage", "alarms"), "honesty"),
    "drift": "drift",
    "rates": "rates",
}


def quick(text: Path) -> Iterator[Row]:
    from benchmarks import layers, records, sampling, whole

    yield from layers.rows()
    yield from layers.other_cells()
    yield from layers.resets()
    yield from whole.rows(text)
    yield from records.rows()
    yield from sampling.rows(text)
    yield from sampling.records()
    yield from whole.start_up(text)


def slow(train: str, valid: str) -> Iterator[Row]:
    from benchmarks import tokenising, vocabulary

    yield from vocabulary.rows(train, valid)
    yield from tokenising.rows()


def main(arguments: Sequence[str]) -> None:
    name = arguments[0] if arguments else ""
    if name in MODULES:
        importlib.import_module(f"benchmarks.{MODULES[name]}").main(arguments)
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="NAME")
    of_slow = kinds.add_parser("slow", help="half an hour: words, and 1 GB of text")
    of_slow.add_argument("train", nargs="?", default="@shakespeare")
    of_slow.add_argument("valid", nargs="?", default="@docstrings")
    for known, module in MODULES.items():
        kinds.add_parser(known, help=f"{module}.py")
    given = parser.parse_args(arguments)

    from benchmarks.report import show
    from gru_lm.model.devices import choose_device
    from gru_lm.text.sources import open_documents

    choose_device("cpu")
    if given.kind == "slow":
        show(slow(given.train, given.valid), RESULTS / "bench-slow.json")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        pieces = itertools.chain.from_iterable(d.pieces() for d in open_documents(["@docstrings"]))
        text.write_text("".join(pieces)[:CHARACTERS], encoding="utf-8")
        show(quick(text), RESULTS / "bench.json")


if __name__ == "__main__":
    main(sys.argv[1:])
