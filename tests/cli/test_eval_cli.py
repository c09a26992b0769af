"""`gru-lm eval`: JSON fields, tables, all sources of text, and invalid use."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gru_lm import cli
from gru_lm.commands.eval.options import Outputs
from gru_lm.commands.eval.run import evaluate
from gru_lm.errors import EnvironmentProblem, InputError, Stopped, UsageError
from tests.conftest import TINY, Program, interrupt, words

CONTRACT = [
    "tokens",
    "bytes",
    "characters",
    "words",
    "lines",
    "nats",
    "spelling_nats",
    "nats_per_token",
    "perplexity",
    "bits_per_byte",
    "bits_per_character",
    "word_perplexity",
    "unknown_tokens",
    "unknown_rate",
    "perplexity_excluding_unknown",
    "ci95",
    "mode",
    "seconds",
    "tokens_per_second",
    "checkpoint",
    "device",
    "caveats",
]

Inside = Callable[..., tuple[str, str]]


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Run the command in this process with standard input closed, which is twenty times faster."""
    monkeypatch.setattr("sys.stdin", None)

    def run(*args: object, code: int = 0) -> tuple[str, str]:
        assert cli.run([str(arg) for arg in args], started=time.monotonic()) == code
        return capsys.readouterr()

    return run


def table(path: Path) -> list[list[str]]:
    return [row.split("\t") for row in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_one_file_as_json(trained: Path, text: Path, program: Program) -> None:
    result = program.json("eval", trained, text)
    assert list(result) == ["gru_lm", *CONTRACT]
    content = text.read_text(encoding="utf-8")
    assert result["tokens"] == result["characters"] == len(content)
    assert result["bytes"] == len(content.encode())
    assert result["words"] == len(content.split())
    assert result["lines"] == content.count("\n")
    assert result["bits_per_byte"] == pytest.approx(
        result["nats"] / math.log(2) / result["bytes"], rel=1e-12
    )
    assert result["mode"] == "stream"
    assert result["checkpoint"] == str(trained / "best.safetensors")


def test_several_texts_from_everywhere(trained: Path, program: Program, inside: Inside) -> None:
    folder = program.cwd / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("the dog\n")
    (folder / "a.txt").write_text("the cat, 猫")
    result = program.json("eval", trained, "-", "folder", stdin="who knows?\n")
    names = [each["file"] for each in result["files"]]
    assert names == ["-", "folder/a.txt", "folder/b.txt"]
    for name in ("tokens", "bytes", "characters", "words", "lines", "nats", "unknown_tokens"):
        assert result[name] == pytest.approx(sum(each[name] for each in result["files"]))
    # Each character is a token, 猫 in its three bytes; of one document, the model knows no end.
    assert result["tokens"] == result["bytes"]
    total = result["nats"] / math.log(2) / result["bytes"]
    assert result["bits_per_byte"] == pytest.approx(total)

    out, err = inside("eval", trained, folder)
    header, first, second, total_row = (row.split("\t") for row in out.splitlines())
    assert header[:2] == ["file", "bits per byte"]
    assert [first[0], second[0]] == [str(folder / "a.txt"), str(folder / "b.txt")]
    assert total_row[0] == "total"
    assert "including the first" in err


def test_without_a_file_it_is_the_runs_held_out_text(
    trained: Path, inside: Inside, tmp_path: Path
) -> None:
    content = (trained.parent / "text.txt").read_text(encoding="utf-8")
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(content[int(0.9 * len(content)) :], encoding="utf-8")
    lines = dict(row.split("\t") for row in inside("eval", trained)[0].splitlines())
    named = evaluate(trained, [str(held_out)])
    assert lines["bits per byte"] == f"{named['bits_per_byte']:.4f}"
    assert lines["bytes"] == f"{named['bytes']:,}"
    # Equals the validation of training: on so short a text, columns are the exact stream.
    with (trained / "metrics.jsonl").open() as file:
        validations = [json.loads(line).get("valid_bits_per_byte") for line in file]
    best = min(value for value in validations if value)
    assert named["bits_per_byte"] == pytest.approx(best, rel=1e-5)


def test_a_held_out_text_that_is_gone_or_changed(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    config = (copy / "config.toml").read_text()
    other = tmp_path / "text.txt"
    (copy / "config.toml").write_text(config.replace(str(trained.parent / "text.txt"), str(other)))
    with pytest.raises(InputError) as gone:
        evaluate(copy)
    assert gone.value.hint == f"gru-lm eval {copy / 'best.safetensors'} FILE"
    other.write_text(words(400, seed=1))
    with pytest.raises(InputError, match="has changed"):
        evaluate(copy)


@pytest.mark.parametrize("mode", ["stream", "line", "columns"])
def test_batch_chunk_and_threads_change_the_speed_alone(
    trained: Path, tmp_path: Path, mode: str
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(words(30 + 50 * number, seed=number))
    speeds: list[dict[str, Any]] = [{}, {"batch": 1, "chunk": 1}, {"batch": 2, "chunk": 7}]
    speeds += [{"batch": 50}, {"threads": 2, "batch": 3}]
    found = [
        evaluate(trained, [str(tmp_path / "[0-2].txt")], mode=mode, **{"threads": 1} | options)
        for options in speeds
    ]
    for other in found[1:]:
        assert other["nats"] == pytest.approx(found[0]["nats"], rel=1e-5)
        for one, two in zip(found[0]["files"], other["files"], strict=True):
            assert two["nats"] == pytest.approx(one["nats"], rel=1e-5)


def test_columns_are_the_same_however_many_run_at_once(trained: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(words(2500, seed=1))  # about five columns
    whole, *others = (
        evaluate(trained, [str(long)], mode="columns", batch=batch) for batch in (None, 1, 3)
    )
    assert whole["tokens"] > 4 * 2048
    for each in others:
        assert each["nats"] == pytest.approx(whole["nats"], rel=1e-6)


def test_tables(trained: Path, text: Path, tmp_path: Path) -> None:
    tokens, lines = tmp_path / "tokens.tsv", tmp_path / "lines.tsv"
    result = evaluate(trained, [str(text)], outputs=Outputs(per_token=tokens, per_line=lines))
    header, *rows = table(tokens)
    assert header[:4] == ["index", "id", "piece", "surprisal_bits"]
    assert len(rows) == result["tokens"]
    content = "".join(row[2] for row in rows).replace("\\n", "\n").replace("▁", " ")
    assert content == text.read_text(encoding="utf-8")
    assert sum(float(row[3]) for row in rows) * math.log(2) == pytest.approx(result["nats"])
    header, *rows = table(lines)
    assert header == ["line", "tokens", "nats"]
    assert [int(row[0]) for row in rows] == list(range(1, result["lines"] + 1))
    lengths = [len(line) for line in content.splitlines(keepends=True)]
    assert [int(row[1]) for row in rows] == lengths
    assert sum(float(row[2]) for row in rows) == pytest.approx(result["nats"])


def test_rows_of_the_held_out_part_are_placed_in_the_whole_file(
    trained: Path, text: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.tsv"
    evaluate(trained, outputs=Outputs(per_token=tokens))
    _, *rows = table(tokens)
    data = text.read_bytes()
    line, character, byte = (int(each) for each in rows[0][6:9])
    assert line == 1 + data[:byte].count(b"\n") > 1
    assert character == len(data[:byte].decode())
    spelled = "".join(row[2] for row in rows).replace("\\n", "\n").replace("▁", " ")
    assert spelled == data[byte:].decode()


def test_nothing_that_is_read_is_replaced_and_nothing_twice(
    trained: Path, text: Path, tmp_path: Path
) -> None:
    before, out = text.read_bytes(), tmp_path / "x.tsv"
    model = (trained / "best.safetensors").read_bytes()
    for outputs, said in (
        (Outputs(html=text), "is an input"),
        (Outputs(per_token=trained / "best.safetensors"), "the file name of a model"),
        (Outputs(per_token=out, per_word=out), "given for two outputs"),
        (Outputs(per_word=Path("-")), "cannot go to standard output"),
    ):
        with pytest.raises(UsageError, match=said):
            evaluate(trained, [str(text)], outputs=outputs)
    with pytest.raises(UsageError, match="is an input"):
        evaluate(trained, outputs=Outputs(html=trained.parent / "text.txt"))
    out.touch()
    with pytest.raises(InputError, match="missing"):
        evaluate(
            trained, [str(text)], outputs=Outputs(per_token=out, pairs=tmp_path / "missing.jsonl")
        )
    out.unlink()
    assert text.read_bytes() == before
    assert (trained / "best.safetensors").read_bytes() == model
    assert not out.exists()


def test_unknown_words_are_counted_and_warned_of(
    text: Path, inside: Inside, tmp_path: Path
) -> None:
    options: list[Any] = [option if option != "char" else "word" for option in TINY]
    inside("train", text, "--out", tmp_path / "run", "--steps", 2, *options)
    new = tmp_path / "new.txt"
    new.write_text("the zebra sat\n")
    out, err = inside("eval", tmp_path / "run", new, "--json")
    result = json.loads(out)
    assert (result["tokens"], result["unknown_tokens"], result["unknown_rate"]) == (4, 1, 0.25)
    assert result["perplexity_excluding_unknown"] != result["perplexity"]
    (caveat,) = result["caveats"]
    assert caveat.startswith("25.0% of the tokens of the text are unknown words: per-token metrics")
    assert f"warning: {caveat}" in err
    label = "bits per byte (unknown words spelled)"
    shown = inside("eval", tmp_path / "run", new)[0]
    assert shown.startswith(f"figure\tvalue\n{label}\t{result['bits_per_byte']:.4f}\n")
    assert inside("eval", tmp_path / "run", new, text)[0].startswith(f"file\t{label}\t")
    # The text has no unknown words.
    shown, err = inside("eval", tmp_path / "run", text)
    assert "\nbits per byte\t" in shown
    assert "unknown words" not in err


def test_info_says_what_one_asks_and_json_has_all(trained: Path, inside: Inside) -> None:
    values = json.loads(inside("info", trained, "--json")[0])
    assert {"sha256", "data", "since_best", "best_nats"} < values.keys()
    shown = inside("info", trained)[0]
    names = [line.split("  ")[0] for line in shown.splitlines() if not line.startswith(" ")]
    assert names[:4] == ["checkpoint", "model:", "tokenizer", "vocabulary"]
    assert names[4:] == ["steps", "tokens", "best step", "settings:", "environment:"]
    assert "  layers x width       1 x 8\n" in shown
    assert f"best step              {values['best_step']}\n" in shown
    assert values["sha256"] not in shown


@pytest.mark.parametrize("command", ["info", "sample", "eval"])
def test_what_is_no_checkpoint_is_refused_before_torch_is_imported(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "foreign.pt").write_bytes(b"\x80\x02 a pickle")
    code = (
        "import sys; from gru_lm import cli; code = cli.run(sys.argv[1:], started=0.0)\n"
        "print(code, 'torch' in sys.modules, 'safetensors' in sys.modules)"
    )
    # Standard input, here a silent open pipe, is not read either.
    with subprocess.Popen(
        [sys.executable, "-c", code, command, "foreign.pt"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.wait(timeout=60) is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b"3 False False\n"
        assert b"foreign.pt is a Python pickle, not a gru-lm checkpoint" in (process.stderr.read())


def test_wrong_use(trained: Path, text: Path, inside: Inside) -> None:
    assert "did you mean line?" in inside("eval", trained, "--mode", "lines", code=2)[1]
    assert "--batch" in inside("eval", trained, text, "--batch", 0, code=2)[1]
    assert "error: no run" in inside("eval", "nowhere", text, code=3)[1]
    assert "missing.txt" in inside("eval", trained, "missing.txt", code=3)[1]


def test_what_cannot_be_used_is_said_and_leaves_no_table(trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine " * 5000 + b"\xff not")
    out = tmp_path / "out.tsv"
    with pytest.raises(InputError, match="at byte 25,000"):
        evaluate(trained, [str(bad)], outputs=Outputs(per_token=out))
    latin = evaluate(trained, [str(bad)], encoding="latin-1", outputs=Outputs(per_token=out))
    assert len(table(out)) == latin["tokens"] + 1
    with pytest.raises(UsageError, match="not a regular file"):
        evaluate(trained, [str(bad)], outputs=Outputs(per_line=Path("/dev/null")))
    missing = Outputs(per_line=tmp_path / "no-folder" / "x")
    with pytest.raises(EnvironmentProblem, match="no-folder"):
        evaluate(trained, [str(bad)], encoding="latin-1", outputs=missing)
    with pytest.raises(EnvironmentProblem, match="cuda:7"):
        evaluate(trained, [str(bad)], encoding="latin-1", device="cuda:7")


def test_a_signal_ends_it_and_leaves_no_table(trained: Path, program: Program) -> None:
    (program.cwd / "long.txt").write_text(words(400_000))
    process = program.start("eval", trained, "long.txt", "--per-token", "out.tsv")
    assert process.stderr is not None
    progress = process.stderr.readline().decode()
    while "scoring" not in progress:
        progress = process.stderr.readline().decode()
    assert re.match(r"scoring +\d+%, \d+:\d\d left", progress)
    out, _ = interrupt(process, signal.SIGINT)
    assert (process.returncode, out) == (130, "")
    assert sorted(path.name for path in program.cwd.iterdir()) == ["long.txt"]


def test_stop_is_polled_while_reading(trained: Path, text: Path) -> None:
    def stop() -> None:
        raise Stopped(15)

    with pytest.raises(Stopped):
        evaluate(trained, [str(text)], stop=stop)
