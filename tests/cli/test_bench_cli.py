"""`gru-lm bench`: table and JSON output, invalid options, and interruption. No speeds are checked."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from gru_lm.commands.bench import subjects
from gru_lm.commands.train.prepare import prepare
from gru_lm.config_layers import settings
from gru_lm.model.cells import CELLS
from gru_lm.model.devices import fastest_precision
from tests.conftest import Program, interrupt
from tests.inside import error, inside

QUICK = ("bench", "--seconds", 0.01, "--threads", 1)
TINY = (*QUICK, "--width", 8)


def test_all_cells_as_json(tmp_path: Path) -> None:
    done = inside(tmp_path, *TINY, "--json")
    assert done.out.count("\n") == 1
    made = done.json()
    assert (made["device"], made["threads"]) == ("cpu", 1)
    assert made["precision"] == fastest_precision(torch.device("cpu"))
    assert made["processor"]
    assert made["backend"] in ("native", "fused")
    assert set(made["versions"]) == {"gru-lm", "torch", "python"}
    assert made["rounds"] >= 3
    assert [(each["cell"], each["width"]) for each in made["results"]] == [(c, 8) for c in CELLS]
    for each in made["results"]:
        assert (each["layers"], each["batch"], each["bptt"]) == (1, 24, 48)  # the planner's
        for kind in ("train", "eval"):
            low, high = each[f"{kind}_quartiles"]
            assert 0 < low <= each[f"{kind}_tokens_per_second"] <= high
            ratio = each[f"{kind}_over_lstm"]
            assert ratio == 1 if each["cell"] == "lstm" else ratio > 0


def test_the_model_is_that_of_a_run_on_characters(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((bytes(range(32, 96)).decode() + "\n") * 40)  # 65 characters, as in English
    shape = {"tokenizer": "char", "cell": "gru", "layers": 1, "width": 8}
    chosen = settings({"text": [str(text)], "steps": 1}, shape)
    run = prepare(chosen, stdin=text, source=None, started=0.0, stop=lambda: None)
    (subject,) = subjects(["gru"], [8], torch.device("cpu"))
    assert subject.config == run.model_config()


def test_a_table_on_stdout_and_what_it_means_beside_it(tmp_path: Path) -> None:
    done = inside(tmp_path, *QUICK, "--width", "8,4", "--cells", "lstm, rnn")
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    names = "cell, width, train tokens/s, train/lstm, eval tokens/s, eval/lstm, ±"
    assert header == names.split(", ")
    assert [" ".join(row[:2]) for row in rows] == ["lstm 8", "rnn 8", "lstm 4", "rnn 4"]
    assert (rows[0][3], rows[0][5]) == (rows[2][3], rows[2][5]) == ("1.00", "1.00")
    assert "At width 8, " in done.err
    assert "next: gru-lm train TEXT --cell lstm --width 8" in done.err


def test_without_lstm_there_is_no_ratio_to_it(tmp_path: Path) -> None:
    done = inside(tmp_path, *TINY, "--cells", "gru,gru")  # duplicates are ignored
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["cell", "width", "train tokens/s", "eval tokens/s", "±"]
    assert len(rows) == 1
    assert "At width 8, gru trains here: " in done.err


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (2, ("--cells", "gruu"), "did you mean gru?"),
        (2, ("--cells", "gru,"), "unknown cell ''"),
        (2, ("--width", "8,x"), "hint: --width 256,512"),
        (2, ("--width", "0"), "--width must be at least 1"),
        (2, ("--width", 10**9), "width must be 1 to"),
        (2, ("--seconds", "0"), "--seconds must be more than 0"),
        (2, ("--seconds", "nan"), "--seconds must be more than 0"),
        (2, ("--device", "tpu"), "unknown device 'tpu'"),
        (5, ("--device", "cuda:99"), "hint: --device cpu"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, code: int, options: tuple[object, ...], message: str
) -> None:
    assert message in error(tmp_path, "bench", *options, code=code)


def test_ctrl_c_ends_it(program: Program) -> None:
    process = program.start(*TINY, "--seconds", 1000, "--cells", "gru")
    assert process.stderr is not None
    first = process.stderr.readline()
    time.sleep(0.1)  # in the middle of the measurement
    out, err = interrupt(process, signal.SIGINT)
    assert first.startswith(b"machine: ")
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.endswith("stopped\n")
