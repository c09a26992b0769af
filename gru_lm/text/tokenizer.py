"""Text to token ids and back: a fixed table of bytes, or a SentencePiece model that was checked.

Knows nothing of files of text or of models that learn. Invariants: tokens are a function of the text
alone, whatever pieces it arrives in; `char`, `byte`, `bpe` and `unigram` as trained here give any
Unicode text back exactly. How a model is trained is tokenizer_training.py's business, what its bytes
may hold tokenizer_model.py's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gru_lm.errors import InputError, UsageError, unknown_name
from gru_lm.signals import Stop, never
from gru_lm.text import tokenizer_model as models
from gru_lm.text.decoder import Decoder
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
_ESCAPES = str.maketrans(
    {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0", " ": models.SPACE}
)

# How often which white space stands where in the training text, by place: evaluation/spelling.py's.
Spacing = Mapping[str, Mapping[str, int]]


def escaped(text: str) -> str:
    r"""`text` as a field of a table: \t \n \r \0 \\, a space as ▁."""
    return text.translate(_ESCAPES)


class Covering(NamedTuple):
    """Tokens, and of a document what each of them covers.

    A character belongs to the token of its first byte. `sizes_N2` of the last token has what follows it.
    """

    tokens_N: np.ndarray
    sizes_N2: np.ndarray  # int64: UTF-8 bytes and characters
    texts: list[bytes] | None  # UTF-8, without `rest`; None: the surfaces of the tokens
    rest: bytes | None = None  # what follows the last token, at the end of a document alone


class Tokenizer:
    """Text to tokens, by an encoder of its kind, and back.

    kind: char | byte | bpe | unigram | word. data: the serialised SentencePiece model, b"" for
    byte. newline_id ends a line and is what is fed before the first token. end_id stands between
    two documents and for zero bytes (where a foreign model has no such piece of its own, it is
    newline_id). end_piece: the piece that the user named to end both. unknown_id is None where nothing
    can be unknown. lossless: any text comes back. drop_leading_space: the space that a line's first
    token brings is not text. whitespace_as_suffix: a word's space is at its end, not its start.
    sample: the characters of text that it was trained on, at most, where that was bounded. spacing: of
    the training text; None where the tokenizer is lossless, or it was not counted. ends_documents:
    whether the end of a document is scored and sampled; set to False for a model that was trained on a
    single document and never met one.
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
        end_piece: str | None = None,
        drop_leading_space: bool = False,
        whitespace_as_suffix: bool = False,
    ) -> None:
        self.kind = kind
        self.data = data
        self.end_piece = end_piece
        named = b"" if end_piece is None else end_piece.encode() + b"\0"
        self.fingerprint = hashlib.sha256(named + kind.encode() + b"\0" + data).hexdigest()
        self.vocab_size = len(pieces)
        self.newline_id = newline_id
        self.end_id = end_id
        self.unknown_id = unknown_id
        self.lossless = lossless
        self.whitespace_as_suffix = whitespace_as_suffix
        self.ends_documents = True
        self.sample: int | None = None
        self.encoder = encoder
        self._pieces = pieces
        self._surfaces = surfaces
        self.drop_leading_space = drop_leading_space
        self.spacing: Spacing | None = None
        self._sizes_V2 = np.array(
            [(len(surface), int(begins_character(surface).sum())) for surface in surfaces]
        )

    def encode(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """The tokens of one document, in order, in lists of bounded length."""
        for block in self.encoder.blocks(pieces, _BATCH):
            yield self.encoder.encode(block).tolist()

    def encode_covering(self, pieces: Iterable[str]) -> Iterator[Covering]:
        """The tokens of one document, and what of its text each of them covers.

        White space that `word` or a foreign model passes over belongs to the token after it. What
        follows the last token of a document is its `rest`: where a tokenizer is not lossless, the last
        covering has one, perhaps b"", and no token if the document has none.
        """
        if self.lossless:
            for block in self.encoder.blocks(pieces, _BATCH):
                tokens_N = self.encoder.encode(block)
                yield Covering(tokens_N, self._sizes_V2[tokens_N], None)
            return
        waiting = b""
        held = Covering(np.empty(0, np.uint32), np.empty((0, 2), np.int64), [])
        for block in self.encoder.blocks(pieces, _BATCH):
            found, waiting = self._covering(block, waiting)
            if len(found.tokens_N):
                if len(held.tokens_N):
                    yield held
                held = found
        held.sizes_N2[-1:] += (len(waiting), int(begins_character(waiting).sum()))
        yield held._replace(rest=waiting)

    def _covering(self, block: str, before: bytes) -> tuple[Covering, bytes]:
        """The tokens of a block, `before` it text that no token covers yet; and the text after them."""
        tokens_N, ends_N = self.encoder.encode(block), self.encoder.ends(block)
        data = before + clean(block).encode()
        if not len(tokens_N):
            return Covering(tokens_N, np.empty((0, 2), np.int64), []), data
        ends = [0, *(ends_N + len(before)).tolist()]
        texts = [data[start:end] for start, end in pairwise(ends)]
        # SentencePiece gives a whole character to the last of the bytes that spell it.
        for at in np.flatnonzero(self._sizes_V2[tokens_N, 0] == 1).tolist():
            size = len(texts[at])
            spelled = tokens_N[max(0, at + 1 - size) : at + 1].tolist()
            if size > 1 and b"".join(map(self.surface, spelled)) == texts[at]:
                ends[at + 2 - size : at + 1] = range(ends[at + 1] - size + 1, ends[at + 1])
                texts[at + 1 - size : at + 1] = map(self.surface, spelled)
        characters = np.concatenate(([0], np.cumsum(begins_character(data))))
        sizes_N2 = np.diff(np.stack((ends, characters[ends]), 1), axis=0)
        return Covering(tokens_N, sizes_N2, texts), data[ends[-1] :]

    def encode_text(self, text: str) -> list[int]:
        return [token for tokens in self.encode([text]) for token in tokens]

    def surface(self, token: int) -> bytes:
        """The UTF-8 bytes the token stands for; b"" for the end of a document."""
        return self._surfaces[token]

    def told(self, token: int, *, starts: bool) -> bytes:
        """The text that the token stands for, at the start of a line or elsewhere."""
        surface = self._surfaces[token]
        return surface.removeprefix(b" ") if starts and self.drop_leading_space else surface

    def with_spacing(self, spacing: Spacing | None) -> Tokenizer:
        """The same, with what was counted of a training text."""
        other = copy.copy(self)
        other.spacing = spacing
        return other

    def piece(self, token: int) -> str:
        r"""The token on one line of a table: \t \n \r \\, a byte piece as <0xNN>, a space as ▁."""
        return escaped(self._pieces[token])

    def decoder(self) -> Decoder:
        return Decoder(
            self._surfaces,
            end_id=self.end_id,
            drop_leading_space=self.drop_leading_space,
            drop_trailing_space=self.whitespace_as_suffix and not self.lossless,
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
    characters: int | None = None,
    stop: Stop = never,
) -> Tokenizer:
    """A tokenizer of `kind` for the text that `pieces()` yields, anew at each call.

    `characters` bounds the sample that bpe and unigram are trained on. The same text gives the same
    bytes. Raises UsageError for an unknown kind or a vocabulary size that the text cannot have,
    InputError where SentencePiece fails, and what `stop` raises.
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
    data = train_model(kind, pieces, vocab_size=vocab_size, characters=characters, stop=stop)
    tokenizer = load_tokenizer(kind, data)
    tokenizer.sample = characters
    return tokenizer


def load_tokenizer(kind: str, data: bytes, *, end_piece: str | None = None) -> Tokenizer:
    """The tokenizer of `kind` in `data`, which may come from anywhere. Raises InputError.

    `end_piece` is the piece that ends lines and documents, where it was named.
    """
    if kind == "byte":
        if data or end_piece is not None:
            raise InputError("tokenizer refused", why="a byte tokenizer holds no model")
        return _bytes()
    tokenizer = _load(data, end_piece)
    if tokenizer.kind != kind:
        raise InputError("tokenizer refused", why=f"a {tokenizer.kind} model is named {kind!r}")
    return tokenizer


def read_tokenizer(path: Path, *, end_piece: str | None = None) -> Tokenizer:
    """The tokenizer in a SentencePiece file, whatever its kind. Raises InputError."""
    try:
        if not path.is_file():
            raise InputError(f"no tokenizer at {path}", hint="name a SentencePiece .model file")
        with path.open("rb") as file:
            data = file.read(models.MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _load(data, end_piece)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", why=error.why, hint=error.hint) from error


def _load(data: bytes, end_piece: str | None) -> Tokenizer:
    model = models.checked(data)
    kind = models.KIND_OF_TYPE[model.trainer_spec.model_type]
    ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
    unknown_id = int(model.trainer_spec.unk_id)
    newline_id, end_id = models.ends(model, end_piece)
    surfaces = [models.surface(entry, kind) for entry in model.pieces]
    surfaces[newline_id] = b"\n"
    normaliser, suffix = model.normalizer_spec, bool(model.trainer_spec.treat_whitespace_as_suffix)
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
        end_id=end_id,
        unknown_id=unknown_id,
        lossless=lossless,
        end_piece=end_piece,
        drop_leading_space=not suffix and (kind == "word" or bool(normaliser.add_dummy_prefix)),
        whitespace_as_suffix=suffix,
    )
