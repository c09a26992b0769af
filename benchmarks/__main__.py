"""Benchmarks of `make bench` and `make bench-slow`: relative speeds, as a table and as JSON.

    python -m benchmarks                              under 10 minutes
    python -m benchmarks slow TRAIN.txt VALID.txt     word models with adaptive softmax; tokenising 1 GB
    python -m benchmarks quality|regret|ablation ...  see quality.py
    python -m benchmarks coverage|alarms ...          see honesty.py
    python -m benchmarks drift ...                    see drift.py

benchmarks/README.md explains the numbered rows.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import layers, sampling, whole
from benchmarks.report import Row, show
from gru_lm.model.devices import choose_device
from gru_lm.text.sources import open_documents

RESULTS = Path(__file__).with_name("results")
CHARACTERS = 200_000  # of the text for evaluation and sampling


def quick(text: Path) -> Iterator[Row]:
    yield from layers.rows()
    yield from layers.other_cells()
    yield from whole.rows(text)
    yield from sampling.rows(text)
    yield from whole.start_up(text)


def main() -> None:
    choose_device("cpu")
    if sys.argv[1:2] in (["quality"], ["regret"], ["ablation"]):
        from benchmarks import quality

        quality.main(sys.argv[1:])
        return
    if sys.argv[1:2] in (["coverage"], ["alarms"]):
        from benchmarks import honesty

        honesty.main(sys.argv[1:])
        return
    if sys.argv[1:2] == ["drift"]:
        from benchmarks import drift

        drift.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["slow"]:
        from benchmarks import tokenising, vocabulary

        train, valid = sys.argv[2:] or ("@shakespeare", "@docstrings")
        rows = itertools.chain(vocabulary.rows(train, valid), tokenising.rows())
        show(rows, RESULTS / "bench-slow.json")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        pieces = itertools.chain.from_iterable(d.pieces() for d in open_documents(["@docstrings"]))
        text.write_text("".join(pieces)[:CHARACTERS], encoding="utf-8")
        show(quick(text), RESULTS / "bench.json")


if __name__ == "__main__":
    main()
