"""Records from lines, paragraphs and files, and from every format of tables alike."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gru_lm.errors import InputError
from gru_lm.text import records, tables
from gru_lm.text.records import Block, Form, read_records
from gru_lm.text.sources import open_documents

LINE, PARAGRAPH, FILE = (Form(unit=unit) for unit in ("line", "paragraph", "file"))
ROWS = Form(unit="row", field="text")


def read(
    content: bytes | Path, form: Form, *columns: str, name: str = "", folder: Path | None = None
) -> Block:
    """All blocks of a file, or of standard input, as one."""
    path = content
    if isinstance(content, bytes):
        assert folder
        path = folder / (name or "list.txt")
        path.write_bytes(content)
    (document,) = open_documents([str(path)], form=form)
    return joined(read_records(document, form, columns=columns), columns)


def piped(content: bytes, form: Form, *columns: str, folder: Path) -> Block:
    (folder / "spool").write_bytes(content)
    (document,) = open_documents(["-"], form=form, stdin=folder / "spool")
    return joined(read_records(document, form, columns=columns), columns)


def joined(blocks: Iterator[Block], columns: Sequence[str] = ()) -> Block:
    whole = Block([], [], {name: [] for name in columns}, 0)
    empty = 0
    for block in blocks:
        assert len(block.texts) == len(block.lines)
        assert list(block.columns) == list(columns)
        whole.texts.extend(block.texts)
        whole.lines.extend(block.lines)
        for name in columns:
            assert len(block.columns[name]) == len(block.texts)
            whole.columns[name].extend(block.columns[name])
        empty += block.empty
    return whole._replace(empty=empty)


@dataclass
class Pieces:
    """A document of given pieces, which counts those that were taken."""

    texts: Sequence[str]
    name: str = "pieces.txt"
    taken: int = 0

    def pieces(self) -> Iterator[str]:
        for text in self.texts:
            self.taken += 1
            yield text


def test_lines(tmp_path: Path) -> None:
    found = read(b"emma\r\n\n anna \t\n\r\n \t\nlea\rh\r\r\nzo\xc3\xab", LINE, folder=tmp_path)
    assert found.texts == ["emma", " anna \t", "lea\rh\r", "zoë"]
    assert found.lines == [1, 3, 6, 7]
    assert found.empty == 3


@pytest.mark.parametrize("form", [LINE, PARAGRAPH, FILE], ids=lambda form: form.unit)
def test_line_ends_do_not_matter(tmp_path: Path, form: Form) -> None:
    lines = ["one", "two", "", "three four", "  ", "five"]
    for last in ("", "\n"):
        found = {
            end: read(f"{end.join(lines)}{last and end}".encode(), form, folder=tmp_path)
            for end in ("\n", "\r\n")
        }
        assert found["\n"] == found["\r\n"]


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    text = "a\x0bb\x0cc\x85d\u2028e\x1cf"
    assert read(text.encode(), LINE, folder=tmp_path).texts == [text]


def test_paragraphs(tmp_path: Path) -> None:
    found = read(b"\n\nX:1\nabc |\n\n \t\n\nX:2\n  d\n", PARAGRAPH, folder=tmp_path)
    assert found == Block(["X:1\nabc |", "X:2\n  d"], [3, 8], {}, 0)


def test_a_file(tmp_path: Path) -> None:
    assert read(b"a\r\n\nb\n", FILE, folder=tmp_path) == Block(["a\n\nb"], [1], {}, 0)
    assert read(b" \n\n", FILE, folder=tmp_path) == Block([], [], {}, 1)
    long = "x" * (records.MOST_CHARACTERS + 1)
    assert read(long.encode(), FILE, folder=tmp_path).texts == [long]


def test_one_record_and_none(tmp_path: Path) -> None:
    assert read(b"alone", LINE, folder=tmp_path).texts == ["alone"]
    assert read(b"text\n", ROWS, name="head.csv", folder=tmp_path) == Block([], [], {}, 0)


@pytest.mark.parametrize("form", [LINE, PARAGRAPH], ids=lambda form: form.unit)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_records_across_blocks_and_pieces(form: Form, end: str) -> None:
    """The same records and lines, however the text is cut; blocks are bounded and come early."""
    lines = [f"line {number}" if number % 7 else " " for number in range(200_000)]
    text = end.join(lines)
    assert len(text) > 3 * records.BLOCK
    document = Pieces([text[start : start + 9_999] for start in range(0, len(text), 9_999)])
    blocks = read_records(document, form)
    first = next(blocks)
    assert document.taken < len(document.texts) / 2
    assert sum(map(len, first.texts)) <= records.BLOCK + 9_999
    rest = joined(blocks)
    starts = [number for number in range(200_000) if number % 7]
    if form is PARAGRAPH:
        starts = [number for number in starts if number % 7 == 1]
        expected = ["\n".join(lines[start : start + 6]) for start in starts]
    else:
        expected = [lines[start] for start in starts]
    assert first.texts + rest.texts == expected
    assert first.lines + rest.lines == [start + 1 for start in starts]
    assert first.empty + rest.empty == (0 if form is PARAGRAPH else 200_000 - len(starts))


@pytest.mark.parametrize("form", [LINE, PARAGRAPH], ids=lambda form: form.unit)
def test_a_record_that_is_too_long(form: Form) -> None:
    most = records.MOST_CHARACTERS
    for text, where in (
        ("a\n\n" + "x" * (most + 1), "line 3"),
        ("a\n\n" + "x" * (most + 1) + "\n\nb", "line 3"),
        ("x" * (most + 1) + "\nb" * 10, "line 1"),
    ):
        pieces = [text[start : start + 10_000] for start in range(0, len(text), 10_000)]
        with pytest.raises(
            InputError, match=rf"pieces\.txt, {where}: a record of more than 1,000,000"
        ):
            joined(read_records(Pieces(pieces), form))
    assert joined(read_records(Pieces(["x" * most]), form)).texts == ["x" * most]


def test_a_paragraph_of_many_lines_is_too_long_as_well() -> None:
    with pytest.raises(InputError, match=r"line 2: a record of more than"):
        joined(read_records(Pieces(["\n", "word\n" * 200_001]), PARAGRAPH))


def test_a_line_without_an_end_is_not_read_to_its_end() -> None:
    document = Pieces(["x" * 10_000] * 1_000)
    with pytest.raises(InputError, match="more than 1,000,000 characters"):
        joined(read_records(document, LINE))
    assert document.taken < 200


VALUES = [
    "plain",
    "two\nlines",
    "two\r\nlines",
    'a "quoted", word',
    '"',
    '""',
    "tab\tand, comma; semicolon",
    " spaces ",
    "Zoë 猫 😀 \u2028",
    "\\n \\\" 'single'",
    "plain",
    "",
    "  ",
    "0012",
    "null",
]
KEYS = [f"k{number}, “é”" for number in range(len(VALUES))]
EXPECTED = Block(
    [value for value in VALUES if value.strip()],
    [],
    {"key": [key for key, value in zip(KEYS, VALUES, strict=True) if value.strip()]},
    2,
)


def written(separator: str, end: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("key", "text"), *zip(KEYS, VALUES, strict=True)])
    return file.getvalue().encode()


def json_lines(*, ascii_only: bool) -> bytes:
    rows = [{"key": key, "text": value} for key, value in zip(KEYS, VALUES, strict=True)]
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()


def parquet(**options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"key": KEYS, "text": VALUES}), file, **options)
    return file.getvalue()


def by_pandas(separator: str) -> bytes:
    frame = pd.DataFrame({"key": KEYS, "text": VALUES})
    return frame.to_csv(sep=separator, index=False).encode()


FORMATS: dict[str, Callable[[], bytes]] = {
    "rfc.csv": lambda: written(","),
    "unix.csv": lambda: written(",", end="\n"),
    "all-quoted.csv": lambda: written(",", quoting=csv.QUOTE_ALL),
    "excel.csv": lambda: b"\xef\xbb\xbf" + written(","),
    "semicolons.csv": lambda: written(";"),
    "tabs.csv": lambda: written("\t"),
    "pandas.csv": lambda: by_pandas(","),
    "excel.tsv": lambda: written("\t"),
    "pandas.tsv": lambda: by_pandas("\t"),
    "ascii.jsonl": lambda: json_lines(ascii_only=True),
    "plain.ndjson": lambda: json_lines(ascii_only=False),
    "dos.jsonl": lambda: json_lines(ascii_only=False).replace(b"\n", b"\r\n"),
    "UPPER.CSV": lambda: written(","),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_records_from_every_format(tmp_path: Path, name: str) -> None:
    content = FORMATS[name]()
    versions = [read(content, ROWS, "key", name=name, folder=tmp_path)]
    for suffix, pack in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        versions.append(read(pack(content), ROWS, "key", name=name + suffix, folder=tmp_path))
    versions.append(piped(content, ROWS, "key", folder=tmp_path))
    for found in versions:
        assert found._replace(lines=[]) == EXPECTED
        assert found.lines == versions[0].lines


@pytest.mark.parametrize("options", [{}, {"row_group_size": 4}, {"use_dictionary": False}], ids=str)
def test_the_same_records_from_parquet(tmp_path: Path, options: dict[str, object]) -> None:
    found = read(parquet(**options), ROWS, "key", name="table.parquet", folder=tmp_path)
    assert found._replace(lines=[]) == EXPECTED
    assert found.lines == [row for row, value in enumerate(VALUES, 1) if value.strip()]


@pytest.mark.parametrize("name", ["rfc.csv", "ascii.jsonl"])
def test_another_encoding(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMATS[name]().decode().encode("utf-16"))
    (document,) = open_documents([str(path)], encoding="utf-16", form=ROWS)
    assert (
        joined(read_records(document, ROWS, columns=["key"]), ["key"])._replace(lines=[])
        == EXPECTED
    )


def test_lines_of_rows(tmp_path: Path) -> None:
    content = b'\r\nkey,"text"\r\n1,"a\nb"\r\n\r\n2,c\r\n3,"d\r\n\r\ne"\r\n4,f'
    found = read(content, ROWS, "key", name="a.csv", folder=tmp_path)
    assert found == Block(
        ["a\nb", "c", "d\r\n\r\ne", "f"], [3, 6, 7, 10], {"key": ["1", "2", "3", "4"]}, 1
    )
    found = read(b'{"text": "a"}\n\n{"text": "b"}', ROWS, name="a.jsonl", folder=tmp_path)
    assert found == Block(["a", "b"], [1, 3], {}, 1)


def test_one_column(tmp_path: Path) -> None:
    """Its header may have a separator of others; a blank line is an empty record."""
    found = read(b"text\na\n\n b \n", ROWS, name="one.csv", folder=tmp_path)
    assert found == Block(["a", " b "], [2, 4], {}, 1)
    form = Form(unit="row", field="a;b")
    assert read(b'"a;b"\n1;2\n', form, name="one.csv", folder=tmp_path).texts == ["1;2"]
    assert read(b"a;b\n1;2\n", form, name="one.csv", folder=tmp_path).texts == ["1;2"]


def test_the_field_itself_and_one_column_twice(tmp_path: Path) -> None:
    found = read(b"n,text\n1,a\n", ROWS, "text", name="a.csv", folder=tmp_path)
    assert found == Block(["a"], [2], {"text": ["a"]}, 0)
    form = Form(unit="row", field="n")
    assert read(b"n,x,x\n1,2,3\n", form, name="a.csv", folder=tmp_path).texts == ["1"]


def test_values_that_are_not_text(tmp_path: Path) -> None:
    rows = [
        {"text": 7, "key": None},
        {"text": 0.5, "key": True},
        {"text": None, "key": "x"},
        {"key": "y"},
        {"text": "z", "key": [1, "é"]},
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    found = read(content, ROWS, "key", name="a.jsonl", folder=tmp_path)
    assert found == Block(["7", "0.5", "z"], [1, 2, 5], {"key": ["", "true", '[1, "é"]']}, 2)
    table = {"text": [7, None, 9], "key": pd.to_datetime(["2024-01-02"] * 3), "x": [0.5, 2.0, None]}
    file = io.BytesIO()
    pq.write_table(
        pa.table({"text": table["text"], "key": pa.array(table["key"]), "x": table["x"]}), file
    )
    found = read(file.getvalue(), ROWS, "key", "x", name="a.parquet", folder=tmp_path)
    assert found.texts == ["7", "9"]
    assert found.columns == {"key": ["2024-01-02 00:00:00"] * 2, "x": ["0.5", ""]}


@pytest.mark.parametrize("name", ["big.csv", "big.jsonl", "big.parquet"])
def test_tables_are_read_in_blocks(tmp_path: Path, name: str) -> None:
    count = 100_000
    texts = [f"text {number} " + "x" * 20 for number in range(count)]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), path)
    elif name.endswith("csv"):
        path.write_text("text\n" + "\n".join(texts))
    else:
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (document,) = open_documents([str(path)], form=ROWS)
    blocks = list(read_records(document, ROWS))
    assert len(blocks) > 3
    assert max(sum(map(len, block.texts)) for block in blocks) < 1.2 * records.BLOCK
    whole = joined(iter(blocks))
    assert whole.texts == texts
    first = 2 if name.endswith("csv") else 1
    assert whole.lines == list(range(first, first + count))


def test_standard_input_is_recognised_by_its_beginning(tmp_path: Path) -> None:
    for content in (
        b'\xef\xbb\xbf\n {"text": "a, b"}\n',
        b"n\ttext\n1\ta, b\n",
        b'n,text\n1,"a, b"\n',
    ):
        assert piped(content, ROWS, folder=tmp_path).texts == ["a, b"]


def test_tables_in_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.csv", "a/1.jsonl.gz", "c.tsv", "d.parquet", "notes.txt", "x.csv.zip", ".h.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("gz"):
            path.write_bytes(gzip.compress(b'{"text": "packed"}'))
        elif name.endswith("parquet"):
            path.write_bytes(parquet())
        else:
            path.write_bytes(b"text\nx\n")
    (tmp_path / "broken.txt.gz").write_bytes(b"no table, and not gzip")
    for spec in (tmp_path, tmp_path / "*"):
        found = open_documents([str(spec)], form=ROWS)
        names = [Path(document.name).relative_to(tmp_path) for document in found]
        assert list(map(str, names)) == ["a/1.jsonl.gz", "b.csv", "c.tsv", "d.parquet"]
    (tmp_path / "broken.txt.gz").unlink()
    assert len(open_documents([str(tmp_path)], form=LINE)) == 5, "as text, all but Parquet"
    with pytest.raises(InputError, match="none of its 1 files is a table") as caught:
        open_documents([str(tmp_path / "*.txt")], form=ROWS)
    assert ".parquet" in str(caught.value.hint)


def test_names_of_tables() -> None:
    known = {
        name: tables.format_of(name) for name in ("a.csv", "a.CSV.ZST", "a.ndjson", "a.tsv.xz")
    }
    assert known == {
        "a.csv": "CSV",
        "a.CSV.ZST": "CSV",
        "a.ndjson": "JSON Lines",
        "a.tsv.xz": "TSV",
    }
    for name in ("a.txt", "csv", "a.parquet.gz", "a.gz", "a.csv.zip"):
        assert tables.format_of(name) is None
