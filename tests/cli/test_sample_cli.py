"""`gru-lm sample`: streamed output, sources of prompts, JSON, seeds, and stop strings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gru_lm import cli
from gru_lm.commands.sample.run import sample
from tests.conftest import TINY, Program, interrupt

FIELDS = ["text", "prompt", "tokens", "logprob", "seed", "stop"]
ENDLESS = ("--length", 10_000_000, "--temperature", 0)  # a text drawn at random may end at once

Inside = Callable[..., tuple[str, str]]


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Run the command in this process with standard input closed, which is twenty times faster."""
    monkeypatch.setattr("sys.stdin", None)

    def run(*args: object, code: int = 0) -> tuple[str, str]:
        assert cli.run([str(arg) for arg in args], started=time.monotonic()) == code
        return capsys.readouterr()

    return run


def objects(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.split("\n")[:-1]]


def test_the_prompt_comes_first_and_the_seed_decides(trained: Path, inside: Inside) -> None:
    options = ("sample", trained, "--prompt", "the cat", "--length", 40, "--seed", 5)
    shown, _ = inside(*options)
    (made,) = objects(inside(*options, "--json")[0])
    assert list(made) == ["gru_lm", *FIELDS]
    assert made["prompt"] == "the cat"
    whole = made["prompt"] + made["text"]
    assert shown == (whole if whole.endswith("\n") else whole + "\n")
    assert (made["tokens"], made["stop"]) == (40, "length")
    assert made["logprob"] < 0


def test_json_has_the_seed_and_on_request_each_log_probability(
    trained: Path, inside: Inside
) -> None:
    options = ("sample", trained, "--prompt", "the cat", "--length", 12, "--samples", 2, "--json")
    plain = objects(inside(*options, "--seed", 5)[0])
    made = objects(inside(*options, "--seed", 5, "--logprobs")[0])
    for each, without in zip(made, plain, strict=True):
        logprobs = each.pop("logprobs")
        assert each == without
        assert each["seed"] == 5
        assert len(logprobs) == each["tokens"]
        assert sum(token["logprob"] for token in logprobs) == pytest.approx(each["logprob"])
        text = "".join(token["piece"] for token in logprobs)
        assert text.startswith(each["text"][:4].replace(" ", "▁").replace("\n", "\\n"))
    out, err = inside(*options)  # a seed of its own is there too, for the same text again
    seed = objects(out)[0]["seed"]
    assert f"seed: {seed}" in err
    assert inside(*options, "--seed", seed)[0] == out


def test_several_samples_and_each_by_itself(trained: Path, inside: Inside) -> None:
    options = ("sample", trained, "--length", 30, "--seed", 1, "--samples", 3)
    texts = [each["text"] for each in objects(inside(*options, "--json")[0])]
    assert len(set(texts)) == 3
    whole = [text if text.endswith("\n") else text + "\n" for text in texts]
    assert inside(*options)[0] == "\n".join(whole)
    (alone,) = {step.number: step.sample for step in sample(trained, length=30, seed=1)}.values()
    assert alone.text == texts[0]


def test_the_prompt_may_be_piped(
    trained: Path,
    program: Program,
    inside: Inside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("sample", trained, "--length", 3, "--json", "--seed", 1)
    (made,) = objects(program(*options, stdin="Ünïcode\r\n").stdout)
    assert made["prompt"] == "Ünïcode\r\n"
    (made,) = objects(inside(*options)[0])  # closed
    assert made["prompt"] == ""
    for content, prompt in ((b"", ""), (b"who\n", "who\n")):
        (tmp_path / "prompt").write_bytes(content)
        with (tmp_path / "prompt").open() as file:
            monkeypatch.setattr("sys.stdin", file)
            (made,) = objects(inside(*options)[0])
            assert made["prompt"] == prompt
            (made,) = objects(inside(*options, "--prompt", "x")[0])
            assert made["prompt"] == "x"
    (tmp_path / "prompt").write_bytes(b"caf\xe9")
    with (tmp_path / "prompt").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert "not utf-8 at byte 3" in inside(*options, code=3)[1]


@pytest.mark.slow
def test_a_silent_pipe_is_said_to_be_waited_for(trained: Path, program: Program) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gru_lm", "sample", trained, "--length", "3", "--seed", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        assert line == 'reading the prompt from standard input (--prompt "" for none)\n'
        out, err = process.communicate(b"who", timeout=60)
    assert out.startswith(b"who")
    assert (process.returncode, err) == (0, b"")


def test_any_prompt_works(trained: Path, program: Program) -> None:
    odd = "猫 😀 \u2581 \u200b\t \udcff"
    done = subprocess.run(
        [sys.executable, "-m", "gru_lm", "sample", trained, "--length", "2", "--prompt", odd],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.decode().startswith(odd.replace("\udcff", "\ufffd"))


def test_words_that_are_not_in_the_vocabulary_are_warned_of(
    text: Path, inside: Inside, tmp_path: Path
) -> None:
    options: list[Any] = [option if option != "char" else "word" for option in TINY]
    inside("train", text, "--out", tmp_path / "run", "--steps", 2, *options)
    out, err = inside("sample", tmp_path / "run", "--prompt", "the zebra sat", "--length", 5)
    assert "warning: 1 of the prompt's 3 tokens" in err
    assert out.startswith("the zebra sat")
    made = inside("sample", tmp_path / "run", "--prompt", "the cat ", "--length", 9, "--seed", 1)[0]
    assert made.startswith("the cat ")
    assert "  " not in made


def test_stop_strings(trained: Path, inside: Inside) -> None:
    options = ("sample", trained, "--length", 400, "--seed", 2, "--json")
    (made,) = objects(inside(*options, "--stop", "\n", "--stop", "zzzz")[0])
    assert made["stop"] == "stop"
    assert "\n" not in made["text"]
    assert made["tokens"] > len(made["text"])  # includes the sampled stop string


def test_a_new_seed_is_named(trained: Path, inside: Inside) -> None:
    out, err = inside("sample", trained, "--length", 20)
    seed = err.split("seed: ")[1].split()[0]
    assert inside("sample", trained, "--length", 20, "--seed", seed) == (out, "")


def test_wrong_use(trained: Path, inside: Inside) -> None:
    for name, value in (
        ("--temperature", -1),
        ("--top-p", 0),
        ("--top-p", 1.5),
        ("--length", -1),
        ("--samples", 0),
        ("--seed", -1),
    ):
        out, err = inside("sample", trained, name, value, code=2)
        assert out == ""
        assert name in err
    assert "--stop is empty" in inside("sample", trained, "--stop", "", code=2)[1]
    assert "error: no run" in inside("sample", "nowhere", code=3)[1]


def test_text_comes_as_it_is_made_and_a_signal_ends_it(trained: Path, program: Program) -> None:
    process = program.start("sample", trained, *ENDLESS, "--prompt", "who")
    assert process.stdout is not None
    assert process.stdout.read(40).startswith(b"who")
    interrupt(process, signal.SIGINT)
    assert process.returncode == 130


def test_a_reader_that_leaves_ends_it_quietly(trained: Path, program: Program) -> None:
    process = program.start("sample", trained, *ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        assert process.wait(timeout=60) == 141
        assert b"error" not in process.stderr.read()
