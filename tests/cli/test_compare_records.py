"""`gru-lm compare` on lists: cells, also when interrupted, and finished runs of records."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gru_lm.commands.compare.models import compare_models
from gru_lm.commands.compare.run import compare_cells
from gru_lm.commands.eval.run import evaluate
from gru_lm.errors import InputError, Stopped, UsageError
from gru_lm.evaluation.statistics import seeds_difference
from gru_lm.text.listing import place
from gru_lm.text.record_keys import keys_of
from gru_lm.training.checkpoint import read
from tests.conftest import TINY, Program, words
from tests.inside import error, inside, listing

SETTINGS: dict[str, Any] = {
    "tokenizer": "char",
    "width": 8,
    "layers": 1,
    "embed": 4,
    "batch": 2,
    "bptt": 8,
    "threads": 1,
    "steps": 4,
    "eval_every": 4,
}
OPTIONS = [*TINY, "--steps", 4, "--eval-every", 4]
TIMES = ("seconds", "tokens_per_second")


def names(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdeo", k=rng.randint(2, 8))) for _ in range(count)]


def write(path: Path, records: list[str]) -> Path:
    path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
    return path


def kept_for_testing(records: list[str]) -> list[str]:
    """The last tenth of the places."""
    low = place(Fraction(9, 10))
    return [
        record for record, key in zip(records, keys_of(records).tolist(), strict=True) if key >= low
    ]


def measured(folder: Path) -> dict[str, Any]:
    """Results of every run, without times."""
    found = {}
    for path in sorted((folder / "results").iterdir()):
        values = json.loads(path.read_text(encoding="utf-8"))
        found[path.name] = {name: values[name] for name in values if name not in TIMES}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison on a list that was recognised, in the folder of the list."""
    folder = tmp_path_factory.mktemp("compared")
    write(folder / "list.txt", names(400))
    done = inside(folder, "compare", "list.txt", *OPTIONS, "--out", "done")
    (folder / "printed.txt").write_text(done.out + done.err, encoding="utf-8")
    return folder / "done"


def test_what_is_reported(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    printed = (whole.parent / "printed.txt").read_text(encoding="utf-8")
    assert printed.count("the text is a list") == 1, "recognised once"
    assert f"measured on the test records; report: {result['report']}" in printed
    assert result["on"] == "the test records"
    assert "on this list" in result["verdict"] or "predicts this list better" in result["verdict"]
    count = len(kept_for_testing(names(400)))
    assert {run["records"] for run in result["runs"]} == {count}
    for run in result["runs"]:
        assert run["bits_per_record"] > run["bits_per_byte"] > 0
    plans = json.loads((whole / "compare.json").read_text(encoding="utf-8"))["plans"]
    assert {plan["records"] for plan in plans.values()} == {"line"}
    tokens = {(run["seed"], run["tokens"]) for run in result["runs"]}
    assert len(tokens) == 3, "the cells train on the same records"
    assert not any("different numbers of tokens" in each for each in result["caveats"])
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "the test records" in page
    assert "seeds, for 4 steps per run" in page


def test_runs_with_the_same_seed_read_the_same_batches(whole: Path) -> None:
    """Same records in the same order: their settings differ in the cell alone."""
    configs = [read(whole / f"{cell}-1" / "best.safetensors").meta for cell in ("gru", "lstm")]
    differing = {
        name
        for name in configs[0]["config"]
        if configs[0]["config"][name] != configs[1]["config"][name]
    }
    assert differing <= {"cell", "width", "lr"}
    assert configs[0]["data"] == configs[1]["data"]
    assert configs[0]["tokens"] == configs[1]["tokens"]


def test_figures_are_those_of_eval_and_differences_are_over_records(
    whole: Path, tmp_path: Path
) -> None:
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    rows = [*measured(whole).values()]
    test = write(tmp_path / "test.txt", kept_for_testing(names(400))[::-1])
    for run in result["runs"][:2]:
        figures = evaluate(whole.parent / run["checkpoint"], [str(test)])
        for name in ("bits_per_byte", "nats_per_token", "perplexity", "bits_per_record", "records"):
            assert run[name] == pytest.approx(figures[name], rel=1e-6)
    nats, sizes = ([row["blocks"][name] for row in rows] for name in ("nats", "bytes"))
    count = len(kept_for_testing(names(400)))
    assert {len(each) for each in sizes} == {count}, "each record is a group of its own"
    assert sum(sizes[0]) == test.stat().st_size
    estimate = seeds_difference(
        np.array(nats[:3]), np.array(nats[3:]), np.array(sizes[0]), most=1000
    )
    assert estimate.blocks == count
    assert result["difference"]["ci95"] == pytest.approx(estimate.interval)


def test_interrupted_anywhere_it_goes_on_to_the_same(whole: Path, tmp_path: Path) -> None:
    asked = {**SETTINGS, "text": [str(whole.parent / "list.txt")]}
    folder = tmp_path / "stopped"

    def stopping(after: int) -> Callable[[], None]:
        polled = 0

        def stop() -> None:
            nonlocal polled
            polled += (folder / "compare.json").exists()
            if polled > after:
                raise Stopped(signal.SIGINT)

        return stop

    for after in (5, 30, 60):
        with pytest.raises(Stopped):
            compare_cells(asked, out=folder, stop=stopping(after))
    compare_cells({}, out=folder)
    expected = measured(whole)
    for name, values in measured(folder).items():
        assert values == expected[name]


def test_a_list_that_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "done")
    shutil.copy(whole.parent / "list.txt", tmp_path)
    recorded = json.loads((tmp_path / "done/compare.json").read_text())
    for values in (recorded["asked"], *recorded["plans"].values()):
        values["text"] = [str(tmp_path / "list.txt")]
    (tmp_path / "done/compare.json").write_text(json.dumps(recorded))
    (tmp_path / "done/results/lstm-2.json").unlink()
    write(tmp_path / "list.txt", [*names(400), "added"])
    with pytest.raises(InputError, match="has changed since it was planned"):
        compare_cells({}, out=tmp_path / "done")
    write(tmp_path / "list.txt", names(400))
    compare_cells({}, out=tmp_path / "done")
    assert measured(tmp_path / "done") == measured(whole)


def test_a_comparison_of_before_there_were_records_stays_one_of_running_text(
    whole: Path, tmp_path: Path
) -> None:
    """Its plans say nothing of records, and the text would be recognised as a list now."""
    asked = {**SETTINGS, "text": [str(whole.parent / "list.txt")], "records": "none", "seeds": 1}
    result = compare_cells(asked, out=tmp_path / "old")
    assert result["on"] == "the test text"
    assert "records" not in result["runs"][0]
    before = measured(tmp_path / "old")
    recorded = json.loads((tmp_path / "old/compare.json").read_text())
    for values in (recorded["asked"], *recorded["plans"].values()):
        del values["records"]
    (tmp_path / "old/compare.json").write_text(json.dumps(recorded))
    (tmp_path / "old/results/lstm-0.json").unlink()
    shutil.rmtree(tmp_path / "old/lstm-0")
    compare_cells({}, out=tmp_path / "old")
    assert measured(tmp_path / "old") == before


def test_a_table_with_groups(tmp_path: Path) -> None:
    rows = [f"{number % 60},{name}\n" for number, name in enumerate(names(500))]
    (tmp_path / "list.csv").write_text("family,name\n" + "".join(rows))
    options = [*OPTIONS, "--seeds", 1, "--field", "name", "--group", "family", "--out", "done"]
    done = inside(tmp_path, "compare", "list.csv", *options, "--json")
    assert done.json()["on"] == "the test records"
    caveats = [each for each in done.json()["caveats"] if "among the training records" in each]
    assert len(caveats) == 1, "a name may be in several families"
    again = inside(tmp_path, "compare", "--out", "done", "--json")
    assert again.json()["runs"] == done.json()["runs"]


def test_a_list_from_standard_input(whole: Path, program: Program) -> None:
    content = (whole.parent / "list.txt").read_text(encoding="utf-8")
    args = ["compare", "-", *OPTIONS, "--seeds", 1, "--out", "piped"]
    result = program.json(*args, stdin=content)
    expected = measured(whole)["gru-0.json"]
    assert result["runs"][0]["bits_per_byte"] == expected["bits_per_byte"]


@pytest.mark.parametrize(
    "suffix",
    [
        pytest.param("csv", marks=pytest.mark.slow),
        pytest.param("tsv", marks=pytest.mark.slow),
        "jsonl",
    ],
)
def test_a_table_from_standard_input(tmp_path: Path, program: Program, suffix: str) -> None:
    if suffix == "jsonl":
        content = "".join(json.dumps({"name": name}) + "\n" for name in names(300))
    else:
        separator = "," if suffix == "csv" else "\t"
        content = f"n{separator}name\n" + "".join(f"1{separator}{name}\n" for name in names(300))
    args = ["compare", "-", *OPTIONS, "--seeds", 1, "--field", "name", "--out", "piped"]
    result = program.json(*args, stdin=content)
    assert result["on"] == "the test records"
    assert (tmp_path / f"piped/piped.{suffix}").read_text() == content
    assert not (tmp_path / "piped/piped.txt").exists()
    before = listing(tmp_path)
    message = program.error(*args[:-1], "new", "--field", "nmae", code=3, stdin=content)
    assert "nmae" in message
    assert listing(tmp_path) == before, "nothing is left"


@pytest.mark.parametrize(
    ("records", "options", "says"),
    [
        (["one"], [], "no record is left for"),
        (["one", "two", "three"], ["--records", "line"], "no record is left for"),
        (names(300), ["--records", "line", "--split", "0.9,0.1,0"], None),
        (["", " "], ["--records", "line"], "no records in"),
    ],
)
def test_sides_that_are_empty(
    tmp_path: Path, records: list[str], options: list[str], says: str | None
) -> None:
    write(tmp_path / "list.txt", records)
    before = listing(tmp_path)
    args = ["compare", "list.txt", *OPTIONS, "--seeds", 1, "--out", "done", *options]
    if says is None:
        done = inside(tmp_path, *args)
        assert "measured on the validation records, which also selected" in done.err
        return
    if records == ["one"]:
        args += ["--records", "line"]
    assert says in error(tmp_path, *args, code=3)
    assert listing(tmp_path) == before


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: of characters, of word pieces, of paragraphs, of a field, of running text."""
    folder = tmp_path_factory.mktemp("runs")
    write(folder / "list.txt", names(300))
    write(folder / "other.txt", names(300, seed=1))
    (folder / "paragraphs.txt").write_text("\n\n".join(names(300)))
    (folder / "table.csv").write_text("name,n\n" + "".join(f"{name},1\n" for name in names(300)))
    (folder / "text.txt").write_text(words(400))
    bpe = ["--tokenizer", "bpe", "--vocab-size", 270]
    for name, *options in (
        ("chars", "list.txt"),
        ("bpe", "list.txt", *bpe),
        ("paragraphs", "paragraphs.txt", "--records", "paragraph"),
        ("table", "table.csv", "--field", "name"),
        ("text", "text.txt"),
    ):
        inside(folder, "train", *OPTIONS, *options, "--out", name)
    return folder


@pytest.mark.parametrize("pair", [("chars", "bpe"), ("bpe", "chars"), ("table", "table")])
def test_finished_runs(runs: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    name = "table.csv" if "table" in pair else "other.txt"
    a, b = (runs / each for each in pair)
    result = compare_models((a, b), [str(runs / name)], out=tmp_path / "out")
    for side, run in (("a", a), ("b", b)):
        figures = evaluate(run, [str(runs / name)])
        for figure in ("bits_per_byte", "bits_per_record", "records", "perplexity"):
            assert result[side][figure] == pytest.approx(figures[figure], rel=1e-6)
    value = result["a"]["bits_per_byte"] - result["b"]["bits_per_byte"]
    assert result["difference"]["bits_per_byte"] == pytest.approx(value, abs=1e-9)
    if pair[0] != pair[1]:
        low, high = result["difference"]["ci95"]
        assert low < value < high
        assert "predicts this list better" in result["verdict"]
        assert "over the records alone: other seeds may differ" in result["verdict"]
    else:
        assert "no difference found" in result["verdict"]
        assert any("of the records are among the training records" in c for c in result["caveats"])
    assert (tmp_path / "out/report.html").exists()


def test_the_order_of_the_list_is_nothing(runs: Path, tmp_path: Path) -> None:
    found = []
    for order in (names(300, seed=1), sorted(names(300, seed=1))):
        path = write(tmp_path / "list.txt", order)
        found.append(compare_models((runs / "chars", runs / "bpe"), [str(path)])["difference"])
    assert found[0]["bits_per_byte"] == pytest.approx(found[1]["bits_per_byte"], rel=1e-6)
    assert found[0]["ci95"] == pytest.approx(found[1]["ci95"], rel=1e-4)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("chars", "text"), ("chars on records, a line each", "text on running text")),
        (("text", "table"), ("text on running text", "table on records of the field 'name'")),
        (("chars", "paragraphs"), ("a line each", "a paragraph each")),
    ],
)
def test_different_forms_are_refused(
    runs: Path, pair: tuple[str, str], says: tuple[str, str]
) -> None:
    models = (runs / pair[0], runs / pair[1])
    with pytest.raises(UsageError) as caught:
        compare_models(models, [str(runs / "list.txt")])
    assert all(each in caught.value.message for each in says)
    message = error(runs, "compare", *pair, "--on", "list.txt", code=2)
    assert "different forms of text" in message


def test_lists_that_cannot_be_compared_on(runs: Path, tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", ["", " "])
    write(tmp_path / "few.txt", names(7))
    models = [runs / "chars", runs / "bpe"]
    message = error(tmp_path, "compare", *models, "--on", "empty.txt", "--out", "new", code=3)
    assert "no records in" in message
    assert not (tmp_path / "new").exists()
    few = inside(tmp_path, "compare", *models, "--on", "few.txt")
    assert "not enough records to tell: 7 records, 10 are needed" in few.out
    message = error(
        tmp_path, "compare", runs / "table", runs / "table", "--on", runs / "list.txt", code=3
    )
    assert "list.txt" in message
