"""Checkpoints that gru-lm 0.1 wrote before its modules moved: evaluated, sampled, resumed.

`tests/fixtures/0.1` holds the best checkpoints of runs of six steps (`char`, `bpe` and `word`, two
documents each), and a run directory stopped after step 3.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gru_lm import layout
from tests.inside import inside

FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1"
# Tokens and nats of other.txt as scored by the version that wrote the checkpoints.
SCORED = {
    "char": (459, 1296.8631864786148),
    "bpe": (348, 1111.1477680206299),
    "word": (111, 288.26485300064087),
}


@pytest.mark.parametrize("kind", SCORED)
def test_the_figures_of_an_old_checkpoint_stay(kind: str) -> None:
    args = ("eval", f"{kind}.safetensors", "other.txt", "--threads", 1, "--json")
    figures = inside(FIXTURES, *args).json()
    tokens, nats = SCORED[kind]
    assert figures["tokens"] == tokens
    assert figures["nats"] == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("kind", SCORED)
def test_an_old_checkpoint_samples(kind: str) -> None:
    args = ("sample", f"{kind}.safetensors", "--prompt", "the cat", "--length", 5, "--json")
    assert inside(FIXTURES, *args).json()["text"]


def test_an_old_run_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / "run", run)
    config = run / layout.CONFIG
    config.write_text(config.read_text().replace("TEXTS", str(FIXTURES)))
    result = inside(tmp_path, "train", "--resume", "run", "--json").json()
    assert result["steps"] == 6
    assert (run / layout.BEST).exists()
