"""Tokenization of large texts by several worker processes, in order.

A worker is a child process with the tokenizer loaded; texts and ids are exchanged over a socket that is
its standard input. Does not read files. Invariants: the ids equal those computed in this process, even
if a worker dies; the number of blocks in flight is bounded; workers outlive neither the generator nor
this process.
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

BLOCK = 2**18  # characters per block sent to a worker
WORTHWHILE = 2**24  # characters of text below which starting workers costs more than it saves
MOST_WORKERS = 8  # beyond this, reading and writing in the main process are the bottleneck
_IN_FLIGHT = 2  # blocks per worker: one being encoded, one queued or done
_CHILD = Path(__file__).with_name("tokenizer_worker.py")
_LENGTH = struct.Struct("<Q")
_SEPARATOR = b"\xff"  # between texts; never occurs in UTF-8


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
    """Encode texts of several documents, with end_id between them."""
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
    """Yield `encode_texts` of each of `blocks`, in order, using at most `workers` processes.

    Close the generator if it is not exhausted. Exceptions from `stop` or `blocks` end the workers and
    are passed on.
    """
    workers = min(workers, MOST_WORKERS)
    if workers < 2 or tokenizer.encoder.quick:
        for block in blocks:
            stop()
            yield encode_texts(tokenizer, block)
        return
    pool: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def encode(block: Sequence[str]) -> Ids:
        worker = idle.get()
        try:
            return worker.encode(block)
        finally:
            idle.put(worker)

    def result() -> Ids:
        oldest = in_flight.popleft()
        while not wait([oldest], timeout=0.1).done:
            stop()
        return oldest.result()

    in_flight: deque[Future[Ids]] = deque()
    # Each thread waits for one worker at a time, so a full socket blocks only its own worker.
    threads = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            pool.append(_Worker(tokenizer))
            idle.put(pool[-1])
        for block in blocks:
            stop()
            in_flight.append(threads.submit(encode, block))
            if len(in_flight) == workers * _IN_FLIGHT:
                yield result()
        while in_flight:
            yield result()
    finally:
        for worker in pool:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in pool:
            worker.close()


class _Worker:
    """A worker process; if it cannot be started or dies, its work is done in this process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._killed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket, child_socket = socket.socketpair()
        # -P: modules of this folder must not shadow the standard library. Own session: Ctrl-C in the
        # terminal reaches only this process. One thread, even if libraries would start more.
        with child_socket, suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=child_socket.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        end_piece = (tokenizer.end_piece or "").encode()
        whole = "\n".join(tokenizer.whole).encode()
        self._unsent = [tokenizer.kind.encode(), tokenizer.data, end_piece, whole]

    def encode(self, texts: Sequence[str]) -> Ids:
        """Same as `encode_texts`. Raises OSError or EOFError after `kill`."""
        if self._process:
            try:
                return self._request(texts)
            except (OSError, EOFError):  # the process died, perhaps out of memory
                if self._killed:
                    raise
                self.close()
        return encode_texts(self._tokenizer, texts)

    def _request(self, texts: Sequence[str]) -> Ids:
        for message in (*self._unsent, pack(texts)):
            send(self._socket, message)
        self._unsent = []
        return np.frombuffer(receive(self._socket), dtype=np.uint32)

    def kill(self) -> None:
        """Kill the process; unlike the other methods, may be called from any thread."""
        self._killed = True
        process = self._process
        if process:
            process.kill()

    def close(self) -> None:
        """Kill the process and release its resources."""
        self._socket.close()
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def pack(texts: Sequence[str]) -> bytes:
    """Pack texts into one message."""
    return _SEPARATOR.join(text.encode(errors="surrogatepass") for text in texts)


def unpack(message: bytes) -> list[str]:
    """Unpack the texts of a message."""
    return [text.decode(errors="surrogatepass") for text in message.split(_SEPARATOR)]


def send(to: socket.socket, message: bytes) -> None:
    """Send a message. Raises OSError if the other end is closed."""
    to.sendall(_LENGTH.pack(len(message)))
    to.sendall(message)


def receive(source: socket.socket) -> bytes:
    """Wait for a message. Raises EOFError or OSError if the other end is closed."""
    (length,) = _LENGTH.unpack(_read(source, _LENGTH.size))
    return _read(source, length)


def _read(source: socket.socket, size: int) -> bytes:
    data = source.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise EOFError
    return data
