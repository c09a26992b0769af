"""`gru-lm sample` of a run of records: output, unique and novel ones, the table of keys, prompts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gru_lm import cli
from gru_lm.layout import RECORDS, step_path
from tests.conftest import Program, interrupt
from tests.lists import list_run, names

LIST = names(300)
Sampled = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of records that are lines. Tests must not change it."""
    return list_run(tmp_path_factory.mktemp("lists") / "run", LIST)


@pytest.fixture
def copied(listed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(listed, tmp_path / "run"))


@pytest.fixture
def sampled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Sampled:
    """Run `sample` in this process, with `stdin` (None: closed); returns its output."""

    def run(*args: object, code: int = 0, stdin: bytes | None = None) -> tuple[str, str]:
        (tmp_path / "stdin").write_bytes(stdin or b"")
        with (tmp_path / "stdin").open() as file:
            monkeypatch.setattr("sys.stdin", None if stdin is None else file)
            found = cli.run(["sample", *map(str, args)], started=time.monotonic())
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return run


def refused(sampled: Sampled, *args: object, code: int, stdin: bytes | None = None) -> str:
    out, err = sampled(*args, code=code, stdin=stdin)
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    return err


def test_records_are_printed_one_a_line_and_nothing_else(listed: Path, sampled: Sampled) -> None:
    out, err = sampled(listed, "--samples", 1000, "--seed", 3)
    lines = out.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 1000
    assert all(lines)
    new = len(set(lines) - set(LIST))
    counts = f"1000 ended, {len(set(lines))} unique, {new} of these novel".replace("1000", "1,000")
    assert err == f"records drawn: 1,000; {counts}\n"
    assert sampled(listed, "--samples", 100, "--seed", 3)[0].split("\n") == [
        *lines[:100],
        "",
    ]
    out, err = sampled(listed, "--seed", 3)
    assert out == lines[0] + "\n"
    assert "1 ended" in err


@pytest.mark.slow
def test_threads_change_nothing(listed: Path, program: Program) -> None:
    options = (listed, "--samples", 300, "--seed", 1, "--json")
    one, two = (program("sample", *options, "--threads", count).stdout for count in (1, 2))
    assert one == two


def test_unique_and_novel_records(listed: Path, sampled: Sampled) -> None:
    options = (listed, "--samples", 200, "--seed", 3, "--unique", "--novel")
    out, err = sampled(*options)
    lines = out.splitlines()
    assert len(lines) == len(set(lines)) == 200
    assert not set(lines) & set(LIST)
    assert err.endswith("200 of these novel, 200 printed\n")
    begun = sampled(*options, "--prompt", "ma")[0].splitlines()
    assert len(set(begun) - set(LIST)) == 200
    assert all(line.startswith("ma") for line in begun)


def test_it_stops_with_a_warning_when_hardly_any_come(tmp_path: Path, sampled: Sampled) -> None:
    three = ["ann", "bob", "cleo"]
    run = list_run(tmp_path / "three", three, steps=100)
    options = ("--samples", 50, "--min-p", 0.2, "--seed", 1)
    out, err = sampled(run, *options, "--unique")
    assert sorted(out.splitlines()) == three
    assert "warning: stopped early: fewer than 10 of the last 10,000 records" in err
    assert "3 of 50 were found" in err
    out, err = sampled(run, *options, "--novel", "--prompts", "-", stdin=b"a\n\n")
    assert out == ""
    assert "stopped early for 2 of 2 prompts" in err


def test_json_is_of_each_record(listed: Path, sampled: Sampled) -> None:
    options = (listed, "--samples", 40, "--seed", 3, "--prompt", "an")
    lines = sampled(*options)[0].splitlines()
    made = [json.loads(line) for line in sampled(*options, "--json")[0].splitlines()]
    assert [each["prompt"] + each["text"] for each in made] == lines
    assert list(made[0]) == [
        *("gru_lm", "text", "prompt", "tokens", "logprob", "seed", "stop", "novel"),
    ]
    assert [each["novel"] for each in made] == [line not in LIST for line in lines]
    assert {each["stop"] for each in made} == {"end"}
    output = sampled(*options, "--json", "--logprobs", "--length", 3)[0]
    for cut, whole in zip(map(json.loads, output.splitlines()), made, strict=True):
        assert len(cut["logprobs"]) == cut["tokens"] == min(3, whole["tokens"])
        assert cut["logprob"] == pytest.approx(sum(each["logprob"] for each in cut["logprobs"]))
        assert ("novel" in cut) == (cut["stop"] == "end")


def test_records_cut_by_the_length_are_printed_and_not_counted(
    listed: Path, sampled: Sampled
) -> None:
    out, err = sampled(listed, "--samples", 200, "--seed", 3, "--length", 3)
    lines = out.splitlines()
    assert len(lines) == 200
    assert all(1 <= len(line) <= 3 for line in lines)
    ended = sum(len(line) < 3 for line in lines)
    assert f"records drawn: 200; {ended} ended" in err


@pytest.mark.parametrize("unit", ["paragraph", "file", "row"])
def test_records_of_several_lines(unit: str, tmp_path: Path, sampled: Sampled) -> None:
    tunes = [f"X {first}\n{LIST[number]}" for number, first in enumerate(names(300, 1))]
    run = list_run(tmp_path / "tunes", tunes, unit=unit, steps=100)
    options = (run, "--samples", 20, "--seed", 1, "--prompt", "X ma")
    made = [json.loads(line) for line in sampled(*options, "--json")[0].splitlines()]
    texts = [each["prompt"] + each["text"] for each in made]
    assert any("\n" in text for text in texts)
    out = sampled(*options)[0]
    if unit == "row":
        assert out == "".join(text.replace("\n", " ") + "\n" for text in texts)
    else:
        assert out == "\n".join(text if text.endswith("\n") else text + "\n" for text in texts)


# Prompts.


def test_each_line_of_a_file_is_a_prompt(listed: Path, sampled: Sampled, tmp_path: Path) -> None:
    prompts = ["ma", "", "lo"]
    (tmp_path / "prompts.txt").write_bytes(b"ma\r\n\nlo")
    options = (listed, "--samples", 3, "--seed", 2)
    lines = sampled(*options, "--prompts", tmp_path / "prompts.txt")[0].splitlines()
    assert len(lines) == 9
    for number, line in enumerate(lines):
        assert line.startswith(prompts[number // 3])
    assert lines[:3] == sampled(*options, "--prompt", "ma")[0].splitlines()
    piped, _ = sampled(*options, "--prompts", "-", stdin="\ufeffma\n\nlo\n".encode())
    assert piped.splitlines() == lines


def test_prompts_of_running_text(trained: Path, sampled: Sampled, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n\nwho\n")
    options = (trained, "--length", 20, "--samples", 2, "--seed", 5)
    out, _ = sampled(*options, "--prompts", tmp_path / "prompts.txt", "--json")
    made = [json.loads(line) for line in out.splitlines()]
    assert [each["prompt"] for each in made] == ["the cat"] * 2 + [""] * 2 + ["who"] * 2
    assert len({each["text"] for each in made}) == 6
    alone = sampled(*options, "--prompt", "the cat", "--json")[0].splitlines()
    assert [json.loads(line) for line in alone] == made[:2]
    texts = [each["prompt"] + each["text"] for each in made]
    assert sampled(*options, "--prompts", tmp_path / "prompts.txt")[0] == "\n".join(
        text if text.endswith("\n") else text + "\n" for text in texts
    )


def test_a_piped_prompt_is_one_line(listed: Path, sampled: Sampled) -> None:
    options = (listed, "--samples", 4, "--seed", 2)
    piped = sampled(*options, stdin=b"ma\n")[0]
    assert piped == sampled(*options, "--prompt", "ma")[0]
    for asked, stdin in (((), b"ma\nlo\n"), (("--prompt", "ma\nlo"), b"")):
        said = refused(sampled, *options, *asked, code=2, stdin=stdin)
        assert "the prompt has several lines" in said
        assert "--prompts" in said


def test_wrong_prompts(listed: Path, trained: Path, sampled: Sampled, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    both = ("--prompt", "a", "--prompts", "empty")
    for run in (listed, trained):
        assert "cannot be combined" in refused(sampled, run, *both, code=2)
        for name, says in (("empty", "empty"), ("latin", "not utf-8"), ("none", "no such file")):
            assert says in refused(sampled, run, "--prompts", tmp_path / name, code=3)
        assert "no prompts" in refused(sampled, run, "--prompts", "-", code=3, stdin=b"")
        said = refused(sampled, run, "--prompts", "-", code=3, stdin=b"caf\xe9\n")
        assert "standard input is not utf-8 at byte 3" in said


# The table of keys.


def test_running_text_is_neither_unique_nor_novel(trained: Path, sampled: Sampled) -> None:
    for option in ("--unique", "--novel"):
        said = refused(sampled, trained, option, code=2)
        assert f"{option} needs a run of records" in said
        assert "--records line" in said


def test_novel_needs_an_intact_table(copied: Path, sampled: Sampled) -> None:
    table = copied / RECORDS
    keys = np.fromfile(table, "<u8")
    for data in (keys[::-1].tobytes(), keys.tobytes()[:-3], b"", None):
        if data is None:
            table.unlink()
        else:
            table.write_bytes(data)
        said = refused(sampled, copied, "--novel", code=3)
        assert f"{table}, which is {'missing' if data is None else 'damaged'}" in said
        assert f"gru-lm train --resume {copied}" in said
        # Without it, records are drawn, and their novelty is not counted.
        out, err = sampled(copied, "--samples", 20, "--unique", "--seed", 1)
        assert len(out.splitlines()) == 20
        assert "novel" not in err
        made = sampled(copied, "--seed", 1, "--json")[0]
        assert "novel" not in json.loads(made)
    table.write_bytes(keys.tobytes())
    sampled(copied, "--novel")


def test_a_bare_checkpoint_has_no_table(copied: Path, sampled: Sampled, tmp_path: Path) -> None:
    bare = tmp_path / "elsewhere.safetensors"
    shutil.copy(step_path(copied, 1), bare)
    said = refused(sampled, bare, "--novel", code=3)
    assert "needs the run that" in said
    assert "gru-lm train --resume" in said
    assert len(sampled(bare, "--unique", "--samples", 9)[0].splitlines()) == 9
    in_place, _ = sampled(step_path(copied, 1), "--novel", "--samples", 9)
    assert not set(in_place.splitlines()) & set(LIST)


# Ends.

ENDLESS: tuple[Any, ...] = ("--samples", 10**9, "--threads", 1)


def test_a_signal_ends_it_after_whole_records(listed: Path, program: Program) -> None:
    process = program.start("sample", listed, *ENDLESS, "--seed", 1)
    assert process.stdout is not None
    begun = os.read(process.stdout.fileno(), 2000).decode()
    rest, err = interrupt(process, signal.SIGINT)
    assert process.returncode == 130
    whole = begun + rest
    assert whole.endswith("\n")
    printed = len(whole.splitlines())
    assert f"records drawn: {printed:,}; " in err
    assert "stopped" in err


def test_a_reader_that_leaves_ends_it_quietly(listed: Path, program: Program) -> None:
    process = program.start("sample", listed, *ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        assert process.wait(timeout=60) == 141
        assert b"error" not in process.stderr.read()
