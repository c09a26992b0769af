"""Child process that trains SentencePiece: text on standard input, model on standard output.

Run as a script with one argument, SentencePiece's options as JSON. Imports nothing from this
package, for a quick start. Text is passed through an iterator, because a file name would be stored
in the model.
"""

from __future__ import annotations

import io
import json
import sys

import sentencepiece


def main() -> int:
    """Train and write the model; on failure write one line to standard error and return 1."""
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
