"""Tokenizers: a fixed byte table, or a validated SentencePiece model.

Training is in tokenizer_training.py, validation of models in tokenizer_model.py. Independent of
text files and language models. Invariants: tokens depend on the text only, not on how it is split
into pieces; `char`, `byte`, `bpe` and `unigram` tokenizers trained here are lossless for any
Unicode text; pieces that stay whole (tokenizer_whole.py) are tokens wherever they occur.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    WordEncoder,
    begins_character,
    clean,
    encoder_for,
)
from gru_lm.text.tokenizer_training import train_model
from gru_lm.text.tokenizer_whole import WholeEncoder, gaps, whole_surfaces

KINDS = ("char", "byte", "bpe", "unigram", "word")
_BATCH = 2**16  # characters
_ESCAPES = str.maketrans(
    {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0", " ": models.SPACE}
)

# Counts of white space in the training text by place (evaluation/spelling.py).
Spacing = Mapping[str, Mapping[str, int]]


def escaped(text: str) -> str:
    r"""Escape `text` for a table field: \t \n \r \0 \\, and ▁ for a space."""
    return text.translate(_ESCAPES)


class Covering(NamedTuple):
    """Tokens, and the part of the document that each of them covers.

    A character belongs to the token of its first byte. At the end of a document, `sizes_N2` of the last
    token includes `rest`.
    """

    tokens_N: np.ndarray
    sizes_N2: np.ndarray  # int64: UTF-8 bytes and characters
    texts: list[bytes] | None  # UTF-8, without `rest`; None: the surfaces of the tokens
    rest: bytes | None = None  # text after the last token; only at the end of a document


class Tokenizer:
    """Converts text to tokens and back.

    Attributes:
        kind: char | byte | bpe | unigram | word.
        data: serialised SentencePiece model; b"" for byte.
        newline_id: ends a line; also the input before the first token.
        end_id: separates documents and stands for zero bytes; equal to newline_id in a foreign model
            without such a piece.
        end_piece: the piece chosen by the user to end lines and documents, if any.
        whole: the pieces that stay whole, the last tokens of the vocabulary; () if none.
        unknown_id: the out-of-vocabulary token; None if every text can be encoded.
        lossless: whether decoding restores any text.
        drop_leading_space: whether the leading space of a line's first token is not part of the text.
        whitespace_as_suffix: whether pieces end with the space of a word instead of starting with it.
        sample: limit on the characters used for training; None if unlimited or default.
        spacing: white-space counts of the training text; None if lossless or not counted.
        ends_documents: whether ends of documents are scored and sampled; False for a model trained on a
            single document.
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
        whole: Sequence[str] = (),
        drop_leading_space: bool = False,
        whitespace_as_suffix: bool = False,
    ) -> None:
        if whole:
            encoder = WholeEncoder(encoder, whole, newline_id=newline_id, first_id=len(pieces))
            pieces = [*pieces, *whole]
            surfaces = [*surfaces, *whole_surfaces(whole, as_words=not lossless)]
        self.kind = kind
        self.data = data
        self.end_piece = end_piece
        self.whole = tuple(whole)
        named = b"" if end_piece is None else end_piece.encode() + b"\0"
        named += "".join(f"{piece}\n" for piece in whole).encode()
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
        """Yield the tokens of one document in lists of bounded length."""
        for block in self.encoder.blocks(pieces, _BATCH):
            yield self.encoder.encode(block).tolist()

    def encode_covering(self, pieces: Iterable[str]) -> Iterator[Covering]:
        """Yield the tokens of one document with the text that each of them covers.

        White space skipped by `word` or a foreign model belongs to the next token. With a lossy
        tokenizer the last covering has a `rest`, the text after the last token, which may be b"";
        for a document without tokens it has no tokens.
        """
        if self.lossless:
            for block in self.encoder.blocks(pieces, _BATCH):
                tokens_N = self.encoder.encode(block)
                yield Covering(tokens_N, self._sizes_V2[tokens_N], None)
            return
        waiting = b""
        last = Covering(np.empty(0, np.uint32), np.empty((0, 2), np.int64), [])
        for block in self.encoder.blocks(pieces, _BATCH):
            covering, waiting = self._covering(block, waiting)
            if len(covering.tokens_N):
                if len(last.tokens_N):
                    yield last
                last = covering
        last.sizes_N2[-1:] += (len(waiting), int(begins_character(waiting).sum()))
        yield last._replace(rest=waiting)

    def _covering(self, block: str, before: bytes) -> tuple[Covering, bytes]:
        """Encode a block, preceded by text `before` not yet covered; return the text left over too."""
        tokens_N, ends_N = self.encoder.encode(block), self.encoder.ends(block)
        data = before + clean(block).encode()
        if not len(tokens_N):
            return Covering(tokens_N, np.empty((0, 2), np.int64), []), data
        ends = [0, *(ends_N + len(before)).tolist()]
        texts = [data[start:end] for start, end in pairwise(ends)]
        # SentencePiece assigns a character spelled in bytes to the last byte piece; give one to each.
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
        """UTF-8 bytes of a token; b"" for the end of a document."""
        return self._surfaces[token]

    @property
    def adds_trailing_space(self) -> bool:
        """Whether a space that is not in the text may follow the last word of a line."""
        return self.whitespace_as_suffix and not self.lossless

    def told(self, token: int, *, starts: bool) -> bytes:
        """UTF-8 bytes of a token at the start of a line (`starts`) or elsewhere."""
        surface = self._surfaces[token]
        return surface.removeprefix(b" ") if starts and self.drop_leading_space else surface

    def with_spacing(self, spacing: Spacing | None) -> Tokenizer:
        """A copy with these white-space counts of a training text."""
        other = copy.copy(self)
        other.spacing = spacing
        return other

    def piece(self, token: int) -> str:
        r"""A token as a table field: \t \n \r \\, <0xNN> for a byte piece, ▁ for a space."""
        return escaped(self._pieces[token])

    def decoder(self) -> Decoder:
        return Decoder(
            self._surfaces,
            end_id=self.end_id,
            drop_leading_space=self.drop_leading_space,
            drop_trailing_space=self.adds_trailing_space,
        )


def _bytes(whole: Sequence[str]) -> Tokenizer:
    """The byte tokenizer: token = byte, 256 for the end of a document, whole pieces."""
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
        whole=whole,
    )


def train_tokenizer(
    kind: str,
    pieces: Callable[[], Iterable[str]],
    *,
    vocab_size: int | None = None,
    characters: int | None = None,
    whole: Sequence[str] = (),
    stop: Stop = never,
) -> Tokenizer:
    """Train a tokenizer of `kind` on the text of `pieces()`, which may be called several times.

    `characters` limits the training sample of bpe and unigram. `whole`: distinct pieces that stay whole,
    part of `vocab_size`. Deterministic: the same text gives the same bytes. Raises UsageError for an
    unknown kind or a vocabulary size that is impossible for the text, InputError if SentencePiece fails;
    exceptions of `stop` propagate.
    """
    if kind not in KINDS:
        raise unknown_name("tokenizer", kind, KINDS)
    if kind == "byte":
        if vocab_size not in (None, 257 + len(whole)):
            raise UsageError(
                f"--vocab-size {vocab_size} cannot be combined with --tokenizer byte",
                why="its vocabulary is the 256 bytes and the end of a document"
                + (f", and {len(whole):,} whole pieces" if whole else ""),
                hint="omit --vocab-size, or use --tokenizer bpe",
            )
        return _bytes(whole)
    data = train_model(
        kind,
        (lambda: gaps(pieces(), whole)) if whole else pieces,
        vocab_size=vocab_size,
        characters=characters,
        reserved=len(whole),
        stop=stop,
    )
    tokenizer = load_tokenizer(kind, data, whole=whole)
    tokenizer.sample = characters
    return tokenizer


def load_tokenizer(
    kind: str, data: bytes, *, end_piece: str | None = None, whole: Sequence[str] = ()
) -> Tokenizer:
    """Load a tokenizer of `kind` from untrusted `data`. Raises InputError if it is invalid.

    `end_piece`: the piece that ends lines and documents, if chosen by the user. `whole`: distinct pieces
    that stay whole.
    """
    if kind == "byte":
        if data or end_piece is not None:
            raise InputError("tokenizer refused", why="a byte tokenizer has no model")
        return _bytes(whole)
    tokenizer = _load(data, end_piece, whole)
    if tokenizer.kind != kind:
        raise InputError(
            "tokenizer refused", why=f"declared as {kind!r}, but the model is {tokenizer.kind!r}"
        )
    return tokenizer


def read_tokenizer(path: Path, *, end_piece: str | None = None) -> Tokenizer:
    """Load a tokenizer of any kind from a SentencePiece file. Raises InputError if it is invalid."""
    try:
        if not path.is_file():
            raise InputError(f"no tokenizer at {path}", hint="give a SentencePiece .model file")
        with path.open("rb") as file:
            data = file.read(models.MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _load(data, end_piece, ())
    except InputError as error:
        raise InputError(f"{path}: {error.message}", why=error.why, hint=error.hint) from error


def _load(data: bytes, end_piece: str | None, whole: Sequence[str]) -> Tokenizer:
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
    if whole and (end_piece is not None or not (lossless or isinstance(encoder, WordEncoder))):
        raise InputError("tokenizer refused", why="it is not one that keeps pieces whole")
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
        whole=whole,
        drop_leading_space=not suffix and (kind == "word" or bool(normaliser.add_dummy_prefix)),
        whitespace_as_suffix=suffix,
    )
