"""Exact resume of runs on lists: stopped at any step, also across an epoch's end, and resumed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gru_lm.commands.train.run import resume
from gru_lm.text.record_keys import keys_of
from gru_lm.training.checkpoint import read
from tests.conftest import Program
from tests.faults.test_resume import KEEP_ALL, OPTIONS, STEPS, final, stopped_at
from tests.inside import inside

COUNT = 60
FORMS = {
    "line": ("list.txt", ["--records", "line"]),
    "paragraph": ("list.txt", ["--records", "paragraph"]),
    "field": ("list.csv", ["--field", "name", "--group", "family"]),
}
CONFIGS = ("config.toml", "metrics.jsonl", "samples.txt", "records.u64")


def records() -> list[str]:
    rng = random.Random(0)
    return [
        "".join(rng.choices("abcdefé ", k=rng.randint(2, 9))).strip() + "." for _ in range(COUNT)
    ]


def written(folder: Path, form: str) -> list[str]:
    """Write a list of this form; its records."""
    texts = records()
    if form == "line":
        content = "".join(f"{text}\n" for text in texts)
    elif form == "paragraph":
        texts = [f"{text}\n{text[::-1]}" for text in texts]
        content = "\n\n".join(texts)
    else:
        texts = [
            f'{text}\n"{number}"' if number % 9 == 0 else text for number, text in enumerate(texts)
        ]
        cells = ['"' + text.replace('"', '""') + '"' for text in texts]
        rows = [f"{number % 17},{cell}\n" for number, cell in enumerate(cells)]
        content = "family,name\n" + "".join(rows)
    (folder / FORMS[form][0]).write_text(content, encoding="utf-8")
    return texts


@pytest.fixture(scope="module", params=FORMS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, and whose every step is kept, by its form."""
    form: str = request.param
    folder = tmp_path_factory.mktemp(form)
    texts = written(folder, form)
    name, options = FORMS[form]
    inside(folder, "train", name, *options, "--out", "run", *OPTIONS, *KEEP_ALL)
    last = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens"] > 1.5 * sum(len(text) + 1 for text in texts), "more than one epoch"
    return folder / "run"


def resumed_at(whole: Path, step: int, run: Path) -> None:
    """A copy of the run as it was right after `step`, resumed in this process."""
    run.mkdir()
    for name in CONFIGS:
        if (whole / name).exists():
            shutil.copy(whole / name, run)
    checkpoint = f"step-{step:08d}.safetensors"
    shutil.copy(whole / checkpoint, run)
    best = read(run / checkpoint).meta["best_step"]
    if best >= 0:
        shutil.copy(whole / f"step-{best:08d}.safetensors", run / "best.safetensors")
    torch.manual_seed(random.randrange(2**31))
    np.random.seed(step)
    random.seed(step + 1)
    assert resume(run, threads=1)["steps"] == STEPS


def test_some_steps(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru_lm.commands.train.run.loss_png", lambda *_: b"")
    for step in (0, 1, 14, 29, 47):
        resumed_at(whole, step, tmp_path / f"run-{step}")
        assert final(tmp_path / f"run-{step}") == final(whole), f"resumed after step {step}"


@pytest.mark.slow
def test_every_step(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gru_lm.commands.train.run.loss_png", lambda *_: b"")
    expected = final(whole)
    for step in range(STEPS + 1):
        resumed_at(whole, step, tmp_path / f"run-{step}")
        assert final(tmp_path / f"run-{step}") == expected, f"resumed after step {step}"


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 17, 33])
def test_in_fresh_processes(whole: Path, step: int) -> None:
    form = whole.parent.name.rstrip("0123456789")
    name, options = FORMS[form]
    run = whole.parent / f"stopped-{step}"
    text = whole.parent / name
    stopped_at(step, "train", text, *options, "--out", run, *OPTIONS, *KEEP_ALL)
    Program(whole.parent)("train", "--resume", run)
    assert final(run) == final(whole)


def test_the_keys_of_all_records_are_kept(whole: Path) -> None:
    form = whole.parent.name.rstrip("0123456789")
    texts = written(whole.parent, form)
    keys = np.fromfile(whole / "records.u64", "<u8")
    assert keys.tolist() == sorted(set(keys_of(texts).tolist()))


def test_keys_that_are_lost_are_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gru_lm.commands.train.run.loss_png", lambda *_: b"")
    before = (whole / "records.u64").read_bytes()
    keys = tmp_path / "run/records.u64"
    shutil.copytree(whole, tmp_path / "run")
    for damage in (None, b"", b"\1\2\3", before[8:], before[::-1]):
        keys.unlink()
        if damage is not None:
            keys.write_bytes(damage)
        assert resume(tmp_path / "run", threads=1)["steps"] == STEPS
        assert keys.read_bytes() == before


def test_a_list_that_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    form = whole.parent.name.rstrip("0123456789")
    written(tmp_path, form)
    text = tmp_path / FORMS[form][0]
    shutil.copytree(whole, tmp_path / "run")
    inside(tmp_path, "train", "--resume", "run", text)
    content = text.read_bytes()
    text.write_bytes(content.replace(b".", b"!", 1))
    done = inside(tmp_path, "train", "--resume", "run", code=3)
    assert "has changed since the run started" in done.err
    text.unlink()
    done = inside(tmp_path, "train", "--resume", "run", code=3)
    assert "no such file" in done.err
    assert "if the text was moved: gru-lm train --resume run TEXT" in done.err
    text.write_bytes(content)
    inside(tmp_path, "train", "--resume", "run")
