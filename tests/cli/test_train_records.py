"""`gru-lm train` on lists: what is the same whatever the order and the container, and bad input."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gru_lm import cli
from gru_lm.text.record_keys import keys_of
from gru_lm.training.checkpoint import read
from tests.conftest import TINY, Program, words
from tests.inside import error, inside, listing
from tests.unit.test_foreign_tokenizers import made

STEPS = ["--steps", 6, "--eval-every", 3]


def names(count: int, seed: int = 0) -> list[str]:
    """Names of a few syllables, so that a model can learn them."""
    rng = random.Random(seed)
    parts = ("an", "be", "la", "mi", "no", "ra", "so", "tee", "ü")
    return ["".join(rng.choices(parts, k=rng.randint(1, 5))) for _ in range(count)]


def write(path: Path, records: list[str]) -> Path:
    path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
    return path


def train(folder: Path, *args: object, code: int = 0) -> Any:
    """The result of `train --json`."""
    return inside(folder, "train", *args, *TINY, "--json", code=code).json()


def weights(run: Path) -> dict[str, bytes]:
    tensors = read(run / "best.safetensors").tensors()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_list_is_recognised_and_said_so(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", names(200))
    done = inside(tmp_path, "train", "list.txt", *TINY, *STEPS, "--out", "a")
    assert done.err.count("the text is a list") == 1
    different = len(set(names(200)))
    assert f"records: 200 ({different} different), " in done.err
    assert 'records = "line"' in (tmp_path / "a/config.toml").read_text()
    said = inside(tmp_path, "train", "list.txt", "--records", "line", *TINY, *STEPS, "--out", "b")
    assert "the text is a list" not in said.err
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    none = inside(tmp_path, "train", "list.txt", "--records", "none", *TINY, *STEPS, "--out", "c")
    assert "records: " not in none.err
    assert not (tmp_path / "c/records.u64").exists()
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_running_text_is_trained_as_before(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(400), encoding="utf-8")
    done = inside(tmp_path, "train", "text.txt", *TINY, *STEPS, "--out", "a")
    assert "records: " not in done.err
    inside(tmp_path, "train", "text.txt", "--records", "none", *TINY, *STEPS, "--out", "b")
    a, b = (read(tmp_path / run / "best.safetensors") for run in "ab")
    assert a.data == b.data
    assert not (tmp_path / "a/records.u64").exists()


def test_the_order_of_the_list_matters_no_more_than_a_seed(tmp_path: Path) -> None:
    records = names(1200)
    figures = {}
    options = ["--steps", 300, "--eval-every", 300, "--batch", 8, "--width", 24]
    for name, order in (
        ("shuffled", records),
        ("sorted", sorted(records)),
        ("reversed", sorted(records)[::-1]),
    ):
        write(tmp_path / f"{name}.txt", order)
        found = train(tmp_path, f"{name}.txt", "--out", name, *options)
        figures[name] = found["valid"]["bits_per_byte"]
    seeds = [figures["shuffled"]]
    for seed in (1, 2, 3):
        found = train(tmp_path, "shuffled.txt", "--out", f"seed-{seed}", *options, "--seed", seed)
        seeds.append(found["valid"]["bits_per_byte"])
    spread = 4 * float(np.std(seeds, ddof=1))
    assert figures["sorted"] == pytest.approx(np.mean(seeds), abs=spread)
    assert figures["reversed"] == pytest.approx(np.mean(seeds), abs=spread)
    assert spread < 0.1 * figures["sorted"], "the test could fail"


def test_the_same_list_however_it_comes(tmp_path: Path, program: Program) -> None:
    records = names(300)
    content = "".join(f"{record}\n" for record in records)
    (tmp_path / "list.txt").write_bytes(content.encode())
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(content.encode()))
    (tmp_path / "crlf.txt").write_bytes(content.replace("\n", "\r\n").encode())
    (tmp_path / "open.txt").write_bytes(content.removesuffix("\n").encode())
    (tmp_path / "blank.txt").write_bytes(content.replace("\n", "\n\n \n").encode())
    cells = ['"' + record + '"' for record in records]
    (tmp_path / "list.csv").write_text("name,x\n" + "".join(f"{cell},1\n" for cell in cells))
    rows = [json.dumps({"x": 1, "name": record}) for record in records]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "1.txt", records[:111])
    write(folder / "2.txt", records[111:])
    found = {}
    for name, *options in (
        ("list.txt",),
        ("list.txt.gz",),
        ("crlf.txt",),
        ("open.txt",),
        ("blank.txt", "--records", "line"),
        ("list.csv", "--field", "name"),
        ("list.jsonl", "--field", "name"),
        ("parts",),
    ):
        run = f"run-{name}"
        inside(tmp_path, "train", name, *options, *TINY, *STEPS, "--out", run)
        found[name] = weights(tmp_path / run)
        assert (tmp_path / run / "records.u64").stat().st_size == 8 * len(set(records))
    program("train", "-", *TINY, *STEPS, "--out", "piped", stdin=content)
    found["-"] = weights(tmp_path / "piped")
    first = found.pop("list.txt")
    assert not {name for name, each in found.items() if each != first}


@pytest.mark.parametrize(
    "options",
    [
        ["--tokenizer", "byte"],
        ["--tokenizer", "bpe", "--vocab-size", 280],
        ["--tokenizer", "unigram", "--vocab-size", 280],
        ["--tokenizer", "word"],
        ["--cell", "lstm", "--layers", 2],
        ["--cell", "rnn"],
        ["--cell", "lstm-thread"],
        ["--cell", "gru-before"],
        ["--batch", 3, "--bptt", 5],
        ["--batch", 1, "--bptt", 1],
        ["--softmax", "adaptive", "--tied"],
        ["--optimizer", "nt-asgd"],
        ["--average", 0.9, "--dropout", 0.2],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_options(tmp_path: Path, options: list[object]) -> None:
    write(tmp_path / "list.txt", names(250))
    done = inside(tmp_path, "train", "list.txt", *TINY, *STEPS, *options, "--out", "run", "--json")
    assert 0 < done.json()["valid"]["bits_per_byte"] < 30
    figures = inside(tmp_path, "eval", "run", "--json").json()
    assert figures["bits_per_byte"] == pytest.approx(
        done.json()["valid"]["bits_per_byte"], rel=1e-5
    )
    again = inside(tmp_path, "train", "--resume", "run", "--json").json()
    assert again["valid"]["bits_per_byte"] == done.json()["valid"]["bits_per_byte"]


def test_a_part_of_the_list(tmp_path: Path) -> None:
    records = names(400)
    options = ["--characters", 300, "--valid-characters", 60]
    runs = []
    for order in (records, sorted(records)):
        write(tmp_path / "list.txt", order)
        found = train(tmp_path, "list.txt", *STEPS, *options, "--out", f"run-{len(runs)}")
        runs.append(found)
        assert 40 <= found["valid"]["characters"] <= 60
    assert runs[0]["valid"]["characters"] == runs[1]["valid"]["characters"]
    keys = np.fromfile(tmp_path / "run-0/records.u64", "<u8")
    assert keys.tolist() == sorted(set(keys_of(records).tolist())), "those of the whole list"


@pytest.mark.parametrize("count", [2, 5, 30])
def test_small_lists(tmp_path: Path, count: int) -> None:
    records = [f"{name}{number}" for number, name in enumerate(names(count))]
    write(tmp_path / "list.txt", records)
    options = ["--records", "line", "--split", "0.6,0.4", "--batch", 2, "--bptt", 4]
    if count < 30:
        message = error(tmp_path, "train", "list.txt", *TINY, *STEPS, *options, code=3)
        assert "too short" in message or "no record is left for" in message
        assert not (tmp_path / "runs").exists()
        return
    found = train(tmp_path, "list.txt", "--steps", 20, "--out", "run", *options)
    assert found["steps"] == 20
    assert found["valid"]["bits_per_byte"] > 0


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("one\n", [], "no record is left for"),
        ("\n \n\t\n", [], "no records in list.txt"),
        ("same\n" * 50, [], "no record is left for validation"),
        ("a\n" * 9 + "b" * 1_000_001, [], "line 10: a record of more than 1,000,000 characters"),
        ("name,n\nanna,1\n", ["--field", "nmae"], "has no field 'nmae'"),
    ],
    ids=["one", "empty", "same", "long", "field"],
)
def test_bad_lists_leave_nothing(
    tmp_path: Path, content: str, options: list[str], says: str
) -> None:
    name = "list.csv" if options else "list.txt"
    (tmp_path / name).write_text(content)
    before = listing(tmp_path)
    form = options or ["--records", "line"]
    message = error(tmp_path, "train", name, *form, *TINY, *STEPS, "--out", "run", code=3)
    assert says in message
    assert listing(tmp_path) == before


def test_a_test_side_that_is_empty_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"{name},{number % 2}\n" for number, name in enumerate(names(200)))
    (tmp_path / "list.csv").write_text("name,family\n" + rows)
    options = ["--field", "name", "--group", "family", "--split", "0.4,0.3,0.3"]
    message = error(tmp_path, "train", "list.csv", *options, *TINY, *STEPS, code=3)
    assert "no record is left for" in message
    assert "2 values of family" in message
    assert not (tmp_path / "runs").exists()


def test_one_very_long_record(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", [*names(200), "ab" * 4000])
    found = train(tmp_path, "list.txt", "--records", "line", "--steps", 30, "--out", "run")
    assert found["steps"] == 30
    inside(tmp_path, "eval", "run", "list.txt")


def test_separate_validation_records_that_repeat(tmp_path: Path) -> None:
    records = [f"{name}{number}" for number, name in enumerate(names(200))]
    write(tmp_path / "list.txt", records)
    write(tmp_path / "valid.txt", [*records[:30], *(f"new{n}" for n in range(70))])
    options = ["--valid", "valid.txt", "--test", "valid.txt"]
    done = inside(tmp_path, "train", "list.txt", *options, *TINY, *STEPS, "--out", "run")
    assert "30.0% of the held-out records are among the training records too" in done.err
    assert "30.0% of the test records are among the training records too" in done.err
    assert (
        "records: 200 (200 different), 200 for training, 100 held out, 100 for testing" in done.err
    )
    keys = np.fromfile(tmp_path / "run/records.u64", "<u8")
    assert len(keys) == 270


def test_repeats_stay_in_training_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", ["anna"] * 300 + [f"rare{n}" for n in range(100)])
    done = inside(tmp_path, "train", "list.txt", *TINY, "--steps", 2, "--out", "run")
    assert "records: 400 (101 different), " in done.err


def test_a_run_without_its_list(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", names(200))
    inside(tmp_path, "train", "list.txt", *TINY, *STEPS, "--out", "run")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "run").rename(moved / "run")
    (tmp_path / "list.txt").rename(moved / "names.txt")
    Program(moved)("sample", "run", "--length", 20)
    message = error(moved, "train", "--resume", "run", "--steps", 3, code=3)
    assert "list.txt" in message
    assert "if the text was moved: gru-lm train --resume run TEXT" in message
    found = inside(moved, "train", "--resume", "run", "names.txt", "--steps", 3, "--json").json()
    assert found["steps"] == 9


def test_settings_reproduce_a_run(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", names(300))
    options = ["list.txt", *TINY, *STEPS]
    inside(tmp_path, "train", *options, "--out", "a")
    dry = inside(tmp_path, "train", *options, "--dry-run")
    printed = inside(tmp_path, "train", *options, "--print-config")
    assert not (tmp_path / "runs").exists()
    assert 'records = "line"' in dry.out + dry.err
    (tmp_path / "printed.toml").write_text(printed.out)
    for name, config in (("b", "a/config.toml"), ("c", "printed.toml")):
        done = inside(tmp_path, "train", "--config", config, "--out", name)
        # The settings printed are those given; the form is recognised again.
        assert ("the text is a list" in done.err) == (name == "c")
        assert weights(tmp_path / name) == weights(tmp_path / "a")
        assert (tmp_path / name / "records.u64").read_bytes() == (
            tmp_path / "a/records.u64"
        ).read_bytes()


def test_from_a_run_of_records_and_back(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", names(300))
    write(tmp_path / "more.txt", names(300, seed=1))
    (tmp_path / "text.txt").write_text(" ".join(names(900)) + "\n")
    own = [option for option in TINY if option not in ("--tokenizer", "char")]
    inside(tmp_path, "train", "list.txt", *TINY, *STEPS, "--out", "list")
    inside(tmp_path, "train", "text.txt", *TINY, *STEPS, "--out", "text")
    onward = inside(
        tmp_path, "train", "more.txt", "--from", "list", *own, *STEPS, "--out", "on", "--json"
    )
    assert onward.json()["valid"]["bits_per_byte"] < 8
    from_text = inside(
        tmp_path, "train", "more.txt", "--from", "text", *own, *STEPS, "--out", "x", "--json"
    )
    assert "the text is a list" in from_text.err
    inside(tmp_path, "eval", "x")
    to_text = inside(
        tmp_path, "train", "text.txt", "--from", "list", *own, *STEPS, "--out", "y", "--json"
    )
    assert to_text.json()["valid"]["bits_per_byte"] < 8
    inside(tmp_path, "eval", "y", "text.txt")
    assert "end" not in inside(tmp_path, "info", "y").err
    shutil.rmtree(tmp_path / "list")
    inside(tmp_path, "train", "--resume", "on", "--steps", 2)


def test_a_tokenizer_with_one_piece_for_the_ends_of_lines_and_records(tmp_path: Path) -> None:
    (tmp_path / "my.model").write_bytes(made("unigram"))
    write(tmp_path / "list.txt", names(300))
    paragraphs = [f"{name}\n{name}" for name in names(300)]
    (tmp_path / "paragraphs.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    options = [*TINY[2:], *STEPS, "--tokenizer", "my.model", "--out", "run"]
    message = error(tmp_path, "train", "paragraphs.txt", "--records", "paragraph", *options, code=3)
    assert "a single piece for both" in message
    assert not (tmp_path / "run").exists()
    done = inside(tmp_path, "train", "list.txt", *options, "--json")
    assert done.json()["valid"]["bits_per_byte"] > 0
    figures = inside(tmp_path, "eval", "run", "--json").json()
    assert figures["bits_per_byte"] == pytest.approx(
        done.json()["valid"]["bits_per_byte"], rel=1e-5
    )


def test_settings_reproduce_a_run_on_a_piped_table(tmp_path: Path) -> None:
    rows = "".join(f'{n},"{name}"\n' for n, name in enumerate(names(300)))
    source = tmp_path / "piped"
    source.write_text("id,name\n" + rows, encoding="utf-8")
    command = ["train", "-", "--field", "name", "--out", "run", *TINY, "--steps", "4"]
    with source.open(encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "stdin", stdin)
        assert cli.run([str(each) for each in command], started=time.monotonic()) == 0
    inside(tmp_path, "train", "--config", "run/config.toml", "--out", "again")
    assert weights(tmp_path / "run") == weights(tmp_path / "again")
    assert "records" in inside(tmp_path, "eval", "run", "run/text.txt").out
    shutil.copy(tmp_path / "run/text.txt", tmp_path / "text.txt")
    assert "not a table" in error(tmp_path, "eval", "run", "text.txt", code=3)


def test_what_cannot_be_parted_and_groups_of_unequal_size_are_named(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", names(200))
    one = error(tmp_path, "train", "list.txt", "--records", "paragraph", "--out", "run", code=3)
    assert "is one record" in one
    assert "--records line" in one
    many = names(400)
    rows = "".join(f"{name},{min(n, 20)}\n" for n, name in enumerate(many))
    (tmp_path / "list.csv").write_text("name,of\n" + rows, encoding="utf-8")
    said = inside(tmp_path, "train", "list.csv", "--field", "name", "--group", "of", *TINY).err
    assert "are held out instead of 10.0%" in said
