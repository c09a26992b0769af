"""Using a part of a text: a deterministic selection of slices, spread over the whole text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.errors import Stopped
from gru_lm.signals import never
from gru_lm.text import dataset
from gru_lm.text.dataset import tokenize
from gru_lm.text.documents import readings
from gru_lm.text.parts import SLICES, Part, Texts, excerpt, open_texts
from gru_lm.text.segments import LONGEST
from gru_lm.text.tokenizer import train_tokenizer
from gru_lm.text.tokenizer_encoders import VERSION


@dataclass(frozen=True)
class Text:
    """An in-memory document, in pieces of 1,000 characters."""

    text: str
    name: str = "text"

    def pieces(self) -> Iterator[str]:
        for start in range(0, len(self.text), 1000):
            yield self.text[start : start + 1000]


def part(*texts: str) -> Part:
    lengths = tuple(map(len, texts))
    return Part(tuple(map(Text, texts)), lengths, f"of {lengths}")


def used(texts: list[str], characters: int | None) -> list[str]:
    """The documents of an excerpt; asserts its invariants."""
    found = excerpt(part(*texts), characters, stop=lambda: None)
    documents = ["".join(pieces) for pieces in readings(found.documents)]
    assert tuple(map(len, documents)) == found.lengths
    return documents


def lines(numbers: range) -> str:
    """Distinct lines, so that each has one position."""
    return "".join(f"{number:07}\n" for number in numbers)


@given(
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
    share=st.fractions(0, 1),
    line=st.sampled_from([8, 8 * 40, 8 * 100_000]),
)
def test_slices_are_disjoint_in_order_and_no_more_than_asked_for(
    sizes: list[int], share: float, line: int
) -> None:
    whole = lines(range(sum(sizes) // 8 + 1))
    if line > 8:
        whole = "".join(
            character if character != "\n" or at % line == line - 1 else " "
            for at, character in enumerate(whole)
        )
    texts, start = [], 0
    for size in sizes:
        texts.append(whole[start : start + size])
        start += size
    n = sum(sizes)
    characters = max(1, int(share * n))
    found = used(texts, characters)
    joined = "".join(found)
    assert len(joined) <= characters
    assert len(joined) >= characters * 3 // 4 - SLICES
    at = 0
    for document in found:
        assert document
        # Longer pieces have a unique position in the text; short ones must be found in order as well.
        at = whole[:n].index(document, at) + len(document)


def test_all_of_a_text_is_its_own_part() -> None:
    whole = part("text\n", "more\n")
    for characters in (None, 10, 11):
        assert excerpt(whole, characters, stop=lambda: None) is whole
    assert excerpt(whole, 9, stop=lambda: None).fingerprint != whole.fingerprint


def test_slices_lie_everywhere_and_begin_and_end_with_lines() -> None:
    whole = lines(range(200_000))
    found = used([whole], 400_000)
    assert len(found) == SLICES
    places = [int(document[:7]) for document in found]
    assert places == pytest.approx([i * 200_000 / SLICES for i in range(SLICES)], abs=2)
    assert all(document.endswith("\n") and document[7] == "\n" for document in found)
    assert {len(document) for document in found} <= {
        400_000 // SLICES // 8 * 8 - 8 * i for i in (0, 1)
    }


def test_a_border_that_is_an_end_of_line_stays() -> None:
    whole = lines(range(SLICES * LONGEST))
    found = used([whole], len(whole) // 2)
    assert "".join(found) == "".join(
        whole[i * 8 * LONGEST : i * 8 * LONGEST + 4 * LONGEST] for i in range(SLICES)
    )


def test_a_text_without_lines_is_cut_anywhere() -> None:
    found = used(["x" * 1_000_000], 320_000)
    assert [len(document) for document in found] == [10_000] * SLICES


def test_few_characters_are_few_slices() -> None:
    whole = lines(range(100_000))
    assert len(used([whole], 100)) == 1
    assert len(used([whole], 3 * LONGEST + 5)) == 3


def test_borders_of_documents_stay_borders() -> None:
    texts = [lines(range(i * 1000, i * 1000 + 1000)) for i in range(100)]
    found = used(texts, 500_000)
    assert len(found) > SLICES
    assert all(any(document in text for text in texts) for document in found)


def test_the_part_depends_on_the_text_and_the_number_alone() -> None:
    whole = part(lines(range(50_000)))
    same = excerpt(whole, 100_000, stop=lambda: None)
    assert same == excerpt(part(lines(range(50_000))), 100_000, stop=lambda: None)
    assert same.fingerprint != excerpt(whole, 200_000, stop=lambda: None).fingerprint


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(lines(range(40_000)), encoding="utf-8")
    texts = open_texts(
        [str(tmp_path)],
        valid=None,
        test=None,
        encoding="utf-8",
        stdin=None,
        stop=lambda: None,
        progress=lambda _: None,
        note=lambda _: None,
    ).split(
        (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10)), at_line_ends=False, stop=lambda: None
    )
    trained = excerpt(texts.train, 100_000, stop=lambda: None)
    held_out = excerpt(texts.valid, 20_000, stop=lambda: None)
    found = [
        {line for pieces in readings(each.documents) for line in "".join(pieces).splitlines()}
        for each in (trained, held_out, texts.test)
    ]
    assert [len(some) for some in found] == pytest.approx([12_500, 2_500, 4_000], abs=60)
    assert max(found[0]) < min(found[1]) < max(found[1]) < min(found[2])


def test_an_excerpt_polls_stop() -> None:
    def stop() -> None:
        raise Stopped(15)

    with pytest.raises(Stopped):
        excerpt(part("text\n" * 9), 9, stop=stop)


def test_another_version_of_the_encoder_has_stores_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Texts(part("a b\n" * 50), part("c\n"), part())
    byte = train_tokenizer("byte", lambda: [])

    def paths() -> set[Path]:
        data = tokenize(
            texts,
            byte,
            seen={},
            cache=tmp_path,
            workers=1,
            stop=never,
            progress=lambda _: None,
        )
        return {data.train.path, data.valid.path}

    first = paths()
    assert paths() == first
    monkeypatch.setattr(dataset, "VERSION", "another")
    assert not first & paths()
    assert sentencepiece.__version__ in VERSION
