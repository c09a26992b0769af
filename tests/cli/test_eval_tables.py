"""Tables and figures of a word model: spelling and white space are charged; every format parses."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest

from gru_lm.commands.compare.models import compare_models
from gru_lm.commands.eval.options import Outputs
from gru_lm.commands.eval.run import evaluate
from tests.conftest import TINY, words
from tests.inside import error, inside

WORD = [option if option != "char" else "word" for option in TINY]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1"
# Words that parsers could mistake for quotes, comments, missing values or line ends.
AWKWARD = (
    'the " cat NA null None nan sat"on "a mat" \'and the# dog, 007 1e5 True , ; \\ \\n -\n'
    'NA NaN N/A <NA> #N/A inf "" " \u2028 \x0c \x1c a\x00b \ufeff 猫 Ünïcode\r\n\n'
)
PANDAS = {  # as documented in the README
    ".tsv": {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False},
    ".csv": {"keep_default_na": False},
}
TEXTS = {"word": str, "piece": str, "file": str}


@pytest.fixture(scope="module")
def of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny word model."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "text.txt").write_text(words(3_000))
    inside(folder, "train", folder / "text.txt", "--out", folder / "run", "--steps", 5, *WORD)
    return folder / "run"


def bits_of(result: dict[str, Any]) -> float:
    return float(result["bits_per_byte"] * result["bytes"])


@pytest.mark.parametrize("kind", ["char", "word"])
def test_every_form_of_a_table_holds_the_same_rows(
    kind: str, trained: Path, of_words: Path, tmp_path: Path
) -> None:
    run = trained if kind == "char" else of_words
    (tmp_path / 'a\t,"b.txt').write_bytes(AWKWARD.encode())
    for per in ("per_token", "per_word"):
        found: dict[str, list[list[Any]]] = {}
        for form in (".tsv", ".csv", ".jsonl"):
            path = tmp_path / f"{per}{form}"
            outputs = Outputs(**{per: path})
            result = evaluate(run, [str(tmp_path / 'a\t,"b.txt')], outputs=outputs)
            if form == ".jsonl":
                objects = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
                found[form] = [[*objects[0]], *([*each.values()] for each in objects)]
                frame = pandas.read_json(path, lines=True, dtype=False)
            else:
                quoting = csv.QUOTE_NONE if form == ".tsv" else csv.QUOTE_MINIMAL
                with path.open(newline="", encoding="utf-8") as file:
                    delimiter = "\t" if form == ".tsv" else ","
                    found[form] = [*csv.reader(file, delimiter=delimiter, quoting=quoting)]
                frame = pandas.read_csv(path, dtype=TEXTS, **PANDAS[form])
            text = "piece" if per == "per_token" else "word"
            column = found[form][0].index(text)
            assert frame[text].tolist() == [row[column] for row in found[form][1:]]
            total = (frame["surprisal_bits"] + frame["spelling_bits"]).sum()
            assert total == pytest.approx(bits_of(result), rel=1e-6)
            assert frame["unknown"].sum() == result["unknown_tokens"]
        assert found[".csv"] == found[".tsv"]
        rows = [[str(value) if not isinstance(value, float) else f"{value:.9g}" for value in row]
                for row in found[".jsonl"]]  # fmt: skip
        assert rows == found[".tsv"]


def test_words_stand_as_themselves_and_their_rows_add_up(of_words: Path, tmp_path: Path) -> None:
    text = 'the zebra sat\n  on "the" mat\r\nNA\n'
    (tmp_path / "new.txt").write_bytes(text.encode())
    table, tokens, lines = tmp_path / "w.csv", tmp_path / "t.jsonl", tmp_path / "l.csv"
    page = tmp_path / "page.html"
    outputs = Outputs(per_word=table, per_token=tokens, per_line=lines, html=page)
    result = evaluate(of_words, [str(tmp_path / "new.txt")], outputs=outputs)
    rows = pandas.read_csv(table, dtype=TEXTS, keep_default_na=False)
    assert [word for word in rows["word"] if word != "\\n"] == text.split()
    unknown = ["zebra", '"the"', "NA"]
    assert rows[rows["unknown"] == 1]["word"].tolist() == unknown
    spelled = rows["spelling_bits"]
    assert (spelled > 0).all()
    assert spelled[rows["unknown"] == 1].min() > 10
    assert spelled.sum() == pytest.approx(result["spelling_nats"] / math.log(2), rel=1e-6)
    objects = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert [each["piece"] for each in objects if each["unknown"]] == unknown
    assert lines.read_text().splitlines()[0] == "line,tokens,nats"
    assert len(lines.read_text().splitlines()) == 4
    assert "> zebra</span>" in page.read_text(encoding="utf-8")
    assert "&lt;unk&gt;" not in page.read_text(encoding="utf-8")


def test_a_table_of_another_form_is_refused(trained: Path, text: Path, tmp_path: Path) -> None:
    said = error(tmp_path, "eval", trained, text, "--per-word", "w.xlsx", code=2)
    assert "w.xlsx: tables are written as .tsv, .csv, .jsonl, not .xlsx" in said
    assert "hint: w.csv" in said
    assert not (tmp_path / "w.xlsx").exists()
    inside(tmp_path, "eval", trained, text, "--per-line", "L.CSV")
    assert (tmp_path / "L.CSV").read_text().startswith("line,tokens,nats\n")


def test_more_white_space_is_no_better_model(of_words: Path, trained: Path, tmp_path: Path) -> None:
    """Eight spaces instead of one, or only spaces: extra bytes do not lower the bits per byte."""
    plain, eight, spaces = (tmp_path / f"{name}.txt" for name in ("plain", "eight", "spaces"))
    plain.write_text(words(7_000, seed=5))
    eight.write_text(plain.read_text().replace(" ", " " * 8))
    spaces.write_text(" " * 3_000)
    found = {path.stem: evaluate(of_words, [str(path)]) for path in (plain, eight, spaces)}
    assert found["eight"]["nats"] == found["plain"]["nats"]
    gaps = plain.read_text().count(" ")
    assert bits_of(found["eight"]) > bits_of(found["plain"]) + 5 * gaps
    assert 0 < found["plain"]["spelling_nats"] < 0.01 * gaps
    assert found["spaces"]["bits_per_byte"] > 0.1
    # The advantage of the word model disappears once the white space is charged.
    before, after = (
        compare_models((of_words, trained), [str(path)])["difference"] for path in (plain, eight)
    )
    assert after["bits_per_byte"] > before["bits_per_byte"] + 0.5
    result = compare_models((of_words, trained), [str(spaces)])
    assert result["difference"]["bits_per_byte"] == pytest.approx(
        result["a"]["bits_per_byte"] - result["b"]["bits_per_byte"]
    )
    (caveat,) = result["caveats"]
    assert caveat.startswith("100.0% of the bits of ")


def test_other_conventions_of_the_whole_text_have_the_charges(
    of_words: Path, tmp_path: Path
) -> None:
    """For lm-evaluation-harness, the log-likelihood is that of the text, not only of its tokens."""
    (tmp_path / "new.txt").write_text("the   zebra\nsat\n")
    result = evaluate(of_words, [str(tmp_path / "new.txt")], outputs=Outputs(convention="lm-eval"))
    assert result["as"]["bits_per_byte"] == pytest.approx(result["bits_per_byte"])


def test_validation_has_the_charges_of_eval(of_words: Path) -> None:
    metrics = [json.loads(line) for line in (of_words / "metrics.jsonl").read_text().splitlines()]
    bits = min(m["valid_bits_per_byte"] for m in metrics if m.get("valid_bits_per_byte"))
    result = evaluate(of_words, mode="columns")
    assert result["spelling_nats"] > 0
    assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert not any("white space" in caveat for caveat in result["caveats"])


def test_a_checkpoint_without_counts_of_white_space(tmp_path: Path) -> None:
    """An old checkpoint without white-space counts uses default probabilities, with a note."""
    (tmp_path / "new.txt").write_text("the  cat\n")
    result = evaluate(FIXTURES / "word.safetensors", [str(tmp_path / "new.txt")])
    assert result["spelling_nats"] > 3
    assert any("no white-space counts" in caveat for caveat in result["caveats"])
