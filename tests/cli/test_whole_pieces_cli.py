"""--pieces in the commands: recorded, resumed, compared, shown; and what does not go with it."""

from __future__ import annotations

import csv
import random
import shutil
from pathlib import Path

import pytest

from gru_lm.training.directory import find
from gru_lm.training.state import restore_tokenizer
from tests.cli.test_given_tokenizers import SMALL, checkpoints, config
from tests.faults.hostile import changed
from tests.inside import error, inside
from tests.unit.test_foreign_tokenizers import made

ATOMS = ["C", "c", "N", "O", "Cl", "Br", "[nH]", "(", ")", "=", "1", "@@", ",", "/", "\\"]


@pytest.fixture
def molecules(tmp_path: Path) -> Path:
    chosen = random.Random(0)
    lines = ["".join(chosen.choices(ATOMS, k=9)) for _ in range(200)]
    path = tmp_path / "molecules.smi"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "pieces.txt").write_text("Cl\nBr\n[nH]\n@@\nC,\n<never>\n", encoding="utf-8")
    return path


def running(molecules: Path, *more: object) -> list[object]:
    return ["train", molecules, "--records", "none", *SMALL, *more]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "unigram", "word"])
def test_the_settings_of_a_run_hold_the_pieces_of_a_file(
    tmp_path: Path, molecules: Path, kind: str
) -> None:
    args = running(molecules, "--tokenizer", kind, "--pieces", "pieces.txt", "--out", "a")
    said = inside(tmp_path, *args).err
    assert "pieces (6 kept whole, of which 5 occur)" in said
    (tmp_path / "pieces.txt").unlink()
    assert config(tmp_path / "a")["pieces"] == 'Cl,Br,[nH],@@,"C,",<never>'
    (tmp_path / "elsewhere").mkdir()
    inside(tmp_path / "elsewhere", "train", "--config", "../a/config.toml", "--out", "../b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    shutil.move(tmp_path / "a", tmp_path / "moved")
    inside(tmp_path, "train", "--resume", "moved", "--steps", 2)
    assert inside(tmp_path, "info", "moved", "--json").json()["tokenizer"] == kind
    inside(tmp_path, "eval", "moved", molecules, "--per-token", "tokens.tsv")
    with (tmp_path / "tokens.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    text = molecules.read_text(encoding="utf-8")
    shown = [row["piece"] for row in rows]
    assert shown.count("Cl") == text.count("Cl")
    assert shown.count("[nH]") == text.count("[nH]")
    args = ["sample", "moved", "--prompt", "N[n", "--length", 20, "--seed", 1, "--json"]
    assert "N[n" in inside(tmp_path, *args).out


def test_a_run_that_starts_from_another_has_its_pieces(tmp_path: Path, molecules: Path) -> None:
    inside(tmp_path, *running(molecules, "--pieces", "Cl", "--out", "a"))
    inside(tmp_path, "train", molecules, "--from", "a", "--steps", 2, "--out", "b")
    assert config(tmp_path / "b")["pieces"] == '"Cl"'
    inside(tmp_path, "train", "--config", "b/config.toml", "--out", "c")
    assert checkpoints(tmp_path / "b") == checkpoints(tmp_path / "c")
    loaded = restore_tokenizer(found := find(tmp_path / "c", print), found.tensors())
    assert loaded.whole == ("Cl",)


def test_a_setting_as_it_is_printed_and_a_plan(tmp_path: Path, molecules: Path) -> None:
    args = running(molecules, "--pieces", "Cl")
    assert 'pieces = "Cl"' in inside(tmp_path, *args, "--print-config").out
    plan = inside(tmp_path, *args, "--dry-run").out
    assert "pieces = '\"Cl\"'" in plan or r'pieces = "\"Cl\""' in plan
    without = inside(tmp_path, *running(molecules), "--dry-run")
    assert "pieces =" not in without.out
    assert "kept whole" not in without.err


def test_cells_are_compared_with_them(tmp_path: Path, molecules: Path) -> None:
    small = ["--steps", 2, "--width", 8, "--layers", 1, "--seeds", 1, "--batch", 2, "--bptt", 8]
    args = ["compare", molecules, "--records", "none", "--cells", "gru,rnn", *small, "--out", "x"]
    inside(tmp_path, *args, "--pieces", "pieces.txt")
    for cell in ("gru", "rnn"):
        assert config(tmp_path / f"x/{cell}-0")["pieces"] == 'Cl,Br,[nH],@@,"C,",<never>'


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--pieces", "Cl,,Br"], 2, "piece 2 is empty"),
        (["--pieces", "a\u2581"], 2, "write a space instead"),
        (["--pieces", "a\tb"], 2, "unprintable"),
        (["--pieces", '"Cl'], 2, "quotation marks"),
        (["--pieces", "missing.txt"], 3, "cannot read the pieces in missing.txt"),
        (["--pieces", "blank.txt"], 3, "blank.txt, line 2: the piece is empty"),
        (["--pieces", "Cl", "--tokenizer", "my.model"], 2, "--pieces cannot be combined with my.model"),
        (["--pieces", "Cl", "--from", "RUN"], 2, "--pieces cannot be combined with --from"),
        (["--pieces", "Cl,Br", "--tokenizer", "char", "--vocab-size", 261], 2, "at least 262"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_whole(
    tmp_path: Path, molecules: Path, trained: Path, args: list[object], code: int, said: str
) -> None:
    (tmp_path / "my.model").write_bytes(made("bpe"))
    (tmp_path / "blank.txt").write_text("Cl\n\nBr\n", encoding="utf-8")
    args = [trained if arg == "RUN" else arg for arg in args]
    assert said in error(tmp_path, "train", molecules, *args, "--steps", 2, "--out", "x", code=code)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("pieces", [7, "", "Cl", "Cl,,Br", '"', "Cl,Br,@@"])
def test_a_checkpoint_whose_pieces_were_tampered_with(
    tmp_path: Path, molecules: Path, pieces: object
) -> None:
    inside(tmp_path, *running(molecules, "--pieces", "Cl,Br", "--out", "a"))
    tokenizer = restore_tokenizer(found := find(tmp_path / "a", print), found.tensors())
    assert tokenizer.whole == ("Cl", "Br")
    data = changed(found.data, lambda _, meta: meta["config"].update(pieces=pieces))
    (tmp_path / "x.safetensors").write_bytes(data)
    assert "x.safetensors" in error(tmp_path, "eval", "x.safetensors", molecules, code=3)
