"""Law: records written by Python's csv and json modules, or in lines, are read back unchanged."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gru_lm.text import records
from gru_lm.text.records import Form, read_records

# What separates, quotes and ends is frequent; a NUL is refused.
ANY = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
CELLS = st.text(st.sampled_from(",;\t\"\n\r' aé猫") | ANY)


@dataclass(frozen=True)
class Text:
    """A document of one text, in pieces of `size` characters."""

    name: str
    text: str
    size: int

    def pieces(self) -> Iterator[str]:
        for start in range(0, len(self.text), self.size):
            yield self.text[start : start + self.size]


def read(document: Text, form: Form, *columns: str) -> list[tuple[str, ...]]:
    return [
        row
        for block in read_records(document, form, columns=columns)
        for row in zip(block.texts, *block.columns.values(), strict=True)
    ]


def full(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(text, key) for key, text in rows if text.strip()]


@pytest.mark.parametrize("block", [1, 7, records.BLOCK])
@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
@settings(max_examples=60)
@given(rows=st.lists(st.tuples(CELLS, CELLS)), size=st.integers(1, 9), unix=st.booleans())
def test_csv(
    name: str,
    separator: str,
    block: int,
    rows: list[tuple[str, str]],
    size: int,
    unix: bool,
) -> None:
    file = io.StringIO()
    end = "\n" if unix else "\r\n"
    quoting = csv.QUOTE_ALL if unix else csv.QUOTE_MINIMAL  # with \n alone, \r is not quoted
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("key", "text"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", block)
        document = Text(name, file.getvalue(), size)
        assert read(document, Form(unit="row", field="text"), "key") == full(rows)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1), size=st.integers(1, 9), short=st.booleans()
)
def test_json(rows: list[tuple[str, str]], size: int, short: bool) -> None:
    lines = [json.dumps({"key": key, "text": text}, ensure_ascii=short) for key, text in rows]
    document = Text("a.jsonl", "\n".join(lines), size)
    assert read(document, Form(unit="row", field="text"), "key") == full(rows)


@pytest.mark.parametrize("block", [1, 7, records.BLOCK])
@settings(max_examples=60)
@given(lines=st.lists(CELLS), size=st.integers(1, 9), end=st.sampled_from(["\n", "\r\n"]))
def test_lines_and_paragraphs(lines: list[str], size: int, end: str, block: int) -> None:
    lines = [line.replace("\n", "").rstrip("\r") for line in lines]
    document = Text("a.txt", "".join(line + end for line in lines), size)
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", block)
        assert read(document, Form(unit="line")) == [(line,) for line in lines if line.strip()]
        expected = [("\n".join(each),) for each in paragraphs if each]
        assert read(document, Form(unit="paragraph")) == expected
