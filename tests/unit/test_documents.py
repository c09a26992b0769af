"""Documents: surveyed, cut and read in slices, always with the same characters."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_lm.errors import InputError, Stopped
from gru_lm.text.documents import (
    MARK_BYTES,
    Document,
    FileDocument,
    Slice,
    Survey,
    cut,
    identity_of,
    readings,
    survey,
)


@dataclass(frozen=True)
class Words:
    """An in-memory document in given pieces."""

    name: str
    parts: tuple[str, ...]

    def pieces(self) -> Iterator[str]:
        yield from self.parts


OFFSETS: list[int] = []  # at which Watched was opened


class Watched(FileDocument):
    """A file that records the offsets at which it is opened."""

    def pieces(self, offset: int = 0) -> Iterator[str]:
        OFFSETS.append(offset)
        return super().pieces(offset)


def surveyed(path: Path, encoding: str = "utf-8") -> Survey:
    return survey([Watched(path.name, path, encoding, identity_of(path.stat()))])


def read(documents: Sequence[Document]) -> list[str]:
    return ["".join(pieces) for pieces in readings(documents)]


def test_survey_counts_and_tells() -> None:
    documents = (Words("a", ("é😀", "x")), Words("b", ("yz",)))
    told: list[int] = []
    found = survey(documents, progress=told.append)
    assert (found.characters, found.bytes, found.document_characters) == (5, 9, (3, 2))
    assert found.documents == documents
    assert sum(told) == 9


def test_the_fingerprint_knows_borders_but_no_names_and_no_pieces() -> None:
    def of(*documents: Words) -> str:
        return survey(documents).fingerprint

    one = of(Words("a", ("ab",)), Words("b", ("c",)))
    assert one == of(Words("x", ("a", "b")), Words("y", ("c",)))
    assert one != of(Words("a", ("a",)), Words("b", ("bc",)))
    assert one != of(Words("a", ("abc",)))


def test_survey_polls_stop() -> None:
    def stop() -> None:
        raise Stopped(15)

    with pytest.raises(Stopped):
        survey([Words("a", ("text",))], stop=stop)


some_documents = st.lists(st.lists(st.text(max_size=5), max_size=4), max_size=4)


@given(some_documents, st.data())
def test_cut_is_a_slice_of_the_concatenation(parts: list[list[str]], data: st.DataObject) -> None:
    documents = [Words(str(index), tuple(each)) for index, each in enumerate(parts)]
    lengths = survey(documents).document_characters
    whole = "".join("".join(each) for each in parts)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    kept, inner = cut(documents, lengths, start, end)
    found = ["".join(each.pieces()) for each in kept]
    assert "".join(found) == whole[start:end]
    assert list(map(len, found)) == inner
    assert all(inner)
    again, _ = cut(kept, inner, 1, sum(inner))  # a slice can be cut again
    assert "".join("".join(each.pieces()) for each in again) == whole[start:end][1:]


def test_cut_keeps_names_and_whole_documents() -> None:
    documents = [Words("a", ("abc",)), Words("b", ("def",))]
    (first, second), _ = cut(documents, (3, 3), 0, 4)
    assert first is documents[0]
    assert second.name == "b"


borders = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted)


@given(st.lists(st.text(max_size=6), max_size=6), st.lists(borders, max_size=5), st.data())
def test_slices_read_together_are_those_read_alone(
    parts: list[str], spans: list[list[int]], data: st.DataObject
) -> None:
    """In any order, and whether or not each is read to its end."""
    document = Words("a", tuple(parts))
    slices = [Slice(document, start, end) for start, end in spans]
    for each, pieces in zip(slices, readings(slices), strict=True):
        whole = "".join(parts)[each.start : each.end]
        if data.draw(st.booleans()):
            assert "".join(pieces) == whole
        else:
            assert whole.startswith(next(pieces, ""))


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
def test_a_part_of_a_large_file_is_read_without_the_rest(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "text.txt"
    # U+FEFF inside the text is a character, even if reading starts with it.
    text = "".join(f"{number} é😀\ufeff\n" for number in range(5 * MARK_BYTES // 18))
    path.write_text(mark + text, encoding="utf-8")
    found = surveyed(path)
    (document,) = found.documents
    assert isinstance(document, FileDocument)
    assert len(document.marks) > 3
    for place in document.marks:
        assert next(document.pieces(place.bytes)).startswith(
            text[place.characters : place.characters + 9]
        )
    n = len(text)
    spans = [(5, 9), (n // 2, n // 2 + 99_999), (n - 70, n - 50), (n - 50, n), (1, 3)]
    slices = [Slice(document, start, end) for start, end in spans]
    OFFSETS.clear()
    assert read(slices) == [text[start:end] for start, end in spans]
    assert OFFSETS[0] == 0
    assert OFFSETS[1] > 2 * MARK_BYTES - 99_999
    assert OFFSETS[2] == document.marks[-1].bytes
    assert OFFSETS[3:] == [0], "reopened only for text before the last slice"
    assert read([each for each in slices for _ in range(2)])[1::2] == read(slices)


def test_a_file_that_cannot_seek_is_read_once(tmp_path: Path) -> None:
    text = "é line\n" * 400_000
    packed, latin = tmp_path / "a.txt.gz", tmp_path / "b.txt"
    packed.write_bytes(gzip.compress(text.encode(), 1))
    latin.write_bytes(text.encode("latin-1"))
    for found in (surveyed(packed), surveyed(latin, "latin-1")):
        (document,) = found.documents
        spans = [(start, start + 1000) for start in range(0, len(text), 500_000)]
        OFFSETS.clear()
        slices = [Slice(document, start, end) for start, end in spans]
        assert read(slices) == [text[start:end] for start, end in spans]
        assert OFFSETS == [0]


def test_a_file_that_changed_is_not_read_from_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a line\n" * (2 * MARK_BYTES // 7))
    found = surveyed(path)
    path.write_bytes(b"b line\n" * (2 * MARK_BYTES // 7) + b"\n")
    with pytest.raises(InputError, match="changed while it was read"):
        read(cut(found.documents, found.document_characters, MARK_BYTES + 10, MARK_BYTES + 20)[0])
