"""The child process that encodes: texts in and ids out by one socket, its standard input.

Run as a file by parallel.py, whose messages it speaks: first the tokenizer's kind, its model and the
piece named to end lines (empty where there is none), then texts, each answered by its ids. It finds
this package beside itself, wherever that was imported from, and imports no more of it than it needs.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Answer until the parent has closed the socket, or is gone."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from gru_lm.text.parallel import encode_texts, receive, send, unpack
    from gru_lm.text.tokenizer import load_tokenizer

    parent = socket.socket(fileno=sys.stdin.fileno())
    kind, data, end_piece = (receive(parent) for _ in range(3))
    tokenizer = load_tokenizer(kind.decode(), data, end_piece=end_piece.decode() or None)
    while True:
        send(parent, encode_texts(tokenizer, unpack(receive(parent))).tobytes())


if __name__ == "__main__":
    with suppress(EOFError):
        main()
