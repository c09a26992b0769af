"""The token store: a text's token ids in one memory-mapped file, built once in constant memory.

The file is a header of fixed size (magic, version, JSON) and the raw ids, little-endian, in the
smallest unsigned type that fits. It is a cache: whatever is wrong with a file, it is built anew.
Knows nothing of what the ids mean to a model. Invariant: a store that opens has the checksum it was
written with.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gru_lm import atomic, caches
from gru_lm.errors import EnvironmentProblem
from gru_lm.signals import Stop, never, unheard
from gru_lm.text.documents import Document, readings
from gru_lm.text.parallel import BLOCK, encode_all, gather

if TYPE_CHECKING:
    from gru_lm.text.tokenizer import Tokenizer

SUFFIX = ".tokens"
_MAGIC = b"gru-lm tokens 1\n"
_HEADER_BYTES = 1024
_CHUNK = 2**20  # tokens or bytes handled at once
_DTYPES = ("<u1", "<u2", "<u4")

Tokens = npt.NDArray[Any]


@dataclass(frozen=True)
class TokenStore:
    """tokens: [N] uint8, uint16 or uint32, read-only. The rest counts the text they came from:
    Unicode characters, UTF-8 bytes, and how many of the tokens are unknown.
    """

    tokens: Tokens
    characters: int
    bytes: int
    unknown: int
    path: Path


@dataclass(frozen=True)
class _Header:
    key: str
    dtype: str
    tokens: int
    characters: int
    bytes: int
    unknown: int
    crc32: int


def _packed(header: _Header) -> bytes:
    return (_MAGIC + json.dumps(asdict(header)).encode()).ljust(_HEADER_BYTES, b" ")


def build_store(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    directory: Path,
    key: str,
    ends: bool = True,
    workers: int = 1,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> TokenStore:
    """The tokens of `documents`, from the cache where it has them.

    With `ends`, one end_id stands between two documents.

    `key` names the file and must stand for text and tokenizer together; `workers` processes encode,
    this very one where it is 1. `progress` gets characters.
    Raises EnvironmentProblem where `directory` cannot be written, and what `stop` and a document's
    `pieces` raise; nothing is left behind then.
    """
    path = directory / f"{key}{SUFFIX}"
    cached = _open(path, key, stop)
    if cached is not None:
        caches.mark_used(path)
        progress(cached.characters)
        return cached
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.disk_problem(directory, error) from error
    if path.is_dir():  # a rename replaces anything else
        caches.remove(path)
    _build(
        documents,
        tokenizer,
        path,
        key=key,
        ends=ends,
        workers=workers,
        stop=stop,
        progress=progress,
    )
    built = _open(path, key, stop)
    if built is None:
        raise EnvironmentProblem(f"{path} vanished after it was written", hint="run it again")
    return built


def unigram_counts(store: TokenStore, vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each token occurs: int64 [V]."""
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(store.tokens), _CHUNK):
        counts_V += np.bincount(store.tokens[start : start + _CHUNK], minlength=vocab_size)
    return counts_V


def _build(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    path: Path,
    *,
    key: str,
    ends: bool,
    workers: int,
    stop: Stop,
    progress: Callable[[int], None],
) -> None:
    dtype = f"<u{np.min_scalar_type(tokenizer.vocab_size - 1).itemsize}"
    tokens = characters = size = unknown = crc32 = 0

    def measured(pieces: Iterator[str]) -> Iterator[str]:
        nonlocal characters, size
        for piece in pieces:
            stop()
            yield piece
            characters += len(piece)
            size += len(piece.encode())
            progress(len(piece))

    blocks = gather(map(measured, readings(documents)), tokenizer.encoder, BLOCK, ends=ends)
    encoded = encode_all(tokenizer, blocks, workers=workers, stop=stop)
    with atomic.replacing(path, mode=0o600) as file, closing(encoded):
        file.write(bytes(_HEADER_BYTES))
        for ids in encoded:
            if tokenizer.unknown_id is not None:
                unknown += int(np.count_nonzero(ids == tokenizer.unknown_id))
            data = ids.astype(dtype).tobytes()
            file.write(data)
            tokens, crc32 = tokens + len(ids), zlib.crc32(data, crc32)
        file.seek(0)
        header = _Header(key, dtype, tokens, characters, size, unknown, crc32)
        file.write(_packed(header))


def _open(path: Path, key: str, stop: Stop) -> TokenStore | None:
    """The store at `path`, or None where there is none or it is not what was written."""
    try:
        with caches.opened(path) as file:
            packed = file.read(_HEADER_BYTES)
            header = _Header(**json.loads(packed.removeprefix(_MAGIC)))
            if _packed(header) != packed or header.key != key or header.dtype not in _DTYPES:
                return None
            crc32 = size = 0
            while data := file.read(_CHUNK):
                stop()
                crc32, size = zlib.crc32(data, crc32), size + len(data)
            dtype = np.dtype(header.dtype)
            if (crc32, size) != (header.crc32, header.tokens * dtype.itemsize):
                return None
            # The file that was read, whatever lies at its path now; an empty one cannot be mapped.
            tokens: Tokens = (
                np.memmap(file, dtype=dtype, mode="r", offset=_HEADER_BYTES, shape=(header.tokens,))
                if header.tokens
                else np.empty(0, dtype=dtype)
            )
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return TokenStore(tokens, header.characters, header.bytes, header.unknown, path)
