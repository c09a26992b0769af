"""Encoders from text to ids, one per kind of tokenizer: table lookup or SentencePiece.

Independent of decoding, files and processes. Invariants: encoding the blocks of `blocks` one by one
gives the ids of the whole text; an encoder that replaces SentencePiece with a table gives the same
ids.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from gru_lm.text import segments
from gru_lm.text import tokenizer_model as models

# Part of the cache key of tokens: increment the number whenever any tokenizer's ids may change.
VERSION = f"3, SentencePiece {sentencepiece.__version__}"

Ids = npt.NDArray[np.uint32]
_LONGEST_REMEMBERED = 32  # characters of a cached word
_MOST_REMEMBERED = 2**17  # cached words; about 20 MB
_BEYOND_SPACE = re.compile(f"[^ {models.SPACE}][ {models.SPACE}]")
_NONE = np.uint32(2**32 - 1)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNIT = re.compile(" *[^ ]+| +")
_WHITE = "".join(filter(str.isspace, map(chr, range(0x3001)))).replace("\n", "")
_WORD_OR_NEWLINE = re.compile(r"\n|\S+")


class Encoder:
    """Base class of encoders. quick: whether encoding is cheaper than sending text to a process."""

    quick = False

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """Split the text into blocks of about `size` characters that can be encoded independently."""
        return segments.blocks(pieces, size)

    def encode(self, text: str) -> Ids:
        """Encode a text, or a block of it."""
        raise NotImplementedError

    def ends(self, text: str) -> npt.NDArray[np.int64]:
        """End offset of each token in the UTF-8 of a block; required for lossy tokenizers only."""
        raise NotImplementedError


class ByteEncoder(Encoder):
    """byte: the id is the byte."""

    quick = True

    def encode(self, text: str) -> Ids:
        return np.frombuffer(clean(text).encode(), dtype=np.uint8).astype(np.uint32)


class PieceEncoder(Encoder):
    """Encodes each segment with SentencePiece; for unigram and foreign models."""

    def __init__(self, model: Any, data: bytes, *, newline_id: int, lossless: bool) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._newline = [newline_id]
        # If SentencePiece drops the space at a cut and inserts a dummy space instead, a long line can be
        # split at spaces without changing its ids.
        normaliser = model.normalizer_spec
        self._at_spaces = bool(normaliser.add_dummy_prefix and normaliser.remove_extra_whitespaces)
        ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
        # SentencePiece would decode a literal ▁ as a space: spell it in bytes instead.
        self._space_sign = (
            [ids[models.BYTE_PIECES[byte]] for byte in models.SPACE.encode()] if lossless else []
        )

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        return segments.blocks(pieces, size, at_spaces=self._at_spaces)

    def encode(self, text: str) -> Ids:
        texts: list[str] = []
        tails: list[list[int]] = []  # ids that follow each text
        for segment in segments.split(clean(text), at_spaces=self._at_spaces):
            body = segment.removesuffix("\n")
            parts = body.split(models.SPACE) if self._space_sign else [body]
            texts += parts
            tails += [self._space_sign] * (len(parts) - 1)
            tails.append(self._newline if len(body) < len(segment) else [])
        ids: list[int] = []
        encoded = self._processor.encode(texts, num_threads=1)
        for body_ids, tail in zip(encoded, tails, strict=True):
            ids += body_ids
            ids += tail
        return _array(ids)

    def ends(self, text: str) -> npt.NDArray[np.int64]:
        ends: list[int] = []
        before = 0
        segmented = segments.split(clean(text), at_spaces=self._at_spaces)
        bodies = [segment.removesuffix("\n") for segment in segmented]
        mapped = self._processor.encode(
            bodies, num_threads=1, return_type="offset_mapping", return_bytes=True
        )
        for segment, body, encoded in zip(segmented, bodies, mapped, strict=True):
            ends += (before + end for _, end in encoded["offsets"])
            before += len(segment.encode())
            if len(body) < len(segment):
                ends.append(before)
        return np.array(ends, dtype=np.int64)


class CharEncoder(Encoder):
    """char: a table of all code points; characters without a piece are spelled in bytes."""

    quick = True

    def __init__(self, model: Any, *, newline_id: int) -> None:
        ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
        self._id_of_byte = np.array([ids[piece] for piece in models.BYTE_PIECES], dtype=np.uint32)
        self._id_of_code = np.full(0x110000, _NONE)
        known = {piece: number for piece, number in ids.items() if len(piece) == 1}
        for character, number in known.items():
            self._id_of_code[ord(character)] = number
        self._id_of_code[ord(models.SPACE)] = _NONE
        self._id_of_code[ord(" ")] = known[models.SPACE]
        self._id_of_code[ord("\n")] = newline_id

    def encode(self, text: str) -> Ids:
        codes = np.frombuffer(clean(text).encode("utf-32-le"), dtype="<u4")
        ids: Ids = self._id_of_code[codes]
        rare = codes[ids == _NONE]
        if len(rare):
            lengths = 1 + sum((rare >= least).astype(int) for least in (0x80, 0x800, 0x10000))
            counts = np.ones(len(ids), dtype=int)
            counts[ids == _NONE] = lengths
            ids = np.repeat(ids, counts)
            spelled = rare.tobytes().decode("utf-32-le").encode()
            ids[ids == _NONE] = self._id_of_byte[np.frombuffer(spelled, dtype=np.uint8)]
        return ids


class _Remembered(dict[str, bytes]):
    """Bounded cache of the ids of units, each encoded with the prefix `before`."""

    def __init__(self, encode: Callable[[str], Ids], before: str) -> None:
        super().__init__()
        self._encode = encode
        self._before = before

    def __missing__(self, unit: str) -> bytes:
        ids = self._encode(self._before + unit).tobytes()
        if len(unit) <= _LONGEST_REMEMBERED:
            if len(self) >= _MOST_REMEMBERED:
                self.clear()
            self[unit] = ids
        return ids


class WordwiseEncoder(PieceEncoder):
    """bpe in which no piece continues after a space, so that merges do not cross words.

    Words, with their preceding spaces, are encoded independently and cached, which is four times as fast
    for prose.
    """

    def __init__(self, model: Any, data: bytes, *, newline_id: int, lossless: bool) -> None:
        super().__init__(model, data, newline_id=newline_id, lossless=lossless)
        self._units = _Remembered(self._unit, "")
        self._after_space = _Remembered(self._unit, " ")

    def encode(self, text: str) -> Ids:
        unit_ids, after_space_ids = self._units.__getitem__, self._after_space.__getitem__
        newline = np.array(self._newline, dtype=np.uint32).tobytes()
        encoded: list[bytes] = []
        for segment in segments.split(clean(text)):
            body = segment.removesuffix("\n")
            indented = body.lstrip(" ")
            if "  " in indented:
                encoded += map(unit_ids, _UNIT.findall(body))
            else:
                first, *others = indented.split(" ")
                encoded.append(unit_ids(body[: len(body) - len(indented)] + first))
                encoded += map(after_space_ids, others)
            if len(body) < len(segment):
                encoded.append(newline)
        return np.frombuffer(b"".join(encoded), dtype=np.uint32)

    def _unit(self, unit: str) -> Ids:
        if models.SPACE in unit:
            return super().encode(unit)
        return _array(self._processor.encode(unit))  # given a list, it would start a thread


class WordEncoder(Encoder):
    """word as trained here: split at white space and look words up; an end of line is a token."""

    def __init__(self, model: Any, *, newline_id: int, unknown_id: int) -> None:
        self._newline_id = newline_id
        self._unknown_id = unknown_id
        self._ids = {
            entry.piece.removeprefix(models.SPACE): number
            for number, entry in enumerate(model.pieces)
            if entry.type == models.NORMAL and entry.piece.startswith(models.SPACE)
        }

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """Blocks end between words; a word longer than `size` is not split."""
        waiting: list[str] = []  # parts of a word that may continue in the next piece
        for piece in segments.joined(pieces, size):
            partial = "" if piece[-1].isspace() else piece.rsplit(None, 1)[-1]
            if len(partial) == len(piece):
                waiting.append(piece)
                continue
            yield "".join([*waiting, piece[: len(piece) - len(partial)]])
            waiting = [partial]
        if rest := "".join(waiting):
            yield rest

    def encode(self, text: str) -> Ids:
        ids: list[int] = []
        for number, line in enumerate(text.split("\n")):
            if number:
                ids.append(self._newline_id)
            ids += map(self._ids.get, line.split(), repeat(self._unknown_id))
        return _array(ids)

    def ends(self, text: str) -> npt.NDArray[np.int64]:
        data = clean(text).encode()
        bytes_before = np.flatnonzero(begins_character(data))  # per character
        ends = [match.end() for match in _WORD_OR_NEWLINE.finditer(text)]
        return np.append(bytes_before, len(data))[ends]


def _array(ids: list[int]) -> Ids:
    # Conversion by way of array takes a third of the time of np.array.
    return np.frombuffer(array("I", ids), dtype=np.uint32)


def encoder_for(
    kind: str, model: Any, data: bytes, *, newline_id: int, unknown_id: int, lossless: bool
) -> Encoder:
    """Select the fastest encoder for a validated model."""
    if kind == "word" and models.is_word_list(model):
        return WordEncoder(model, newline_id=newline_id, unknown_id=unknown_id)
    plain = (models.NORMAL, models.USER_DEFINED)
    if kind == "char" and lossless:
        singles = [len(entry.piece) == 1 and entry.piece != " " for entry in model.pieces]
        if singles == [entry.type in plain for entry in model.pieces]:
            return CharEncoder(model, newline_id=newline_id)
    if kind == "bpe" and lossless:
        merges_within_words = not any(
            entry.type == models.UNUSED or _BEYOND_SPACE.search(entry.piece)
            for entry in model.pieces
        )
        if merges_within_words:
            return WordwiseEncoder(model, data, newline_id=newline_id, lossless=lossless)
    return PieceEncoder(model, data, newline_id=newline_id, lossless=lossless)


def begins_character(data: bytes) -> npt.NDArray[np.bool_]:
    """Mask of the UTF-8 bytes that start a character."""
    begins: npt.NDArray[np.bool_] = np.frombuffer(data, np.uint8) & 0xC0 != 0x80
    return begins


def clean(text: str) -> str:
    """Replace surrogates, which some terminals produce and UTF-8 cannot encode, with U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def white_space_before(text: bytes) -> tuple[str, bytes]:
    """Split `text` into leading white space and the rest; a newline is not white space here.

    `text` may start or end inside a character.
    """
    decoded = text.decode(errors="surrogateescape")
    body = decoded.lstrip(_WHITE)
    return decoded[: len(decoded) - len(body)], body.encode(errors="surrogateescape")


def white_space_after(text: bytes) -> tuple[bytes, str]:
    """Split off the white space at the end of `text`: the rest, and the white space."""
    decoded = text.decode(errors="surrogateescape")
    body = decoded.rstrip(_WHITE)
    return body.encode(errors="surrogateescape"), decoded[len(body) :]
