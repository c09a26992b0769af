"""Overlap between texts: detected by content, independent of position and line breaks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gru_lm.text import overlap
from gru_lm.text.documents import Document
from gru_lm.text.overlap import LARGEST, MOST, Sketch, shared, sketch
from gru_lm.text.sources import open_documents

STOCK = [a + b + c for a in "bdfklm" for b in "aeiou" for c in "nrst"]


def lines(count: int, seed: int, words: int = 9) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(STOCK, k=words)) for _ in range(count)]


@pytest.fixture
def share(tmp_path: Path) -> object:
    def documents(text: str) -> list[Document]:
        path = tmp_path / "text.txt"
        path.write_text(text, encoding="utf-8", newline="")
        return open_documents([str(path)])

    def found(text: str, other: str) -> float:
        known = sketch(documents(other), stop=lambda: None)
        return shared(documents(text), [known], stop=lambda: None)[0]

    return found


OWN, OTHER = lines(300, 1), lines(200, 2)
TEXT, ELSE = "\n".join(OWN) + "\n", "\n".join(OTHER) + "\n"
FLOWING = " ".join(lines(1, 3, 40_000))  # one line without a full stop
SENTENCES = ". ".join(lines(4000, 4)) + "."
CHINESE = "。".join("".join(chr(0x4E00 + ord(c) % 999 * 7) for c in line) for line in OWN)
FEW_WORDS = " ".join(random.Random(4).choices(STOCK[:20], k=30_000))  # one line
NO_WORDS = "".join(random.Random(5).choices("acgt", k=200_000))  # one line


@pytest.mark.parametrize(
    ("text", "other", "least", "most"),
    [
        (TEXT, TEXT, 1, 1),
        (ELSE, TEXT, 0, 0),
        (ELSE[:1000] + TEXT, TEXT, 0.9, 0.97),
        (ELSE + "\n".join(OWN[:40]), TEXT, 0.15, 0.18),
        ("\n".join(sorted(OWN)), TEXT, 1, 1),
        (TEXT.replace("\n", "\r\n").replace(" ", "\t  "), TEXT, 1, 1),
        (TEXT.replace("\n", "\r"), TEXT, 1, 1),
        (FLOWING, FLOWING, 1, 1),
        ("xyz " * 250 + FLOWING, FLOWING, 0.98, 1),
        (FLOWING[12_345:60_000], FLOWING, 0.98, 1),
        (SENTENCES[777:], SENTENCES, 0.99, 1),
        (CHINESE[333:], CHINESE, 0.98, 1),
        (FLOWING, SENTENCES, 0, 0),
        (FEW_WORDS[4321:], FEW_WORDS, 0.98, 1),
        (NO_WORDS[1:], NO_WORDS, 0.98, 1),
        ("tt " + NO_WORDS[54_321:99_999] + " gg", NO_WORDS, 0.95, 1),
        (NO_WORDS[::-1], NO_WORDS, 0, 0.05),
        ("a" * 100_000, "a" * 99_000 + "\n" + TEXT, 0.98, 1),
        ("", TEXT, 0, 0),
        ("short\n" * 50, "short\n" * 50, 0, 0),  # short lines are ignored
    ],
    ids=range(20),
)
def test_the_share_of_a_text_that_is_in_another(
    share: object, text: str, other: str, least: float, most: float
) -> None:
    assert callable(share)
    if not text:
        text = "\n"
    assert least <= share(text, other) <= most


def test_a_long_text_is_sampled(share: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST", 40)
    assert callable(share)
    assert share(TEXT, TEXT) == 1
    assert 0.3 < share(ELSE + TEXT, TEXT) < 0.9
    assert share(ELSE, TEXT) == 0


def test_sketches_of_two_texts_are_the_sketch_of_both() -> None:
    one, other = Sketch(np.array([1, 5, 9])), Sketch(np.array([2, 5, 7]), limit=8)
    both = one | other
    assert (both.hashes.tolist(), both.limit) == ([1, 2, 5, 7], 8)
    assert one.part_in(other) == 1 / 2  # 9 is above the other's limit
    again = Sketch.unpacked(both.packed())
    assert (again.hashes.tolist(), again.limit) == ([1, 2, 5, 7], 8)
    assert Sketch(np.array([], np.int64)).part_in(one) == 0
    many = Sketch(np.arange(2 * MOST)) | one
    assert len(many.hashes) == MOST
    assert many.limit == MOST - 1 < LARGEST
    for bad in (np.zeros(3), np.zeros((2, 2), np.int64), np.zeros(0, np.int64)):
        with pytest.raises(ValueError, match="sketch"):
            Sketch.unpacked(bad)
