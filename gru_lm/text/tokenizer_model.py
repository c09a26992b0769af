"""SentencePiece models as bytes: construction for simple kinds, and validation before loading.

SentencePiece is native code that trusts its input. A model is therefore parsed with protobuf, checked
against the limits below, and loaded only as our own serialisation of its known fields. Independent of
texts. Invariant: SentencePiece loads any model returned by `checked` without crashing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from gru_lm.errors import InputError

# protobuf creates the class at import, invisibly to mypy.
_ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]

SPACE = "\u2581"  # SentencePiece's representation of a space
UNKNOWN, END, NEWLINE = "<unk>", "</s>", "\n"
ENDS = ("<sos/eos>", END)  # pieces that end lines in foreign models
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Characters that SentencePiece does not support as pieces, or whose lines it drops from training.
UNHOLDABLE = "\0\r\x1f\u2581\u2585"

MAX_MODEL_BYTES = 16 * 2**20
MAX_PIECES = 300_000
MAX_PIECE_BYTES = 1024
MAX_SCORE = 1e7

NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
KIND_OF_TYPE = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
TYPE_OF_KIND = {kind: number for number, kind in KIND_OF_TYPE.items()}

# Layout of a normaliser's map: the size of a trie, the trie (a double array of 32-bit units, see
# Darts-clone), and the NUL-terminated replacements.
_BLOCK = 256  # units; a transition by any byte stays within one block
_IS_VALUE = 1 << 31  # set: the unit is the position of a replacement; else it has the bits below
_LABEL, _HAS_VALUE, _LARGE_OFFSET = 0xFF, 1 << 8, 1 << 9
MAX_REPLACEMENT = 1024  # bytes; limits the expansion of a single character

# Types of pieces allowed for the special ids of trainer_spec.
_SPECIAL_TYPES = {
    "unk": (UNKNOWN_TYPE,),
    "bos": (CONTROL, USER_DEFINED),
    "eos": (CONTROL, USER_DEFINED),
    "pad": (CONTROL, USER_DEFINED),
}
_TRAINER_FIELDS = (
    "model_type",
    "vocab_size",
    "byte_fallback",
    "treat_whitespace_as_suffix",
    *(f"{name}_{what}" for name in _SPECIAL_TYPES for what in ("id", "piece")),
)
_NORMALISER_FIELDS = (
    "name",
    "precompiled_charsmap",
    "add_dummy_prefix",
    "remove_extra_whitespaces",
    "escape_whitespaces",
)
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>\Z")


def build(kind: str, weighted: Iterable[tuple[str, int]], *, spell_bytes: bool) -> bytes:
    """Build a model of `kind` with the pieces <unk>, </s>, newline, bytes if `spell_bytes`, `weighted`.

    `weighted` yields distinct (piece, count) in the order of ids. Scores are log relative
    frequencies, as in SentencePiece's own `char` and `word` trainers.
    """
    model = _ModelProto()
    trainer = model.trainer_spec
    trainer.model_type = TYPE_OF_KIND[kind]
    trainer.byte_fallback = spell_bytes
    trainer.unk_id, trainer.eos_id, trainer.bos_id, trainer.pad_id = 0, 1, -1, -1
    normaliser = model.normalizer_spec
    normaliser.name = "identity"
    normaliser.add_dummy_prefix = False
    normaliser.remove_extra_whitespaces = False
    model.pieces.add(piece=UNKNOWN, score=0, type=UNKNOWN_TYPE)
    model.pieces.add(piece=END, score=0, type=CONTROL)
    model.pieces.add(piece=NEWLINE, score=0, type=USER_DEFINED)
    for piece in BYTE_PIECES if spell_bytes else ():
        model.pieces.add(piece=piece, score=0, type=BYTE)
    weighted = list(weighted)
    total = sum(count for _, count in weighted)
    for piece, count in weighted:
        model.pieces.add(piece=piece, score=math.log(count / total), type=NORMAL)
    trainer.vocab_size = len(model.pieces)
    return serialised(model)


def is_word_list(model: Any) -> bool:
    """Whether a validated model is a word list written by `build`, which needs no normaliser.

    In contrast, a word model trained by SentencePiece normalises text.
    """
    plain = checked(build("word", [], spell_bytes=False))
    plain.trainer_spec.vocab_size = model.trainer_spec.vocab_size
    own = len(plain.pieces)
    return (
        model.trainer_spec == plain.trainer_spec
        and model.normalizer_spec == plain.normalizer_spec
        and list(model.pieces[:own]) == list(plain.pieces)
        and all(
            entry.type == NORMAL and entry.piece.startswith(SPACE) for entry in model.pieces[own:]
        )
    )


def ends(model: Any, end_piece: str | None) -> tuple[int, int]:
    """The ids of the pieces that end a line and a document: `end_piece`, or else conventional names.

    Raises InputError if there is no such piece.
    """
    ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
    types = (CONTROL, USER_DEFINED)
    special = [entry.piece for entry in model.pieces if entry.type in types]
    shown = ", ".join(map(shlex.quote, special[:8])) or "any piece that does not occur in the text"
    hint = f"--end-piece PIECE, where PIECE is one of its pieces: {shown}"
    if end_piece is not None:
        if ids.get(end_piece, model.trainer_spec.unk_id) == model.trainer_spec.unk_id:
            raise InputError(
                f"--end-piece {end_piece!r}: the tokenizer has no such piece",
                hint=hint,
            )
        return ids[end_piece], ids[end_piece]
    newline_id = ids.get(NEWLINE)
    if newline_id is None and KIND_OF_TYPE[model.trainer_spec.model_type] != "word":
        newline_id = ids.get("<0x0A>")
    end_id = ids.get(model.trainer_spec.eos_piece)
    if end_id is not None and model.pieces[end_id].type != CONTROL:
        end_id = None
    if newline_id is None and end_id is None:
        end_id = next((ids[piece] for piece in ENDS if piece in special), None)
    if newline_id is None:
        newline_id = end_id
    if newline_id is None:
        raise InputError(
            "tokenizer model refused: it has no piece to end lines with",
            why=f'there is no piece "\\n", {" or ".join(ENDS)}',
            hint=hint,
        )
    return newline_id, newline_id if end_id is None else end_id


def surface(entry: Any, kind: str) -> bytes:
    """UTF-8 bytes of a piece."""
    piece: str = entry.piece
    if entry.type == CONTROL:
        return b""
    if entry.type == BYTE:
        return bytes([int(piece[3:5], 16)])
    if entry.type == UNKNOWN_TYPE:
        return b" <unk>" if kind == "word" else "\ufffd".encode()
    return piece.replace(SPACE, " ").encode()


def serialised(model: Any) -> bytes:
    """Serialise a model deterministically."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def checked(data: bytes) -> Any:
    """Parse and validate `data`; return a ModelProto reduced to the fields needed for encoding.

    Raises InputError if `data` is not a SentencePiece model, exceeds a limit of this module, or has
    contents that SentencePiece itself would not write.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise _refused(f"{len(data):,} bytes, the limit is {MAX_MODEL_BYTES:,}")
    model = _ModelProto()
    try:
        model.ParseFromString(data)
        model.DiscardUnknownFields()
        _check_pieces(model)
        _check_trainer(model)
        _check_normaliser(model)
        return _reduced(model)
    except (DecodeError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise _refused("it is not a SentencePiece model, or it is damaged") from error


def _refused(why: str) -> InputError:
    return InputError(
        "tokenizer model refused", why=why, hint="give a .model file written by SentencePiece"
    )


def _text(field: str | bytes) -> str:
    # protobuf returns bytes for a text field that is not UTF-8.
    return field if isinstance(field, str) else field.decode()


def _check_pieces(model: Any) -> None:
    if not 0 < len(model.pieces) <= MAX_PIECES:
        raise _refused(f"{len(model.pieces):,} pieces; supported are 1 to {MAX_PIECES:,}")
    seen: set[str] = set()
    types = [0] * 7
    for number, entry in enumerate(model.pieces):
        piece = _text(entry.piece)
        where = f"piece {number}"
        if not 0 < len(piece.encode()) <= MAX_PIECE_BYTES:
            raise _refused(f"{where} is empty or longer than {MAX_PIECE_BYTES:,} bytes")
        if "\0" in piece:
            raise _refused(f"{where} contains a NUL")
        if piece in seen:
            raise _refused(f"{where} is a duplicate: {piece[:40]!r}")
        seen.add(piece)
        if not abs(entry.score) <= MAX_SCORE:  # also false for NaN
            raise _refused(f"{where} has the score {entry.score}")
        if entry.type == BYTE and not _BYTE_PIECE.match(piece):
            raise _refused(f"{where} is not a byte: {piece[:40]!r}")
        types[entry.type] += 1
    if types[UNKNOWN_TYPE] != 1:
        raise _refused(f"{types[UNKNOWN_TYPE]} unknown pieces instead of one")
    if types[BYTE] != (256 if model.trainer_spec.byte_fallback else 0):
        raise _refused(f"{types[BYTE]} byte pieces contradict its byte_fallback setting")


def _check_trainer(model: Any) -> None:
    trainer = model.trainer_spec
    if trainer.model_type not in KIND_OF_TYPE:
        raise _refused(f"its type {trainer.model_type} is unknown")
    for name, types in _SPECIAL_TYPES.items():
        number = getattr(trainer, f"{name}_id")
        least = 0 if name == "unk" else -1
        if not least <= number < len(model.pieces):
            raise _refused(f"its {name}_id {number} is out of range")
        if number >= 0 and model.pieces[number].type not in types:
            raise _refused(f"its {name}_id {number} is a piece of the wrong type")
        if not 0 < len(_text(getattr(trainer, f"{name}_piece")).encode()) <= MAX_PIECE_BYTES:
            raise _refused(f"its {name}_piece is empty or too long")
    if "" in trainer.user_defined_symbols or "" in trainer.control_symbols:
        raise _refused("one of its symbols is empty")


def _check_normaliser(model: Any) -> None:
    _text(model.normalizer_spec.name)
    charsmap = model.normalizer_spec.precompiled_charsmap
    if charsmap and (fault := _fault(charsmap)):
        raise _refused(f"its normaliser's map is damaged: {fault}")


def _fault(charsmap: bytes) -> str | None:
    """A defect of a normaliser's map that could cause out-of-bounds reads for some text; None if safe.

    All units of the trie are checked, including those that no text can reach.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if not size or size % (4 * _BLOCK) or 4 + size >= len(charsmap):
        return "its trie has an impossible size"
    units_N = np.frombuffer(charsmap, "<u4", size // 4, offset=4)
    replacements = charsmap[4 + size :]
    if replacements[-1]:
        return "its last replacement is not terminated"
    try:
        replacements.decode()
    except UnicodeDecodeError:
        return "a replacement is not UTF-8"
    if max(map(len, replacements.split(b"\0"))) > MAX_REPLACEMENT:
        return f"a replacement is longer than {MAX_REPLACEMENT:,} bytes"
    is_value_N = units_N & _IS_VALUE != 0
    values_M = units_N[is_value_N] & ~np.uint32(_IS_VALUE)
    starts = np.flatnonzero(np.frombuffer(b"\0" + replacements[:-1], np.uint8) == 0)
    if not np.isin(values_M, starts).all():
        return "a value is not the start of a replacement"
    shifts_N = np.where(units_N & _LARGE_OFFSET, 8, 0).astype(np.uint32)
    nexts_N = np.arange(len(units_N), dtype=np.uint64) ^ (units_N >> 10 << shifts_N)
    if (nexts_N[~is_value_N] >= len(units_N)).any():  # otherwise its whole block is within bounds
        return "its trie has an offset out of bounds"
    if is_value_N[0] or units_N[0] & (_LABEL | _HAS_VALUE):
        return "its trie has no root"
    if not is_value_N[nexts_N[~is_value_N & (units_N & _HAS_VALUE != 0)]].all():
        return "its trie has a key without a value"
    return None


def _reduced(model: Any) -> Any:
    """A new model with the pieces and only the settings needed for encoding."""
    reduced = _ModelProto()
    reduced.pieces.extend(model.pieces)
    for field in _TRAINER_FIELDS:
        setattr(reduced.trainer_spec, field, getattr(model.trainer_spec, field))
    for field in _NORMALISER_FIELDS:
        setattr(reduced.normalizer_spec, field, getattr(model.normalizer_spec, field))
    return reduced
