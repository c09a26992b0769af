"""Row 10: tokenising 1 GB of text, against SentencePiece on one thread times the threads; peak memory.

The reference is SentencePiece's fastest call on one thread, from lists of lines to lists of ids,
measured on the beginning of the text before and after. The text is a smaller one repeated, which
favours `bpe` (which caches words) but not `unigram`. Memory is the resident set of this process, with
PyTorch loaded as in `gru-lm train`, plus that of its children, sampled every 50 ms; shared pages count
more than once.

    python -m benchmarks.tokenising [--gigabytes 1] [--kind bpe] [--text @docstrings]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from benchmarks.report import Row
from gru_lm.text.documents import survey
from gru_lm.text.sources import open_documents
from gru_lm.text.store import build_store
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

SAMPLE = 30_000_000  # bytes for each reference measurement
LINES = 20_000  # per call to SentencePiece
GB = 10**9


class Peak:
    """Peak resident memory of this process and its descendants together, in MiB."""

    def __enter__(self) -> Peak:
        self.mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.mib = max(self.mib, resident(os.getpid()) / 2**20)


def resident(pid: int) -> int:
    """Resident memory of a process and its descendants, in bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for t in threads for child in (t / "children").read_text().split()]
    except OSError:  # the process has ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def repeated(text: str, size: int, path: Path) -> None:
    """Write the documents of the source `text`, repeated until `size` bytes."""
    pieces = list(itertools.chain.from_iterable(d.pieces() for d in open_documents([text])))
    data = ("".join(pieces) + "\n").encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(data)


def reference_rate(path: Path, tokenizer: Tokenizer) -> float:
    """Bytes per second encoded by SentencePiece on one thread."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.data)
    done, seconds = 0, 0.0
    with path.open(encoding="utf-8", newline="\n") as file:
        while done < SAMPLE and (lines := list(itertools.islice(file, LINES))):
            lines = [line.removesuffix("\n") for line in lines]
            started = time.perf_counter()
            processor.encode(lines, out_type=int, num_threads=1)
            seconds += time.perf_counter() - started
            done += sum(len(line.encode()) + 1 for line in lines)
    return done / seconds


def measure(kind: str, *, gigabytes: float = 1, text: str = "@docstrings") -> dict[str, Any]:
    """Figures for the tokenizer `kind`; `ratio` and `peak_mib` are those of row 10."""
    workers = torch.get_num_threads()
    (source,) = open_documents([text])
    tokenizer = train_tokenizer(kind, source.pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        repeated(text, int(gigabytes * GB), path)
        documents = open_documents([str(path)])
        rates = [reference_rate(path, tokenizer)]
        started = time.perf_counter()
        read = survey(documents)
        surveyed = time.perf_counter()
        with Peak() as peak:
            build_store(documents, tokenizer, directory=Path(folder), key="bench", workers=workers)
        ended = time.perf_counter()
        rates.append(reference_rate(path, tokenizer))
    rate = read.bytes / (ended - surveyed)
    return {
        "kind": kind,
        "text": text,
        "bytes": read.bytes,
        "workers": workers,
        "survey_seconds": surveyed - started,
        "seconds": ended - surveyed,
        "bytes_per_second": rate,
        "sentencepiece_bytes_per_second": rates,
        "ratio": rate / (sum(rates) / len(rates) * workers),
        "peak_mib": peak.mib,
    }


def rows(text: str = "@docstrings", gigabytes: float = 1) -> Iterator[Row]:
    for kind in ("bpe", "unigram"):
        figures = measure(kind, gigabytes=gigabytes, text=text)
        label = f"tokenising {gigabytes:g} GB, {kind}, over SentencePiece x threads"
        yield Row("10", label, figures["ratio"], 0.8, details=figures)
        label = f"tokenising {gigabytes:g} GB, {kind}, peak memory in MiB"
        yield Row("10", label, figures["peak_mib"], 600, most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--kind", default="bpe", choices=["bpe", "unigram"])
    parser.add_argument("--text", default="@docstrings")
    args = parser.parse_args()
    print(json.dumps(measure(args.kind, gigabytes=args.gigabytes, text=args.text)))


if __name__ == "__main__":
    main()
