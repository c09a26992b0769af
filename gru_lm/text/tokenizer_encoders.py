"""How each kind of tokenizer turns text into ids: by a table, or by SentencePiece.

Knows nothing of what ids look like, of files, or of processes. Invariant: ids are a function of the
text alone: what `blocks` cuts, encoded block by block, gives what the whole text gives. Where a table
takes SentencePiece's place, it gives the same ids.
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

# Part of the key of cached tokens: increase the number whenever any tokenizer's ids may change.
VERSION = f"3, SentencePiece {sentencepiece.__version__}"

Ids = npt.NDArray[np.uint32]
_LONGEST_REMEMBERED = 32  # characters
_MOST_REMEMBERED = 2**17  # words; about 20 MB
_BEYOND_SPACE = re.compile(f"[^ {models.SPACE}][ {models.SPACE}]")
_NONE = np.uint32(2**32 - 1)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNIT = re.compile(" *[^ ]+| +")
_WHITE = "".join(filter(str.isspace, map(chr, range(0x3001)))).replace("\n", "")
_WORD_OR_NEWLINE = re.compile(r"\n|\S+")


class Encoder:
    """Text to ids. quick: whether handing the text to another process costs more than encoding."""

    quick = False

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """The text in blocks of about `size` characters, to be encoded each on its own."""
        return segments.blocks(pieces, size)

    def encode(self, text: str) -> Ids:
        """The ids of a text, or of a block of it."""
        raise NotImplementedError

    def ends(self, text: str) -> npt.NDArray[np.int64]:
        """Where in the UTF-8 of a block each of its tokens ends; for what is not lossless."""
        raise NotImplementedError


class ByteEncoder(Encoder):
    """byte: the id is the byte."""

    quick = True

    def encode(self, text: str) -> Ids:
        return np.frombuffer(clean(text).encode(), dtype=np.uint8).astype(np.uint32)


class PieceEncoder(Encoder):
    """unigram, and every model from elsewhere: SentencePiece encodes each segment on its own."""

    def __init__(self, model: Any, data: bytes, *, newline_id: int, lossless: bool) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._newline = [newline_id]
        # Where the space at a cut is dropped and a dummy one takes its place, SentencePiece reads the
        # parts of a long line as it would read the whole.
        normaliser = model.normalizer_spec
        self._at_spaces = bool(normaliser.add_dummy_prefix and normaliser.remove_extra_whitespaces)
        ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
        # SentencePiece would take its own sign for a space: spell it in bytes instead.
        self._space_sign = (
            [ids[models.BYTE_PIECES[byte]] for byte in models.SPACE.encode()] if lossless else []
        )

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        return segments.blocks(pieces, size, at_spaces=self._at_spaces)

    def encode(self, text: str) -> Ids:
        texts: list[str] = []
        tails: list[list[int]] = []  # the ids after each text
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
        found: list[int] = []
        before = 0
        segmented = segments.split(clean(text), at_spaces=self._at_spaces)
        bodies = [segment.removesuffix("\n") for segment in segmented]
        mapped = self._processor.encode(
            bodies, num_threads=1, return_type="offset_mapping", return_bytes=True
        )
        for segment, body, encoded in zip(segmented, bodies, mapped, strict=True):
            found += (before + end for _, end in encoded["offsets"])
            before += len(segment.encode())
            if len(body) < len(segment):
                found.append(before)
        return np.array(found, dtype=np.int64)


class CharEncoder(Encoder):
    """char: a table of all code points; a character that has no piece is spelled in bytes."""

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
    """The ids of units met before, of each with `before` in front of it; bounded."""

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
    """bpe none of whose pieces goes on after a space, so that merges never cross one.

    Each word with the spaces before it is then encoded on its own, and but once while it is
    remembered: four times the speed for prose.
    """

    def __init__(self, model: Any, data: bytes, *, newline_id: int, lossless: bool) -> None:
        super().__init__(model, data, newline_id=newline_id, lossless=lossless)
        self._units = _Remembered(self._unit, "")
        self._after_space = _Remembered(self._unit, " ")

    def encode(self, text: str) -> Ids:
        unit_ids, after_space_ids = self._units.__getitem__, self._after_space.__getitem__
        newline = np.array(self._newline, dtype=np.uint32).tobytes()
        found: list[bytes] = []
        for segment in segments.split(clean(text)):
            body = segment.removesuffix("\n")
            indented = body.lstrip(" ")
            if "  " in indented:
                found += map(unit_ids, _UNIT.findall(body))
            else:
                first, *others = indented.split(" ")
                found.append(unit_ids(body[: len(body) - len(indented)] + first))
                found += map(after_space_ids, others)
            if len(body) < len(segment):
                found.append(newline)
        return np.frombuffer(b"".join(found), dtype=np.uint32)

    def _unit(self, unit: str) -> Ids:
        if models.SPACE in unit:
            return super().encode(unit)
        return _array(self._processor.encode(unit))  # for a list, it would start a thread


class WordEncoder(Encoder):
    """word as trained here: split at white space, look each word up; a line's end is a token."""

    def __init__(self, model: Any, *, newline_id: int, unknown_id: int) -> None:
        self._newline_id = newline_id
        self._unknown_id = unknown_id
        self._ids = {
            entry.piece.removeprefix(models.SPACE): number
            for number, entry in enumerate(model.pieces)
            if entry.type == models.NORMAL and entry.piece.startswith(models.SPACE)
        }

    def blocks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """Blocks end between words; one that holds a longer word holds it whole."""
        waiting: list[str] = []  # of a word that may go on in the next piece
        for piece in segments.joined(pieces, size):
            begun = "" if piece[-1].isspace() else piece.rsplit(None, 1)[-1]
            if len(begun) == len(piece):
                waiting.append(piece)
                continue
            yield "".join([*waiting, piece[: len(piece) - len(begun)]])
            waiting = [begun]
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
        bytes_before = np.flatnonzero(begins_character(data))  # each character
        ends = [match.end() for match in _WORD_OR_NEWLINE.finditer(text)]
        return np.append(bytes_before, len(data))[ends]


def _array(ids: list[int]) -> Ids:
    # By way of array: a third of the time that np.array takes.
    return np.frombuffer(array("I", ids), dtype=np.uint32)


def encoder_for(
    kind: str, model: Any, data: bytes, *, newline_id: int, unknown_id: int, lossless: bool
) -> Encoder:
    """The quickest encoder for a checked model."""
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
    """Which bytes of UTF-8 are the first of a character."""
    begins: npt.NDArray[np.bool_] = np.frombuffer(data, np.uint8) & 0xC0 != 0x80
    return begins


def clean(text: str) -> str:
    """`text` with U+FFFD for surrogates, which UTF-8 cannot hold; odd terminals give such."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def white_space_before(text: bytes) -> tuple[str, bytes]:
    """The white space at the start of `text`, which may begin or end within a character; and the rest.

    The end of a line is none.
    """
    decoded = text.decode(errors="surrogateescape")
    body = decoded.lstrip(_WHITE)
    return decoded[: len(decoded) - len(body)], body.encode(errors="surrogateescape")
