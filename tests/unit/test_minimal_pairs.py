"""Minimal pairs: all input formats and errors, scores equal to those of single sentences, accuracies."""

from __future__ import annotations

import json
import math
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.errors import InputError, Stopped
from gru_lm.evaluation import minimal_pairs
from gru_lm.evaluation.minimal_pairs import (
    Pair,
    PairScores,
    judged,
    read_pairs,
    score_pairs,
    wilson,
)
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

# Reading.

CATS = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "pairID": 0}
DOGS = {"sentence_good": "The dog barks.", "sentence_bad": "The dog bark.", "field": None}
NAMED = {"UID": "agreement", "linguistics_term": "morphology"}


def jsonl(*entries: object) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


FILES = {
    "data/one.jsonl": jsonl(CATS | NAMED, DOGS | NAMED),
    "data/two.jsonl": jsonl(DOGS),
    "data/.DS_Store": b"\0\1\2",
    "data/._one.jsonl": b"\0\5\x16\7",
    "__MACOSX/data/one.jsonl": b"\0\5\x16\7",
    "README.md": b"# Pairs",
}
READ = [
    Pair("Cats sleep.", "Cats sleeps.", "agreement", "morphology"),
    Pair("The dog barks.", "The dog bark.", "agreement", "morphology"),
    Pair("The dog barks.", "The dog bark.", "two", None),
]


def folder_of(contents: dict[str, bytes], path: Path) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zip_of(contents: dict[str, bytes], path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in reversed(contents):
            archive.writestr(name, contents[name])
    return path


def one_file(data: bytes, folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_pairs(path)
    error = caught.value
    assert all("\n" not in (part or "") for part in (error.message, error.why, error.hint))
    return f"{error.message} / {error.why} / {error.hint}"


def test_a_file_a_folder_and_a_zip_hold_the_same_pairs(tmp_path: Path) -> None:
    folder = folder_of(FILES, tmp_path / "folder")
    assert read_pairs(folder) == READ
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert read_pairs(zip_of(FILES, tmp_path / "PAIRS.ZIP", method)) == READ
    assert read_pairs(folder / "data" / "one.jsonl") == READ[:2]
    assert read_pairs(folder / "data" / "two.jsonl") == READ[2:]
    assert read_pairs(folder.rename(tmp_path / "folder.zip")) == READ
    assert not (tmp_path / "data").exists()


def test_a_file_of_another_system(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + jsonl(CATS, DOGS).replace(b"\n", b"\r\n\r\n")
    assert [pair.good for pair in read_pairs(one_file(data, tmp_path))] == [
        "Cats sleep.",
        "The dog barks.",
    ]


def test_a_paradigm_is_never_named_unprintably(tmp_path: Path) -> None:
    (pair,) = read_pairs(zip_of({"a\x1b\t[2J.jsonl": jsonl(CATS)}, tmp_path / "pairs.zip"))
    assert pair.paradigm == r"a\x1b\t[2J"


BAD_LINES = {
    b"Cats sleep.": "is not JSON",
    b'{"sentence_good": "Cats': "is not JSON / Unterminated string",
    b"[" * 100_000: "is not JSON",
    b"1" * 5_000: "is not JSON",
    b'{"sentence_good": "\xff"}': "is not UTF-8",
    b'["Cats sleep.", "Cats sleeps."]': "is not a JSON object",
    b"null": "is not a JSON object",
    b'{"sentence_good": "Cats sleep."}': "has no sentence_bad",
    b'{"sentence_bad": "Cats sleep."}': "has no sentence_good",
    jsonl(CATS | {"sentence_bad": 7}): "sentence_bad is not a sentence",
    jsonl(CATS | {"sentence_bad": None}): "sentence_bad is not a sentence",
    jsonl(CATS | {"sentence_good": ""}): "sentence_good is not a sentence",
    jsonl(CATS | {"sentence_good": " \t"}): "sentence_good is not a sentence",
    jsonl(CATS | {"sentence_good": "Cats\nsleep."}): "sentence_good is not a sentence",
    jsonl(CATS | {"UID": 7}): "UID is not a valid name",
    jsonl(CATS | {"UID": ""}): "UID is not a valid name",
    jsonl(CATS | {"UID": "\ud800"}): "UID is not a valid name",
    jsonl(CATS | {"linguistics_term": None}): "linguistics_term is not a valid name",
    jsonl(CATS | {"linguistics_term": "a\tb"}): "linguistics_term is not a valid name",
}


@pytest.mark.parametrize(("line", "said"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named(line: bytes, said: str, tmp_path: Path) -> None:
    data = jsonl(CATS, DOGS) + b"\n" + line
    path = one_file(data, tmp_path)
    message = refused(path)
    assert message.startswith(f"{path}, line 4")
    assert said in message
    packed = zip_of({"data/ok.jsonl": jsonl(CATS), "data/x.jsonl": data}, tmp_path / "x.zip")
    assert f"{packed}/data/x.jsonl, line 4" in refused(packed)
    folder = folder_of({"ok.jsonl": jsonl(CATS), "sub/x.jsonl": data}, tmp_path / "folder")
    assert f"{folder}/sub/x.jsonl, line 4" in refused(folder)


def test_no_pairs(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.jsonl")
    assert "no such file" in refused(tmp_path / "missing.zip")
    others = {name: data for name, data in FILES.items() if not name.startswith("data/")}
    assert "no file named *.jsonl" in refused(folder_of(others, tmp_path / "folder"))
    assert "no file named *.jsonl" in refused(zip_of(others, tmp_path / "others.zip"))
    assert "only blank lines" in refused(one_file(b"\n \n", tmp_path))
    os.mkfifo(tmp_path / "fifo.jsonl")
    assert "not a regular file" in refused(tmp_path / "fifo.jsonl")
    assert "cannot be read" in refused(tmp_path / ("x" * 1000))


def test_a_zip_that_cannot_be_read(tmp_path: Path) -> None:
    path = zip_of({"x.jsonl": jsonl(CATS)}, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flags in the directory
    path.write_bytes(data)
    assert "x.zip/x.jsonl is encrypted" in refused(path)
    zip_of({"x.jsonl": jsonl(CATS)}, path, zipfile.ZIP_BZIP2)
    assert "x.zip/x.jsonl is not compressed with deflate" in refused(path)
    path.write_bytes(jsonl(CATS))
    assert "damaged, or not a zip" in refused(path)


def test_any_damage_to_a_zip_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    whole = zip_of({"x.jsonl": jsonl(CATS)}, tmp_path / "x.zip").read_bytes()
    path = tmp_path / "damaged.zip"
    pairs = read_pairs(tmp_path / "x.zip")
    damaged = [whole[:end] for end in range(0, len(whole), 9)]
    for at in range(len(whole)):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    errors = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            found = read_pairs(path)
        except InputError:
            errors += 1
        else:
            # File names are not covered by a checksum.
            assert [pair[:2] for pair in found] == [pair[:2] for pair in pairs]
    assert errors > len(damaged) // 2


@pytest.mark.parametrize("build", [folder_of, zip_of])
def test_what_unpacks_to_too_much_is_refused_before_it_does(
    build: Callable[[dict[str, bytes], Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = jsonl(CATS)
    monkeypatch.setattr(minimal_pairs, "MOST_BYTES", 2 * len(line))
    two = {"a.jsonl": line, "b.jsonl": line}
    assert len(read_pairs(build(two, tmp_path / "two.zip"))) == 2
    assert "holds more than" in refused(build(two | {"c.jsonl": b"\n"}, tmp_path / "three.zip"))
    bomb = build({"a.jsonl": b" " * (1 << 23)}, tmp_path / "bomb.zip")
    tracemalloc.start()
    try:
        assert "holds more than" in refused(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
    finally:
        tracemalloc.stop()


def test_reading_stops(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        read_pairs(one_file(jsonl(CATS), tmp_path), stop=stopped)


def stopped() -> None:
    raise Stopped(15)


# Scoring.

WORDS = "the a cat cats dog dogs sleeps sleep that sees see Käse 猫 never".split()
CHARS = train_tokenizer("char", lambda: [" ".join(WORDS[:-2])])


def pair_of(chosen: random.Random) -> Pair:
    good, bad = (" ".join(chosen.choices(WORDS, k=chosen.randint(1, 12))) for _ in range(2))
    return Pair(good, bad, "any", None)


PAIRS = [pair_of(random.Random(number)) for number in range(14)]
PAIRS += [Pair(" the  cat", "the cat", "any", None), PAIRS[3], Pair("cats", "cats", "any", None)]


def tiny_model(tokenizer: Tokenizer, cell: str = "gru") -> LanguageModel:
    torch.manual_seed(3)
    config = ModelConfig(cell=cell, vocab_size=tokenizer.vocab_size, layers=2, width=6, embed=5)
    model = LanguageModel(config).eval()
    with torch.no_grad():  # peaked distributions, so that a wrong state or input shows
        for parameter in model.parameters():
            parameter.uniform_(-1.2, 1.2)
    return model


MODEL = tiny_model(CHARS)


@torch.inference_mode()
def alone(model: LanguageModel, tokenizer: Tokenizer, sentence: str) -> float:
    """Reference: the full distribution after each token of one sentence."""
    tokens = torch.tensor([[tokenizer.newline_id, *tokenizer.encode_text(sentence + "\n")]])
    assert tokens[0, -1] == tokenizer.newline_id
    log_probs, _ = model.log_probs(tokens[:, :-1], model.initial_state(1))
    return float(log_probs.double().gather(2, tokens[:, 1:, None]).sum())


def scored(pairs: list[Pair], **options: Any) -> np.ndarray:
    return score_pairs(MODEL, CHARS, pairs, **options).log_probs_N2


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_scores_are_those_of_each_sentence_alone(cell: str) -> None:
    model = tiny_model(CHARS, cell)
    scores = score_pairs(model, CHARS, PAIRS)
    expected = [[alone(model, CHARS, sentence) for sentence in pair[:2]] for pair in PAIRS]
    assert scores.log_probs_N2.dtype == np.float64
    np.testing.assert_allclose(scores.log_probs_N2, expected, rtol=1e-5)
    sentences = [sentence for pair in PAIRS for sentence in pair[:2]]
    assert scores.tokens == sum(len(CHARS.encode_text(one + "\n")) for one in sentences)
    assert scores.unknown_tokens == 0  # spelled in bytes


@pytest.mark.parametrize(
    ("batch", "chunk", "block"), [(1, 5, 100), (3, 100, 4), (7, 16, 5), (256, 32, 1)]
)
def test_neither_batch_nor_order_matters(
    batch: int, chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored(PAIRS)
    monkeypatch.setattr(minimal_pairs, "_BLOCK", block)
    order = list(range(len(PAIRS)))
    random.Random(batch).shuffle(order)
    done: list[int] = []
    found = scored(
        [PAIRS[place] for place in order], batch=batch, chunk=chunk, progress=done.append
    )
    np.testing.assert_allclose(found, expected[order], rtol=1e-5)
    assert sum(done) == 2 * len(PAIRS)
    assert len(done) > 1


def test_scoring_stops() -> None:
    with pytest.raises(Stopped):
        scored(PAIRS, stop=stopped)


def test_the_same_tokens_tie_and_what_is_unknown_is_counted() -> None:
    known = " ".join(WORDS[:8])
    tokenizer = train_tokenizer("word", lambda: [f"{known} {known}"])
    pairs = [
        Pair(f"{left}the zebra sleeps", f"{left}the zebras sleeps", "unknown", None)
        for left in ("", "a cat ", "dogs ", "the dog ")
    ]
    pairs.append(Pair("the cat sleeps", "the cats sleeps", "known", None))
    model = tiny_model(tokenizer)
    found = judged(pairs, score_pairs(model, tokenizer, pairs, batch=3))
    unknown, others = found["paradigms"]
    assert (unknown["ties"], unknown["accuracy"]) == (4, 0.0)
    assert others["ties"] == 0
    assert found["ties"] == 4
    words = sum(len(sentence.split()) + 1 for pair in pairs for sentence in pair[:2])
    assert (found["tokens"], found["unknown_tokens"]) == (words, 8)
    assert found["unknown_rate"] == 8 / words


# Accuracies.


def test_accuracies_by_paradigm_by_phenomenon_and_over_all() -> None:
    pairs = [Pair("x", "y", "p1", "A")] * 3 + [Pair("x", "y", "p2", "A")]
    pairs += [Pair("x", "y", "p3", None)] * 2 + [Pair("x", "y", "p1", "B")]
    good = [-1.0, -2.0, -3.0, -1.0, -5.0, -math.inf, -4.0]
    bad = [-2.0, -1.0, -3.0, -1.5, -6.0, -math.inf, -math.inf]
    scores = PairScores(np.array([good, bad]).T, tokens=50, unknown_tokens=5)
    found = judged(pairs, scores)

    def figures(pairs: int, right: int, ties: int) -> dict[str, object]:
        interval = list(wilson(right, pairs))
        return {"pairs": pairs, "accuracy": right / pairs, "ci95": interval, "ties": ties}

    assert found == {
        **figures(7, 4, 2),
        "tokens": 50,
        "unknown_tokens": 5,
        "unknown_rate": 0.1,
        "phenomena": [{"name": "A", **figures(4, 2, 1)}, {"name": "B", **figures(1, 1, 0)}],
        "paradigms": [
            {"name": "p1", "phenomenon": "A", **figures(3, 1, 1)},
            {"name": "p2", "phenomenon": "A", **figures(1, 1, 0)},
            {"name": "p3", "phenomenon": None, **figures(2, 1, 1)},
            {"name": "p1", "phenomenon": "B", **figures(1, 1, 0)},
        ],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("right", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_as_published(right: int, trials: int, low: float, high: float) -> None:
    assert wilson(right, trials) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=40)
@given(st.integers(1, 10_000), st.data())
def test_wilson_by_its_definition(trials: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, trials))
    low, high = wilson(right, trials)
    assert 0 <= low <= right / trials <= high <= 1
    for end in (low, high):
        error = math.sqrt(end * (1 - end) / trials)
        assert abs(right / trials - end) == pytest.approx(1.959964 * error, rel=1e-5, abs=1e-7)
