"""The recipes for published settings run, at a reduced size and length."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from gru_lm.config_layers import read_toml, settings
from gru_lm.training.checkpoint import read
from tests.conftest import words
from tests.inside import inside

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
SMALL = "--steps 2 --width 16 --embed 8 --batch 2 --bptt 8 --eval-every 1 --threads 1".split()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_and_says_what_was_not_measured(path: Path, tmp_path: Path) -> None:
    given = read_toml(path)
    whole = asdict(settings(given))
    assert {name: whole[name] for name in given} == given
    for name, seed in (("train.txt", 0), ("valid.txt", 1)):
        (tmp_path / name).write_text(words(80, seed=seed), encoding="utf-8")
    files = ("train.txt", "--valid", "valid.txt", "--out", "run")
    result = inside(tmp_path, "train", *files, "--config", path, *SMALL, "--json").json()
    assert result["steps"] == 2
    meta = read(tmp_path / "run/step-00000002.safetensors").meta
    assert meta["regularization"]["weight_drop"] == given["weight_drop"] > 0
    assert meta["regularization"]["output_dropout"] == given["output_dropout"]
    assert meta["config"]["optimizer"] == given["optimizer"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines if "lr" in json.loads(line)]
    assert rates[0] == given["lr"]
    page = (path.parents[1] / "docs/recipes.md").read_text(encoding="utf-8")
    for text in (page, path.read_text(encoding="utf-8")):
        assert "not measured here" in text.lower()
    assert path.name in page


def test_there_are_recipes() -> None:
    assert len(RECIPES) == 3
