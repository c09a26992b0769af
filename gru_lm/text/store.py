"""Token store: the token ids of a text in one memory-mapped file, built in constant memory.

The file has a fixed-size header (magic, version, JSON), followed by the raw little-endian ids in the
smallest sufficient unsigned type. It is a cache: an invalid file is rebuilt. Independent of models.
Invariant: a store is opened only if its checksum matches.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
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
from gru_lm.text.listing import RecordDocument
from gru_lm.text.parallel import BLOCK, encode_all, gather
from gru_lm.text.tokenizer_encoders import Ids

if TYPE_CHECKING:
    from gru_lm.text.tokenizer import Tokenizer

SUFFIX = ".tokens"
_MAGIC = b"gru-lm tokens 1\n"
_HEADER_BYTES = 1024
_CHUNK = 2**20  # tokens or bytes per read
_DTYPES = ("<u1", "<u2", "<u4")

Tokens = npt.NDArray[Any]


@dataclass(frozen=True)
class TokenStore:
    """Tokens [N] (uint8, uint16 or uint32, read-only) with counts of their text.

    `characters` and `bytes` are the text's Unicode characters and UTF-8 bytes; `unknown` is the
    number of unknown tokens.
    """

    tokens: Tokens
    characters: int
    bytes: int
    unknown: int
    path: Path

    def record_ends(self, end_id: int) -> npt.NDArray[np.integer[Any]]:
        """For the tokens of a list: where each record ends, after its end_id, [R]."""
        wide = np.uint64 if len(self.tokens) >= 1 << 32 else np.uint32
        return np.concatenate(
            [
                (start + 1 + np.flatnonzero(self.tokens[start : start + _CHUNK] == end_id)).astype(
                    wide
                )
                for start in range(0, len(self.tokens), _CHUNK)
            ]
            or [np.empty(0, wide)]
        )


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
    """Return the tokens of `documents`, from the cache if it has them.

    With `ends`, documents are separated by end_id; every record of a list is followed by it. `key` is
    the cache key and must identify text and tokenizer. `workers`: number of worker processes; 1 encodes
    in this process. `progress` is called with characters. Raises EnvironmentProblem if `directory` is
    not writable; exceptions of `stop` and of a document's `pieces` propagate. No files are left behind
    on error.
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
        raise EnvironmentProblem(
            f"{path} was removed or modified right after it was written",
            hint="run the command again",
        )
    return built


def unigram_counts(store: TokenStore, vocab_size: int) -> npt.NDArray[np.int64]:
    """Count the occurrences of each token: int64 [V]."""
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

    lists = [document for document in documents if isinstance(document, RecordDocument)]
    if lists:
        encoded = _encoded_records(lists, tokenizer, measured, workers=workers, stop=stop)
    else:
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


def _encoded_records(
    documents: Sequence[RecordDocument],
    tokenizer: Tokenizer,
    measured: Callable[[Iterator[str]], Iterator[str]],
    *,
    workers: int,
    stop: Stop,
) -> Generator[Ids, None, None]:
    """Yield the tokens of records in blocks, each record followed by end_id."""
    is_lines = deque[bool]()  # of the blocks being encoded: whether records are lines of one text

    def blocks() -> Iterator[list[str]]:
        for document in documents:
            for block in document.blocks():
                if not block.texts:
                    continue
                text = block.text
                is_lines.append(text.count("\n") == len(block.texts))
                deque(measured(iter([text])), maxlen=0)
                yield [text] if is_lines[-1] else [*block.texts, ""]

    for ids in encode_all(tokenizer, blocks(), workers=workers, stop=stop):
        # Encoding lines together is much faster, and lines are encoded independently.
        lines = is_lines.popleft()
        yield (
            np.where(ids == tokenizer.newline_id, np.uint32(tokenizer.end_id), ids)
            if lines
            else ids
        )


def _open(path: Path, key: str, stop: Stop) -> TokenStore | None:
    """Open the store at `path`; None if there is none or it is damaged."""
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
            # Map the open file: `path` may have been replaced. An empty file cannot be mapped.
            tokens: Tokens = (
                np.memmap(file, dtype=dtype, mode="r", offset=_HEADER_BYTES, shape=(header.tokens,))
                if header.tokens
                else np.empty(0, dtype=dtype)
            )
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return TokenStore(tokens, header.characters, header.bytes, header.unknown, path)
