"""The bytes of a SentencePiece model: written by us for simple kinds, checked before anything loads.

SentencePiece is native code that trusts its input, so a model is parsed with protobuf, held against
stated limits, and handed on only as our own serialisation of what was understood. Knows nothing of
text. Invariant: what `checked` returns, SentencePiece loads without a crash.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from gru_lm.errors import InputError

# protobuf makes the class while it is imported, out of mypy's sight.
_ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]

SPACE = "\u2581"  # SentencePiece's sign for a space
UNKNOWN, END, NEWLINE = "<unk>", "</s>", "\n"
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

# SHA-256 of the normaliser maps that SentencePiece 0.2.3 itself writes; a foreign map could make it
# read out of bounds.
NORMALISER_MAPS = {
    "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844": "nmt_nfkc",
    "7e46d9e08af4b6a37991b04fb8388644c1595a0abcd0f26d6a5d575e2a3663ea": "nfkc",
    "2c03512e62f9ed965ec90d85314211b63b5b8aa0395311ea2147eec9ff738907": "nmt_nfkc_cf",
    "d8dfef3d6db0eef0742f8b55a73aee7fce6c1e21d26a09b8d3d4b52c42a791cb": "nfkc_cf",
}

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
    if charsmap and hashlib.sha256(charsmap).hexdigest() not in NORMALISER_MAPS:
        raise _refused("its normaliser is none of SentencePiece 0.2.3's own")
    if model.denormalizer_spec.precompiled_charsmap:
        raise _refused("it has a denormaliser")


def _reduced(model: Any) -> Any:
    """A new model with the pieces and only those settings that encoding reads."""
    reduced = _ModelProto()
    reduced.pieces.extend(model.pieces)
    for field in _TRAINER_FIELDS:
        setattr(reduced.trainer_spec, field, getattr(model.trainer_spec, field))
    for field in _NORMALISER_FIELDS:
        setattr(reduced.normalizer_spec, field, getattr(model.normalizer_spec, field))
    return reduced
