"""eval of runs of records: figures, tables, the strangest records, caveats, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gru_lm.commands.eval.lines import answer_lines
from gru_lm.commands.load import load_model
from gru_lm.layout import RECORDS
from gru_lm.training.directory import find
from tests.conftest import TINY, Program
from tests.inside import error, inside

PARTS = "an el mar is lo ve ra ti no ka".split()


def names(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PARTS, k=rng.randint(1, 4))) for _ in range(count)]


def trained_on(folder: Path, name: str, text: str, *options: object) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    inside(folder, "train", name, "--out", "run", "--steps", 20, *options, *TINY)
    return folder / "run"


@pytest.fixture(scope="module")
def of_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 300 names, in names.txt next to it."""
    folder = tmp_path_factory.mktemp("lines")
    text = "".join(f"{name}\n" for name in names(300))
    return trained_on(folder, "names.txt", text, "--records", "line")


@pytest.fixture(scope="module")
def of_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of the field `name` of a table."""
    folder = tmp_path_factory.mktemp("rows")
    rows = "".join(f"{number},{name}\n" for number, name in enumerate(names(100)))
    return trained_on(folder, "names.csv", "utt,name\n" + rows, "--field", "name")


def evaluated(run: Path, *args: object) -> Any:
    return inside(run.parent, "eval", run, *args, "--json").json()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        tabs = path.suffix == ".tsv"
        return list(csv.DictReader(file, dialect="excel-tab" if tabs else "excel"))


@torch.inference_mode()
def by_hand(run: Path, record: str) -> tuple[int, float]:
    """Tokens and nats of a record, with its end, from the model itself."""
    loaded = load_model(find(run, pytest.fail))
    tokenizer, model = loaded.tokenizer, loaded.model
    tokens = [*tokenizer.encode_text(record), tokenizer.end_id]
    inputs = torch.tensor([[tokenizer.newline_id, *tokens[:-1]]])
    log_probs_BTV, _ = model.log_probs(inputs, model.initial_state(1))
    log_probs_N = log_probs_BTV[0, range(len(tokens)), tokens].double()
    return len(tokens), -float(log_probs_N.sum())


def test_figures_equal_those_by_hand_and_those_of_training(of_lines: Path, tmp_path: Path) -> None:
    own = evaluated(of_lines)
    records = own["records"]
    assert own["mode"] == "records"
    assert 10 < records < 60
    assert own["lines"] == records
    text = tmp_path / "few.txt"
    text.write_text("mar\n\nlo ve\r\nanis")
    found = evaluated(of_lines, text, "--per-line", tmp_path / "out.tsv")
    expected = [by_hand(of_lines, record) for record in ("mar", "lo ve", "anis")]
    assert [
        (row["line"], int(row["tokens"]), float(row["nats"]))
        for row in rows_of(tmp_path / "out.tsv")
    ] == [
        (line, tokens, pytest.approx(nats, rel=1e-5))
        for line, (tokens, nats) in zip("134", expected, strict=True)
    ]
    nats = sum(nats for _, nats in expected)
    assert found["nats"] == pytest.approx(nats, rel=1e-6)
    assert (found["records"], found["characters"], found["bytes"]) == (3, 15, 15)
    assert found["nats_per_record"] == pytest.approx(nats / 3, rel=1e-6)
    assert found["bits_per_record"] == pytest.approx(nats / 3 / math.log(2), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / 15 / math.log(2), rel=1e-6)
    assert found["ci95"] is None  # of three records
    low, high = own["ci95"]
    assert low < own["bits_per_byte"] < high
    # The run's own validation scores the same records in the same way.
    validations = (of_lines / "metrics.jsonl").read_text().splitlines()
    best = min(
        (each for line in validations if (each := json.loads(line).get("valid_bits_per_byte"))),
    )
    assert own["bits_per_byte"] == pytest.approx(best, rel=1e-6)


def test_the_order_of_a_list_and_threads_change_nothing(of_lines: Path, tmp_path: Path) -> None:
    records = names(400, seed=5)
    shuffled = random.Random(1).sample(records, 400)
    found = []
    for number, order in enumerate(
        (records, sorted(records), sorted(records, reverse=True), shuffled)
    ):
        path = tmp_path / f"{number}.txt"
        path.write_text("\n".join(order))
        found.append(evaluated(of_lines, path, "--threads", 1 + number % 2, "--batch", 7 + number))
    for each in found[1:]:
        for name in ("bits_per_byte", "nats_per_record", "perplexity"):
            assert each[name] == pytest.approx(found[0][name], rel=1e-6)
        assert each["ci95"] == pytest.approx(found[0]["ci95"], rel=1e-5)
        assert each["caveats"] == found[0]["caveats"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_rows_keep_their_order_and_ids(of_rows: Path, tmp_path: Path, suffix: str) -> None:
    ids = ["a 1", 'b"2', "c,3", "d\\4"]
    texts = ["mar", "two\nlines", "lo", "anelmar"]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [("utt", "name"), *zip(ids, texts, strict=True)]
    )
    (tmp_path / "list.csv").write_text(table.getvalue())
    out = tmp_path / f"out{suffix}"
    found = evaluated(of_rows, tmp_path / "list.csv", "--per-line", out, "--id", "utt")
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    elif suffix == ".csv":
        rows = rows_of(out)
    else:
        header, *lines = (line.split("\t") for line in out.read_text().splitlines())
        rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert list(rows[0]) == ["line", "id", "tokens", "nats"]
    assert [row["id"] for row in rows] == ["a 1", 'b"2', "c,3", r"d\\4"]
    assert [int(row["line"]) for row in rows] == [2, 3, 5, 6]
    expected = [by_hand(of_rows, text) for text in texts]
    assert [int(row["tokens"]) for row in rows] == [tokens for tokens, _ in expected]
    nats = [nats for _, nats in expected]
    assert [float(row["nats"]) for row in rows] == pytest.approx(nats, rel=1e-5)
    assert found["nats"] == pytest.approx(sum(nats), rel=1e-6)
    assert (found["records"], found["lines"]) == (4, 5)


def test_the_strangest_are_printed_and_in_the_object(of_lines: Path, tmp_path: Path) -> None:
    records = [*names(50, seed=8), "Zx9\tq", *names(50, seed=9)]
    for number, part in enumerate((records[:50], records[50:])):
        (tmp_path / f"{number}.txt").write_text("\n".join(part))
    found = evaluated(of_lines, tmp_path / "0.txt", tmp_path / "1.txt", "--strangest", 3)
    surprisal = {record: by_hand(of_lines, record) for record in set(records)}
    per_token = sorted(
        (nats / tokens for tokens, nats in map(surprisal.get, records)), reverse=True
    )
    assert [each["nats_per_token"] for each in found["strangest"]] == pytest.approx(
        per_token[:3], rel=1e-5
    )
    first = found["strangest"][0]
    assert (first["text"], first["line"], first["file"]) == ("Zx9\tq", 1, str(tmp_path / "1.txt"))
    assert first["nats"] == pytest.approx(surprisal["Zx9\tq"][1], rel=1e-5)
    assert [each["records"] for each in found["files"]] == [50, 51]
    shown = inside(tmp_path, "eval", of_lines, "1.txt", "--strangest", 2).out.splitlines()
    header = shown.index("strangest records\tnats per token\tnats\ttokens\tline")
    assert shown[header + 1].startswith("Zx9\\tq\t")
    assert len(shown) == header + 3
    assert any(line.startswith("bits per byte (ends included)\t") for line in shown)
    assert "records\t51" in shown


@pytest.mark.parametrize("kind", ["word", "bpe", "byte"])
def test_other_tokenizers_and_outputs(tmp_path: Path, kind: str) -> None:
    text = "".join(f"{a} {b}\n" for a, b in zip(names(80), names(80, seed=2), strict=True))
    (tmp_path / "list.txt").write_text(text)
    tiny = [kind if option == "char" else option for option in TINY]
    vocabulary = ["--vocab-size", 300] * (kind == "bpe")
    options = ("--records", "line", "--steps", 5, *vocabulary, *tiny)
    trained = inside(tmp_path, "train", "list.txt", "--out", "run", *options, "--json").json()
    assert trained["valid"]["mode"] == "records"
    out = ["--per-token", "t.tsv", "--per-word", "w.csv", "--html", "out.html", "--baselines"]
    run = tmp_path / "run"
    own = evaluated(run, *out)
    for name in ("records", "bits_per_byte", "bits_per_record", "spelling_nats", "words"):
        assert own[name] == pytest.approx(trained["valid"][name], rel=1e-6)
    with (tmp_path / "t.tsv").open() as file:
        tokens = list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    for rows in (tokens, rows_of(tmp_path / "w.csv")):
        bits = sum(float(row["surprisal_bits"]) + float(row["spelling_bits"]) for row in rows)
        assert bits == pytest.approx(own["bits_per_byte"] * own["bytes"], rel=1e-6)
    assert len(tokens) == own["tokens"]
    assert [row["name"] for row in own["baselines"]] == ["uniform", "unigram", "bz2", "lzma"]
    assert "ends included" in (tmp_path / "out.html").read_text()
    srilm = evaluated(run, "--as", "srilm")["as"]["text"]
    assert f"{own['records']} sentences, {own['tokens'] - own['records']} words" in srilm


def test_the_share_of_known_records_is_stated(of_lines: Path, tmp_path: Path) -> None:
    new = [f"new{number}" for number in range(300)]
    (tmp_path / "mixed.txt").write_text("\n".join([*names(300), *new]))
    caveats = evaluated(of_lines, tmp_path / "mixed.txt")["caveats"]
    shares = [float(each.split("%")[0]) for each in caveats]
    assert sum(shares) == pytest.approx(50, abs=0.15)
    assert caveats[0].endswith(
        "of the records are among the held-out records used for choosing the best checkpoint"
    )
    assert caveats[1].endswith("of the records are among the training records")
    (tmp_path / "new.txt").write_text("\n".join(new))
    assert evaluated(of_lines, tmp_path / "new.txt")["caveats"] == []
    (own,) = evaluated(of_lines)["caveats"]
    assert own.startswith("the run's own held-out records, used for choosing")


def test_groups_and_lost_texts_leave_what_is_known(tmp_path: Path) -> None:
    rows = [f"{number % 20},{name}" for number, name in enumerate(names(200))]
    run = trained_on(
        tmp_path, "list.csv", "\n".join(["who,name", *rows]), "--field", "name", "--group", "who"
    )
    found = evaluated(run, "list.csv")
    assert any("among the training records" in each for each in found["caveats"])
    assert any("among the training records" in each for each in evaluated(run)["caveats"])
    (tmp_path / "list.csv").rename(tmp_path / "moved.csv")
    found = evaluated(run, "moved.csv")
    assert found["caveats"] == ["100.0% of the records are in the list of the run"]


def test_paragraphs_and_files_are_read_as_the_run_was_trained(tmp_path: Path) -> None:
    text = "\n\n".join(f"{a}\n{b}" for a, b in zip(names(60), names(60, seed=4), strict=True))
    run = trained_on(tmp_path, "tunes.txt", text, "--records", "paragraph")
    (tmp_path / "two.txt").write_text("mar\nlo\n\n\nan\n")
    found = evaluated(run, "two.txt", "--per-line", "out.csv")
    nats = [by_hand(run, "mar\nlo")[1], by_hand(run, "an")[1]]
    rows = rows_of(tmp_path / "out.csv")
    assert [float(row["nats"]) for row in rows] == pytest.approx(nats, rel=1e-5)
    assert [row["line"] for row in rows] == ["1", "5"]
    assert (found["records"], found["lines"], found["bytes"]) == (2, 3, 10)
    assert "paragraph" in error(tmp_path, "eval", run, "two.txt", "--as", "srilm", code=2)
    assert "paragraph" in error(tmp_path, "eval", run, "-", "--per-line", "-", code=2)


@pytest.mark.slow
def test_lines_of_standard_input_are_records(of_lines: Path) -> None:
    program = Program(of_lines.parent)
    done = program("eval", of_lines, "-", "--per-line", "-", stdin="mar\nanis")
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    for row, (number, record) in zip(rows, enumerate(("mar", "anis"), 1), strict=True):
        tokens, nats = by_hand(of_lines, record)
        assert row[:2] == [str(number), str(tokens)]
        assert float(row[2]) == pytest.approx(nats, rel=1e-5)
    found = program.json("eval", of_lines, "-", stdin="mar\nanis")
    assert found["records"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "stream"], "--mode stream is for running text"),
        (["--cache"], "--cache is for running text"),
        (["--dynamic", "sgd"], "--dynamic is for running text"),
        (["--context-curve", "out.png"], "--context-curve is for running text"),
        (["--interpolate", "x.arpa"], "--interpolate is for running text"),
        (["--as", "lm-eval"], "--as lm-eval is for running text"),
        (["--per-line", "out.tsv", "--id", "utt"], "--id names a column of a table"),
        (["--id", "utt"], "no effect without --per-line or --strangest"),
    ],
)
def test_what_records_do_not_have_is_refused(of_lines: Path, options: list[str], said: str) -> None:
    assert said in error(of_lines.parent, "eval", of_lines, "names.txt", *options, code=2)
    assert not list(of_lines.parent.glob("out*"))


@pytest.mark.parametrize("options", [["--strangest", 3], ["--mode", "records"]])
def test_running_text_has_no_records(trained: Path, options: list[object]) -> None:
    assert "running text" in error(trained.parent, "eval", trained, "text.txt", *options, code=2)


def test_bad_lists(of_lines: Path, of_rows: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n\n")
    message = error(tmp_path, "eval", of_lines, "blank.txt", "--per-line", "out.tsv", code=3)
    assert "no records in blank.txt" in message
    (tmp_path / "other.csv").write_text("utt,text\n1,mar\n")
    assert "has no field 'name'" in error(tmp_path, "eval", of_rows, "other.csv", code=3)
    (tmp_path / "list.csv").write_text("utt,name\n1,mar\n")
    out = ["--per-line", "out.tsv", "--id"]
    message = error(tmp_path, "eval", of_rows, "list.csv", *out, "who", code=3)
    assert "has no field 'who'" in message
    assert not (tmp_path / "out.tsv").exists()
    inside(tmp_path, "eval", of_rows, "list.csv", *out, "utt")
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 2
    assert evaluated(of_rows, tmp_path / "list.csv")["records"] == 1


def test_info_names_the_form(of_lines: Path, of_rows: Path, trained: Path) -> None:
    def shown(run: Path) -> list[str]:
        lines = inside(run.parent, "info", run).out.splitlines()
        return [line.split(None, 1)[1] for line in lines if line.startswith("records ")]

    assert shown(of_lines) == ["each line"]
    assert shown(of_rows) == ["the field 'name' of each row"]
    assert shown(trained) == []


def test_sentences_of_pairs_are_records(of_lines: Path, tmp_path: Path) -> None:
    pairs = [("mar", "rrr"), ("anel", "ealn"), ("lo", "ve")]
    lines = [json.dumps({"sentence_good": a, "sentence_bad": b}) for a, b in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    found = evaluated(of_lines, "--pairs", tmp_path / "pairs.jsonl")["pairs"]
    right = [by_hand(of_lines, a)[1] < by_hand(of_lines, b)[1] for a, b in pairs]
    assert found["accuracy"] == pytest.approx(sum(right) / 3)


def test_an_empty_list_beside_others(of_lines: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "names.txt").write_text("\n".join(names(30)), encoding="utf-8")
    done = inside(tmp_path, "eval", of_lines, "blank.txt", "names.txt")
    assert "2 empty records skipped" in done.err
    result = inside(tmp_path, "eval", of_lines, "blank.txt", "names.txt", "--json").json()
    assert result["records"] == 30
    assert [each["tokens"] > 0 for each in result["files"]] == [False, True]


def test_a_lost_table_of_records_is_said(of_lines: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(of_lines, run)
    (run / RECORDS).write_bytes((run / RECORDS).read_bytes()[:-8])
    (tmp_path / "names.txt").write_text("\n".join(names(30)), encoding="utf-8")
    said = inside(tmp_path, "eval", run, "names.txt").err
    assert "records.u64 of the run is missing or damaged" in said
    assert "train --resume" in said


def test_the_ends_of_lines_from_windows_are_no_part_of_records(of_lines: Path) -> None:
    lines = [b"emma\nliam\n", b"emma\r\nliam\r\n"]
    answers = []
    for data in lines:
        source, sink = os.pipe()
        os.write(sink, data)
        os.close(sink)
        rows: list[str] = []
        with os.fdopen(source, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            answer_lines(of_lines, rows.append, stop=lambda: None)
        answers.append(rows)
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3
