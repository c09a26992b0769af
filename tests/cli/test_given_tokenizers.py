"""External tokenizers in the commands, and config.toml files that reproduce their run."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from gru_lm import atomic
from gru_lm.cli import train as train_cli
from gru_lm.commands.train import tokenizer as given
from gru_lm.config_layers import settings
from gru_lm.planning import text as planning
from gru_lm.planning.text import plan_sample
from gru_lm.signals import never
from gru_lm.text.parts import open_texts
from gru_lm.text.tokenizer import train_tokenizer
from tests.conftest import TINY, Program, words
from tests.inside import error, inside, listing
from tests.unit.test_foreign_tokenizers import RECOGNISER, made

SMALL = [*TINY[2:], "--steps", 3]


def checkpoints(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in listing(run).items() if name.endswith(".safetensors")}


def config(run: Path) -> dict[str, object]:
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram", "word"])
def test_the_configuration_of_a_run_gives_it_again(tmp_path: Path, text: Path, kind: str) -> None:
    inside(tmp_path, "train", text, "--tokenizer", kind, *SMALL, "--out", "a")
    inside(tmp_path, "train", "--config", "a/config.toml", "--out", "b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    assert config(tmp_path / "a")["tokenizer"] == kind


def test_so_it_does_where_the_tokenizer_was_a_file(tmp_path: Path, text: Path) -> None:
    (tmp_path / "my.model").write_bytes(made("word", normalization_rule_name="nmt_nfkc_cf"))
    inside(tmp_path, "train", text, "--tokenizer", "my.model", *SMALL, "--out", "a")
    (tmp_path / "my.model").write_bytes(made("unigram"))  # replaced after training
    (tmp_path / "elsewhere").mkdir()
    inside(tmp_path / "elsewhere", "train", "--config", "../a/config.toml", "--out", "../b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    assert config(tmp_path / "a")["tokenizer"] == str(tmp_path / "a/tokenizer.model")
    assert "vocab_size" not in config(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "moved")
    inside(tmp_path, "train", "--resume", "moved", "--steps", 2)
    assert inside(tmp_path, "info", "moved", "--json").json()["tokenizer"] == "word"


def test_so_it_does_where_it_started_from_a_run(tmp_path: Path, text: Path) -> None:
    inside(tmp_path, "train", text, "--tokenizer", "bpe", *SMALL, "--out", "source")
    again = ["--steps", 2, "--batch", 2, "--bptt", 8]
    inside(tmp_path, "train", text, "--from", "source", *again, "--out", "a")
    inside(tmp_path, "train", "--resume", "source", "--steps", 5)  # changes its best checkpoint
    shutil.rmtree(tmp_path / "source")
    inside(tmp_path, "train", "--config", "a/config.toml", "--out", "b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    assert config(tmp_path / "a")["start_from"] == str(tmp_path / "a/start.safetensors")
    inside(tmp_path, "train", "--resume", "b", "--steps", 2)
    shown = inside(tmp_path, "train", "--from", "b", "--print-config").out
    assert 'start_from = "b"' in shown
    said = error(tmp_path, "compare", "--config", "a/config.toml", *again, code=2)
    assert "cell cannot be used with compare" in said


@pytest.mark.slow
def test_so_it_does_where_the_text_was_piped(tmp_path: Path, program: Program) -> None:
    program("train", "-", *TINY, "--steps", 3, "--out", "a", stdin=words(400))
    inside(tmp_path, "train", "--config", "a/config.toml", "--out", "b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    atomic.write_bytes(tmp_path / "config.toml", b'text = ["-"]\n')
    assert train_cli._read(tmp_path / "config.toml") == {"text": ["-"]}, "not a run's config.toml"


def test_compare_starts_from_no_run(tmp_path: Path, text: Path) -> None:
    said = error(tmp_path, "compare", text, "--set", "start_from=x", "--steps", 2, code=2)
    assert "start_from cannot be used with compare" in said


def test_a_piece_that_ends_lines(tmp_path: Path, text: Path) -> None:
    (tmp_path / "bpe.model").write_bytes(made("bpe", **RECOGNISER))
    (tmp_path / "bare.model").write_bytes(
        made("bpe", **RECOGNISER | {"user_defined_symbols": ["<blk>"]})
    )
    inside(tmp_path, "train", text, "--tokenizer", "bpe.model", *SMALL, "--out", "sos")
    assert "end_piece" not in config(tmp_path / "sos")
    bare = ["train", text, "--tokenizer", "bare.model", *SMALL, "--out", "a"]
    assert "--end-piece PIECE" in error(tmp_path, *bare, code=3)
    inside(tmp_path, *bare, "--end-piece", "<blk>")
    assert config(tmp_path / "a")["end_piece"] == "<blk>"
    inside(tmp_path, "train", "--config", "a/config.toml", "--out", "b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    inside(tmp_path, "train", "--resume", "a", "--steps", 2)
    figures = inside(tmp_path, "eval", "a", text, "--json").json()
    assert figures["lines"] == words(400).count("\n")
    inside(tmp_path, "train", text, "--from", "a", "--steps", 2, "--out", "c")
    assert config(tmp_path / "c")["end_piece"] == "<blk>"
    inside(tmp_path, "train", "--config", "c/config.toml", "--out", "d")
    assert checkpoints(tmp_path / "c") == checkpoints(tmp_path / "d")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--end-piece", "x"], "--end-piece applies only to a given SentencePiece model"),
        (["--tokenizer", "bpe", "--end-piece", "x"], "--end-piece applies only"),
        (["--from", "RUN", "--end-piece", "x"], "--end-piece cannot be combined with --from"),
        (
            ["--from", "RUN", "--tokenizer-characters", 9],
            "--tokenizer-characters cannot be combined",
        ),
        (["--tokenizer", "word", "--tokenizer-characters", 9], "cannot be combined with word"),
    ],
)
def test_options_that_would_say_nothing(
    tmp_path: Path, text: Path, trained: Path, args: list[object], said: str
) -> None:
    args = [trained if arg == "RUN" else arg for arg in args]
    assert said in error(tmp_path, "train", text, *args, "--steps", 2, code=2)


def test_the_tokenizers_share_of_a_budget() -> None:
    minute, unigram = settings({"minutes": 1.0}), 0.05 * 60 * 200_000
    assert plan_sample(minute, "unigram", characters=10**9) == (unigram, 100_000)
    assert plan_sample(minute, "bpe", characters=10**9) == (5 * unigram, 100_000)
    assert plan_sample(minute, "unigram", characters=500_000) == (None, 100_000)
    assert plan_sample(minute, "char", characters=10**9) == (None, 10**9)
    brief = settings({"minutes": 0.01})
    assert plan_sample(brief, "unigram", characters=10**9) == (100_000, 100_000)
    assert plan_sample(settings({"steps": 9}), "unigram", characters=10**9) == (None, 10**9)
    wide = settings({"minutes": 1.0, "vocab_size": 10_000})
    assert plan_sample(wide, "unigram", characters=10**9) == (3_300_000, 3_300_000)
    asked = settings({"minutes": 1.0, "tokenizer_characters": 5})
    assert plan_sample(asked, "unigram", characters=10**9) == (5, 10**9)


def test_a_tokenizers_training_that_takes_too_long_is_begun_on_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(words(60_000), encoding="utf-8")
    opened = open_texts(
        [str(tmp_path / "text.txt")],
        valid=None,
        test=None,
        encoding="utf-8",
        stdin=None,
        stop=never,
        progress=lambda _: None,
        note=lambda _: None,
    ).text
    assert opened.characters > 200_000
    monkeypatch.setattr(given, "LONGEST_SHARE", 0.0)
    asked = settings({"minutes": 5.0, "tokenizer": "bpe"})
    tokenizer = given.train_tokenizer(asked, "bpe", opened, stop=never)
    chosen = given.naming(tokenizer, asked)
    assert chosen.tokenizer_characters == planning.LEAST_SAMPLED
    again = given.train_tokenizer(chosen, "bpe", opened, stop=never)
    assert (again.data, given.naming(again, asked)) == (tokenizer.data, chosen)
    content = (tmp_path / "text.txt").read_text(encoding="utf-8") + "\n"
    whole = train_tokenizer("bpe", lambda: [content])
    assert tokenizer.data != whole.data
