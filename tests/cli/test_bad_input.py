"""Invalid input: exit code, a message of at most three lines, and no files left behind."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import TINY, Program, interrupt, wait_for, words
from tests.inside import error, listing

OUT = ["--out", "run", "--steps", 2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of valid and invalid texts."""
    (tmp_path / "text.txt").write_text(words(100), encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "short.txt").write_text("Too short.\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "zipped.txt").write_bytes(gzip.compress(words(100).encode()))
    (tmp_path / "latin.txt").write_bytes(b"the cat sat " * 10 + "Ünïcode".encode("latin-1") * 20)
    (tmp_path / "utf16.txt").write_text(words(100), encoding="utf-16")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bad.toml").write_text("width = ")
    (tmp_path / "bad.model").write_bytes(b"\x0a\x0bnot a model")
    (tmp_path / "file").write_text("not a directory")
    return tmp_path


# Command, exit code, and text that the message must contain.
CASES: dict[str, tuple[list[object], int, list[str]]] = {
    "empty": (["empty.txt"], 3, ["empty.txt is empty"]),
    "short": (["short.txt"], 3, ["too short: 9 characters", "at least 100", "hint: "]),
    "two newlines": (["blank.txt"], 3, ["hint: "]),
    "binary": (["binary.txt"], 3, ["binary.txt is binary, not text"]),
    "gzip named .txt": (["zipped.txt"], 3, ["gzip", "another name", "hint: mv"]),
    "not UTF-8": (["latin.txt"], 3, ["latin.txt", "byte 120", "hint: ", "--encoding"]),
    "UTF-16": (["utf16.txt"], 3, ["utf-16", "--encoding utf-16"]),
    "an empty folder": (["nothing"], 3, ["nothing: no files found"]),
    "a folder without text": (["images"], 3, ["images: none of its 1 files is text"]),
    "a missing file": (["txet.txt"], 3, ["txet.txt: no such file", "did you mean text.txt?"]),
    "a glob of nothing": (["*.csv"], 3, ["*.csv"]),
    "an unknown corpus": (["@shakespear"], 3, ["@shakespear", "shakespeare"]),
    "a fifo": (["fifo"], 3, ["fifo is not a regular file"]),
    "an unknown encoding": (["text.txt", "--encoding", "utf-88"], 2, ["unknown encoding"]),
    "another encoding": (["text.txt", "--encoding", "utf-16"], 3, ["text.txt: not utf-16"]),
    "missing held-out text": (["text.txt", "--valid", "gone.txt"], 3, ["gone.txt: no such file"]),
    "nothing held out": (["text.txt", "--split", "1,0"], 3, ["no text is held out"]),
    "width 0": (["text.txt", "--width", 0], 2, ["--width must be at least 1, not 0"]),
    "huge width": (["text.txt", "--width", 10**9], 2, ["width must be 1 to"]),
    "width of words": (
        ["text.txt", "--width", "x"],
        2,
        ["--width", "integer", "gru-lm train --help"],
    ),
    "an unknown option": (["text.txt", "--widht", 9], 2, ["--widht", "did you mean --width"]),
    "an unknown cell": (["text.txt", "--cell", "lsmt"], 2, ["'lsmt'", "did you mean lstm?"]),
    "an unknown tokenizer": (["text.txt", "--tokenizer", "bpee"], 2, ["'bpee'", "bpe"]),
    "an unknown optimizer": (["text.txt", "--optimizer", "adam"], 2, ["did you mean adamw?"]),
    "an unknown schedule": (["text.txt", "--schedule", "cosin"], 2, ["did you mean cosine?"]),
    "an unknown device": (["text.txt", "--device", "gpu"], 2, ["'gpu'", "cuda"]),
    "a device that is not there": (["text.txt", "--device", "cuda:99"], 5, ["cuda:99", "cpu"]),
    "precision on a CPU": (
        ["text.txt", "--precision", "fp16", "--device", "cpu"],
        2,
        ["fp16 needs CUDA"],
    ),
    "a bad split": (["text.txt", "--split", "0.9,0.9"], 2, ["--split 0.9,0.9"]),
    "a vocabulary out of reach": (
        ["text.txt", "--tokenizer", "bpe", "--vocab-size", 100_000],
        2,
        ["--vocab-size 100000", "hint: "],
    ),
    "a vocabulary too small": (
        ["text.txt", "--tokenizer", "char", "--vocab-size", 5],
        2,
        ["--vocab-size 5", "at least"],
    ),
    "a missing tokenizer": (["text.txt", "--tokenizer", "no.model"], 3, ["no.model"]),
    "a damaged tokenizer": (["text.txt", "--tokenizer", "bad.model"], 3, ["bad.model"]),
    "batches beyond the text": (["text.txt", "--batch", 9999], 3, ["too short", "--batch"]),
    "a missing config": (["text.txt", "--config", "no.toml"], 3, ["no.toml"]),
    "a config that is none": (["text.txt", "--config", "bad.toml"], 2, ["bad.toml is not TOML"]),
    "an unknown setting": (["text.txt", "--set", "cel=gru"], 2, ["'cel'", "did you mean cell?"]),
    "no pair": (["text.txt", "--set", "cell"], 2, ["is not KEY=VALUE"]),
    "from nothing": (["text.txt", "--from", "gone"], 3, ["no run or checkpoint gone"]),
    "from a folder": (["text.txt", "--from", "nothing"], 3, ["nothing is not a run"]),
    "from a text": (["text.txt", "--from", "text.txt"], 3, ["text.txt is damaged or not"]),
}


@pytest.mark.parametrize("name", CASES)
def test_training_on_bad_input(name: str, folder: Path) -> None:
    args, code, parts = CASES[name]
    before = sorted(folder.rglob("*"))
    message = error(folder, "train", *args, *OUT, code=code)
    for part in parts:
        assert part in message
    assert sorted(folder.rglob("*")) == before


def test_a_default_directory_is_not_left_either(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    error(folder, "train", "empty.txt", code=3)
    error(folder, "train", "text.txt", "--batch", 9999, code=3)
    assert sorted(folder.rglob("*")) == before


def test_a_failed_run_removes_nothing_that_was_there(folder: Path) -> None:
    """Not even files with the names of a run's own files."""
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.md").write_text("my own")
    before = listing(folder / "mine")
    error(folder, "train", "text.txt", "--out", "mine", "--batch", 9999, code=3)
    assert listing(folder / "mine") == before
    for name in ("text.txt", "config.toml", "samples.txt", "metrics.jsonl", "loss.png"):
        path = folder / "mine" / name
        path.write_text("my own")
        message = error(folder, "train", "text.txt", "--out", "mine", "--steps", 2, code=2)
        assert f"contains a file {name}, which a run would overwrite" in message
        assert path.read_text() == "my own"
        path.unlink()
    assert listing(folder / "mine") == before


@pytest.mark.parametrize(
    ("out", "code", "part"),
    [("file", 2, "--out file is a file"), ("file/run", 5, "cannot write")],
)
def test_places_where_no_run_can_be(out: str, code: int, part: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert part in error(folder, "train", "text.txt", "--out", out, code=code)
    assert sorted(folder.rglob("*")) == before


RUNS: dict[str, str] = {
    "gone": "no run",
    "nothing": "nothing is not a run: it holds no checkpoint",
    "text.txt": "text.txt is damaged or not a checkpoint",
    "empty.txt": "empty.txt is damaged or not a checkpoint",
    "zipped.txt": "is a gzip archive, not a gru-lm checkpoint",
    "fifo": "fifo is not a regular file",
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("command", ["info", "sample", "eval"])
def test_a_run_that_is_none(command: str, run: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert RUNS[run] in error(folder, command, run, code=3)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("run", ["gone", "nothing", "text.txt"])
def test_a_resume_of_what_is_no_run(run: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert f"{run} is not a run" in error(folder, "train", "--resume", run, code=3)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_a_directory_that_holds_a_run(trained: Path, folder: Path) -> None:
    before = listing(trained)
    message = error(folder, "train", "text.txt", "--out", trained, code=2)
    assert f"{trained} already contains a run" in message
    assert f"hint: gru-lm train --resume {trained}" in message
    assert listing(trained) == before


@pytest.mark.parametrize("extra", [["--width", 9], ["--lr", 1], ["--out", "x"], ["--set", "lr=1"]])
def test_a_resume_takes_no_other_settings(extra: list[object], trained: Path, folder: Path) -> None:
    before = listing(trained)
    message = error(folder, "train", "--resume", trained, *extra, code=2)
    assert "--resume keeps the run's own settings" in message
    assert listing(trained) == before


def test_a_run_in_use(folder: Path, program: Program) -> None:
    """With a real lock; see also tests/faults/test_lock.py."""
    process = program.start("train", "text.txt", "--out", "run", *TINY, "--steps", 100_000)
    wait_for((folder / "run" / "metrics.jsonl").exists)
    try:
        message = error(folder, "train", "--resume", "run", code=5)
        assert message.startswith("error: run is in use by another trainer")
    finally:
        interrupt(process, signal.SIGKILL)


def test_a_prompt_of_unseen_characters(trained: Path, program: Program) -> None:
    done = program("sample", trained, "--prompt", "猫😀\u200b", "--length", 3)
    assert done.stdout.startswith("猫😀\u200b")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["trian"], ["no such command: trian", "hint: ", "train"]),
        (["frobnicate"], ["no such command: frobnicate", "--help"]),
        (["corpus", "lst"], ["no such command: lst", "corpus list"]),
        (["corpus"], ["hint: "]),
        (["info"], ["RUN", "info --help"]),
        (["--verison"], ["--verison", "did you mean --version"]),
    ],
)
def test_wrong_usage(args: list[object], parts: list[str], folder: Path) -> None:
    message = error(folder, *args, code=2)
    for part in parts:
        assert part in message


def test_a_real_process_leaves_as_it_should(folder: Path, program: Program) -> None:
    before = sorted(folder.rglob("*"))
    assert "byte 120" in program.error("train", "latin.txt", "--out", "run", code=3)
    assert "standard input is empty" in program.error("train", "-", "--out", "run", code=3)
    assert sorted(folder.rglob("*")) == before
