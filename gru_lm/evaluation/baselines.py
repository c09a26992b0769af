"""Baselines without a neural model, on the same text.

A uniform and an adaptive unigram model over the model's own vocabulary, and two compressors of the
standard library. None has prior knowledge of the text, so every figure is the length of a decodable
code. Knows token counts and a text in pieces, but no model, no tokenizer and no files. Invariant: one
pass over the text, in constant memory apart from the compressor's window.
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

# Raw, because the header of a container would dominate on a short text. The window is 64 MiB.
_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME}]


def baselines(
    counts_V: Counts,
    pieces: Iterable[str],
    *,
    spelling_nats: float = 0.0,
    stop: Stop = never,
) -> list[Row]:
    """One row each for uniform, unigram, bz2 and lzma: name, bits_per_byte, and nats or bytes.

    counts_V: how often each token of the vocabulary occurs in the text. pieces: the text, with documents
    concatenated. spelling_nats: charge for what the tokens do not determine (spelling.py); it is part of
    the model's bits_per_byte and is therefore added to the first two rows. bits_per_byte refers to bytes
    of UTF-8, and is None for an empty text. `stop` is called before every piece.
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
    """−ln p of a text with counts [V] under an adaptive unigram model with add-one smoothing.

    p(token) = (earlier occurrences + 1) / (earlier tokens + V). The order of the tokens does not matter:
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
    """Size of a text in bytes, and its size after compression by bz2 -9 and by raw lzma -9e."""
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
