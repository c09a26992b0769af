"""`gru-lm compare`: comparison of cells, also when interrupted; of finished models; invalid use."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gru_lm.commands.compare.run import compare_cells
from gru_lm.commands.eval.run import evaluate
from gru_lm.errors import InputError, Stopped
from gru_lm.evaluation.statistics import seeds_difference
from gru_lm.training.folder import lock
from tests.conftest import TINY, Program, wait_for, words
from tests.inside import error, inside

CELLS = ["gru", "lstm"]
SETTINGS = {
    "tokenizer": "char",
    "width": 8,
    "layers": 1,
    "embed": 4,
    "batch": 2,
    "bptt": 8,
    "threads": 1,
    "steps": 2,
    "eval_every": 2,
}
OPTIONS = [*TINY, "--steps", 2, "--eval-every", 2]
FIELDS = ["cells", "match", "seeds", "minutes", "difference", "verdict", "runs", "report"]
TIMES = ("seconds", "tokens_per_second")
RATE = "; each at the planner's rate for its cell, not tuned on your text"
TEXT = words(1400)  # about 5 characters per word: the held-out tenth has more than ten blocks


def compare(folder: Path, stop: Callable[[], None] = lambda: None, **asked: Any) -> dict[str, Any]:
    """Run a comparison in `folder`, in this process."""
    return compare_cells(
        asked,
        out=folder,
        stop=stop,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two cells with three seeds, in the folder of its text and test text."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "text.txt").write_text(words(400), encoding="utf-8")
    (folder / "test.txt").write_text(words(1400, seed=1), encoding="utf-8")
    options = ["--test", "test.txt", "--cells", "gru,lstm", *OPTIONS, "--out", "done"]
    done = inside(folder, "compare", "text.txt", *options)
    assert "run 6 of 6: lstm, seed 2" in done.err
    (folder / "printed.txt").write_text(done.out, encoding="utf-8")
    return folder / "done"


def measured(folder: Path) -> dict[str, Any]:
    """Results of every run, without times."""
    found = {}
    for path in sorted((folder / "results").iterdir()):
        values = json.loads(path.read_text(encoding="utf-8"))
        found[path.name] = {name: values[name] for name in values if name not in TIMES}
    return found


def test_what_is_reported(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert set(FIELDS) <= result.keys()
    assert (result["cells"], result["match"], result["seeds"]) == (CELLS, "parameters", 3)
    assert result["on"] == "the test text"
    few, unlike = result["caveats"]
    assert few == "3 seeds per cell are few: use at least 5 before relying on the verdict"
    assert unlike.startswith("parameters differ by 1.1%"), "inevitable for narrow cells"
    order = [(run["cell"], run["seed"]) for run in result["runs"]]
    assert order == [(cell, seed) for seed in range(3) for cell in CELLS]
    sizes = {run["parameters"] for run in result["runs"]}
    assert max(sizes) <= 1.012 * min(sizes)
    assert [run["width"] for run in result["runs"][:2]] == [8, 7], "the width given is the GRU's"
    assert len({run["tokens"] for run in result["runs"]}) == 1
    assert result["verdict"].endswith(RATE)
    printed = (whole.parent / "printed.txt").read_text(encoding="utf-8").splitlines()
    assert printed[-1] == result["verdict"]
    names = ["cell", *CELLS, "cell", *(3 * CELLS), "difference", "gru less lstm"]
    assert [line.split("\t")[0] for line in printed[:-1]] == names
    low, high = printed[-2].split("\t")[2].split(" to ")
    assert (
        float(low)
        <= result["difference"]["ci95"][0]
        < result["difference"]["ci95"][1]
        <= float(high)
    )
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    difference = result["difference"]
    assert difference["interval"] == difference["ci95"]
    assert difference["level"] == 0.95
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert result["verdict"].split(";")[0] in page
    assert f"on {result['runs'][0]['tokens']:,} tokens per run" in page


def test_the_figures_are_those_of_eval_and_the_difference_is_theirs(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    test = str(whole.parent / "test.txt")
    for run in result["runs"][:2]:
        figures = evaluate(whole.parent / run["checkpoint"], [test])
        for name in ("bits_per_byte", "nats_per_token", "perplexity"):
            assert run[name] == pytest.approx(figures[name], rel=1e-6)
    bits = {
        cell: [r["bits_per_byte"] for r in result["runs"] if r["cell"] == cell] for cell in CELLS
    }
    apart = np.subtract(bits["gru"], bits["lstm"])
    difference = result["difference"]
    assert (difference["a"], difference["b"]) == ("gru", "lstm")
    assert difference["bits_per_byte"] == pytest.approx(apart.mean(), rel=1e-9)
    blocks = [values["blocks"] for values in measured(whole).values()]
    nats = [block["nats"] for block in blocks]
    estimate = seeds_difference(
        np.array(nats[:3]), np.array(nats[3:]), np.array(blocks[0]["bytes"])
    )
    assert estimate.interval is not None
    assert difference["ci95"] == pytest.approx(estimate.interval)
    assert difference["ci95"][0] < apart.mean() < difference["ci95"][1]


def test_interrupted_anywhere_it_goes_on_to_the_same(whole: Path, tmp_path: Path) -> None:
    """Stopped while planning, during the last evaluation of a run, and in the next run."""
    text, test = str(whole.parent / "text.txt"), str(whole.parent / "test.txt")
    asked = {**SETTINGS, "text": [text], "test": test, "seeds": 1}
    folder = tmp_path / "stopped"

    def stopping(after: int, *, begun: bool) -> Callable[[], None]:
        """Stops after the given number of polls, counted before or after the start."""
        polled = 0

        def stop() -> None:
            nonlocal polled
            polled += begun is (folder / "compare.json").exists()
            if polled > after:
                raise Stopped(signal.SIGINT)

        return stop

    with pytest.raises(Stopped):
        compare(folder, stopping(3, begun=False), **asked)
    assert not folder.exists(), "a comparison stopped before its start leaves nothing"
    for after in (130, 60):
        given = asked if after == 130 else {}
        with pytest.raises(Stopped) as stopped:
            compare(folder, stopping(after, begun=True), **given)
        assert stopped.value.hint == f"to resume: gru-lm compare --out {folder}"
    result = compare(folder)
    assert result["difference"]["ci95"] is None
    assert result["verdict"].startswith("not enough runs to tell")
    assert measured(folder) == {
        name: values for name, values in measured(whole).items() if values["seed"] == 0
    }


def test_a_finished_one_is_told_again_and_another_is_refused(whole: Path) -> None:
    results = measured(whole)
    again = inside(whole.parent, "compare", "--out", "done", "--json").json()
    assert again == json.loads((whole / "result.json").read_text(encoding="utf-8"))
    for option, value, named in (
        ("--cells", "gru,rnn", "--cells is gru,lstm, not gru,rnn"),
        ("--seeds", 5, "--seeds is 3, not 5"),
        ("--steps", 9, "--steps is 2, not 9"),
        ("--lr", 0.5, "--lr is not set, not 0.5"),
    ):
        message = error(whole.parent, "compare", "--out", "done", option, value, code=2)
        assert named in message
        assert "gru-lm compare --out done" in message
    message = error(whole.parent, "compare", "test.txt", "--out", "done", code=2)
    assert "TEXT is" in message
    assert measured(whole) == results


def test_the_same_command_makes_what_is_missing(whole: Path, tmp_path: Path) -> None:
    """Also without --out and from any folder; a comparison is identified by its plans and its text."""
    folder = tmp_path / "compare-1"
    shutil.copytree(whole, folder)
    results = measured(folder)
    (folder / "result.json").unlink()
    (folder / "results" / "gru-1.json").unlink()  # as if killed before writing it
    (folder / "results" / "lstm-2.json").unlink()
    shutil.rmtree(folder / "lstm-2")
    (folder / "lstm-2").mkdir()
    (folder / "lstm-2" / ".lock").touch()  # killed before its first checkpoint
    text, test = whole.parent / "text.txt", whole.parent / "test.txt"
    result = inside(tmp_path, "compare", text, "--test", test, *OPTIONS, "--json").json()
    assert result["report"] == "compare-1/report.html"
    assert measured(folder) == results
    assert all(run["tokens_per_second"] > 0 for run in result["runs"])
    record = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    record["data"]["valid"] = "0" * 64
    (folder / "compare.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "results" / "gru-1.json").unlink()
    with pytest.raises(InputError, match="has changed"):
        compare(folder)
    (folder / "compare.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        compare(folder)


def test_one_begun_before_white_space_was_charged_ends_with_like_figures(tmp_path: Path) -> None:
    """Old measurements are repeated, and all runs are charged alike."""
    (tmp_path / "text.txt").write_text(TEXT.replace(" ", "  "), encoding="utf-8")
    asked = SETTINGS | {"tokenizer": "word", "seeds": 1, "cells": CELLS}
    asked["text"] = (str(tmp_path / "text.txt"),)
    folder = tmp_path / "compared"
    compare(folder, **asked)
    now = measured(folder)
    record = json.loads((folder / "compare.json").read_text())
    assert record.pop("spacing")
    (folder / "compare.json").write_text(json.dumps(record))
    (folder / "results" / "lstm-0.json").unlink()
    row = json.loads((folder / "results" / "gru-0.json").read_text())
    del row["spelling_share"]
    (folder / "results" / "gru-0.json").write_text(json.dumps(row))
    compare(folder)
    begun = measured(folder)
    shares = [each["spelling_share"] for each in begun.values()]
    assert min(shares) > 0.5 > 0.1 > max(each["spelling_share"] for each in now.values())
    more = [begun[name]["bits_per_byte"] - now[name]["bits_per_byte"] for name in now]
    assert more[0] == pytest.approx(more[1])


def test_the_order_of_the_cells_changes_nothing(whole: Path, tmp_path: Path) -> None:
    text, test = str(whole.parent / "text.txt"), str(whole.parent / "test.txt")
    asked = {**SETTINGS, "text": [text], "test": test, "seeds": 1, "cells": ["lstm", "gru"]}
    result = compare(tmp_path / "turned", **asked)
    assert (result["difference"]["a"], result["difference"]["b"]) == ("lstm", "gru")
    assert measured(tmp_path / "turned") == {
        name: values for name, values in measured(whole).items() if values["seed"] == 0
    }
    plans = [
        json.loads((folder / "compare.json").read_text(encoding="utf-8"))["plans"]
        for folder in (whole, tmp_path / "turned")
    ]
    assert plans[0] == plans[1]
    again = compare(tmp_path / "turned", cells=["gru", "lstm"])
    assert again == result, "resumed in the original order"


def test_the_first_cell_that_is_named_must_not_be_worse(whole: Path) -> None:
    """Also if it is resumed with the cells in another order."""
    better = json.loads((whole / "result.json").read_text(encoding="utf-8"))["difference"]["better"]
    for cells in (CELLS, CELLS[::-1]):
        code = int(better not in (cells[0], None))
        options = ["--cells", ",".join(cells), "--fail-if-worse"]
        inside(whole.parent, "compare", "--out", "done", *options, code=code)


def test_a_test_part_is_held_out_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(300), encoding="utf-8")
    command = ["compare", "text.txt", *OPTIONS, "--seeds", 1, "--json"]
    result = inside(tmp_path, *command).json()
    assert result["on"] == "the test text"
    assert not any("selected each run's best" in caveat for caveat in result["caveats"])
    record = json.loads((tmp_path / "compare-1" / "compare.json").read_text(encoding="utf-8"))
    assert {plan["split"] for plan in record["plans"].values()} == {"0.8,0.1,0.1"}
    # A comparison started before that change resumes unchanged with the same command.
    result = inside(tmp_path, *command, "--split", "0.9,0.1").json()
    assert (result["on"], result["report"]) == ("the validation text", "compare-2/report.html")
    assert any("selected each run's best" in caveat for caveat in result["caveats"])
    folder = tmp_path / "compare-2"
    record = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    del record["format"], record["mismatch"]
    (folder / "compare.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "result.json").unlink()
    (folder / "results" / "gru-0.json").unlink()
    result = inside(tmp_path, *command).json()
    assert (result["on"], result["report"]) == ("the validation text", "compare-2/report.html")
    assert result["verdict"].endswith(
        "each at the planner's rate, tuned on GRUs and not on your text"
    )


def test_several_differences_have_no_95_percent_intervals_of_their_own(
    whole: Path, tmp_path: Path
) -> None:
    text, test = str(whole.parent / "text.txt"), str(whole.parent / "test.txt")
    asked = {**SETTINGS, "text": [text], "test": test, "seeds": 1, "lr": 0.01}
    result = compare(tmp_path / "three", **asked, cells=[*CELLS, "rnn"])
    assert len(result["differences"]) == 3
    for each in result["differences"]:
        assert "ci95" not in each
        assert each["level"] == pytest.approx(1 - 0.05 / 3)
        assert each["verdict"].endswith("; all at the given learning rate")
    page = (tmp_path / "three" / "report.html").read_text(encoding="utf-8")
    assert "98.33 % interval" in page
    assert "95 %" not in page


def test_a_directory_in_use_is_left_alone(whole: Path) -> None:
    descriptor = lock(whole)
    try:
        assert "in use" in error(whole.parent, "compare", "--out", "done", code=5)
    finally:
        os.close(descriptor)


def test_two_models_of_different_tokenizers(trained: Path, tmp_path: Path) -> None:
    """Against a direct computation from the per-token tables of eval."""
    folder = trained.parent
    other = tmp_path / "bytes"
    options = ["--tokenizer", "byte", "--width", 12, "--layers", 1, "--embed", 4]
    options += ["--batch", 2, "--bptt", 8, "--threads", 1, "--steps", 3]
    inside(folder, "train", "text.txt", "--out", other, *options)
    on = tmp_path / "on.txt"
    on.write_text(words(2500, seed=1), encoding="utf-8")
    bits = [evaluate(run, [str(on)])["bits_per_byte"] for run in (trained, other)]
    command = ["compare", trained, other, "--on", on]
    result = inside(tmp_path, *command, "--json", "--out", "page").json()
    difference = result["difference"]
    assert difference["bits_per_byte"] == pytest.approx(bits[0] - bits[1], rel=1e-6)
    assert difference["ci95"][0] < difference["bits_per_byte"] < difference["ci95"][1]
    assert (difference["interval"], difference["level"]) == (difference["ci95"], 0.95)
    assert [result[side]["bits_per_byte"] for side in "ab"] == pytest.approx(bits)
    assert result["report"] == "page/report.html"
    assert (tmp_path / "page" / "report.html").read_text(encoding="utf-8").startswith("<!doctype")
    written = (tmp_path / "page" / "result.json").read_text(encoding="utf-8")
    assert json.loads(written) == result
    # The better model is named; the exit code tells whether the first is significantly worse.
    better, worse = (trained, other) if bits[0] < bits[1] else (other, trained)
    assert difference["better"] == str(better)
    assert f"{better} predicts this text better than {worse}" in result["verdict"]
    inside(tmp_path, "compare", better, worse, "--on", on, "--fail-if-worse")
    (tmp_path / "page" / "compare.json").touch()
    assert "contains a comparison of cells" in error(tmp_path, *command, "--out", "page", code=2)
    inside(tmp_path, "compare", worse, better, "--on", on, "--fail-if-worse", code=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("mine")
    assert "of another program" in error(tmp_path, *command, "--out", "mine", code=2)
    assert (tmp_path / "mine" / "report.html").read_text() == "mine"
    error(tmp_path, "compare", trained, "nothing", "--on", on, "--out", "left", code=3)
    error(tmp_path, "compare", trained, other, "--on", "nothing", "--out", "left/here", code=3)
    (tmp_path / "both").mkdir()
    for name in ("report.html", "result.json"):
        (tmp_path / "both" / name).write_text("mine")
    assert "of another program" in error(tmp_path, *command, "--out", "both", code=2)
    inside(tmp_path, "compare", trained, trained, "--on", on, "--out", "page2")
    inside(tmp_path, "compare", trained, trained, "--on", on, "--out", "page2")  # its own
    assert not (tmp_path / "left").exists()
    # A model against itself, on two documents, one of which has no final newline.
    (tmp_path / "short.txt").write_text("the cat", encoding="utf-8")
    files = ["--on", on, "--on", tmp_path / "short.txt"]
    same = inside(tmp_path, "compare", trained, trained, *files, "--json").json()
    assert same["difference"]["bits_per_byte"] == 0
    assert "no difference found" in same["verdict"]
    assert not math.isnan(same["difference"]["ci95"][0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "gru"], "at least two cells are needed"),
        (["--cells", "gru,gru"], "at least two cells are needed"),
        (["--cells", "gru,lstn"], "did you mean lstm?"),
        (["--match", "size"], "unknown match"),
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--cell", "gru"], "--cell cannot be used with compare"),
        (["--seed", 1], "--seed cannot be used with compare"),
        (["--match", "time", "--steps", 3], "--match time requires a budget in --minutes alone"),
        (["--on", "text.txt"], "--on takes two finished runs"),
        (["--out", "taken"], "contains other files"),
        (["--out", "text.txt"], "is a file"),
        (["--lr", -1], "--lr must be at least 0"),
    ],
)
def test_wrong_use(text: Path, options: list[object], said: str) -> None:
    (text.parent / "taken").mkdir()
    (text.parent / "taken" / "note.txt").touch()
    assert said in error(text.parent, "compare", text.name, *options, code=2)
    assert sorted(path.name for path in text.parent.iterdir()) == ["taken", "text.txt"]


def test_more_wrong_use(text: Path, trained: Path) -> None:
    assert "--on FILE" in error(text.parent, "compare", trained, trained, code=2)
    assert "no such" in error(text.parent, "compare", "absent.txt", "--steps", 1, code=3).lower()
    command = ["compare", trained, trained, "--on", text, "--steps", 3]
    assert "not --steps" in error(text.parent, *command, code=2)
    assert error(text.parent, "compare", trained, "absent", "--on", text, code=3)
    assert [path.name for path in text.parent.iterdir()] == ["text.txt"]


def kill_once(process: subprocess.Popen[bytes], folder: Path, results: int) -> None:
    """Kill a comparison once it is planned and has the given number of results."""

    def begun() -> bool:
        done = len([*folder.glob("results/*.json")]) >= results
        return (done and (folder / "compare.json").exists()) or process.poll() is not None

    wait_for(begun, seconds=300)
    assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_killed_again_and_again(program: Program) -> None:
    """After SIGKILL at any moment, the same command resumes and trains no run twice."""
    (program.cwd / "text.txt").write_text(words(1400), encoding="utf-8")
    command = ["compare", "text.txt", *TINY, "--steps", 20, "--save-every", 5, "--seeds", 2]
    for wanted in (0, 1, 3):
        kill_once(program.start(*command), program.cwd / "compare-1", wanted)
    result = program.json(*command)
    assert [run["steps"] for run in result["runs"]] == [20] * 4
    assert not (program.cwd / "compare-2").exists()
    program(*command, "--out", "never-stopped")
    assert measured(program.cwd / "compare-1") == measured(program.cwd / "never-stopped")
