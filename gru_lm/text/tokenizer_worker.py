"""Worker process that encodes texts; the socket on its standard input carries texts and ids.

Run as a script by parallel.py, whose protocol it implements: it receives the tokenizer's kind, its
model, its end piece (empty if none) and its whole pieces (on lines of their own, empty if none), then
texts, each answered with its ids. Locates this package relative to its own file, and imports only the
modules it needs.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Answer requests until the parent closes the socket or dies."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from gru_lm.text.parallel import encode_texts, receive, send, unpack
    from gru_lm.text.tokenizer import load_tokenizer

    parent = socket.socket(fileno=sys.stdin.fileno())
    kind, data, end_piece, whole = (receive(parent) for _ in range(4))
    tokenizer = load_tokenizer(
        kind.decode(),
        data,
        end_piece=end_piece.decode() or None,
        whole=whole.decode().split("\n") if whole else (),
    )
    while True:
        send(parent, encode_texts(tokenizer, unpack(receive(parent))).tobytes())


if __name__ == "__main__":
    with suppress(EOFError):
        main()
