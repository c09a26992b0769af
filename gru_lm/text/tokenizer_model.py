"""The bytes of a SentencePiece model: written by us for simple kinds, checked before anything loads.

SentencePiece is native code that trusts its input, so a model is parsed with protobuf, held against
stated limits, and handed on only as our own serialisation of what was understood. Knows nothing of
text. Invariant: what `checked` returns, SentencePiece loads without a crash.
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

# protobuf makes the class while it is imported, out of mypy's sight.
_ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]

SPACE = "\u2581"  # SentencePiece's sign for a space
UNKNOWN, END, NEWLINE = "<unk>", "</s>", "\n"
ENDS = ("<sos/eos>", END)  # what a model from elsewhere may end lines with
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# What SentencePiece cannot hold as a piece, or leaves out of training together with its whole line.
UNHOLDABLE = "\0\r\x1f\u2581\u2585"

MAX_MODEL_BYTES = 16 * 2**20
MAX_PIECES = 300_000
MAX_PIECE_BYTES = 1024
MAX_SCORE = 1e7

NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
KIND_OF_TYPE = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
TYPE_OF_KIND = {kind: number for number, kind in KIND_OF_TYPE.items()}

# A normaliser's map: the size of a trie, the trie (a double array of 32-bit units, see Darts-clone), and
# the replacements, each closed by a NUL.
_BLOCK = 256  # units: a step by any byte stays within one
_IS_VALUE = 1 << 31  # a unit that holds the position of a replacement; else bits as follow
_LABEL, _HAS_VALUE, _LARGE_OFFSET = 0xFF, 1 << 8, 1 << 9
MAX_REPLACEMENT = 1024  # bytes: one character of text must not become a flood of it

# What the special ids of trainer_spec may name.
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
    """A model of `kind` that holds <unk>, </s>, end of line, the bytes if asked, then `weighted`.

    `weighted` yields (piece, count), each piece once and in the order of its id; a piece's score is
    the logarithm of its count, as SentencePiece's own `char` and `word` trainers have it.
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
    """Whether a checked model is one of words that `build` wrote, to be looked up by white space.

    A word model of SentencePiece's own training reads text through its normaliser.
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
    """The ids of the pieces that end a line and a document: as named, or known by their names.

    Raises InputError where there is none.
    """
    ids = {entry.piece: number for number, entry in enumerate(model.pieces)}
    types = (CONTROL, USER_DEFINED)
    special = [entry.piece for entry in model.pieces if entry.type in types]
    shown = ", ".join(map(shlex.quote, special[:8])) or "any that the text does not need"
    hint = f"--end-piece PIECE, where PIECE is one of its own: {shown}"
    if end_piece is not None:
        if ids.get(end_piece, model.trainer_spec.unk_id) == model.trainer_spec.unk_id:
            raise InputError(
                f"--end-piece {end_piece!r}: the tokenizer has no such piece to end lines with",
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
            "tokenizer model refused: which of its pieces ends a line?",
            why=f'it has no piece "\\n" and none called {" or ".join(ENDS)}',
            hint=hint,
        )
    return newline_id, newline_id if end_id is None else end_id


def surface(entry: Any, kind: str) -> bytes:
    """The UTF-8 that a piece stands for."""
    piece: str = entry.piece
    if entry.type == CONTROL:
        return b""
    if entry.type == BYTE:
        return bytes([int(piece[3:5], 16)])
    if entry.type == UNKNOWN_TYPE:
        return b" <unk>" if kind == "word" else "\ufffd".encode()
    return piece.replace(SPACE, " ").encode()


def serialised(model: Any) -> bytes:
    """The model's bytes, the same for the same content."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def checked(data: bytes) -> Any:
    """The ModelProto in `data`, reduced to what encoding needs, and safe to serialise and load.

    Raises InputError where `data` is not a SentencePiece model, breaks a limit of this module, or
    holds what SentencePiece would not write itself.
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
        raise _refused("it is not a SentencePiece model, or a damaged one") from error


def _refused(why: str) -> InputError:
    return InputError(
        "tokenizer model refused", why=why, hint="name a .model file that SentencePiece wrote"
    )


def _text(field: str | bytes) -> str:
    # protobuf hands over bytes where a text field is not UTF-8.
    return field if isinstance(field, str) else field.decode()


def _check_pieces(model: Any) -> None:
    if not 0 < len(model.pieces) <= MAX_PIECES:
        raise _refused(f"{len(model.pieces):,} pieces; 1 to {MAX_PIECES:,} can be used")
    seen: set[str] = set()
    types = [0] * 7
    for number, entry in enumerate(model.pieces):
        piece = _text(entry.piece)
        where = f"piece {number}"
        if not 0 < len(piece.encode()) <= MAX_PIECE_BYTES:
            raise _refused(f"{where} is empty or longer than {MAX_PIECE_BYTES:,} bytes")
        if "\0" in piece:
            raise _refused(f"{where} holds a NUL")
        if piece in seen:
            raise _refused(f"{where} is there twice: {piece[:40]!r}")
        seen.add(piece)
        if not abs(entry.score) <= MAX_SCORE:  # written so that NaN is refused too
            raise _refused(f"{where} has the score {entry.score}")
        if entry.type == BYTE and not _BYTE_PIECE.match(piece):
            raise _refused(f"{where} is no byte: {piece[:40]!r}")
        types[entry.type] += 1
    if types[UNKNOWN_TYPE] != 1:
        raise _refused(f"{types[UNKNOWN_TYPE]} unknown pieces instead of one")
    if types[BYTE] != (256 if model.trainer_spec.byte_fallback else 0):
        raise _refused(f"{types[BYTE]} byte pieces do not fit its byte_fallback setting")


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
            raise _refused(f"its {name}_id {number} does not name such a piece")
        if not 0 < len(_text(getattr(trainer, f"{name}_piece")).encode()) <= MAX_PIECE_BYTES:
            raise _refused(f"its {name}_piece is empty or too long")
    if "" in trainer.user_defined_symbols or "" in trainer.control_symbols:
        raise _refused("one of its symbols is empty")


def _check_normaliser(model: Any) -> None:
    _text(model.normalizer_spec.name)
    charsmap = model.normalizer_spec.precompiled_charsmap
    if charsmap and (fault := _fault(charsmap)):
        raise _refused(f"the map of its normaliser is damaged: {fault}")


def _fault(charsmap: bytes) -> str | None:
    """What would let a normaliser's map lead out of bounds, whatever the text; None if nothing would.

    Every unit of the trie is held against its bounds, those that no text reaches too.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if not size or size % (4 * _BLOCK) or 4 + size >= len(charsmap):
        return "its trie has no possible size"
    units_N = np.frombuffer(charsmap, "<u4", size // 4, offset=4)
    replacements = charsmap[4 + size :]
    if replacements[-1]:
        return "its last replacement has no end"
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
    if (nexts_N[~is_value_N] >= len(units_N)).any():  # nor any other place in that block, then
        return "its trie leads out of itself"
    if is_value_N[0] or units_N[0] & (_LABEL | _HAS_VALUE):
        return "its trie has no root"
    if not is_value_N[nexts_N[~is_value_N & (units_N & _HAS_VALUE != 0)]].all():
        return "its trie has a key without a value"
    return None


def _reduced(model: Any) -> Any:
    """A new model with the pieces and only those settings that encoding reads."""
    reduced = _ModelProto()
    reduced.pieces.extend(model.pieces)
    for field in _TRAINER_FIELDS:
        setattr(reduced.trainer_spec, field, getattr(model.trainer_spec, field))
    for field in _NORMALISER_FIELDS:
        setattr(reduced.normalizer_spec, field, getattr(model.normalizer_spec, field))
    return reduced
