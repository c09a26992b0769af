"""Prepare a run before the first step: text, tokenizer, tokens, plan, model.

Turns `Settings`, most of which may be unset, into `Prepared`. Checks that need no text come first.
Writes only the token cache and, for standard input, the given file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gru_lm import caches
from gru_lm.commands.load import used_texts
from gru_lm.commands.train.announce import announce
from gru_lm.commands.train.clock import LEARNING, READING, START, TOKENIZING, TRYING, Spent
from gru_lm.commands.train.lists import describe, read_texts
from gru_lm.commands.train.tokenizer import (
    checked_kind,
    given_tokenizer,
    naming,
    train_tokenizer,
    with_pieces,
)
from gru_lm.config import Settings
from gru_lm.errors import EnvironmentProblem, InputError
from gru_lm.evaluation.spelling import count_spacing
from gru_lm.model.devices import choose_backend, fastest_precision, set_up
from gru_lm.model.language_model import ModelConfig
from gru_lm.model.native import build
from gru_lm.planning.forecast import Forecast, forecast
from gru_lm.planning.model import DEFAULT_CELL, plan_model
from gru_lm.planning.text import (
    CHARACTERS_PER_TOKEN,
    plan_characters,
    plan_tokenizer,
    plan_valid_characters,
    test_seconds,
)
from gru_lm.planning.trial import tokens_per_second
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.dataset import Data, tokenize
from gru_lm.text.documents import FileDocument
from gru_lm.text.overlap import Sketch
from gru_lm.text.parts import ListSources, Part, Texts, excerpt
from gru_lm.text.sources import open_documents, spool_stdin
from gru_lm.text.tokenizer import Tokenizer
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.start import fresh_state
from gru_lm.training.state import lines, seen

SPACING_CHARACTERS = 1 << 20  # of the training text, for the statistics of white space


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything needed for the first step; `settings` are complete."""

    settings: Settings
    plan: Plan
    data: Data
    device: torch.device
    backend: str
    spent: Spent  # the time so far
    forecast: Forecast | None = None  # None for a resumed run
    read_seconds: float = 0.0  # of the budget, used before planning

    def counts_V(self) -> torch.Tensor:  # noqa: N802
        """How often each piece occurs in the training text."""
        return torch.from_numpy(self.data.counts_V)

    def model_config(self) -> ModelConfig:
        """The config of the planned model."""
        return self.plan.model_config(self.counts_V())

    def state(self, source: Checkpoint | None = None) -> TrainState:
        """A new training state, initialised from the weights of `source` if given."""
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
    config: Settings,
    *,
    stdin: Path,
    source: Checkpoint | None,
    started: float,
    with_test: bool = False,
    stop: Stop,
) -> Prepared:
    """Read and tokenize the text, and plan the unset settings.

    `stdin`: file for the contents of "-". `source`: checkpoint to start from, with its tokenizer and
    weights. `started`: start of the budget (monotonic clock). `with_test`: the budget includes measuring
    the test text, which is skipped if it would take too much. Raises UsageError, InputError or
    EnvironmentProblem.
    """
    spent = Spent(started)
    device = set_up(
        config.device,
        threads=config.threads,
        precision=config.precision,
        deterministic=config.deterministic,
        stop=stop,
    )
    _check_model(config)
    if device.type == "cpu" and (why := build.problem()):
        console.note(f"using PyTorch's kernels instead of the native one: {why}")
    config = with_pieces(config)
    tokenizer = given_tokenizer(config, source)
    if config.reads_stdin():
        spool_stdin(stdin, stop=stop)
    spent.on(START)
    if with_test and config.test:
        config = _affordable(config, stdin=stdin, stop=stop)
    config, sources = read_texts(config, stdin=stdin, stop=stop)
    if returns := sources.carriage_returns():
        console.note(
            f"the text has {returns:,} carriage returns (CR or CR LF line ends), which are kept; to "
            "train without them, remove them first: tr -d '\\r'"
        )
    characters = sources.training_characters(config.shares())
    records = len(sources.text.keys_N) if isinstance(sources, ListSources) else None
    planned = plan_tokenizer(config, characters=characters, records=records)
    kind = tokenizer.kind if tokenizer else checked_kind(planned)
    whole = sources.split(config.shares(), at_line_ends=kind == "word", stop=stop)
    describe(whole, held_out=float(config.shares()[1]))
    asked = config
    config = plan_part(config, whole, kind=kind, device=device)
    texts = used_texts(whole, config, stop=stop)
    spent.on(READING)
    if tokenizer is None:
        tokenizer = train_tokenizer(config, kind, texts.train, stop=stop)
    sample = excerpt(texts.train, SPACING_CHARACTERS, stop=stop)
    tokenizer = tokenizer.with_spacing(count_spacing(tokenizer, sample.documents))
    held, known = held_by(texts.train), {}
    if source:
        before = seen(source, source.tensors(), tokenizer)
        held = {what: found or before[what] for what, found in held.items()}
        known = {n: each for n, each in lines(source, source.tensors()).items() if n == "train"}
    tokenizer.ends_documents = held["document_ends"]
    spent.on(LEARNING)
    data = read_data(
        texts,
        tokenizer,
        seen=held,
        lines=known,
        within=config if with_test else None,
        stop=stop,
    )
    spent.on(TOKENIZING)
    prepared = plan_for(config, data, device=device, source=source, spent=spent, stop=stop)
    spent.on(TRYING)
    announce(prepared.settings, data, whole, asked=asked)
    console.note(f"forecast: {prepared.forecast}")
    return prepared


@dataclass
class _Trials:
    """Training speed of plans on this machine, each measured once."""

    config: Settings
    data: Data
    device: torch.device
    source: Checkpoint | None
    spent: Spent
    stop: Stop
    speeds: dict[tuple[int, int], float] = field(default_factory=dict)  # by layers and width

    def prepared(self, plan: Plan) -> Prepared:
        """Everything needed to train with `plan`."""
        return Prepared(
            settings=dataclasses.replace(
                naming(self.data.tokenizer, self.config), **dataclasses.asdict(plan)
            ),
            plan=plan,
            data=self.data,
            device=self.device,
            backend=choose_backend(self.device),
            spent=self.spent,
        )

    def __call__(self, plan: Plan) -> float:
        """Training tokens per second."""
        speed = self.speeds[plan.layers, plan.width] = tokens_per_second(
            self.prepared(plan).state(self.source),
            plan,
            self.data.training,
            clip=self.config.clip,
            seed=self.config.seed,
            stop=self.stop,
        )
        return speed


def plan_for(
    config: Settings,
    data: Data,
    *,
    device: torch.device,
    source: Checkpoint | None,
    spent: Spent,
    stop: Stop,
) -> Prepared:
    """Plan for `data`, with measured speed and a forecast; arguments and errors as in `prepare`."""
    read_seconds = time.monotonic() - spent.started
    trials = _Trials(config, data, device, source, spent, stop)
    with console.progress("measuring the speed of this machine", None):
        plan = plan_model(
            config,
            tokens=len(data.train.tokens),
            vocab_size=int((data.counts_V > 0).sum()),
            device=device.type,
            is_list=data.is_list,
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
        elapsed=time.monotonic() - spent.started,
    )
    return dataclasses.replace(prepared, forecast=expected, read_seconds=read_seconds)


def _check_model(config: Settings) -> None:
    """Raise UsageError for invalid model settings, as far as they can be checked without text."""
    ModelConfig(
        cell=config.cell or DEFAULT_CELL,
        vocab_size=2,
        layers=config.layers or 1,
        width=config.width or 1,
        embed=config.embed or 1,
        tied=config.tied is not False,
        cutoffs=(1,) if config.softmax == "adaptive" else (),
    )


def plan_part(config: Settings, whole: Texts, *, kind: str, device: torch.device) -> Settings:
    """The settings with the number of characters used, where that is not the whole text."""
    speed: dict[str, Any] = {
        "device": device.type,
        "characters_per_token": CHARACTERS_PER_TOKEN[kind],
    }
    return dataclasses.replace(
        config,
        characters=plan_characters(config, characters=whole.train.characters, **speed),
        valid_characters=plan_valid_characters(config, characters=whole.valid.characters, **speed),
    )


def _affordable(config: Settings, *, stdin: Path, stop: Stop) -> Settings:
    """The settings, without a test text that would take too much of the budget."""
    assert config.test
    documents = open_documents([config.test], encoding=config.encoding, stdin=stdin, stop=stop)
    if _can_test(config, sum(each.size() for each in documents if isinstance(each, FileDocument))):
        return config
    return dataclasses.replace(config, test=None)


def _can_test(config: Settings, size: int) -> bool:
    """Whether there is time to measure a test text of `size` bytes; warns if not."""
    seconds = test_seconds(config, size)
    if seconds:
        console.warn(
            f"test text of {size / 1e6:,.0f} MB skipped: it would take at least {seconds:.0f} s of the "
            f"budget; to measure it after training: gru-lm eval RUN {config.test or 'FILE'}"
        )
    return not seconds


def held_by(train: Part) -> dict[str, bool]:
    """Properties of the training text, by the names of meta.SEEN."""
    return {"document_ends": train.is_several(), "carriage_returns": train.returns > 0}


def read_data(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    seen: Mapping[str, bool],
    lines: Mapping[str, Sketch],
    within: Settings | None = None,
    stop: Stop,
) -> Data:
    """Tokenize all parts of the text.

    The test text is skipped if measuring it exceeds its share of the budget in `within`. `seen` and
    `lines`: as in Data. Raises InputError if the held-out text is empty.
    """
    with_test = not within or _can_test(within, texts.test.characters)
    parts = (texts.train, texts.valid, *((texts.test,) if with_test else ()))
    characters = sum(part.characters for part in parts)

    def tokenized(cache: Path) -> Data:
        with console.progress("tokenizing", characters) as advance:
            return tokenize(
                texts,
                tokenizer,
                seen=seen,
                cache=cache,
                workers=torch.get_num_threads(),
                stop=stop,
                progress=advance,
                with_test=with_test,
            )

    cache = caches.folder(caches.TOKENS)
    try:
        data = tokenized(cache)
    except EnvironmentProblem:  # the disk of the cache is full
        data = tokenized(caches.folder(caches.TOKENS, failed=cache))
    data = dataclasses.replace(data, lines=lines)
    if not len(data.valid.tokens):
        raise InputError("the held-out text is empty", hint="--valid FILE with some text")
    return data
