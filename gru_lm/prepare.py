"""All that comes before the first step: text, tokenizer, tokens, plan, model.

From `Settings` in which much is open to `Prepared`, in which all is chosen. What can be refused without
reading text is refused first. Writes nothing but the token cache.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch

from gru_lm.config import Settings
from gru_lm.errors import InputError, UsageError
from gru_lm.evaluation.metrics import UNKNOWN_WARNING
from gru_lm.model.heads import choose_cutoffs
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.native import build
from gru_lm.model.recurrent import choose_backend, choose_device
from gru_lm.reporting import console
from gru_lm.text.dataset import Data, Texts, make_tokenizer, split_texts, tokenize
from gru_lm.text.sources import spool_stdin
from gru_lm.text.store import unigram_counts
from gru_lm.text.tokenizer import Tokenizer, read_tokenizer
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.loop import TrainState
from gru_lm.training.optimizers import make_optimizer
from gru_lm.training.planner import DEFAULT_CELL, Plan, plan_model, plan_tokenizer
from gru_lm.training.state import restore_model, restore_tokenizer

Stop = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that is needed before the first step; `settings` are complete."""

    settings: Settings
    plan: Plan
    data: Data
    device: torch.device
    backend: str
    source: Checkpoint | None  # whose weights to begin with

    def state(self) -> TrainState:
        """A fresh training state."""
        plan, tokenizer = self.plan, self.data.tokenizer
        torch.manual_seed(self.settings.seed)
        V = tokenizer.vocab_size
        cutoffs: tuple[int, ...] = ()
        counts_V = torch.from_numpy(unigram_counts(self.data.train, V))
        if self.source:
            cutoffs = tuple(self.source.meta["model"]["cutoffs"])
        elif plan.softmax == "adaptive":
            cutoffs = choose_cutoffs(counts_V, embed=plan.embed)
        config = _model_config(plan, V, cutoffs)
        model = LanguageModel(config, backend=self.backend).to(self.device)
        if self.source:
            source = restore_model(self.source, self.source.tensors(), device=self.device)
            model.load_state_dict(source.state_dict())
        else:
            model.set_unigram(counts_V)
        optimizer = make_optimizer(model, self.settings.optimizer, weight_decay=plan.weight_decay)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.precision == "fp16")
        return TrainState(model, optimizer, scaler, model.initial_state(plan.batch))


def prepare(chosen: Settings, *, stdin: Path, source: Checkpoint | None, stop: Stop) -> Prepared:
    """Read and tokenize the text, and plan what was left open.

    `stdin` is where "-" is kept, `source` a checkpoint whose tokenizer and weights to begin with.
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
        return kind == "word"

    texts = read_texts(chosen, stdin=stdin, at_line_ends=at_line_ends, stop=stop)
    if tokenizer is None:
        with console.progress("training the tokenizer", None):
            tokenizer = make_tokenizer(kind, texts.train, vocab_size=chosen.vocab_size, stop=stop)
    data = read_data(texts, tokenizer, stop=stop)
    plan = plan_for(chosen, data, device)
    chosen = dataclasses.replace(
        chosen,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        **dataclasses.asdict(plan),
    )
    _model_config(plan, tokenizer.vocab_size)
    _announce(chosen, data)
    return Prepared(
        settings=chosen,
        plan=plan,
        data=data,
        device=device,
        backend=choose_backend(device),
        source=source,
    )


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


def set_up(
    chosen: Settings, *, threads: int | None = None, device: str | None = None
) -> torch.device:
    """Prepare PyTorch as the settings say; returns the device. Raises what does not go together."""
    where = choose_device(device or chosen.device)
    if chosen.precision != "float32" and where.type != "cuda":
        raise UsageError(
            f"--precision {chosen.precision} needs CUDA",
            hint="--precision float32; a run that has begun so goes on only where CUDA is",
        )
    # The names and limits that need no text, before any is read.
    ModelConfig(
        cell=chosen.cell or DEFAULT_CELL,
        vocab_size=2,
        layers=chosen.layers or 1,
        width=chosen.width or 1,
        embed=chosen.embed or 1,
        tied=chosen.tied is not False,
        dropout=chosen.dropout or 0.0,
        cutoffs=(1,) if chosen.softmax == "adaptive" else (),
    )
    if threads or chosen.threads:
        torch.set_num_threads(threads or chosen.threads or 1)
    if chosen.deterministic and where.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return where


def read_texts(
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


def plan_for(chosen: Settings, data: Data, device: torch.device) -> Plan:
    """What the planner chooses for the tokens at hand."""
    return plan_model(
        chosen,
        tokens=len(data.train.tokens),
        vocab_size=data.tokenizer.vocab_size,
        device=device.type,
    )


def _model_config(plan: Plan, vocab_size: int, cutoffs: tuple[int, ...] = ()) -> ModelConfig:
    return ModelConfig(
        cell=plan.cell,
        vocab_size=vocab_size,
        layers=plan.layers,
        width=plan.width,
        embed=plan.embed,
        tied=plan.tied,
        dropout=plan.dropout,
        cutoffs=cutoffs,
    )


def _announce(chosen: Settings, data: Data) -> None:
    """Print what was chosen, so that nothing is hidden."""
    if not data.tokenizer.lossless and data.tokenizer.kind != "word":
        console.warn("this tokenizer does not give every text back; bits per byte are flattered")
    if (rate := data.valid.unknown / len(data.valid.tokens)) > UNKNOWN_WARNING:
        console.warn(
            f"{rate:.1%} of the held-out tokens are unknown words, which are not spelled out: "
            "perplexity and bits per byte are flattered"
        )
    names = ", ".join(chosen.text[:3])
    if len(chosen.text) > 3:
        names += f" and {len(chosen.text) - 3:,} more"
    budget = ", ".join(
        f"{getattr(chosen, name):g} {name}"
        for name in ("minutes", "epochs", "steps", "tokens")
        if getattr(chosen, name)
    )
    console.note(
        f"text: {names}: {data.train.characters:,} characters to train on, "
        f"{data.valid.characters:,} held out"
    )
    console.note(
        f"tokenizer: {chosen.tokenizer}, {data.tokenizer.vocab_size:,} pieces; "
        f"{len(data.train.tokens):,} training tokens"
    )
    console.note(
        f"model: {chosen.cell}, {chosen.layers} x {chosen.width}, embedding {chosen.embed}"
        f"{' (tied)' if chosen.tied else ''}, {chosen.softmax} softmax, dropout {chosen.dropout:g}"
    )
    console.note(
        f"training: {budget}; {chosen.batch} streams x {chosen.bptt} steps, {chosen.optimizer}, "
        f"lr {chosen.lr:g}, {chosen.schedule}"
    )
