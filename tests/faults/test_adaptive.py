"""Adaptive softmax: resumed bit for bit, kept by --from, rejected if tampered with."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gru_lm.commands.load import load_model
from gru_lm.errors import InputError
from gru_lm.training.checkpoint import read
from gru_lm.training.state import restore
from tests.conftest import TINY, words
from tests.faults.hostile import changed, poked, taken_apart
from tests.inside import error, inside

LAST = "step-00000006.safetensors"
RANKS = "model.head.rank_V"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, all kept."""
    folder = tmp_path_factory.mktemp("adaptive")
    (folder / "text.txt").write_text(words(100), encoding="utf-8")
    options = [*TINY, "--softmax", "adaptive", "--steps", 6, "--save-every", 1, "--keep", 99]
    done = inside(folder, "train", "text.txt", "--out", "run", *options, "--eval-every", 3)
    assert "embedding 4 (tied), adaptive softmax" in done.err
    return folder / "run"


def test_it_resumes_to_the_same_bytes_and_is_what_it_says(run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "run"
    shutil.copytree(run, stopped)
    for path in stopped.glob("step-0000000[456].safetensors"):
        path.unlink()
    torch.manual_seed(1)
    inside(tmp_path, "train", "--resume", stopped)
    assert (stopped / LAST).read_bytes() == (run / LAST).read_bytes()
    model = inside(tmp_path, "info", run, "--json").json()["model"]
    first, second = model["cutoffs"]
    assert 0 < first < second < model["vocab_size"]
    assert f"adaptive: {first} + {second - first} + " in inside(tmp_path, "info", run).out


def test_another_run_begins_with_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(100, seed=1), encoding="utf-8")
    options = ("text.txt", "--from", run, "--steps", 1, "--batch", 2, "--bptt", 8)
    inside(tmp_path, "train", *options, "--out", "next")
    before, after = (
        taken_apart((each / "best.safetensors").read_bytes()) for each in (run, tmp_path / "next")
    )
    assert after[1]["model"] == before[1]["model"]
    old, new = (
        read(each / "best.safetensors").tensors()[RANKS] for each in (run, tmp_path / "next")
    )
    assert torch.equal(old, new), "the tokens' ranks are those that the rows were learned with"
    message = error(tmp_path, "train", *options, "--softmax", "full", code=2)
    assert "--softmax full cannot be combined with --from" in message


def test_what_does_not_go_together_is_refused_before_any_text_is_read(tmp_path: Path) -> None:
    options = ("--softmax", "adaptive", "--no-tied", "--steps", 1)
    assert "softmax cannot be untied" in error(tmp_path, "train", "nothing.txt", *options, code=2)


def cutoffs(value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], meta: dict[str, Any]) -> None:
        if value is ...:
            del meta["model"]["cutoffs"]
        else:
            meta["model"]["cutoffs"] = value

    return change


def described(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, meta: header[RANKS].update(values)


HOSTILE = {
    "no cutoffs": cutoffs(...),
    "cutoffs none": cutoffs(None),
    "cutoffs empty": cutoffs([]),
    "cutoffs of text": cutoffs(["3", "9"]),
    "cutoffs of floats": cutoffs([3.0, 9.0]),
    "cutoffs that are true": cutoffs([True, 9]),
    "cutoffs nested": cutoffs([[3], [9]]),
    "cutoffs out of order": cutoffs([9, 3]),
    "cutoffs twice": cutoffs([3, 3]),
    "cutoffs below zero": cutoffs([-3, 9]),
    "cutoffs beyond the vocabulary": cutoffs([3, 10**6]),
    "cutoffs beyond measure": cutoffs([3, 10**30]),
    "other cutoffs": cutoffs([1, 2]),
    "far too many cutoffs": cutoffs(list(range(1, 10**5))),
    "untied": lambda header, meta: meta["model"].update(tied=False),
    "no ranks": lambda header, meta: header.pop(RANKS),
    "ranks as floats": described(dtype="F64"),
    "ranks of another shape": described(shape=[1, 1]),
}  # fmt: skip


def use(path: Path) -> None:
    """Load a checkpoint both for evaluation and for training."""
    checkpoint = read(path)
    load_model(checkpoint, device="cpu")
    restore(checkpoint, device=torch.device("cpu"), backend="fused")


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        use(path)
    assert caught.value.exit_code == 3
    assert "checksum" not in str(caught.value.why), "the test signs wrongly"
    return str(caught.value.why)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    refused(tmp_path / "x.safetensors", changed((run / LAST).read_bytes(), HOSTILE[name]))


@pytest.mark.parametrize("ranks", [[0, 0], [1, 1], [-1, 0], [2**62, 0], [2**31, 1]])
def test_ranks_that_are_no_permutation_are_refused(
    ranks: list[int], run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    content = poked((run / LAST).read_bytes(), RANKS, struct.pack("<2q", *ranks))
    assert "permutation" in refused(path, content)
    for command in (("sample", path), ("eval", path, run.parent / "text.txt")):
        assert "permutation" in error(tmp_path, *command, code=3)
