"""Lists of records, and small runs trained on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import nll_loss

from gru_lm.layout import CONFIG, RECORDS, step_path
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.record_keys import digest_of, keys_of, write_keys
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer
from gru_lm.training.loop import TrainState
from gru_lm.training.optimizers import make_optimizer
from gru_lm.training.state import capture, environment


def names(count: int, seed: int = 0) -> list[str]:
    """Names of one to three syllables; frequent ones occur several times."""
    rng = random.Random(seed)
    syllables = ["ma", "ri", "lo", "an", "el", "jo", "na", "te", "so", "bé", "ku", "is"]
    return ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3)))) for _ in range(count)]


def fitted(
    records: Sequence[str],
    *,
    kind: str = "char",
    vocab_size: int | None = None,
    cell: str = "gru",
    width: int = 24,
    steps: int = 80,
    shared: bool = False,
) -> tuple[LanguageModel, Tokenizer]:
    """A small model of records, each from the zero state to its end, and its tokenizer.

    `shared`: tokens that do not occur share a row, as in models that `train` makes.
    """
    torch.manual_seed(0)
    text = "".join(record + "\n" for record in records)
    tokenizer = train_tokenizer(kind, lambda: [text], vocab_size=vocab_size)
    V = tokenizer.vocab_size
    tokens = [[*tokenizer.encode_text(record), tokenizer.end_id] for record in records]
    flat = torch.tensor([token for each in tokens for token in each])
    rows = len(flat.unique()) + 1 if shared else 0
    config = ModelConfig(cell=cell, vocab_size=V, layers=1, width=width, embed=8, rows=rows)
    model = LanguageModel(config, backend="native")
    model.set_unigram(torch.bincount(flat, minlength=V))
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    rng = random.Random(0)
    for _ in range(steps):
        batch = rng.choices(tokens, k=32)
        T = max(map(len, batch))
        inputs_BT = torch.full((len(batch), T), tokenizer.newline_id)
        targets_BT = torch.full((len(batch), T), -1)
        for row, each in enumerate(batch):
            inputs_BT[row, 1 : len(each)] = torch.tensor(each[:-1])
            targets_BT[row, : len(each)] = torch.tensor(each)
        log_probs_BTV, _ = model.log_probs(inputs_BT, model.initial_state(len(batch)))
        loss = nll_loss(log_probs_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return model.eval(), tokenizer


def list_run(
    folder: Path, records: Sequence[str], *, unit: str = "line", **options: object
) -> Path:
    """A run directory with a model fitted to records of this unit, and with their keys."""
    model, tokenizer = fitted(records, **options)  # type: ignore[arg-type]
    state = TrainState(
        model,
        make_optimizer(model, "adamw", weight_decay=0.0, beta2=0.99, precision="float32"),
        torch.amp.GradScaler("cpu", enabled=False),
        model.initial_state(1),
        step=1,
    )
    keys_M = np.unique(keys_of(records))
    form = {"field": "text"} if unit == "row" else {"records": unit}
    data = capture(
        state,
        tokenizer,
        config={**form, "optimizer": "adamw"},
        data={"train": "", "valid": "", "test": "", "records": digest_of(keys_M)},
        held={"document_ends": True, "carriage_returns": False},
        lines={},
        environment=environment(torch.device("cpu"), "native"),
    )
    folder.mkdir(parents=True)
    step_path(folder, 1).write_bytes(data)
    (folder / CONFIG).write_text("", encoding="utf-8")
    write_keys(folder / RECORDS, keys_M)
    return folder
