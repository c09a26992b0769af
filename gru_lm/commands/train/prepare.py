"""All that comes before the first step: text, tokenizer, tokens, plan, model.

From `Settings` in which much is open to `Prepared`, in which all is chosen. What can be refused without
reading text is refused first. Writes nothing but the token cache.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs
import torch

from gru_lm.commands.load import read_sources, used_texts
from gru_lm.config import BUDGETS, Settings
from gru_lm.errors import InputError, UsageError, unknown_name
from gru_lm.evaluation.metrics import caveats
from gru_lm.model.devices import choose_backend, fastest_precision, set_up
from gru_lm.model.language_model import ModelConfig
from gru_lm.model.native import build
from gru_lm.model.regularize import Regularization
from gru_lm.planning.forecast import Forecast, forecast
from gru_lm.planning.model import DEFAULT_CELL, plan_model
from gru_lm.planning.text import (
    CHARACTERS_PER_TOKEN,
    plan_characters,
    plan_tokenizer,
    plan_valid_characters,
)
from gru_lm.planning.trial import tokens_per_second
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.dataset import Data, Part, Texts, make_tokenizer, tokenize
from gru_lm.text.sources import spool_stdin
from gru_lm.text.tokenizer import KINDS, Tokenizer, read_tokenizer
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.start import fresh_state
from gru_lm.training.state import restore_tokenizer


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that is needed before the first step; `settings` are complete."""

    settings: Settings
    plan: Plan
    data: Data
    device: torch.device
    backend: str
    forecast: Forecast | None = None  # where a plan was made, not found
    read_seconds: float = 0.0  # of the budget, before that

    def counts_V(self) -> torch.Tensor:  # noqa: N802
        """How often each piece occurs in the training text."""
        return torch.from_numpy(self.data.counts_V)

    def model_config(self) -> ModelConfig:
        """The model that is planned."""
        return self.plan.model_config(self.counts_V())

    def state(self, source: Checkpoint | None = None) -> TrainState:
        """A fresh training state; `source` is a checkpoint whose weights to start from."""
        state = fresh_state(
            self.plan,
            self.model_config(),
            self.counts_V(),
            device=self.device,
            backend=self.backend,
            seed=self.settings.seed,
            source=source,
        )
        if self.settings.average is not None:
            state.start_average()
        return state


def prepare(
    chosen: Settings, *, stdin: Path, source: Checkpoint | None, started: float, stop: Stop
) -> Prepared:
    """Read and tokenize the text, and plan what was left open.

    `stdin` is where "-" is kept, `source` a checkpoint whose tokenizer and weights to begin with,
    `started` when the budget began on the monotonic clock.
    """
    device = set_up(
        chosen.device,
        threads=chosen.threads,
        precision=chosen.precision,
        deterministic=chosen.deterministic,
    )
    _check_model(chosen)
    if device.type == "cpu" and (why := build.problem()):
        console.note(f"no kernel of our own, PyTorch's instead: {why}")
    tokenizer = _given_tokenizer(chosen, source)
    if "-" in (*chosen.text, chosen.valid, chosen.test):
        spool_stdin(stdin, stop=stop)
    sources = read_sources(chosen, stdin=stdin, stop=stop)
    characters = sources.training_characters(chosen.shares())
    kind = _kind(chosen, tokenizer, characters=characters)
    whole = sources.split(chosen.shares(), at_line_ends=kind == "word", stop=stop)
    asked = chosen
    chosen = plan_part(chosen, whole, kind=kind, device=device)
    texts = used_texts(whole, chosen, stop=stop)
    if tokenizer is None:
        with console.progress("training the tokenizer", None):
            tokenizer = make_tokenizer(kind, texts.train, vocab_size=chosen.vocab_size, stop=stop)
    data = read_data(texts, tokenizer, stop=stop)
    prepared = plan_for(chosen, data, device=device, source=source, started=started, stop=stop)
    _announce(prepared.settings, data, whole, asked=asked)
    console.note(f"forecast: {prepared.forecast}")
    return prepared


@dataclass
class _Trials:
    """How fast plans train on this machine, each tried once."""

    chosen: Settings
    data: Data
    device: torch.device
    source: Checkpoint | None
    stop: Stop
    speeds: dict[tuple[int, int], float] = field(default_factory=dict)  # by layers and width

    def prepared(self, plan: Plan) -> Prepared:
        """All that is needed to train as `plan` says."""
        tokenizer = self.data.tokenizer
        return Prepared(
            settings=dataclasses.replace(
                self.chosen,
                tokenizer=tokenizer.kind,
                vocab_size=tokenizer.vocab_size,
                **dataclasses.asdict(plan),
            ),
            plan=plan,
            data=self.data,
            device=self.device,
            backend=choose_backend(self.device),
        )

    def __call__(self, plan: Plan) -> float:
        """Training tokens a second."""
        found = self.speeds[plan.layers, plan.width] = tokens_per_second(
            self.prepared(plan).state(self.source),
            plan,
            self.data.train.tokens,
            clip=self.chosen.clip,
            seed=self.chosen.seed,
            stop=self.stop,
        )
        return found


def plan_for(
    chosen: Settings,
    data: Data,
    *,
    device: torch.device,
    source: Checkpoint | None,
    started: float,
    stop: Stop,
) -> Prepared:
    """The plan for `data`, its speed measured, and what it comes to; else as `prepare`."""
    read_seconds = time.monotonic() - started
    trials = _Trials(chosen, data, device, source, stop)
    with console.progress("trying the speed of this machine", None):
        plan = plan_model(
            chosen,
            tokens=len(data.train.tokens),
            vocab_size=int((data.counts_V > 0).sum()),
            device=device.type,
            precision=fastest_precision(device),
            speed=trials,
            elapsed=read_seconds,
        )
    prepared = trials.prepared(plan)
    expected = forecast(
        prepared.settings,
        plan,
        prepared.model_config(),
        tokens=len(data.train.tokens),
        per_second=trials.speeds.get((plan.layers, plan.width)),
        elapsed=time.monotonic() - started,
    )
    return dataclasses.replace(prepared, forecast=expected, read_seconds=read_seconds)


def _check_model(chosen: Settings) -> None:
    """Raise UsageError for names and limits of the model that need no text, before any is read."""
    ModelConfig(
        cell=chosen.cell or DEFAULT_CELL,
        vocab_size=2,
        layers=chosen.layers or 1,
        width=chosen.width or 1,
        embed=chosen.embed or 1,
        tied=chosen.tied is not False,
        cutoffs=(1,) if chosen.softmax == "adaptive" else (),
    )


def _kind(chosen: Settings, tokenizer: Tokenizer | None, *, characters: int) -> str:
    """The kind of the tokenizer, given or planned."""
    planned = plan_tokenizer(chosen, characters=characters)
    kind = tokenizer.kind if tokenizer else planned
    if kind not in KINDS:
        raise unknown_name("tokenizer", kind, KINDS)
    return kind


def _given_tokenizer(chosen: Settings, source: Checkpoint | None) -> Tokenizer | None:
    """The tokenizer that need not be trained, if there is one."""
    if source:
        return restore_tokenizer(source, source.tensors())
    if not (chosen.tokenizer or "").endswith(".model"):
        return None
    if chosen.vocab_size:
        raise UsageError(
            f"--vocab-size does not go with {chosen.tokenizer}, which has its own",
            hint="leave it out",
        )
    return read_tokenizer(Path(chosen.tokenizer or ""))


def plan_part(chosen: Settings, whole: Texts, *, kind: str, device: torch.device) -> Settings:
    """Settings that say how much of the text is used, where that is not all."""
    speed: dict[str, Any] = {
        "device": device.type,
        "characters_per_token": CHARACTERS_PER_TOKEN[kind],
    }
    return dataclasses.replace(
        chosen,
        characters=plan_characters(chosen, characters=whole.train.characters, **speed),
        valid_characters=plan_valid_characters(chosen, characters=whole.valid.characters, **speed),
    )


def read_data(texts: Texts, tokenizer: Tokenizer, *, stop: Stop) -> Data:
    """The tokens of all parts of the text."""
    cache = platformdirs.user_cache_path("gru-lm") / "tokens"
    characters = sum(part.characters for part in (texts.train, texts.valid, texts.test))
    with console.progress("tokenizing", characters) as advance:
        data = tokenize(
            texts,
            tokenizer,
            cache=cache,
            workers=torch.get_num_threads(),
            stop=stop,
            progress=advance,
        )
    if not len(data.valid.tokens):
        raise InputError("the held-out text holds no token", hint="--valid FILE with some text")
    return data


def _announce(chosen: Settings, data: Data, whole: Texts, *, asked: Settings) -> None:
    """Print the plan; `asked` are the settings before planning."""

    def used(part: Part, of: Part) -> str:
        less = part.characters < of.characters
        return f"{part.characters:,} of {of.characters:,}" if less else f"{part.characters:,}"

    unknown_rate = data.valid.unknown / len(data.valid.tokens)
    for caveat in caveats(data.tokenizer, unknown_rate, of="the held-out text"):
        console.warn(caveat)
    names = ", ".join(chosen.text[:3])
    if len(chosen.text) > 3:
        names += f" and {len(chosen.text) - 3:,} more"
    budget = ", ".join(
        f"{amount:{',' if isinstance(amount, int) else 'g'}} "
        f"{name if amount != 1 else name.removesuffix('s')}"
        for name in BUDGETS
        if (amount := getattr(chosen, name))
    )
    planned = chosen.characters != asked.characters
    console.note(
        f"text: {names}: {used(data.texts.train, whole.train)} characters for training"
        f"{f' (as much as {budget} can use)' if planned else ''}, "
        f"{used(data.texts.valid, whole.valid)} held out"
    )
    console.note(
        f"tokenizer: {chosen.tokenizer}, {data.tokenizer.vocab_size:,} pieces; "
        f"{len(data.train.tokens):,} training tokens"
    )
    console.note(
        f"model: {chosen.cell}, {chosen.layers} x {chosen.width}, embedding {chosen.embed}"
        f"{' (tied)' if chosen.tied else ''}, {chosen.softmax} softmax"
        f"{', residual' if chosen.residual else ''}"
    )
    against = [
        field.name.replace("_", " ") + (f" {value:g}" if value is not True else "")
        for field in fields(Regularization)
        if (value := getattr(chosen, field.name))
    ]
    if against == ["locked"]:  # without dropout it has no effect
        against.clear()
    console.note(f"regularization: {', '.join(against) or 'none'}")
    console.note(
        f"training: {budget}; {chosen.batch} streams x {chosen.bptt} steps, {chosen.optimizer}, "
        f"lr {chosen.lr:g}, {chosen.schedule} schedule, weight decay {chosen.weight_decay:g}, "
        f"β₂ {chosen.beta2:g}, {chosen.precision}"
        f"{'' if chosen.average is None else f', weights averaged ({chosen.average:g})'}"
    )
