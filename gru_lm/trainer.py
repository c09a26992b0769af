"""A training run from its text to its result: steps, validations, checkpoints, reports.

The steps themselves are training/loop.py's. Here is decided when to validate and when to save. What is
saved is `TrainState` and nothing else; whether a validation is due follows from it too, and is asked
before the next step. So a run that was interrupted anywhere goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gru_lm.config import Settings
from gru_lm.errors import DivergedError, Stopped
from gru_lm.evaluation.metrics import Counts, TextCounter
from gru_lm.evaluation.scoring import Totals, validate
from gru_lm.generation.sampling import complete
from gru_lm.model.language_model import LanguageModel
from gru_lm.reporting import console
from gru_lm.text.batches import Batches
from gru_lm.text.dataset import Data, Part
from gru_lm.text.store import TokenStore
from gru_lm.training.checkpoint import read
from gru_lm.training.loop import StepReport, TrainState, train_steps
from gru_lm.training.optimizers import Budget, Schedule
from gru_lm.training.planner import Plan
from gru_lm.training.runs import BEST, Run
from gru_lm.training.state import capture, restore_model

VALIDATIONS = 10  # a run, where --eval-every does not say
VALIDATION_SHARE = 0.03  # of a budget in minutes that they may take
SAVE_SECONDS = 60.0  # between checkpoints, where --save-every does not say
REPORT_SECONDS = 0.5  # between lines of metrics.jsonl
# What is left to do after the last save: the plot, the result, the process's end.
EXIT_SECONDS = 1.0
SAMPLE_TOKENS = 200


@dataclass(kw_only=True)
class Trainer:
    """Trains `state` on `data` in the directory of `run`.

    `settings` are complete (the plan is in them); `started` is the command's start on the monotonic
    clock; `stop` raises Stopped once a signal has come.
    """

    run: Run
    settings: Settings
    plan: Plan
    data: Data
    state: TrainState
    environment: dict[str, Any]
    started: float
    stop: Callable[[], None]

    saved: tuple[int, int] = (-1, -1)  # step and validated step of the newest checkpoint
    test: dict[str, Any] | None = None
    tokens: int = 0  # in this process, as all below
    step_seconds: float = 0.0
    fastest: float = 0.0  # tokens a second of a step
    validation_seconds: float = 0.0
    save_seconds: float = 0.0
    validated_at: float = 0.0
    saved_at: float = 0.0
    reported_at: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last report

    def __post_init__(self) -> None:
        self.seconds_before = self.state.seconds
        self.budget = Budget(
            steps=self.plan.total_steps(self.settings, tokens=len(self.data.train.tokens)),
            seconds=self.settings.minutes * 60 if self.settings.minutes else None,
        )
        if self.state.step:
            self.saved = (self.state.step, self.state.validated_step)
            self.saved_at = time.monotonic()
        self.validated_at = time.monotonic()
        self.device = self.state.hidden_LSBH.device
        self.bytes_per_token = self.data.train.bytes / len(self.data.train.tokens)

    def fit(self) -> str:
        """Train until the budget or the patience ends ("budget", "patience"); save; say which.

        Raises Stopped after saving where a signal came, and DivergedError without saving.
        """
        with console.progress("training", 1.0) as advance:
            shown = 0.0
            try:
                if self.state.step == 0:
                    self._first_save()
                steps = self._steps()
                while True:
                    if self._validation_due():
                        self._validate()
                    if self.state.since_best >= (self.settings.patience or math.inf):
                        ended = "patience"
                        break
                    self.stop()
                    report = next(steps, None)
                    if report is None:
                        ended = "budget"
                        if self.state.step == 0:
                            console.warn("no step fitted into the budget: the model is untrained")
                        break
                    self._note(report)
                    advance(report.progress - shown, self._figures(report))
                    shown = report.progress
                    if self._save_due():
                        self._save()
                if self.state.validated_step != self.state.step:
                    self._validate()
                self._save()
            except Stopped:
                self._save()
                raise
            except DivergedError as error:
                error.why = f"the last checkpoint is of step {self.saved[0]}: {self.run.directory}"
                error.hint = f"a new run with --lr {self.plan.lr / 3:.1g}"
                raise
        return ended

    def result(self, ended: str) -> dict[str, Any]:
        """What `train --json` prints."""
        path = self.run.directory / BEST
        values: dict[str, Any] = {
            "run": str(self.run.directory),
            "checkpoint": str(path) if path.exists() else None,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self._elapsed(), 3),
            "tokens_per_second": round(self._tokens_per_second(), 1),
            "parameters": self.state.model.parameter_count(),
            "valid": self._best_figures(),
            "stopped": ended,
        }
        return values | ({"test": self.test} if self.test else {})

    def measure_test(self) -> None:
        """Measure the best model on the test text, by columns: once, when nothing can follow."""
        store = self.data.test
        if store is None:
            return
        started = time.monotonic()
        best = read(self.run.directory / BEST)
        model = restore_model(best, best.tensors(), device=self.device).eval()
        totals = self._measure(model, store)
        self.test = self._described(self.data.texts.test, totals, time.monotonic() - started)

    def _steps(self) -> Any:
        return train_steps(
            self.state,
            Batches(
                tokens=self.data.train.tokens,
                batch=self.plan.batch,
                bptt=self.plan.bptt,
                seed=self.settings.seed,
            ),
            budget=self.budget,
            schedule=Schedule(
                kind=self.settings.schedule, lr=self.plan.lr, warmup=self.settings.warmup
            ),
            clip=self.settings.clip,
            seed=self.settings.seed,
            precision=self.settings.precision,
            clock=self._clock,
        )

    def _elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _clock(self) -> float:
        """Seconds used, and those that the end of the run will need."""
        valid, test = self.data.valid, self.data.test
        parts = 1 + len(test.tokens) / len(valid.tokens) if test else 1
        return self._elapsed() + parts * self._validation_cost() + self.save_seconds + EXIT_SECONDS

    def _validation_cost(self) -> float:
        """Seconds that a validation takes."""
        if self.validation_seconds or not self.fastest:
            return self.validation_seconds
        # Not measured yet: a forward pass is about a third of a step. The fastest step, since the
        # first ones are slow, and what is held back too much is taken from the learning rate.
        return len(self.data.valid.tokens) / self.fastest / 3

    def _tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    def _validation_due(self) -> bool:
        state, every = self.state, self.settings.eval_every
        if state.step in (0, state.validated_step):
            return False
        if every:
            return state.step % every == 0
        if self.budget.seconds:
            pause = time.monotonic() - self.validated_at
            if pause * VALIDATION_SHARE < self._validation_cost():
                return False
        return self._tenths() > state.validated_tenths

    def _tenths(self) -> int:
        return int(VALIDATIONS * self.budget.progress(self.state.step, self._clock()))

    def _validate(self) -> None:
        """Measure the model on all held-out text; note it, keep it if it is the best, sample it."""
        started = time.monotonic()
        state, tokenizer = self.state, self.data.tokenizer
        state.model.eval()
        totals = self._measure(state.model, self.data.valid)
        if not math.isfinite(totals.nats):
            raise DivergedError(f"step {state.step}: held-out loss {totals.nats:g}")
        (sample,) = complete(
            state.model,
            tokenizer,
            length=SAMPLE_TOKENS,
            seed=self.settings.seed,
            check=self.stop,
        )
        state.model.train()
        state.validated_step = state.step
        state.validated_tenths = self._tenths()
        best = totals.nats < state.best_nats
        if best:
            state.best_step, state.since_best = state.step, 0
            state.best_nats, state.best_unknown_nats = totals.nats, totals.unknown_nats
        else:
            state.since_best += 1
        figures = figures_of(self.data.texts.valid, totals)
        self._append(
            valid_nats_per_token=figures["nats_per_token"],
            valid_bits_per_byte=figures["bits_per_byte"],
            valid_perplexity=figures["perplexity"],
        )
        self.run.append_sample(state.step, sample.text)
        self.validated_at = time.monotonic()
        self.validation_seconds = self.validated_at - started
        console.note(
            f"step {state.step:,}: held out {figures['bits_per_byte']:.4f} bits per byte, "
            f"{figures['nats_per_token']:.4f} nats a token{'' if best else ' (not the best)'}"
        )
        if best:
            self._save(best=True)

    def _note(self, report: StepReport) -> None:
        """Account for a step, and report now and then (and always the first steps)."""
        self.tokens += report.tokens
        self.step_seconds += report.seconds
        self.fastest = max(self.fastest, report.tokens / report.seconds)
        self.losses.append(report.loss)
        if report.step <= 10 or time.monotonic() - self.reported_at >= REPORT_SECONDS:
            self._append(
                loss=sum(self.losses) / len(self.losses),
                lr=report.lr,
                grad_norm=report.grad_norm if math.isfinite(report.grad_norm) else None,
                tokens_per_second=round(self._tokens_per_second(), 1),
            )
            self.reported_at = time.monotonic()
            self.losses.clear()

    def _append(self, **values: Any) -> None:
        """A line of metrics.jsonl."""
        where = {"step": self.state.step, "tokens": self.state.tokens}
        self.run.append_metrics(where | {"seconds": round(self._elapsed(), 3)} | values)

    def _figures(self, report: StepReport) -> str:
        bits = report.loss / math.log(2) / self.bytes_per_token
        return (
            f"step {report.step:,}  loss {report.loss:.3f}  {bits:.3f} bits/byte  "
            f"{self._tokens_per_second():,.0f} tokens/s"
        )

    def _save_due(self) -> bool:
        if self.settings.save_every:
            return self.state.step % self.settings.save_every == 0
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def _first_save(self) -> None:
        """Write the state before the first step: then it is known that there is room for more."""
        weights = sum(p.numel() * p.element_size() for p in self.state.model.parameters())
        slots = 2 if self.settings.optimizer == "adamw" else 1  # which the first step will add
        self.run.check_space(len(self._capture()) + slots * weights)
        self._save()

    def _save(self, *, best: bool = False) -> None:
        """Write the state, unless the newest checkpoint holds it already."""
        now = (self.state.step, self.state.validated_step)
        if now != self.saved:
            started = time.monotonic()
            self.run.save(self._capture(), self.state.step, best=best)
            self.save_seconds = time.monotonic() - started
        self.saved, self.saved_at = now, time.monotonic()

    def _capture(self) -> bytes:
        self.state.seconds = self._elapsed()
        return capture(
            self.state,
            self.data.tokenizer,
            config=self.settings.portable(),
            data=self.data.texts.fingerprints(),
            environment=self.environment,
        )

    def _measure(self, model: LanguageModel, store: TokenStore) -> Totals:
        tokenizer = self.data.tokenizer
        return validate(
            model,
            store.tokens,
            newline_id=tokenizer.newline_id,
            unknown_id=tokenizer.unknown_id,
            stop=self.stop,
        )

    def _best_figures(self) -> dict[str, Any] | None:
        state, store = self.state, self.data.valid
        if state.best_step < 0:
            return None
        totals = Totals(len(store.tokens), state.best_nats, store.unknown, state.best_unknown_nats)
        return self._described(self.data.texts.valid, totals, self.validation_seconds)

    def _described(self, part: Part, totals: Totals, seconds: float) -> dict[str, Any]:
        """The figures as `eval` reports them."""
        return figures_of(part, totals) | {
            "mode": "columns",
            "seconds": round(seconds, 3),
            "tokens_per_second": round(totals.tokens / seconds, 1) if seconds else None,
            "checkpoint": str(self.run.directory / BEST),
            "device": str(self.device),
        }


@cache
def _counts(part: Part) -> Counts:
    counter = TextCounter()
    for document in part.documents:
        for piece in document.pieces():
            counter.add(piece)
    return counter.counts()


def figures_of(part: Part, totals: Totals) -> dict[str, Any]:
    """The figures of a part of the text."""
    return (_counts(part) + Counts(**totals._asdict())).figures()
