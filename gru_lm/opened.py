"""A run opened for use: its model and tokenizer, ready to score or to sample; and its own text.

Everything a checkpoint holds is checked before torch takes any memory for it. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gru_lm.errors import InputError
from gru_lm.model.language_model import LanguageModel
from gru_lm.model.recurrent import choose_backend, choose_device
from gru_lm.signals import Stop
from gru_lm.text.dataset import Part
from gru_lm.text.tokenizer import Tokenizer
from gru_lm.training import runs
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.state import restore_model, restore_tokenizer


@dataclass(frozen=True)
class Opened:
    """A model in eval mode on its device, and what came with it."""

    model: LanguageModel
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    device: torch.device


def open_model(
    checkpoint: Checkpoint, *, device: str = "auto", threads: int | None = None
) -> Opened:
    """The model and tokenizer in `checkpoint`. Raises what cannot be used: file or device."""
    where = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    tensors = checkpoint.tensors()
    tokenizer = restore_tokenizer(checkpoint, tensors)
    backend = choose_backend(where)
    model = restore_model(checkpoint, tensors, device=where, backend=backend).eval()
    return Opened(model, tokenizer, checkpoint, where)


def own_text(opened: Opened, part: str, *, stop: Stop) -> Part:
    """The "train" or "valid" text of the run of a checkpoint, of which it may have used a part.

    Raises InputError where it is gone or has changed.
    """
    from gru_lm.prepare import read_again

    directory = opened.checkpoint.path.parent
    hint = f"gru-lm eval {opened.checkpoint.path} FILE"
    try:
        chosen = runs.read_settings(directory)
        is_word = opened.tokenizer.kind == "word"
        stdin = directory / "text.txt"
        texts, used = read_again(chosen, stdin=stdin, is_word=is_word, stop=stop)
    except InputError as error:
        error.hint = hint
        raise
    if used.fingerprints()[part] != opened.checkpoint.meta["data"][part]:
        what = {"valid": "held-out", "train": "training"}[part]
        raise InputError(
            f"the {what} text of {directory} has changed since its training", hint=hint
        )
    return texts.valid if part == "valid" else texts.train
