"""Keys of records: 64-bit keyed hashes of their texts, which decide sides and novelty.

Equal records have equal keys, on every machine and in every version. Two different records have the same
key with a probability of 2^-64, so a new record is mistaken for one of N known ones with N / 2^64.
Independent of files' formats and of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gru_lm import atomic

Keys = npt.NDArray[np.uint64]
_KEY = b"gru-lm records"


def keys_of(texts: Iterable[str]) -> Keys:
    """The keys of texts, uint64 [N]: BLAKE2b of the UTF-8, 8 bytes, little-endian.

    >>> keys_of(["emma", "olivia", "emma"]).tolist()
    [13909374125247890610, 12734725922118302090, 13909374125247890610]
    """
    blake2b = hashlib.blake2b
    digests = [
        blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=_KEY).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64, copy=False)


def digest_of(sorted_M: Keys) -> str:
    """SHA-256 of a table of keys, as `write_keys` writes it."""
    return hashlib.sha256(np.ascontiguousarray(sorted_M, "<u8").data).hexdigest()


def write_keys(path: Path, sorted_M: Keys) -> None:
    """Write distinct, sorted keys as little-endian 64-bit integers, atomically."""
    atomic.write_bytes(path, np.ascontiguousarray(sorted_M, "<u8").tobytes())


def read_keys(path: Path, digest: str) -> Keys | None:
    """The table at `path`, memory-mapped; None if there is none, or not the one of this `digest`."""
    try:
        size = path.stat().st_size
        if not size or size % 8:
            return None
        keys_N: Keys = np.memmap(path, "<u8", "r")
    except OSError:
        return None
    return keys_N if digest_of(keys_N) == digest else None


def among(keys_N: Keys, sorted_M: Keys) -> npt.NDArray[np.bool_]:
    """Which of `keys_N` are in a sorted table."""
    at_N = np.searchsorted(sorted_M, keys_N)
    at_N[at_N == len(sorted_M)] = 0
    found_N: npt.NDArray[np.bool_] = sorted_M[at_N] == keys_N if len(sorted_M) else at_N < 0
    return found_N
