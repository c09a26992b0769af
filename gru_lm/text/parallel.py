"""Texts encoded by several processes at once; their ids come back in the order of the texts.

A worker is a plain child process that has loaded the tokenizer: texts go in and ids come out by a
socket that is its standard input. Knows nothing of files. Invariants: the ids are those that the
tokenizer gives in this very process, whatever becomes of a worker; a bounded number of texts is under
way; no worker outlives the generator, nor this process.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from gru_lm.signals import Stop
from gru_lm.text.tokenizer import Tokenizer
from gru_lm.text.tokenizer_encoders import Encoder, Ids

BLOCK = 2**18  # characters that a worker is handed at once
WORTHWHILE = 2**24  # characters; below, starting workers takes what they save
MOST_WORKERS = 8  # as many encode all that one process can read and write
_IN_FLIGHT = 2  # blocks a worker: the one that it encodes, and one that waits for it or is done
_CHILD = Path(__file__).with_name("tokenizer_worker.py")
_LENGTH = struct.Struct("<Q")
_BETWEEN = b"\xff"  # between two texts; no UTF-8 holds it


def gather(
    documents: Iterable[Iterable[str]], encoder: Encoder, size: int, *, ends: bool = True
) -> Iterator[list[str]]:
    """Documents, each in pieces, in blocks of about `size` characters for `encode_texts`.

    Between two texts of a block a document ends; where a block ends, none does. Without `ends` no
    block holds more than one document.
    """
    block, length = [""], 0
    for number, pieces in enumerate(documents):
        if number and ends:
            block.append("")
        elif number:
            yield block
            block, length = [""], 0
        for text in encoder.blocks(pieces, size):
            block[-1] += text
            length += len(text)
            if length >= size:
                yield block
                block, length = [""], 0
    yield block


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Ids:
    """The ids of texts of several documents, with end_id between two of them."""
    end = np.array([tokenizer.end_id], dtype=np.uint32)
    encoded = [ids for text in texts for ids in (end, tokenizer.encoder.encode(text))]
    return np.concatenate(encoded[1:])


def encode_all(
    tokenizer: Tokenizer,
    blocks: Iterable[Sequence[str]],
    *,
    workers: int,
    stop: Stop,
) -> Generator[Ids, None, None]:
    """What `encode_texts` gives for each of `blocks`, in order, by at most `workers` processes.

    Close the generator where it is left early. What `stop` or `blocks` raise ends the workers too.
    """
    workers = min(workers, MOST_WORKERS)
    if workers < 2 or tokenizer.encoder.quick:
        for block in blocks:
            stop()
            yield encode_texts(tokenizer, block)
        return
    crew: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def encode(block: Sequence[str]) -> Ids:
        worker = idle.get()
        try:
            return worker.encode(block)
        finally:
            idle.put(worker)

    def result() -> Ids:
        first = under_way.popleft()
        while not wait([first], timeout=0.1).done:
            stop()
        return first.result()

    under_way: deque[Future[Ids]] = deque()
    # Threads, each of which waits for one worker at a time: a full socket blocks nobody else.
    threads = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            crew.append(_Worker(tokenizer))
            idle.put(crew[-1])
        for block in blocks:
            stop()
            under_way.append(threads.submit(encode, block))
            if len(under_way) == workers * _IN_FLIGHT:
                yield result()
        while under_way:
            yield result()
    finally:
        for worker in crew:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in crew:
            worker.close()


class _Worker:
    """A child process; where it cannot be started or has died, this process does its work."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._killed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket, theirs = socket.socketpair()
        # -P: this folder's names must not shadow the library's. A session of its own: Ctrl-C in the
        # terminal reaches us alone. It has one thread, also where the library would start more.
        with theirs, suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        end_piece = (tokenizer.end_piece or "").encode()
        self._unsent = [tokenizer.kind.encode(), tokenizer.data, end_piece]

    def encode(self, texts: Sequence[str]) -> Ids:
        """As `encode_texts`. Raises OSError or EOFError once it was killed."""
        if self._process:
            try:
                return self._ask(texts)
            except (OSError, EOFError):  # it died, for want of memory perhaps
                if self._killed:
                    raise
                self.close()
        return encode_texts(self._tokenizer, texts)

    def _ask(self, texts: Sequence[str]) -> Ids:
        for message in (*self._unsent, pack(texts)):
            send(self._socket, message)
        self._unsent = []
        return np.frombuffer(receive(self._socket), dtype=np.uint32)

    def kill(self) -> None:
        """End the process, whatever it does; may be called by another thread than the rest."""
        self._killed = True
        process = self._process
        if process:
            process.kill()

    def close(self) -> None:
        """End the process and forget it."""
        self._socket.close()
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def pack(texts: Sequence[str]) -> bytes:
    """Texts as one message."""
    return _BETWEEN.join(text.encode(errors="surrogatepass") for text in texts)


def unpack(message: bytes) -> list[str]:
    """The texts in a message."""
    return [text.decode(errors="surrogatepass") for text in message.split(_BETWEEN)]


def send(to: socket.socket, message: bytes) -> None:
    """Send a message. Raises OSError."""
    to.sendall(_LENGTH.pack(len(message)))
    to.sendall(message)


def receive(source: socket.socket) -> bytes:
    """Wait for a message. Raises EOFError, or OSError, where the other end is gone."""
    (length,) = _LENGTH.unpack(_read(source, _LENGTH.size))
    return _read(source, length)


def _read(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise EOFError
    return data
