"""Tables that cannot be read as records: each is an error that names the file and the line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gru_lm.errors import EnvironmentProblem, InputError
from gru_lm.text import records, tables
from gru_lm.text.documents import Document
from gru_lm.text.records import Form, read_records
from gru_lm.text.sources import open_documents

ROWS = Form(unit="row", field="text")


def opened(folder: Path, name: str, content: bytes) -> Document:
    path = folder / name
    path.write_bytes(content)
    if name == "-":
        (document,) = open_documents(["-"], form=ROWS, stdin=path)
    else:
        (document,) = open_documents([str(path)], form=ROWS)
    return document


def refusal(folder: Path, name: str, content: bytes, *columns: str) -> InputError:
    document = opened(folder, name, content)
    with pytest.raises(InputError) as caught:
        list(read_records(document, ROWS, columns=columns))
    assert caught.value.exit_code == 3
    assert ("standard input" if name == "-" else name) in caught.value.message
    return caught.value


def packed(**columns: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


NAMES = b"id,Text,note\n1,a,b\n"
UNKNOWN = {
    "a.csv": NAMES,
    "a.tsv": NAMES.replace(b",", b"\t"),
    "a.jsonl": b'{"id": 1}\n{"Text": "a", "note": "b"}\n',
    "a.parquet": packed(id=[1], Text=["a"], note=["b"]),
    "-": NAMES,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_field(tmp_path: Path, name: str) -> None:
    error = refusal(tmp_path, name, UNKNOWN[name])
    assert error.message.endswith("has no field 'text'")
    assert error.hint == "did you mean 'Text'? its fields: 'id', 'Text', 'note'"


@pytest.mark.parametrize("name", UNKNOWN)
def test_another_unknown_column(tmp_path: Path, name: str) -> None:
    error = refusal(tmp_path, name, UNKNOWN[name].replace(b"Text", b"text"), "nota")
    assert error.message.endswith("has no field 'nota'")
    assert "did you mean 'note'?" in str(error.hint)


def test_many_fields_are_not_all_listed(tmp_path: Path) -> None:
    header = ",".join(f"c{number}" for number in range(1_000))
    hint = str(refusal(tmp_path, "a.csv", header.encode() + b"\n").hint)
    assert hint.endswith("'c49' and 950 more")


def test_a_field_that_some_objects_lack_is_known(tmp_path: Path) -> None:
    content = b'{"n": 1}\n' * 3 + b'{"text": "a", "n": 2}\n'
    (block,) = read_records(opened(tmp_path, "a.jsonl", content), ROWS)
    assert block == (["a"], [4], {}, 3)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_field_named_twice(tmp_path: Path, name: str) -> None:
    content = b"text,n,text\n1,2,3\n"
    if name == "a.parquet":
        file = io.BytesIO()
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), file)
        content = file.getvalue()
    assert refusal(tmp_path, name, content).message.endswith("2 columns are named 'text'")


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.csv", b'n,text\n1,"a\nb"\n2,a,b\n', "line 4: a row of 3 cells in a table of 2", "quotes"),
        ("a.csv", b"text\na,b\n", "line 2: a row of 2 cells in a table of 1 column", "quotes"),
        ("a.tsv", b"n\ttext\n1\ta\n\n2\n", "line 4: a row of 1 cell in a table of 2", "quotes"),
        ("a.csv", b'n,text\n1,"a\n2,b\n3,c\n', "line 2: this quote is never closed", '""'),
        ("a.csv", b'n,text\n"x\ny","z\nz","a\n', "line 4: this quote is never closed", '""'),
        ("a.csv", b'n,text\n"x\ny","a\n2,b', "line 3: this quote is never closed", '""'),
        ("a.csv", b'\n\n"text\n', "line 3: this quote is never closed", '""'),
        ("a.csv", b'text\n"a"b\n', "line 2: a quoted cell goes on after its quote", '""'),
        ("a.tsv", b'n\ttext\n1\t"Oh," he said\n', "line 2: a quoted cell goes on", '""'),
        ("a.csv", b'text\n"say \\"hello\\""\n', "line 2: a quoted cell goes on", '""'),
        ("a.csv", b"text\na\rb\n", "line 2: a carriage return outside quotes", "tr "),
        ("a.csv", b"text\ra\rb\r", "line 1: a carriage return outside quotes", "tr "),
        ("a.csv", b"text\na\nb\0c\n", "line 3: a NUL character", "utf-16"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b}\n', "line 2: not JSON", "each line"),
        ("a.jsonl", b'{"text": "a"} {"text": "b"}\n', "line 1: not JSON", "each line"),
        ("a.jsonl", b'[\n{"text": "a"}\n]\n', "line 1: not JSON", "jq -c '.[]'"),
        ("a.jsonl", b'[{"text": "a"}]\n', "line 1: not a JSON object", "jq -c '.[]'"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: not JSON", "each line"),
        ("a.jsonl", b'{"text": ' + b"9" * 10_000 + b"}", "line 1: not JSON", "each line"),
        ("a.jsonl", b'\n{"text": ["a"]}\n', "line 2: 'text' is a list", "--field"),
        ("a.jsonl", b'{"text": {}}\n', "line 1: 'text' is an object", "--field"),
        ("a.jsonl", b'{"text": true}\n', "line 1: 'text' is true or false", "--field"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}', "line 2: half of a surrogate", "whole"),
        ("a.parquet", packed(text=[None, [1]]), "row 2: 'text' is a list", "--field"),
        ("a.parquet", packed(text=[b"a"]), "row 1: 'text' is of type bytes", "--field"),
        ("-", b'{"text": "a"}\nb\n', "line 2: not JSON", "each line"),
        ("-", b"text\na,b\n", "line 2: a row of 2 cells", "quotes"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, message: str, hint: str
) -> None:
    error = refusal(tmp_path, name, content)
    assert f", {message}" in error.message
    assert hint in str(error.hint)


def test_surrogates_are_refused_in_other_columns_too(tmp_path: Path) -> None:
    content = b'{"text": "a", "key": "b"}\n{"text": "a", "key": "\\udc00"}\n'
    assert "line 2: half of a surrogate" in refusal(tmp_path, "a.jsonl", content, "key").message


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_record_that_is_too_long(tmp_path: Path, name: str) -> None:
    texts = ["a", "x" * (records.MOST_CHARACTERS + 1)]
    content = {
        "a.csv": "\n".join(["text", *texts]).encode(),
        "a.jsonl": "\n".join(json.dumps({"text": text}) for text in texts).encode(),
        "a.parquet": packed(text=texts),
    }[name]
    place = {"a.csv": "line 3", "a.jsonl": "line 2", "a.parquet": "row 2"}[name]
    error = refusal(tmp_path, name, content)
    assert error.message.endswith(f"{name}, {place}: a record of more than 1,000,000 characters")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_long_cells_beside_a_record(tmp_path: Path, name: str) -> None:
    """Longer than the csv module's default, and not limited like records."""
    wide = "x" * (records.MOST_CHARACTERS + 1)
    content = f"text,n\na,{wide}\n" if name == "a.csv" else json.dumps({"text": "a", "n": wide})
    (block,) = read_records(opened(tmp_path, name, content.encode()), ROWS)
    assert block.texts == ["a"]


def test_a_quote_or_a_line_without_an_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_IN_A_LINE", records.MOST_CHARACTERS)
    rows = b"a\n" * 3 + b'"' + b"b\n" * 1_000_000
    limit = tables.csv.field_size_limit(1)
    try:
        error = refusal(tmp_path, "a.csv", b"text\n" + rows)
        assert "line 5: a cell of more than 1,000,000 characters" in error.message
        assert "quote" in str(error.hint)
    finally:
        tables.csv.field_size_limit(limit)
    line = b'{"text": "a"' + b" " * 2_000_000 + b"}"
    assert "line 1: a " in refusal(tmp_path, "a.jsonl", line).message


def test_a_file_that_is_no_table_by_its_name(tmp_path: Path) -> None:
    for name in ("a.txt", "a.txt.gz", "a"):
        (tmp_path / name).write_bytes(b"text\na\n")
        with pytest.raises(InputError, match="not a table, by its name") as caught:
            open_documents([str(tmp_path / name)], form=ROWS)
        hint = str(caught.value.hint)
        assert all(suffix in hint for suffix in (".csv", ".tsv", ".jsonl", ".parquet", "--records"))
    with pytest.raises(InputError, match="no such file"):
        open_documents([str(tmp_path / "missing.txt")], form=ROWS)


def test_bytes_that_are_not_in_the_encoding(tmp_path: Path) -> None:
    error = refusal(tmp_path, "a.csv", b"text\n" + b"a\n" * 10_000 + b"\xff\n")
    assert "line 10,002: not utf-8 at byte 20,005" in error.message


def test_parquet_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(packed(text=["a"] * 100))
    for form in (None, Form(unit="line")):
        with pytest.raises(InputError, match="is a table in Parquet") as caught:
            open_documents([str(path)], form=form)
        assert str(caught.value.hint).startswith("--field NAME")
    with pytest.raises(InputError, match="standard input is a table in Parquet") as caught:
        open_documents(["-"], form=ROWS, stdin=path)
    assert ".parquet file" in str(caught.value.hint)


def test_damaged_parquet(tmp_path: Path) -> None:
    whole = packed(text=[f"text {number}" for number in range(10_000)])
    middle = len(whole) // 2
    for content in (whole[:middle], whole[:8], whole[:-8] + bytes(8), b"text\na\n"):
        error = refusal(tmp_path, "a.parquet", content)
        assert "a.parquet: damaged, or not parquet data" in error.message


def test_parquet_with_bytes_that_are_not_text(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff"]).view(pa.string())
    file = io.BytesIO()
    pq.write_table(pa.table({"text": text}), file)
    error = refusal(tmp_path, "a.parquet", file.getvalue())
    assert error.message.endswith("not utf-8")


def test_parquet_that_changes(tmp_path: Path) -> None:
    document = opened(tmp_path, "a.parquet", packed(text=["a"]))
    (tmp_path / "a.parquet").write_bytes(packed(text=["b", "c"]))
    with pytest.raises(InputError, match="changed while it was read"):
        list(read_records(document, ROWS))


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = opened(tmp_path, "a.parquet", packed(text=["a"]))
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentProblem, match="Parquet needs the package pyarrow") as caught:
        list(read_records(document, ROWS))
    assert caught.value.hint == "pip install 'gru-lm[parquet]'"
