"""Print the plan of a training run to stderr."""

from __future__ import annotations

from dataclasses import fields

from gru_lm.config import BUDGETS, Settings
from gru_lm.evaluation.metrics import caveats
from gru_lm.model.regularize import Regularization
from gru_lm.reporting import console
from gru_lm.text.dataset import Data
from gru_lm.text.parts import Part, Texts


def announce(config: Settings, data: Data, whole: Texts, *, asked: Settings) -> None:
    """Print the plan. `asked`: the settings before planning; `whole`: the texts in full."""

    def used(part: Part, of: Part) -> str:
        is_part = part.characters < of.characters
        return f"{part.characters:,} of {of.characters:,}" if is_part else f"{part.characters:,}"

    unknown_rate = data.valid.unknown / len(data.valid.tokens)
    for caveat in caveats(
        data.tokenizer,
        unknown_rate,
        of="the held-out text",
        several=data.texts.valid.is_several(),
    ):
        console.warn(caveat)
    names = ", ".join(config.text[:3])
    if len(config.text) > 3:
        names += f" and {len(config.text) - 3:,} more"
    budget = ", ".join(
        f"{amount:{',' if isinstance(amount, int) else 'g'}} "
        f"{name if amount != 1 else name.removesuffix('s')}"
        for name in BUDGETS
        if (amount := getattr(config, name))
    )
    planned = config.characters != asked.characters
    console.note(
        f"text: {names}: {used(data.texts.train, whole.train)} characters for training"
        f"{f' (as much as {budget} can use)' if planned else ''}, "
        f"{used(data.texts.valid, whole.valid)} held out"
    )
    sampled, kept = config.tokenizer_characters, len(data.tokenizer.whole)
    occurring = int((data.counts_V[len(data.counts_V) - kept :] > 0).sum())
    console.note(
        f"tokenizer: {data.tokenizer.kind}, {data.tokenizer.vocab_size:,} pieces"
        f"{f' ({kept:,} kept whole, of which {occurring:,} occur)' if kept else ''}"
        f"{f' (trained on {sampled:,} characters)' if sampled else ''}; "
        f"{len(data.train.tokens):,} training tokens"
    )
    console.note(
        f"model: {config.cell}, {config.layers} x {config.width}, embedding {config.embed}"
        f"{' (tied)' if config.tied else ''}, {config.softmax} softmax"
        f"{', residual' if config.residual else ''}"
    )
    regularization = [
        field.name.replace("_", " ") + (f" {value:g}" if value is not True else "")
        for field in fields(Regularization)
        if (value := getattr(config, field.name))
    ]
    if regularization == ["locked"]:  # without dropout it has no effect
        regularization.clear()
    console.note(f"regularization: {', '.join(regularization) or 'none'}")
    console.note(
        f"training: {budget}; {config.batch} streams x {config.bptt} steps, {config.optimizer}, "
        f"lr {config.lr:g}, {config.schedule} schedule, weight decay {config.weight_decay:g}, "
        f"β₂ {config.beta2:g}, {config.precision}"
        f"{'' if config.average is None else f', weights averaged ({config.average:g})'}"
    )
