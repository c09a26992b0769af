"""The child process that trains SentencePiece: text on standard input, the model on standard output.

Run as a file, with SentencePiece's options as JSON in its one argument; it imports nothing of this
package, so that it starts quickly. Text arrives through an iterator, since the name of a file would
enter the model's bytes.
"""

from __future__ import annotations

import io
import json
import sys

import sentencepiece


def main() -> int:
    """Train, and write the model; a failure is one line on standard error and exit code 1."""
    model = io.BytesIO()
    lines = (line.removesuffix(b"\n").decode() for line in sys.stdin.buffer)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, **json.loads(sys.argv[1])
        )
    except (RuntimeError, OSError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()))
        return 1
    sys.stdout.buffer.write(model.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
