"""All that comes before the first step: text, tokenizer, tokens, plan, model.

From `Settings` in which much is open to `Prepared`, in which all is chosen. What can be refused without
reading text is refused first. Writes nothing but the token cache.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs
import torch

from gru_lm.config import BUDGETS, Settings
from gru_lm.errors import InputError, UsageError, unknown_name
from gru_lm.evaluation.metrics import caveats
from gru_lm.forecast import Forecast, forecast
from gru_lm.machine import fastest_precision, set_up
from gru_lm.model.heads import choose_cutoffs
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.native import build
from gru_lm.model.recurrent import choose_backend
from gru_lm.model.regularize import Regularization
from gru_lm.rehearsal import tokens_per_second
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.dataset import Data, Part, Texts, excerpt, make_tokenizer, split_texts, tokenize
from gru_lm.text.sources import spool_stdin
from gru_lm.text.tokenizer import KINDS, Tokenizer, read_tokenizer
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.loop import TrainState
from gru_lm.training.optimizers import make_optimizer
from gru_lm.training.planner import Plan, plan_model
from gru_lm.training.state import restore_model, restore_tokenizer
from gru_lm.training.text_plan import (
    CHARACTERS_PER_TOKEN,
    plan_characters,
    plan_tokenizer,
    plan_valid_characters,
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that is needed before the first step; `settings` are complete."""

    settings: Settings
    plan: Plan
    data: Data
    device: torch.device
    backend: str
    source: Checkpoint | None  # whose weights to begin with
    forecast: Forecast | None = None  # where a plan was made, not found

    def counts_V(self) -> torch.Tensor:  # noqa: N802
        """How often each piece occurs in the training text."""
        return torch.from_numpy(self.data.counts_V)

    def model_config(self) -> ModelConfig:
        """The model that is planned."""
        plan, vocab_size, counts_V = self.plan, self.data.tokenizer.vocab_size, self.counts_V()
        cutoffs: tuple[int, ...] = ()
        rows = 0
        if plan.softmax == "adaptive":
            cutoffs = choose_cutoffs(counts_V, embed=plan.embed)
        elif (seen := int((counts_V > 0).sum())) + 1 < vocab_size:
            rows = seen + 1  # one for all that do not occur
        return ModelConfig(
            cell=plan.cell,
            vocab_size=vocab_size,
            layers=plan.layers,
            width=plan.width,
            embed=plan.embed,
            tied=plan.tied,
            residual=plan.residual,
            rows=rows,
            cutoffs=cutoffs,
        )

    def state(self) -> TrainState:
        """A fresh training state."""
        plan, counts_V = self.plan, self.counts_V()
        torch.manual_seed(self.settings.seed)
        source = None
        if self.source:
            source = restore_model(
                self.source, self.source.tensors(), device=self.device, backend=self.backend
            )
            source.make_room_for(counts_V)
        model = LanguageModel(
            source.config if source else self.model_config(),
            regularization=_regularization(plan),
            backend=self.backend,
        ).to(self.device)
        if source:
            model.load_state_dict(source.state_dict())
        else:
            model.set_unigram(counts_V)
        optimizer = make_optimizer(
            model,
            plan.optimizer,
            weight_decay=plan.weight_decay,
            beta2=plan.beta2,
            precision=plan.precision,
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        state = TrainState(model, optimizer, scaler, model.initial_state(plan.batch))
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
    device = set_up(chosen)
    if device.type == "cpu" and (why := build.problem()):
        console.note(f"no kernel of our own, PyTorch's instead: {why}")
    tokenizer = _given_tokenizer(chosen, source)
    if "-" in (*chosen.text, chosen.valid, chosen.test):
        spool_stdin(stdin, stop=stop)
    kind = ""

    def at_line_ends(characters: int) -> bool:
        nonlocal kind
        planned = plan_tokenizer(chosen, characters=characters)
        kind = tokenizer.kind if tokenizer else planned
        if kind not in KINDS:
            raise unknown_name("tokenizer", kind, KINDS)
        return kind == "word"

    whole = _read_texts(chosen, stdin=stdin, at_line_ends=at_line_ends, stop=stop)
    asked = chosen
    chosen = plan_part(chosen, whole, kind=kind, device=device)
    texts = _used_texts(whole, chosen, stop=stop)
    if tokenizer is None:
        with console.progress("training the tokenizer", None):
            tokenizer = make_tokenizer(kind, texts.train, vocab_size=chosen.vocab_size, stop=stop)
    data = read_data(texts, tokenizer, stop=stop)

    def prepared(plan: Plan) -> Prepared:
        return Prepared(
            settings=dataclasses.replace(
                chosen,
                tokenizer=tokenizer.kind,
                vocab_size=tokenizer.vocab_size,
                **dataclasses.asdict(plan),
            ),
            plan=plan,
            data=data,
            device=device,
            backend=choose_backend(device),
            source=source,
        )

    speeds: dict[tuple[int, int], float] = {}

    def speed(plan: Plan) -> float:
        found = speeds[plan.layers, plan.width] = tokens_per_second(prepared(plan), stop=stop)
        return found

    with console.progress("trying the speed of this machine", None):
        plan = plan_model(
            chosen,
            tokens=len(data.train.tokens),
            vocab_size=int((data.counts_V > 0).sum()),
            device=device.type,
            precision=fastest_precision(device),
            speed=speed,
            elapsed=time.monotonic() - started,
        )
    ready = prepared(plan)
    _announce(ready.settings, data, whole, asked=asked)
    per_second = speeds.get((plan.layers, plan.width))
    expected = forecast(ready, per_second, elapsed=time.monotonic() - started)
    console.note(f"expected: {expected}")
    return dataclasses.replace(ready, forecast=expected)


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


def _read_texts(
    chosen: Settings, *, stdin: Path, at_line_ends: Callable[[int], bool], stop: Stop
) -> Texts:
    """The texts that the settings name, cut into training and held-out parts."""
    with console.progress("reading", None) as advance:
        texts = split_texts(
            chosen.text,
            valid=chosen.valid,
            test=chosen.test,
            shares=chosen.shares(),
            encoding=chosen.encoding,
            stdin=stdin,
            at_line_ends=at_line_ends,
            stop=stop,
            progress=advance,
            note=console.note,
        )
    if texts.valid.characters == 0:
        raise InputError(
            "no text is held out to validate on", hint="--split 0.9,0.1, or --valid FILE"
        )
    return texts


def read_again(chosen: Settings, *, stdin: Path, is_word: bool, stop: Stop) -> tuple[Texts, Texts]:
    """The texts of a run with complete settings: all of them, and what of them it used."""
    whole = _read_texts(chosen, stdin=stdin, at_line_ends=lambda _: is_word, stop=stop)
    return whole, _used_texts(whole, chosen, stop=stop)


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


def _used_texts(whole: Texts, chosen: Settings, *, stop: Stop) -> Texts:
    """The part of the texts that the settings say is used; all of the test text."""
    return dataclasses.replace(
        whole,
        train=excerpt(whole.train, chosen.characters, stop=stop),
        valid=excerpt(whole.valid, chosen.valid_characters, stop=stop),
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


def _regularization(plan: Plan) -> Regularization:
    return Regularization(**{f.name: getattr(plan, f.name) for f in fields(Regularization)})


def _announce(chosen: Settings, data: Data, whole: Texts, *, asked: Settings) -> None:
    """Print what was chosen, so that nothing is hidden; `asked` are the settings before."""

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
        f"text: {names}: {used(data.texts.train, whole.train)} characters to train on"
        f"{f' (what {budget} can use)' if planned else ''}, "
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
    if against == ["locked"]:  # of dropout, of which there is none
        against.clear()
    console.note(f"regularization: {', '.join(against) or 'none'}")
    console.note(
        f"training: {budget}; {chosen.batch} streams x {chosen.bptt} steps, {chosen.optimizer}, "
        f"lr {chosen.lr:g}, {chosen.schedule}, decay {chosen.weight_decay:g}, β₂ {chosen.beta2:g}, "
        f"{chosen.precision}"
        f"{'' if chosen.average is None else f', average {chosen.average:g}'}"
    )
