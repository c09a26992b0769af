"""Text to token ids and back: a fixed table of bytes, or a SentencePiece model that was checked.

Knows nothing of files of text or of models that learn. Invariants: tokens are a function of the text
alone, whatever pieces it arrives in; `char`, `byte`, `bpe` and `unigram` as trained here give any
Unicode text back exactly. How a model is trained is tokenizer_training.py's business, what its bytes
may hold tokenizer_model.py's.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gru_lm.errors import InputError, UsageError, unknown_name
from gru_lm.signals import Stop, never
from gru_lm.text import tokenizer_model as models
from gru_lm.text.tokenizer_encoders import (
    ByteEncoder,
    Encoder,
    begins_character,
    clean,
    encoder_for,
)
from gru_lm.text.tokenizer_training import train_model

KINDS = ("char", "byte", "bpe", "unigram", "word")
_BATCH = 2**16  # characters
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", " ": models.SPACE})


def escaped(text: str) -> str:
    r"""`text` as a field of a table: \t \n \r \\, a space as ▁."""
    return text.translate(_ESCAPES)


class Decoder:
    """Tokens to text, one at a time; bytes that do not yet make a character are held back.

    Bytes that can never make one become U+FFFD. Where the tokenizer puts a space before each word
    (`word`, or a foreign model with a dummy prefix), the one at a line's start is dropped.
    """

    def __init__(self, surfaces: list[bytes], *, end_id: int, drop_leading_space: bool) -> None:
        self._surfaces = surfaces
        self._end_id = end_id
        self._drop = drop_leading_space
        self._line_start = True
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        surface = self._surfaces[token]
        dropped = int(self._drop and self._line_start and surface.startswith(b" "))
        if surface:
            self._line_start = surface.endswith(b"\n")
        elif token == self._end_id:
            self._line_start = True
        return self._utf8.decode(surface[dropped:])

    def flush(self) -> str:
        """What is still held back, as U+FFFD; the decoder is then as new."""
        self._line_start = True
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Covering(NamedTuple):
    """Tokens, how many UTF-8 bytes and characters each covers, and what the unknown ones hide.

    A character belongs to the token of its first byte.
    """

    tokens_N: np.ndarray
    sizes_N2: np.ndarray  # int64
    unknown: list[str]  # for each unknown token, in order, without white space around it


class _Counted:
    """Pieces of text, passed on; `sizes_2` are the bytes and characters of those that were."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = pieces
        self.sizes_2 = np.zeros(2, np.int64)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.sizes_2 += (len(clean(piece).encode()), len(piece))
            yield piece


class Tokenizer:
    """Text to tokens, by an encoder of its kind, and back.

    kind: char | byte | bpe | unigram | word. data: the serialised SentencePiece model, b"" for
    byte. newline_id ends a line and is what is fed before the first token. end_id stands between
    two documents and for zero bytes (where a foreign model has no such piece of its own, it is
    newline_id). unknown_id is None where nothing can be unknown. lossless: any text comes back.
    drop_leading_space: the space that a line's first token brings is not text.
    ends_documents: whether the end of a document is scored and sampled; set to False for a model
    that was trained on a single document and never met one.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        kind: str,
        data: bytes,
        pieces: list[str],
        surfaces: list[bytes],
        newline_id: int,
        end_id: int,
        unknown_id: int | None,
        lossless: bool,
        drop_leading_space: bool = False,
    ) -> None:
        self.kind = kind
        self.data = data
        self.fingerprint = hashlib.sha256(kind.encode() + b"\0" + data).hexdigest()
        self.vocab_size = len(pieces)
        self.newline_id = newline_id
        self.end_id = end_id
        self.unknown_id = unknown_id
        self.lossless = lossless
        self.ends_documents = True
        self.encoder = encoder
        self._pieces = pieces
        self._surfaces = surfaces
        self.drop_leading_space = drop_leading_space
        self._sizes_V2 = np.array(
            [(len(surface), int(begins_character(surface).sum())) for surface in surfaces]
        )

    def encode(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """The tokens of one document, in order, in lists of bounded length."""
        for block in self.encoder.blocks(pieces, _BATCH):
            yield self.encoder.encode(block).tolist()

    def encode_covering(self, pieces: Iterable[str]) -> Iterator[Covering]:
        """The tokens of one document, and what of its text each of them covers.

        White space that `word` or a foreign model passes over belongs to the token after it, at the end
        of the document to its last; so the sums are those of the text, if there is any token.
        """
        counted = _Counted(pieces)
        accounted_2 = waiting_2 = np.zeros(2, np.int64)
        held: Covering | None = None
        for block in self.encoder.blocks(counted, _BATCH):
            covering, rest_2 = self._covering(block)
            if not len(covering.tokens_N):
                waiting_2 = waiting_2 + rest_2
                continue
            covering.sizes_N2[0] += waiting_2
            waiting_2 = rest_2
            accounted_2 = accounted_2 + covering.sizes_N2.sum(0)
            if held:
                yield held
            held = covering
        if held:
            held.sizes_N2[-1] += counted.sizes_2 - accounted_2
            yield held

    def _covering(self, block: str) -> tuple[Covering, np.ndarray]:
        """The tokens of a block; and how much of it follows the last one, [2]."""
        tokens_N = self.encoder.encode(block)
        if self.lossless:
            return Covering(tokens_N, self._sizes_V2[tokens_N], []), np.zeros(2, np.int64)
        data = clean(block).encode()
        characters = np.concatenate(([0], np.cumsum(begins_character(data))))
        ends_N = self.encoder.ends(block)
        ends_N2 = np.stack((ends_N, characters[ends_N]), 1)
        sizes_N2 = np.diff(ends_N2, axis=0, prepend=np.zeros((1, 2), np.int64))
        unknown = [
            data[ends_N[at] - sizes_N2[at, 0] : ends_N[at]].decode(errors="replace").strip()
            for at in np.flatnonzero(tokens_N == self.unknown_id)
        ]
        rest_2 = np.array([len(data), characters[-1]]) - sizes_N2.sum(0)
        return Covering(tokens_N, sizes_N2, unknown), rest_2

    def encode_text(self, text: str) -> list[int]:
        return [token for tokens in self.encode([text]) for token in tokens]

    def surface(self, token: int) -> bytes:
        """The UTF-8 bytes the token stands for; b"" for the end of a document."""
        return self._surfaces[token]

    def piece(self, token: int) -> str:
        r"""The token on one line of a table: \t \n \r \\, a byte piece as <0xNN>, a space as ▁."""
        return escaped(self._pieces[token])

    def decoder(self) -> Decoder:
        return Decoder(
            self._surfaces, end_id=self.end_id, drop_leading_space=self.drop_leading_space
        )


def _bytes() -> Tokenizer:
    """The fixed table: token = byte, and 256 for the end of a document."""
    pieces = [chr(byte) if chr(byte).isprintable() else "" for byte in range(128)]
    for byte in b"\t\n\r":
        pieces[byte] = chr(byte)
    pieces = [piece or models.BYTE_PIECES[byte] for byte, piece in enumerate(pieces)]
    return Tokenizer(
        ByteEncoder(),
        kind="byte",
        data=b"",
        pieces=[*pieces, *models.BYTE_PIECES[128:], models.END],
        surfaces=[*(bytes([byte]) for byte in range(256)), b""],
        newline_id=ord("\n"),
        end_id=256,
        unknown_id=None,
        lossless=True,
    )


def train_tokenizer(
    kind: str,
    pieces: Callable[[], Iterable[str]],
    *,
    vocab_size: int | None = None,
    stop: Stop = never,
) -> Tokenizer:
    """A tokenizer of `kind` for the text that `pieces()` yields, anew at each call.

    The same text gives the same bytes. Raises UsageError for an unknown kind or a vocabulary size
    that the text cannot have, InputError where SentencePiece fails, and what `stop` raises.
    """
    if kind not in KINDS:
        raise unknown_name("tokenizer", kind, KINDS)
    if kind == "byte":
        if vocab_size not in (None, 257):
            raise UsageError(
                f"--vocab-size {vocab_size} does not go with --tokenizer byte",
                why="its vocabulary is the 256 bytes and the end of a document",
                hint="leave --vocab-size out, or use --tokenizer bpe",
            )
        return _bytes()
    return load_tokenizer(kind, train_model(kind, pieces, vocab_size=vocab_size, stop=stop))


def load_tokenizer(kind: str, data: bytes) -> Tokenizer:
    """The tokenizer of `kind` in `data`, which may come from anywhere. Raises InputError."""
    if kind == "byte":
        if data:
            raise InputError("tokenizer refused", why="a byte tokenizer holds no model")
        return _bytes()
    tokenizer = _load(data)
    if tokenizer.kind != kind:
        raise InputError("tokenizer refused", why=f"a {tokenizer.kind} model is named {kind!r}")
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a SentencePiece file, whatever its kind. Raises InputError."""
    try:
        if not path.is_file():
            raise InputError(f"no tokenizer at {path}", hint="name a SentencePiece .model file")
        with path.open("rb") as file:
            data = file.read(models.MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _load(data)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", why=error.why, hint=error.hint) from error


def _load(data: bytes) -> Tokenizer:
    model = models.checked(data)
    kind = models.KIND_OF_TYPE[model.trainer_spec.model_type]
    ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
    unknown_id = int(model.trainer_spec.unk_id)
    newline_id = ids.get(models.NEWLINE)
    if newline_id is None and kind != "word":
        newline_id = ids.get("<0x0A>")
    end_id = ids.get(model.trainer_spec.eos_piece)
    if end_id is not None and model.pieces[end_id].type != models.CONTROL:
        end_id = None
    if newline_id is None:
        newline_id = end_id
    if newline_id is None:
        raise InputError(
            "tokenizer model refused",
            why='it has neither a piece "\\n" nor an end-of-sentence piece, so no line can end',
            hint='train it with user_defined_symbols="\\n"',
        )
    surfaces = [_surface(entry, kind) for entry in model.pieces]
    surfaces[newline_id] = b"\n"
    normaliser = model.normalizer_spec
    lossless = (
        kind != "word"
        and bool(model.trainer_spec.byte_fallback)
        and not normaliser.precompiled_charsmap
        and not normaliser.add_dummy_prefix
        and not normaliser.remove_extra_whitespaces
        and bool(normaliser.escape_whitespaces)
        and models.SPACE in ids
        and model.pieces[ids[models.SPACE]].type in (models.NORMAL, models.USER_DEFINED)
        and newline_id != end_id
    )
    data = models.serialised(model)
    try:
        encoder = encoder_for(
            kind, model, data, newline_id=newline_id, unknown_id=unknown_id, lossless=lossless
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError("tokenizer model refused", why=str(error)[:200]) from error
    return Tokenizer(
        encoder,
        kind=kind,
        data=data,
        pieces=[entry.piece for entry in model.pieces],
        surfaces=surfaces,
        newline_id=newline_id,
        end_id=newline_id if end_id is None else end_id,
        unknown_id=unknown_id,
        lossless=lossless,
        drop_leading_space=kind == "word" or bool(normaliser.add_dummy_prefix),
    )


def _surface(entry: Any, kind: str) -> bytes:
    piece: str = entry.piece
    if entry.type == models.CONTROL:
        return b""
    if entry.type == models.BYTE:
        return bytes([int(piece[3:5], 16)])
    if entry.type == models.UNKNOWN_TYPE:
        return b" <unk>" if kind == "word" else "\ufffd".encode()
    return piece.replace(models.SPACE, " ").encode()
