"""`gru-lm train` and `info`: output, files and options; and rules that hold for every command."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import gru_lm
from gru_lm.commands.train import fit
from gru_lm.model.cells import CELLS
from gru_lm.model.devices import choose_backend
from gru_lm.training.checkpoint import read
from tests.conftest import TINY, Program, words
from tests.inside import error, inside, listing

RESULT = [
    "gru_lm", "run", "checkpoint", "steps", "tokens", "seconds", "tokens_per_second", "parameters",
    "valid",
    "stopped",
]  # fmt: skip
FIGURES = {
    "tokens", "bytes", "characters", "words", "lines", "nats", "spelling_nats", "nats_per_token",
    "perplexity", "bits_per_byte", "bits_per_character", "word_perplexity", "unknown_tokens",
    "unknown_rate",
    "perplexity_excluding_unknown", "ci95", "caveats", "mode", "seconds", "tokens_per_second",
    "checkpoint", "device",
}  # fmt: skip


def tiny(**changed: object) -> list[object]:
    """The options of a tiny run, with the given changes."""
    options = dict(zip(TINY[::2], TINY[1::2], strict=True))
    options |= {f"--{name.replace('_', '-')}": str(value) for name, value in changed.items()}
    return [part for pair in options.items() for part in pair]


def test_a_run_and_its_json(text: Path, program: Program) -> None:
    done = program("train", text, "--out", "run", "--steps", 12, *TINY, "--json")
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert list(result) == RESULT
    assert result["run"] == "run"
    assert result["checkpoint"] == "run/best.safetensors"
    assert (result["steps"], result["tokens"], result["stopped"]) == (12, 12 * 2 * 8, "budget")
    assert result["tokens_per_second"] > 0
    assert result["seconds"] > 0
    assert set(result["valid"]) == FIGURES
    assert result["valid"]["mode"] == "columns"
    characters = len(text.read_text())
    assert result["valid"]["characters"] == characters - characters * 9 // 10
    assert "training: 12 steps" in done.stderr
    assert "held out" in done.stderr

    run = program.cwd / "run"
    names = {path.name for path in run.iterdir()}
    assert {"config.toml", "metrics.jsonl", "best.safetensors", "samples.txt", "loss.png"} < names
    assert ".lock" in names
    assert len([name for name in names if name.startswith("step-")]) == 2
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "--- step 12\n" in (run / "samples.txt").read_text()

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reports = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "loss" not in line]
    common = {"step", "tokens", "seconds"}
    assert all(
        set(line) == common | {"loss", "lr", "grad_norm", "tokens_per_second"} for line in reports
    )
    valid = {"valid_nats_per_token", "valid_bits_per_byte", "valid_perplexity"}
    assert all(set(line) == common | valid for line in validations)
    assert [line["step"] for line in reports][:10] == list(range(1, 11))
    best = min(line["valid_nats_per_token"] for line in validations)
    assert best == pytest.approx(result["valid"]["nats_per_token"])

    config = tomllib.loads((run / "config.toml").read_text())
    assert config["text"] == [str(text)]
    assert (config["steps"], config["width"], config["cell"]) == (12, 8, "gru")
    assert read(run / "step-00000012.safetensors").meta["config"]["width"] == 8


def test_learning_lowers_the_loss(text: Path, tmp_path: Path) -> None:
    options = tiny(width=32, embed=16, batch=4, bptt=16, lr=0.02)
    result = inside(
        tmp_path, "train", text, "--out", "r", "--steps", 150, *options, "--json"
    ).json()
    lines = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert result["valid"]["nats_per_token"] < 0.6 * lines[0]["loss"]


def test_settings_come_from_defaults_file_set_and_flags(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('width = 1\nlayers = 1\nseed = 1\ncell = "lstm"\n')
    command = ["train", "--config", "c.toml", "--set", "layers=2", "--set", "seed=2", "--seed", 3]
    printed = inside(tmp_path, *command, "--print-config").out
    config = tomllib.loads(printed)
    chosen = [config[name] for name in ("width", "layers", "seed", "cell", "schedule")]
    assert chosen == [1, 2, 3, "lstm", "cosine"]
    printed = inside(tmp_path, *command, "--print-config", "--json").json()
    assert printed == {"gru_lm": gru_lm.__version__} | config
    assert list(listing(tmp_path)) == ["c.toml"], "nothing is written"
    assert "widht" in error(tmp_path, "train", "--set", "widht=1", "--print-config", code=2)


def test_a_dry_run_prints_the_whole_plan_and_it_can_be_used(text: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    printed = inside(tmp_path, "train", text, "--epochs", 2, "--dry-run").out
    assert listing(tmp_path) == before
    config = tomllib.loads(printed)
    for name in ("tokenizer", "vocab_size", "layers", "width", "embed", "batch", "bptt", "lr"):
        assert name in config
    (tmp_path / "plan.toml").write_text(printed)
    again = inside(tmp_path, "train", "--config", "plan.toml", "--dry-run").out
    assert again == printed


def test_held_out_texts_of_their_own(text: Path, tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text(words(50, seed=1))
    (tmp_path / "test.txt").write_text(words(60, seed=2))
    options = ["--valid", "valid.txt", "--test", "test.txt", "--steps", 2, *TINY, "--json"]
    done = inside(tmp_path, "train", text, "--out", "run", *options)
    assert f"{len(text.read_text()):,} characters for training" in done.err
    result = done.json()
    assert result["valid"]["characters"] == len(words(50, seed=1))
    assert result["test"]["characters"] == len(words(60, seed=2))
    assert set(result["test"]) == FIGURES
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert config["valid"] == str(tmp_path / "valid.txt")


def test_the_test_text_is_measured_by_what_trained(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends, restore_model = [], fit.restore_model

    def noted(*args: Any, **options: Any) -> Any:
        backends.append(options["backend"])
        return restore_model(*args, **options)

    monkeypatch.setattr(fit, "restore_model", noted)
    inside(tmp_path, "train", text, "--test", text, "--steps", 1, *TINY, "--device", "cpu")
    assert backends == [choose_backend(torch.device("cpu"))]


def test_a_sample_is_no_part_of_the_time_of_measuring(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = fit.complete

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(1)
        return complete(*args, **options)

    monkeypatch.setattr(fit, "complete", slow)
    result = inside(tmp_path, "train", text, "--steps", 1, *TINY, "--json").json()
    assert 0 < result["valid"]["seconds"] < 1


def test_a_split_in_three(text: Path, tmp_path: Path) -> None:
    options = ["--split", "0.5,0.3,0.2", "--steps", 2, *TINY, "--json"]
    result = inside(tmp_path, "train", text, *options).json()
    n = len(text.read_text())
    assert result["valid"]["characters"] == n * 8 // 10 - n // 2
    assert result["test"]["characters"] == n - n * 8 // 10


def test_budgets(text: Path, tmp_path: Path) -> None:
    size = len(text.read_text()) * 9 // 10

    def steps(*budget: object) -> int:
        result = inside(tmp_path, "train", text, *budget, *tiny(batch=8, bptt=16), "--json").json()
        assert result["stopped"] == "budget"
        return int(result["steps"])

    assert steps("--steps", 3) == 3
    assert steps("--tokens", 300) == 3
    assert steps("--epochs", 0.5) == -(-size // 2 // 128)
    assert steps("--epochs", 10, "--steps", 4) == 4
    # Without --out, each run gets a new directory.
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "gru-1", "gru-2", "gru-3", "gru-4",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_budget_in_minutes_is_wall_time_of_the_whole_command(text: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    options = ["--minutes", 0.1, *TINY, "--json"]
    result = inside(tmp_path, "train", text, "--out", "run", *options).json()
    assert time.monotonic() - started < 8
    assert 3 < result["seconds"] < 8
    assert result["stopped"] == "budget"
    last = read(sorted((tmp_path / "run").glob("step-*"))[-1])
    assert last.meta["seconds"] == pytest.approx(result["seconds"], abs=2)


@pytest.mark.slow
def test_a_budget_in_minutes_is_kept_to_within_two_seconds(program: Program) -> None:
    train = ["train", "--minutes", 0.3, "--split", "0.8,0.1,0.1"]
    for command in ([*train, "--out", "run"], ["train", "--resume", "run", "--minutes", 0.3]):
        started = time.monotonic()
        program(*command)
        assert abs(time.monotonic() - started - 18) < 2


@pytest.mark.parametrize(
    "options",
    [["--optimizer", "muon"], ["--optimizer", "sgd"], ["--optimizer", "adamw", "--average", 0.9]],
)
def test_what_a_plan_will_come_to(options: list[object], text: Path, tmp_path: Path) -> None:
    command = ["train", text, *TINY, "--width", 128, "--steps", 3, *options, "--json"]
    expected = inside(tmp_path, *command, "--dry-run").json()["forecast"]
    assert expected["tokens_per_second"] is None
    result = inside(tmp_path, *command, "--out", "run", "--save-every", 1).json()
    assert expected["tokens"] == result["tokens"]
    files = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / "run").iterdir()}
    assert 0.5 * expected["disk"] < sum(files.values()) < 1.2 * expected["disk"]
    assert expected["memory"] > expected["disk"]


def test_no_budget_is_five_minutes_and_it_says_so(text: Path, tmp_path: Path) -> None:
    done = inside(tmp_path, "train", text, "--dry-run")
    assert tomllib.loads(done.out)["minutes"] == 5
    assert "training: 5 minutes" in done.err


def test_from_another_run(trained: Path, text: Path, tmp_path: Path) -> None:
    options = ["--batch", 2, "--bptt", 8, "--steps", 2, "--lr", 0, "--json"]
    done = inside(tmp_path, "train", text, "--from", trained, "--out", "run", *options)
    before = read(trained / "best.safetensors").tensors()
    after = read(tmp_path / "run/step-00000002.safetensors").tensors()
    same = [name for name in before if name.startswith("model.") or name == "tokenizer"]
    # With a learning rate of 0, AdamW keeps the weights of the source run.
    assert all(before[name].equal(after[name]) for name in same)
    assert done.json()["steps"] == 2
    for refused in (["--width", 16], ["--tokenizer", "byte"], ["--layers", 2]):
        message = error(tmp_path, "train", text, "--from", trained, *refused, "--out", "x", code=2)
        assert refused[0] in message
    assert not (tmp_path / "x").exists()


def test_patience(text: Path, tmp_path: Path) -> None:
    options = ["--lr", 0, "--eval-every", 1, "--patience", 2, "--steps", 50, *TINY, "--json"]
    result = inside(tmp_path, "train", text, "--out", "run", *options).json()
    assert (result["stopped"], result["steps"]) == ("patience", 3)
    again = inside(tmp_path, "train", "--resume", "run", "--json").json()
    assert (again["stopped"], again["steps"]) == ("patience", 3)


def test_save_every_and_keep(text: Path, tmp_path: Path) -> None:
    options = ["--save-every", 2, "--keep", 3, "--steps", 9, "--eval-every", 100, *TINY]
    inside(tmp_path, "train", text, "--out", "run", *options)
    steps = [read(path).meta["step"] for path in sorted((tmp_path / "run").glob("step-*"))]
    assert steps == [6, 8, 9]


def test_piped_text_is_kept_and_resumed(tmp_path: Path, program: Program) -> None:
    piped = words(200)
    options = ["--out", "run", "--steps", 4, "--save-every", 2, *TINY]
    program("train", "-", *options, stdin=piped)
    run = tmp_path / "run"
    assert (run / "text.txt").read_text() == piped
    last = run / "step-00000004.safetensors"
    whole = last.read_bytes()
    last.unlink()
    inside(tmp_path, "train", "--resume", "run")
    assert last.read_bytes() == whole


def test_several_files_are_documents(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for index in range(3):
        (tmp_path / "more" / f"{index}.txt").write_text(words(60, seed=index))
    (tmp_path / "one.txt").write_text(words(60, seed=9))
    options = ["--steps", 2, "--split", "0.999,0.001", *tiny(tokenizer="byte"), "--json"]
    done = inside(tmp_path, "train", "one.txt", "more", "more/*.txt", "--out", "r", *options)
    size = sum(
        len(words(60, seed=seed).encode()) for seed in (9, 0, 1, 2)
    )  # named twice but read once
    text, tokens = done.err.splitlines()[:2]
    assert "characters for training" in text
    count = int(tokens.split()[-3].replace(",", ""))
    assert (
        count + done.json()["valid"]["bytes"] == size + 3
    )  # and an end-of-document token between each two


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_trains(cell: str, text: Path, tmp_path: Path) -> None:
    options = [*TINY, "--cell", cell, "--layers", 2, "--steps", 3, "--dropout", 0.1, "--json"]
    result = inside(tmp_path, "train", text, *options).json()
    assert result["run"] == f"runs/{cell}-1"
    assert result["valid"]["nats_per_token"] < 6


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram", "word"])
def test_every_tokenizer_trains(kind: str, text: Path, tmp_path: Path) -> None:
    options = [*tiny(tokenizer=kind), "--steps", 3, "--out", "run", "--json"]
    if kind in ("bpe", "unigram"):
        options += ["--vocab-size", 290]
    result = inside(tmp_path, "train", text, *options).json()
    assert result["valid"]["bits_per_byte"] < 12
    meta = read(tmp_path / "run/best.safetensors").meta
    assert meta["tokenizer"] == kind


@pytest.mark.parametrize("options", [["--tied"], ["--tied", "--embed", 6], ["--optimizer", "sgd"]])
def test_other_options_train_and_resume(options: list[object], text: Path, tmp_path: Path) -> None:
    inside(tmp_path, "train", text, "--out", "r", "--steps", 4, "--save-every", 2, *TINY, *options)
    last = tmp_path / "r/step-00000004.safetensors"
    whole = last.read_bytes()
    last.unlink()
    inside(tmp_path, "train", "--resume", "r")
    assert last.read_bytes() == whole


def test_a_few_hundred_characters_without_any_option(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text(words(60)[:300])
    result = inside(tmp_path, "train", "small.txt", "--steps", 2, "--json").json()
    assert result["steps"] == 2


def test_info(trained: Path, tmp_path: Path) -> None:
    values = inside(tmp_path, "info", trained, "--json").json()
    assert values["checkpoint"] == str(trained / "best.safetensors")
    assert values["model"] == {
        "cell": "gru", "vocab_size": values["model"]["vocab_size"], "layers": 1, "width": 8,
        "embed": 4, "tied": False, "residual": False, "rows": values["model"]["rows"],
        "cutoffs": [],
    }  # fmt: skip
    assert values["bytes"] == (trained / "best.safetensors").stat().st_size
    shown = inside(tmp_path, "info", trained).out
    assert "model:\n  cell                 gru\n" in shown
    one = inside(tmp_path, "info", trained / "step-00000030.safetensors", "--json").json()
    assert one["step"] == 30


# --- every command


def run_python(code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time, json; from gru_lm import cli\n"
        "code = cli.run(['--help'], started=0.0)\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'sentencepiece', 'safetensors'}\n"
        "print(json.dumps([code, time.process_time(), sorted(heavy & set(sys.modules))]),"
        " file=sys.stderr)"
    )
    done = [run_python(code) for _ in range(3)]
    for each in done:
        found, _, heavy = json.loads(each.stderr)
        assert (found, heavy) == (0, [])
        assert b"train" in each.stdout
    assert min(json.loads(each.stderr)[1] for each in done) < 0.3


def test_python_m_version_and_a_bare_call(program: Program) -> None:
    assert program("--version").stdout == f"gru-lm {gru_lm.__version__}\n"
    assert "Start with" in program("-h").stdout
    assert program().stdout == program("--help").stdout
    script = shutil.which("gru-lm", path=str(Path(sys.executable).parent))
    if script:
        done = subprocess.run([script, "--version"], capture_output=True, check=True)
        assert done.stdout.decode() == f"gru-lm {gru_lm.__version__}\n"


@pytest.mark.parametrize("command", ["train", "sample", "eval", "info", "corpus"])
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    assert "Usage" in inside(tmp_path, command, "--help").out


def shell(line: str, *args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    prefix = f'g() {{ "{sys.executable}" -m gru_lm "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", prefix + line, "bash", *map(str, args)],
        capture_output=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("command", ["--help", "info $1", "info $1 --json"])
def test_a_reader_that_leaves_is_no_error(command: str, trained: Path) -> None:
    done = shell(f"g {command} | head -1; exit ${{PIPESTATUS[0]}}", trained)
    assert done.returncode in (0, 141)
    assert done.stderr == b""
    gone = shell(f"g {command} | true; exit ${{PIPESTATUS[0]}}", trained)
    assert gone.returncode in (0, 141)
    assert gone.stderr == b""


def test_a_full_or_a_closed_standard_output(trained: Path) -> None:
    full = shell("g info $1 > /dev/full", trained)
    assert full.returncode == 5
    assert b"No space left" in full.stderr
    assert len(full.stderr.splitlines()) <= 3
    assert shell("g info $1 >&-", trained).returncode == 0


def in_terminal(args: list[object], cwd: Path, *, signum: int | None) -> tuple[int, bytes]:
    """Run in a pseudo-terminal; returns the exit code and the output."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gru_lm", *map(str, args)],
        cwd=cwd,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(follower)
    seen = b""
    sent = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([leader], [], [], 0.05)
        if ready:
            try:
                seen += os.read(leader, 65536)
            except OSError:  # Linux: the other end is closed
                break
        elif process.poll() is not None:
            break
        if signum and not sent and b"training" in seen and b"loss" in seen:
            os.kill(process.pid, signum)
            sent = True
    os.close(leader)
    return process.wait(10), seen


def test_in_a_terminal_the_cursor_comes_back_after_an_interrupt(text: Path, tmp_path: Path) -> None:
    options = ["train", text, "--out", "run", "--steps", 100_000, "--eval-every", 99_999, *TINY]
    code, seen = in_terminal(options, tmp_path, signum=signal.SIGINT)
    assert code == 130, seen[-2000:]
    hidden, shown = b"\x1b[?25l", b"\x1b[?25h"
    assert hidden in seen, "a progress bar was shown"
    assert seen.rindex(shown) > seen.rindex(hidden)
    assert b"--resume run" in seen
    assert b"Traceback" not in seen


def test_debug_shows_where(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gru_lm", "info", "nothing", "--debug"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3
    assert b"Traceback" in done.stderr
