"""Rows of humility: what needs no neural model, measured on the same text.

A uniform guess and a unigram over the model's own vocabulary, and two compressors of the standard
library. Each starts knowing nothing, so each figure is the length of a code that could be read back.
Knows counts of tokens and a text in pieces; no model, no tokenizer, no files. Invariant: one pass
over the text, in memory that does not grow with it beyond a compressor's window.
"""

from __future__ import annotations

import bz2
import lzma
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gru_lm.signals import Stop, never

Row = dict[str, str | int | float | None]
Counts = npt.NDArray[np.int64]

# No container, which on a short text would cost more than a line of it. The window is 64 MiB.
_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME}]


def baselines(
    counts_V: Counts,
    pieces: Iterable[str],
    *,
    spelling_nats: float = 0.0,
    stop: Stop = never,
) -> list[Row]:
    """A row each for uniform, unigram, bz2 and lzma: its name, its bits_per_byte and its own size.

    counts_V: how often each token of the vocabulary was scored in the text. pieces: the text; several
    documents follow each other as one stream. Bytes are those of the text in UTF-8; bits_per_byte is
    None where there are none. spelling_nats: charged for what tokens do not tell of the text
    (spelling.py), in the model's bits_per_byte and so in those of the first two rows. `stop` is called
    before every piece.
    """
    tokens, V = int(counts_V.sum()), len(counts_V)
    uniform, unigram = tokens * math.log(V), unigram_nats(counts_V)
    size, packed = compressed_sizes(pieces, stop=stop)
    rows: list[Row] = []
    for name, nats in (("uniform", uniform), ("unigram", unigram)):
        rows.append(
            {
                "name": name,
                "bits_per_byte": _ratio((nats + spelling_nats) / math.log(2), size),
                "nats": nats,
                "nats_per_token": _ratio(nats, tokens),
            }
        )
    for name, length in packed.items():
        rows.append(
            {"name": name, "bits_per_byte": _ratio(8 * length, size), "compressed_bytes": length}
        )
    return rows


def unigram_nats(counts_V: Counts) -> float:
    """−ln p of a text with these counts [V], each token predicted from those before it, by add-one.

    p(token) = (times seen + 1) / (tokens seen + V). The order of the tokens does not matter:
    −ln p = ln Γ(N + V) − ln Γ(V) − Σ ln Γ(n + 1)  (Laplace's rule of succession).
    """
    V, N = len(counts_V), int(counts_V.sum())
    counts, times = np.unique(counts_V[counts_V > 1], return_counts=True)
    seen = (
        -many * math.lgamma(count + 1)
        for count, many in zip(counts.tolist(), times.tolist(), strict=True)
    )
    return math.fsum((math.lgamma(N + V), -math.lgamma(V), *seen))


def compressed_sizes(pieces: Iterable[str], *, stop: Stop = never) -> tuple[int, dict[str, int]]:
    """The bytes of a text, and of what each compressor makes of it: bz2 -9, and raw lzma -9e."""
    compressors: dict[str, bz2.BZ2Compressor | lzma.LZMACompressor] = {
        "bz2": bz2.BZ2Compressor(9),
        "lzma": lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_LZMA),
    }
    sizes = dict.fromkeys(compressors, 0)
    total = 0
    for piece in pieces:
        stop()
        data = piece.encode(errors="surrogatepass")
        total += len(data)
        for name, compressor in compressors.items():
            sizes[name] += len(compressor.compress(data))
    for name, compressor in compressors.items():
        sizes[name] += len(compressor.flush())
    return total, sizes


def _ratio(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
