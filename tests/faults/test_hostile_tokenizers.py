"""Malicious SentencePiece models: each works or raises InputError; none crashes or hangs.

Mutants are loaded in a child process, so that a crash in native code fails the test instead of ending
the test run. To run it alone: `python test_hostile_tokenizers.py SEED COUNT`.
"""

from __future__ import annotations

import io
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from gru_lm.errors import InputError
from gru_lm.text import tokenizer_model as models
from gru_lm.text.tokenizer import load_tokenizer, read_tokenizer, train_tokenizer

TEXT = "the cat sat on the mat,\nthe dog: \u4e16\u754c ran\tto the end  of it\r\n" * 400
PROBE = "the cat \u2581 \u0000\u2585 xyz\u00e9\U0001f600\r\n\n  zz\tthe end" + "q" * 9000
LONGEST_SECONDS = 5.0


def parsed(data: bytes) -> Any:
    model = vars(sentencepiece_model_pb2)["ModelProto"]()
    model.ParseFromString(data)
    return model


# Functions that change a parsed model in one malicious way.
Change = Callable[[Any, random.Random], None]


def _text(rng: random.Random) -> str:
    return rng.choice(["", "\0", "a\0b", "\n", " ", "\u2581" * 3, "x" * 100_000, "<0x0A>", "</s>"])


def _piece(model: Any, rng: random.Random) -> Any:
    return model.pieces[rng.randrange(len(model.pieces))]


def change_text(model: Any, rng: random.Random) -> None:
    _piece(model, rng).piece = _text(rng)


def change_type(model: Any, rng: random.Random) -> None:
    _piece(model, rng).type = rng.randrange(1, 7)


def change_many_types(model: Any, rng: random.Random) -> None:
    kind = rng.choice([1, 4, 5])
    for entry in model.pieces:
        if entry.type == 1 and rng.random() < 0.5:
            entry.type = kind


def change_score(model: Any, rng: random.Random) -> None:
    values = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e7, -1e7, 0.0]
    _piece(model, rng).score = rng.choice(values)


def change_trainer(model: Any, rng: random.Random) -> None:
    trainer = model.trainer_spec
    change = rng.randrange(6)
    if change == 0:
        trainer.model_type = rng.randrange(1, 5)
    elif change == 1:
        field = rng.choice(["unk_id", "bos_id", "eos_id", "pad_id"])
        setattr(trainer, field, rng.choice([-(2**31), -2, -1, 0, 1, 2, 5, 2**31 - 1]))
    elif change == 2:
        field = rng.choice(["unk_piece", "bos_piece", "eos_piece", "pad_piece", "unk_surface"])
        setattr(trainer, field, _text(rng))
    elif change == 3:
        trainer.byte_fallback = not trainer.byte_fallback
    elif change == 4:
        rng.choice([trainer.user_defined_symbols, trainer.control_symbols]).append(_text(rng))
    else:
        trainer.treat_whitespace_as_suffix = True


def change_normaliser(model: Any, rng: random.Random) -> None:
    normaliser = model.normalizer_spec
    change = rng.randrange(4)
    if change == 0:
        normaliser.precompiled_charsmap = rng.randbytes(rng.choice([1, 4, 8, 64, 4096]))
    elif change == 1:
        size = rng.choice([0, 4, 1024, 2**31 - 1])
        normaliser.precompiled_charsmap = size.to_bytes(4, "little") + rng.randbytes(1024)
    elif change == 2:
        normaliser.add_dummy_prefix = True
        normaliser.escape_whitespaces = False
    else:
        model.denormalizer_spec.precompiled_charsmap = rng.randbytes(64)


def change_number(model: Any, rng: random.Random) -> None:
    del model.pieces[rng.randrange(len(model.pieces)) :]


def change_doubles(model: Any, rng: random.Random) -> None:
    model.pieces.add().CopyFrom(_piece(model, rng))


def change_order(model: Any, rng: random.Random) -> None:
    entries = list(model.pieces)
    rng.shuffle(entries)
    del model.pieces[:]
    model.pieces.extend(entries)


CHANGES: list[Change] = [
    change_text,
    change_type,
    change_many_types,
    change_score,
    change_trainer,
    change_normaliser,
    change_number,
    change_doubles,
    change_order,
]


def mutant(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.6:
        model = parsed(data)
        for _ in range(rng.choice([1, 1, 2, 4])):
            if model.pieces:
                rng.choice(CHANGES)(model, rng)
        data = model.SerializeToString()
    if rng.random() < 0.5:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            if not changed:
                break
            at = rng.randrange(len(changed))
            if rng.random() < 0.7:
                changed[at] ^= 1 << rng.randrange(8)
            elif rng.random() < 0.5:
                del changed[at : at + rng.choice([1, 4, 100, 10**6])]
            else:
                changed[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
        data = bytes(changed)
    return data


def attack(seed: int, count: int) -> None:
    """Load and use `count` mutants; raises or crashes unless each works or raises InputError."""
    tokenizers = [
        train_tokenizer(kind, lambda: [TEXT]) for kind in ("char", "bpe", "unigram", "word")
    ]
    rules = charsmap({"a": "bc", "ab": "d", "\u00e9": "e", "x": ""})
    tokenizers.append(load_tokenizer("bpe", with_map(tokenizers[1].data, rules)))
    rng = random.Random(seed)
    worked = 0
    for number in range(count):
        original = rng.choice(tokenizers)
        data = mutant(original.data, rng)
        sys.stderr.write(f"\r{seed} {number} ")  # identifies the mutant after a crash
        began = time.monotonic()
        try:
            tokenizer = load_tokenizer(original.kind, data)
        except InputError:
            pass
        else:
            worked += 1
            tokens = tokenizer.encode_text(PROBE)
            assert all(0 <= token < tokenizer.vocab_size for token in tokens)
            decoder = tokenizer.decoder()
            text = "".join(map(decoder.push, tokens)) + decoder.flush()
            if tokenizer.lossless:
                assert text == PROBE
            everything = range(tokenizer.vocab_size)
            assert all("\n" not in tokenizer.piece(token) for token in everything)
            assert b"".join(map(tokenizer.surface, everything))
            again = load_tokenizer(tokenizer.kind, tokenizer.data)
            assert again.fingerprint == tokenizer.fingerprint
        seconds = time.monotonic() - began
        assert seconds < LONGEST_SECONDS, f"{seconds:.1f} s"
    print(worked, "of", count, "work")


def run_attack(seed: int, count: int, *, timeout: float) -> None:
    root = str(Path(models.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, __file__, str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    assert f"of {count} work" in done.stdout


def test_mutants_of_our_own_models() -> None:
    run_attack(1, 400, timeout=60)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_mutants(seed: int) -> None:
    run_attack(seed, 500, timeout=600)


@pytest.fixture(scope="module")
def bpe() -> bytes:
    return train_tokenizer("bpe", lambda: [TEXT]).data


def refused(kind: str, data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        load_tokenizer(kind, data)
    return str(caught.value.why)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello",
        b"\x80\x04\x95",
        b"PK\x03\x04",
        b"\xff" * 1000,
        bytes(1000),
        b"\x0a" * 999,
    ],
)
def test_what_is_no_model(data: bytes) -> None:
    for kind in ("char", "bpe", "unigram", "word", "nonsense"):
        assert refused(kind, data)


def test_too_large() -> None:
    assert "limit" in refused("bpe", bytes(models.MAX_MODEL_BYTES + 1))


def test_too_many_pieces(bpe: bytes) -> None:
    model = parsed(bpe)
    for number in range(models.MAX_PIECES):
        model.pieces.add(piece=f"x{number}", score=0.0)
    assert "pieces" in refused("bpe", model.SerializeToString())


@pytest.mark.parametrize(
    ("piece", "why"),
    [("", "empty"), ("x" * 100_000, "longer"), ("a\0", "NUL"), ("<unk>", "duplicate")],
)
def test_pieces(bpe: bytes, piece: str, why: str) -> None:
    model = parsed(bpe)
    model.pieces[-1].piece = piece
    assert why in refused("bpe", model.SerializeToString())


def test_piece_that_is_not_utf8(bpe: bytes) -> None:
    at = bpe.index(b"\n\x04</s>") + 2
    assert "damaged" in refused("bpe", bpe[:at] + b"\xc3\x28\xff" + bpe[at + 3 :])


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e30])
def test_scores(bpe: bytes, score: float) -> None:
    model = parsed(bpe)
    model.pieces[-1].score = score
    assert "score" in refused("bpe", model.SerializeToString())


@pytest.mark.parametrize("number", [-1, 1, 10**6])
def test_unknown_id(bpe: bytes, number: int) -> None:
    model = parsed(bpe)
    model.trainer_spec.unk_id = number
    assert "unk_id" in refused("bpe", model.SerializeToString())


def test_eos_id_names_a_letter(bpe: bytes) -> None:
    model = parsed(bpe)
    model.trainer_spec.eos_id = len(model.pieces) - 1
    assert "eos_id" in refused("bpe", model.SerializeToString())


def test_foreign_normaliser(bpe: bytes) -> None:
    model = parsed(bpe)
    model.normalizer_spec.precompiled_charsmap = (2**31 - 4).to_bytes(4, "little") + bytes(64)
    assert "normaliser" in refused("bpe", model.SerializeToString())


def charsmap(rules: dict[str, str]) -> bytes:
    """A normaliser's map as SentencePiece itself compiles it from a table of rules."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
        for source, target in rules.items():
            codes = (" ".join(f"{ord(char):X}" for char in text) for text in (source, target))
            print(*codes, sep="\t", file=table, flush=True)
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"]),
            model_writer=model,
            vocab_size=12,
            hard_vocab_limit=False,
            normalization_rule_tsv=table.name,
            minloglevel=2,
        )
    found: bytes = parsed(model.getvalue()).normalizer_spec.precompiled_charsmap
    return found


def with_map(bpe: bytes, data: bytes) -> bytes:
    model = parsed(bpe)
    model.normalizer_spec.precompiled_charsmap = data
    found: bytes = model.SerializeToString()
    return found


def units(data: bytes) -> array[int]:
    return array("I", data[4 : 4 + int.from_bytes(data[:4], "little")])


@pytest.fixture(scope="module")
def own_map() -> bytes:
    return charsmap({"a": "bc", "ab": "d", "é": "e", "x": ""})


def test_maps_of_any_rules_are_read(bpe: bytes, own_map: bytes) -> None:
    tokenizer = load_tokenizer("bpe", with_map(bpe, own_map))
    assert not tokenizer.lossless
    assert tokenizer.encode_text("a-ab-é-x") == tokenizer.encode_text("bc-d-e-")


def _cut(data: bytes) -> bytes:
    return data[:900]


def _no_end(data: bytes) -> bytes:
    return data[:-1] + b"z"


def _not_utf8(data: bytes) -> bytes:
    return data[:-2] + b"\xff\0"


def _no_size(data: bytes) -> bytes:
    return bytes(4) + data[4:]


def _odd_size(data: bytes) -> bytes:
    return (len(data) - 8).to_bytes(4, "little") + data[4:]


def _huge_size(data: bytes) -> bytes:
    return b"\xff" * 4 + data[4:]


def _flood(data: bytes) -> bytes:
    return data + b"z" * models.MAX_REPLACEMENT + b"z\0"


def _changed(data: bytes, change: Callable[[int], int | None]) -> bytes:
    """The map with the first unit for which `change` gives another."""
    found = units(data)
    at = next(number for number, unit in enumerate(found) if change(unit) is not None)
    found[at] = change(found[at]) or 0
    return data[:4] + found.tobytes() + data[4 + 4 * len(found) :]


def _value_past_the_end(data: bytes) -> bytes:
    return _changed(data, lambda unit: 1 << 31 | 2**20 if unit >> 31 else None)


def _value_within_a_replacement(data: bytes) -> bytes:
    at = data.index(b"bc\0", 4 + 4 * len(units(data))) - 4 - 4 * len(units(data))
    return _changed(data, lambda unit: 1 << 31 | at + 1 if unit >> 31 else None)


def _trie_out_of_itself(data: bytes) -> bytes:
    return _changed(data, lambda unit: 1 << 30 | unit if not unit >> 31 else None)


def _no_value(data: bytes) -> bytes:
    found = units(data)
    at = next(at for at, unit in enumerate(found) if at and not unit >> 31 and not unit >> 8 & 1)
    found[at] |= 1 << 8
    return data[:4] + found.tobytes() + data[4 + 4 * len(found) :]


def _no_root(data: bytes) -> bytes:
    found = units(data)
    found[0] |= 1 << 31
    return data[:4] + found.tobytes() + data[4 + 4 * len(found) :]


@pytest.mark.parametrize(
    "damage",
    [
        *(_cut, _no_end, _not_utf8, _no_size, _odd_size, _huge_size, _flood, _no_root, _no_value),
        *(_value_past_the_end, _value_within_a_replacement, _trie_out_of_itself),
    ],
)
def test_damaged_maps(bpe: bytes, own_map: bytes, damage: Callable[[bytes], bytes]) -> None:
    """Each is refused before it reaches SentencePiece: some text would cause out-of-bounds reads."""
    data = damage(own_map)
    assert data != own_map
    assert "normaliser's map is damaged" in refused("bpe", with_map(bpe, data))


def test_changed_maps_are_refused_or_stay_within_bounds(own_map: bytes) -> None:
    """A map that is accepted after any change of a bit keeps what SentencePiece relies on."""
    rng = random.Random(3)
    accepted = 0
    for _ in range(300):
        changed = bytearray(own_map)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        if models._fault(bytes(changed)):
            continue
        accepted += 1
        found, size = units(bytes(changed)), len(changed) - 4 - 4 * len(units(bytes(changed)))
        for at, unit in enumerate(found):
            if unit >> 31:
                assert unit & (1 << 31) - 1 < size
            else:
                base = at ^ unit >> 10 << (unit >> 6 & 8)
                assert base | 0xFF < len(found)
                assert not unit >> 8 & 1 or found[base] >> 31
        assert changed[-1] == 0
    assert 0 < accepted < 300


def test_a_denormaliser_is_left_out(bpe: bytes) -> None:
    """It changes no id, and never reaches SentencePiece."""
    model = parsed(bpe)
    model.denormalizer_spec.precompiled_charsmap = b"x"
    assert load_tokenizer("bpe", model.SerializeToString()).data == load_tokenizer("bpe", bpe).data


def test_byte_pieces(bpe: bytes) -> None:
    model = parsed(bpe)
    model.trainer_spec.byte_fallback = False
    assert "byte" in refused("bpe", model.SerializeToString())
    model = parsed(bpe)
    model.pieces[-1].type = models.BYTE
    assert "not a byte" in refused("bpe", model.SerializeToString())


def test_empty_symbol(bpe: bytes) -> None:
    model = parsed(bpe)
    model.trainer_spec.control_symbols.append("")
    assert "symbol" in refused("bpe", model.SerializeToString())


def test_kind_and_model_must_agree(bpe: bytes) -> None:
    assert "bpe" in refused("word", bpe)
    assert refused("byte", bpe)


def test_unknown_fields_do_not_reach_native_code(bpe: bytes) -> None:
    smuggled = bpe + b"\xfa\x0c\x04evil"  # field 207, a string
    assert load_tokenizer("bpe", smuggled).data == load_tokenizer("bpe", bpe).data


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_path_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "x.model"
    make(path)
    with pytest.raises(InputError):
        read_tokenizer(path)


if __name__ == "__main__":
    attack(int(sys.argv[1]), int(sys.argv[2]))
