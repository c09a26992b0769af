"""The training text determines the tokens scored and sampled, and the caveats about other texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gru_lm.training.checkpoint import encode, read
from tests.conftest import TINY, words
from tests.inside import error, inside

KINDS = ("char", "bpe", "word")
SINGLE = "trained on a single document: no end of document is scored"
LINES = words(400, seed=1).splitlines(keepends=True)[:30]


def tiny(kind: str) -> list[str]:
    return [option if option != "char" else kind for option in TINY]


def measured(cwd: Path, *args: object) -> dict[str, Any]:
    found: dict[str, Any] = inside(cwd, "eval", *args, "--json").json()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: one per tokenizer on one document, `several` on three. Texts: `one.txt` equals `many`."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "text.txt").write_text(words(600))
    (folder / "one.txt").write_text("".join(LINES))
    for name, parts in (("many", LINES), ("three", [words(200, seed=each) for each in (4, 5, 6)])):
        (folder / name).mkdir()
        for number, part in enumerate(parts):
            (folder / name / f"{number:02}.txt").write_text(part)
    options = ["--steps", 8, "--width", 8, "--layers", 1, "--batch", 2, "--bptt", 8]
    for kind in KINDS:
        inside(folder, "train", "text.txt", "--out", kind, *options, *tiny(kind))
    inside(folder, "train", "three", "--valid", "many", "--out", "several", *options, *TINY)
    inside(folder, "train", "text.txt", "--valid", "many", "--out", "columns", *options, *TINY)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_lines_as_one_file_and_as_many_have_the_same_figures(folder: Path, kind: str) -> None:
    for mode in ("line", "stream"):
        one = measured(folder, kind, "one.txt", "--mode", mode)
        many = measured(folder, kind, "many", "--mode", mode)
        for name in ("tokens", "bytes", "words", "lines"):
            assert one[name] == many[name]
        # In stream mode, the state is reset between files. With words, the end of each document is
        # charged for white space that might follow.
        close = 0.1 if mode == "stream" else 1e-3 if kind == "word" else 1e-5
        assert many["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=close)
        assert many["caveats"].count(SINGLE) == 1
        assert SINGLE not in one["caveats"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_tables_and_conventions_have_no_end_either(folder: Path) -> None:
    tables = ["--per-token", "token.tsv", "--per-word", "word.tsv", "--per-line", "line.tsv"]
    found = measured(folder, "word", "many", *tables, "--as", "srilm")
    tokens = rows(folder / "token.tsv")
    assert len(tokens) == found["tokens"]
    assert {row["piece"] for row in tokens} & {"</s>"} == set()
    assert sum(int(row["tokens"]) for row in rows(folder / "word.tsv")) == found["tokens"]
    assert [int(row["tokens"]) for row in rows(folder / "line.tsv")] == [
        len(line.split()) + 1 for line in LINES
    ]
    alone = measured(folder, "word", "one.txt", "--as", "srilm")
    assert found["as"]["text"].split(":")[1] == alone["as"]["text"].split(":")[1].replace(
        "one.txt", "30 files"
    ) or (f"{len(LINES)} sentences" in found["as"]["text"])


def test_a_model_of_several_documents_scores_their_ends(folder: Path) -> None:
    one = measured(folder, "several", "one.txt")
    many = measured(folder, "several", "many")
    assert many["tokens"] == one["tokens"] + len(LINES) - 1
    assert SINGLE not in many["caveats"]


@pytest.mark.parametrize("run", ["several", "columns"])
def test_validation_counts_as_eval_does(folder: Path, run: str) -> None:
    result = inside(folder, "train", "--resume", run, "--json").json()["valid"]
    found = measured(folder, run, "many", "--mode", "columns")
    assert result["tokens"] == found["tokens"]
    assert result["nats"] == pytest.approx(found["nats"], rel=1e-5)
    assert (SINGLE in result["caveats"]) == (run == "columns")


def test_compare_scores_ends_of_both_models_or_of_none(folder: Path) -> None:
    compared = inside(folder, "compare", "char", "several", "--on", "many", "--json").json()
    alone = measured(folder, "char", "many")
    assert compared["a"]["nats_per_token"] == pytest.approx(alone["nats_per_token"])
    assert compared["caveats"].count(SINGLE) == 1
    whole = measured(folder, "several", "one.txt")
    assert compared["b"]["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=0.1)


@pytest.mark.parametrize("run", [*KINDS, "several"])
def test_checkpoints_that_do_not_say_are_understood(folder: Path, run: str, tmp_path: Path) -> None:
    checkpoint = read(folder / run / "best.safetensors")
    tensors = {n: t for n, t in checkpoint.tensors().items() if not n.startswith("lines.")}
    meta = {n: v for n, v in checkpoint.meta.items() if n not in ("seen", "format", "sha256")}
    old = tmp_path / "old.safetensors"
    old.write_bytes(encode(tensors, meta))
    new = measured(folder, run, "many")
    found = measured(folder, old, "many")
    assert found["tokens"] == new["tokens"]
    assert found["bits_per_byte"] == new["bits_per_byte"]


def test_no_sample_ends_by_a_token_that_training_never_met(folder: Path) -> None:
    for kind in KINDS:
        path = folder / kind / "best.safetensors"
        checkpoint = read(path)
        tensors = checkpoint.tensors()
        name = "model.head.bias"
        if "model.head.row_V" in tensors:  # the last row is shared by the end and other pieces
            tensors[name][-1] = 5.0
        assert isinstance(tensors[name], torch.Tensor)
        other = folder / f"{kind}.safetensors"
        other.write_bytes(encode(tensors, {**checkpoint.meta}))
        made = inside(
            folder, "sample", other, "--samples", 20, "--length", 5, "--seed", 1, "--json"
        )
        assert {json.loads(line)["stop"] for line in made.out.splitlines()} == {"length"}


# Overlap with the texts of the run.


def test_eval_without_a_file_says_what_its_text_was_used_for(folder: Path, trained: Path) -> None:
    (caveat,) = measured(folder, "char")["caveats"]
    assert caveat.startswith("the run's own held-out text, used for choosing the best checkpoint")
    (step,) = sorted((folder / "char").glob("step-*8.safetensors"))
    assert not measured(folder, step)["caveats"]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts without duplicate lines."""
    folder = tmp_path_factory.mktemp("known")
    chosen = [f"line {n} of all {n * 7919 % 10_007} lines is like no other" for n in range(400)]
    text = "\n".join(chosen) + "\n"
    cut = int(0.9 * len(text))
    (folder / "text.txt").write_text(text)
    (folder / "valid.txt").write_text(text[cut:])
    (folder / "train.txt").write_text(text[: cut // 2])
    other = "\n".join(f"quite another {n * 7907 % 10_009} text, {n} of it" for n in range(60))
    (folder / "other.txt").write_text(other)
    (folder / "shifted.txt").write_text(other[:1000] + "\n" + text[cut:])
    (folder / "half.txt").write_text(other + "\n" + "\n".join(chosen[:40]))
    inside(folder, "train", "text.txt", "--out", "run", "--steps", 4, "--patience", 9, *TINY)
    return folder


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("other.txt", [], []),
        ("other.txt", ["--cache", "--tune"], []),
        ("valid.txt", ["--cache", "--tune"], ["tuned on the evaluated text", "100% of the text"]),
        (
            "shifted.txt",
            ["--cache", "--tune"],
            ["held-out text used for tuning", "early stopping"],
        ),
        ("shifted.txt", [], ["used for choosing the best checkpoint and early stopping"]),
        ("train.txt", [], ["100% of the text is in the training text"]),
        ("half.txt", [], ["of the text is in the training text"]),
    ],
)
def test_overlap_is_found_by_content(
    known: Path, file: str, options: list[str], says: list[str]
) -> None:
    found = measured(known, "run", file, *options)["caveats"]
    assert len(found) == len(says)
    for caveat, said in zip(found, says, strict=True):
        assert said in caveat


def test_two_models_on_a_text_that_one_was_trained_on(known: Path) -> None:
    inside(known, "train", "other.txt", "--out", "else", "--steps", 2, *TINY)
    compared = inside(known, "compare", "run", "else", "--on", "train.txt", "--json").json()
    assert [each for each in compared["caveats"] if "training text" in each] == [
        "run: 100% of the text is in the training text"
    ]


def test_a_run_from_another_knows_the_text_of_both(known: Path) -> None:
    inside(known, "train", "other.txt", "--from", "run", "--out", "tuned", "--steps", 2)
    for file in ("train.txt", "other.txt"):
        caveats = measured(known, "tuned", file)["caveats"]
        assert any("of the text is in the training text" in caveat for caveat in caveats)


def test_held_out_text_that_is_trained_on_is_said(known: Path) -> None:
    done = inside(
        known, "train", "text.txt", "--valid", "half.txt", "--out", "leak", "--steps", 2, *TINY
    )
    assert "of the lines of the held-out text are in the training text" in done.err
    done = inside(
        known, "train", "train.txt", "--valid", "other.txt", "--out", "dry", "--steps", 2, *TINY
    )
    assert "are in the training text" not in done.err


# Line ends.


@pytest.mark.parametrize(("kind", "end"), [("char", "\r\n"), ("word", "\r")])
def test_carriage_returns_are_noted_once(folder: Path, kind: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "cr.txt").write_text("".join(words(300)).replace("\n", end), newline="")
    done = inside(tmp_path, "train", "cr.txt", "--out", "run", "--steps", 1, *tiny(kind))
    assert done.err.count("carriage returns (CR or CR LF line ends)") == 1
    for run, seen in ((tmp_path / "run", True), (folder / kind, False)):
        caveats = measured(tmp_path, run, "cr.txt")["caveats"]
        noted = [caveat for caveat in caveats if "carriage returns" in caveat]
        assert len(noted) == (not seen)
        sampled = inside(
            tmp_path, "sample", run, "--prompt", f"the{end}cat", "--length", 2, "--json"
        )
        assert sampled.err.count("carriage return") == (not seen)
    assert (
        "carriage" not in inside(tmp_path, "sample", folder / kind, "--prompt", "x\n", "--json").err
    )


@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("split", ["0.9,0.1", "0.8,0.1,0.1"])
def test_words_of_one_line_are_cut_between_words(last: str, split: str, tmp_path: Path) -> None:
    text = words(600).replace("\n", " ").strip() + last
    (tmp_path / "text8").write_text(text)
    options = ["--out", "run", "--steps", 1, "--split", split, "--json", *tiny("word")]
    result = inside(tmp_path, "train", "text8", *options).json()
    parts = [result["valid"], *([result["test"]] if "test" in result else [])]
    assert len(parts) == split.count(",")
    # No word was cut in two: the held-out text consists of whole words.
    held_out = text.encode()[-sum(part["bytes"] for part in parts) :].decode()
    assert sum(part["words"] for part in parts) == len(held_out.split())
    assert text[: -len(held_out)].endswith(" ")
    assert sum(part["unknown_tokens"] for part in parts) == 0


def test_what_has_no_effect_is_refused(folder: Path) -> None:
    (folder / "mine.toml").write_text('split = "0.5,0.5"\n')
    train = ("train", "text.txt", "--steps", 1, *TINY)
    for options, said in (
        (("--split", "0.5,0.5", "--valid", "one.txt"), "--split has no effect with --valid"),
        (("--split", "0.9,0.1", "--valid", "one.txt"), "--split has no effect with --valid"),
        (("--set", "split=0.5,0.5", "--valid", "one.txt"), "--split has no effect with --valid"),
        (("--config", "mine.toml", "--valid", "one.txt"), "--split has no effect with --valid"),
        (("--beta2", 0.9, "--optimizer", "sgd"), "--beta2 has no effect with --optimizer sgd"),
        (("--beta2", 0.9, "--optimizer", "nt-asgd"), "--beta2 has no effect"),
        (("--residual",), "--residual has no effect with --layers 1"),
        (("--print-config", "--dry-run"), "--print-config cannot be combined with --dry-run"),
    ):
        assert said in error(folder, *train, *options, code=2)
    assert "--encoding has no effect" in error(
        folder, "train", "@docstrings", "--encoding", "latin-1", "--steps", 1, code=2
    )
    compare = ("compare", "text.txt", "--steps", 1, *TINY)
    assert "--split" in error(folder, *compare, "--split", "0.5,0.5", "--valid", "one.txt", code=2)
    for options, said in (
        (("eval", "char", "--encoding", "latin-1"), "--encoding has no effect without a FILE"),
        (("sample", "char", "--logprobs"), "--logprobs requires --json"),
        (("sample", "char", "--temperature", 0, "--typical", 0.5), "--typical cannot be combined"),
    ):
        assert said in error(folder, *options, code=2)
    # The config.toml of a run sets everything, and may be used for another run.
    config = ("--config", "several/config.toml", "--valid", "one.txt", "--out", "again")
    inside(folder, "train", "text.txt", *config)


def test_a_trial_that_diverges_names_a_remedy(folder: Path) -> None:
    train = ("train", "text.txt", "--minutes", 1, "--out", "huge", *TINY)
    assert "hint: a smaller --ar" in error(folder, *train, "--ar", "1e39", code=4)
    assert not (folder / "huge").exists()


def test_a_run_that_diverges_by_its_weight_decay_says_so(folder: Path) -> None:
    train = ("train", "text.txt", "--steps", 9, "--out", "decayed", *TINY)
    assert "hint: a smaller --weight-decay" in error(
        folder, *train, "--weight-decay", "1e39", code=4
    )
