"""Rows 5, 9 and 11: overhead of training and evaluation over the bare model, and start-up time."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Row
from benchmarks.timing import Timings
from gru_lm.evaluation.scoring import validate
from gru_lm.evaluation.texts import FASTEST, measure
from gru_lm.model.devices import choose_backend
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.batches import Batches
from gru_lm.text.sources import open_documents
from gru_lm.text.tokenizer import train_tokenizer
from gru_lm.training.loop import TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule, make_optimizer

BATCH, STEPS = 24, 48
WIDTH = 512
STARTS = 5


def model_of(width: int, vocab_size: int) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", vocab_size=vocab_size, layers=1, width=width, embed=128)
    return LanguageModel(config, backend=choose_backend(torch.device("cpu")))


def training(model: LanguageModel, tokens: np.ndarray) -> Iterator[object]:
    """Training steps of the real training loop, without end."""
    return train_steps(
        TrainState(
            model,
            make_optimizer(model, "adamw", weight_decay=0.1),
            torch.amp.GradScaler("cpu", enabled=False),
            model.initial_state(BATCH),
        ),
        Batches(tokens=tokens, batch=BATCH, bptt=STEPS, seed=0),
        budget=Budget(steps=10**9, seconds=None),
        schedule=Schedule(kind="constant", lr=1e-6, warmup=0),
        clip=1.0,
        seed=0,
        precision="float32",
        clock=lambda: 0.0,
    )


def forward(model: LanguageModel, tokens_BN: Tensor, chunk: int) -> None:
    """Forward pass of the model over long streams, in chunks."""
    with torch.inference_mode():
        state_LSBH = model.initial_state(len(tokens_BN))
        for piece_BT in tokens_BN.split(chunk, dim=1):
            _, state_LSBH = model.target_log_probs(piece_BT, piece_BT, state_LSBH)


def rows(text: Path) -> Iterator[Row]:
    documents = open_documents([str(text)])
    tokenizer = train_tokenizer("char", documents[0].pieces, vocab_size=None)
    tokens = np.array(
        [i for ids in tokenizer.encode(documents[0].pieces()) for i in ids], np.uint16
    )
    V, N = tokenizer.vocab_size, len(tokens)
    model = model_of(WIDTH, V)

    steps = training(model, tokens)
    x_BT = torch.from_numpy(tokens[: BATCH * STEPS].astype(np.int64)).view(BATCH, STEPS)

    def bare() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(x_BT, x_BT, model.initial_state(BATCH))[0].backward()

    timings = Timings({"bare": bare, "step": lambda: next(steps)})
    cost = timings.ratio("bare", "step")
    rate = {name: BATCH * STEPS / timings.seconds(name) for name in ("bare", "step")}
    label = f"training step over bare forward and backward, H={WIDTH}"
    yield Row("5", label, cost.median, bar=1.10, most=True, details={"tokens_per_second": rate})

    _, chunk = FASTEST["stream"]
    wide_BN = torch.from_numpy(tokens.astype(np.int64))[: N // 64 * 64].view(64, -1)
    long_BN = torch.from_numpy(tokens.astype(np.int64))[None]
    timings = Timings(
        {
            "stream": lambda: measure(model, tokenizer, documents),
            "bare stream": lambda: forward(model, long_BN, chunk),
            "columns": lambda: validate(model, tokens, newline_id=tokenizer.newline_id),
            "bare columns": lambda: forward(model, wide_BN, 128),
        },
        rounds=5,
    )
    for name, bar in (("stream", 0.9), ("columns", None)):
        ratio = timings.ratio(name, f"bare {name}")
        rate = {each: N / timings.seconds(each) for each in (name, f"bare {name}")}
        label = f"eval ({name}) over the bare forward, H={WIDTH}"
        yield Row("9", label, ratio.median, bar=bar, details={"tokens_per_second": rate})


def start_up(text: Path) -> Iterator[Row]:
    """Wall times of processes, without the first run of each."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train = [python, "-c", FIRST_STEP, str(text), str(run)]
        commands = {
            "help": [python, "-m", "gru_lm", "--help"],
            "import": [python, "-c", "import torch"],
            "step": train,
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(STARTS + 1):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
                shutil.rmtree(run, ignore_errors=True)
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    yield Row("11", "gru-lm --help, seconds", median["help"], bar=0.3, most=True)
    excess = median["step"] - median["import"]
    label = "train to its first step, beyond importing torch, seconds"
    yield Row("11", label, excess, bar=3.0, most=True, details=median)


# `gru-lm train` in a process that exits at the first step.
FIRST_STEP = """
import os, sys
import gru_lm.training.loop as loop
loop.StepReport = lambda **_: os._exit(0)
from gru_lm.cli import main
text, run = sys.argv[1:]
sys.argv = ["gru-lm", "train", text, "--tokenizer", "char", "--steps", "1", "--out", run]
main()
sys.exit("no step was taken")
"""
