"""The trainer: when to take a step, validate, save a checkpoint and report.

Takes its steps from training/loop.py. Only `TrainState` is saved; whether a validation is due depends on
it and the budget alone. Invariant: a resumed run continues exactly as an uninterrupted one would.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from gru_lm.commands.train.clock import SAVING, START, VALIDATION, Pace, Spent
from gru_lm.config import Settings
from gru_lm.errors import DivergedError, Stopped
from gru_lm.evaluation.metrics import Counts, caveats
from gru_lm.evaluation.record_texts import sizes_of
from gru_lm.evaluation.scoring import Totals
from gru_lm.evaluation.validation import measure_tokens, seconds_of
from gru_lm.generation.sampling import complete
from gru_lm.layout import BEST
from gru_lm.model.language_model import LanguageModel
from gru_lm.planning.text import TEST_SHARE
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.dataset import Data
from gru_lm.text.store import TokenStore
from gru_lm.training.checkpoint import read
from gru_lm.training.directory import Run
from gru_lm.training.loop import StepReport, TrainState
from gru_lm.training.optimizers import Budget, Schedule, slots_at_most
from gru_lm.training.plan import Plan
from gru_lm.training.start import planned_steps
from gru_lm.training.state import capture, restore_model

VALIDATIONS = 10  # per run, without --eval-every
VALIDATION_SHARE = 0.03  # of a budget in minutes, at most
SAVE_SECONDS = 60.0  # between checkpoints, without --save-every
REPORT_SECONDS = 0.5  # between lines of metrics.jsonl
SAMPLE_TOKENS = 200
RECORDS_SHOWN = 10  # of a sample of records


@dataclass(kw_only=True)
class Trainer:
    """Trains `state` on `data` in the directory of `run`.

    `settings` are complete and include the plan; `spent` has the start and the phases of the command so
    far; `stop` is polled and raises Stopped after a signal.
    """

    run: Run
    settings: Settings
    plan: Plan
    data: Data
    state: TrainState
    environment: dict[str, Any]
    spent: Spent
    stop: Stop

    counts: dict[str, Counts] = field(default_factory=dict)  # of the held-out texts, set in fit()
    saved: tuple[int, int] = (-1, -1)  # step and validated step of the newest checkpoint
    test: dict[str, Any] | None = None
    validated_at: float = 0.0  # this and the following: in this process only
    saved_at: float = 0.0
    reported_at: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last report

    def __post_init__(self) -> None:
        self.pace = Pace(
            started=self.spent.started,
            before=self.state.seconds,
            held_out=len(self.data.valid.tokens),
            test=len(self.data.test.tokens) if self.data.test else 0,
            step_tokens=self.plan.batch * self.plan.bptt,
        )
        self.validated_at = self.saved_at = time.monotonic()
        if self.state.step > self.state.leg_step:
            self.saved = (self.state.step, self.state.validated_step)
        self.device = self.state.hidden_LSBH.device
        self.bytes_per_token = self.data.train.bytes / len(self.data.train.tokens)

    def fit(self) -> str:
        """Train until the budget or the patience runs out; returns "budget" or "patience".

        Saves a checkpoint at the end. Raises Stopped (after saving), DivergedError (without saving) or
        BudgetError if there is no time for a step.
        """
        self.spent.on(START)
        with console.progress("training", 1.0) as advance:
            shown = 0.0
            try:
                if self.state.step == 0:
                    self._check_space()
                if self.state.step == self.state.leg_step:
                    self._save()  # makes the leg resumable, and measures the time of a checkpoint
                self.spent.on(SAVING)
                if self.settings.minutes:
                    self._try_validation(self.settings.minutes * 60)
                # Counted now, since the remaining time is reserved for other work.
                for name in ("valid", "test") if self.pace.test else ("valid",):
                    documents = getattr(self.data.texts, name).documents
                    self.counts[name] = sizes_of(documents, self.data.tokenizer, stop=self.stop)
                self.spent.on(VALIDATION)
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
                        if self.state.step == self.state.leg_step:
                            minutes, run = self.settings.minutes or 0.0, self.run.directory
                            raise self.pace.no_step(self.spent, minutes, run, self.state.step)
                        ended = "budget"
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
                lr = min(self.plan.lr / 3, 0.01)
                error.hint = self.plan.remedy(f"a new run with --lr {lr:.1g}")
                raise
        return ended

    def result(self, ended: str) -> dict[str, Any]:
        """The result of `train --json`."""
        path = self.run.directory / BEST
        values: dict[str, Any] = {
            "run": str(self.run.directory),
            "checkpoint": str(path) if path.exists() else None,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.pace.elapsed(), 3),
            "tokens_per_second": round(self.pace.tokens_per_second(), 1),
            "parameters": self.state.model.parameter_count(),
            "valid": self._best_figures(),
            "stopped": ended,
        }
        return values | ({"test": self.test} if self.test else {})

    def measure_test(self) -> None:
        """Measure the best model on the test text in columns, once, after training."""
        store = self.data.test
        if store is None or not self.pace.test:
            return
        started = time.monotonic()
        totals = self._measure(self.best_model(), store)
        self.test = self._described("test", totals, time.monotonic() - started)

    def best_model(self) -> LanguageModel:
        """The model of the best checkpoint, for evaluation."""
        best, backend = read(self.run.directory / BEST), self.state.model.recurrent.backend
        return restore_model(best, best.tensors(), device=self.device, backend=backend).eval()

    def _steps(self) -> Any:
        if self.state.step == self.state.leg_step:
            self.state.began = self.pace.clock()
        self.budget = Budget(
            steps=self.plan.total_steps(self.settings, tokens=len(self.data.train.tokens)),
            seconds=self.settings.minutes * 60 if self.settings.minutes else None,
            began=self.state.began,
        )
        return planned_steps(
            self.state,
            self.plan,
            self.data.training,
            budget=self.budget,
            schedule=Schedule(
                kind=self.settings.schedule, lr=self.plan.lr, warmup=self.settings.warmup
            ),
            clip=self.settings.clip,
            seed=self.settings.seed,
            clock=self.pace.clock,
            average_decay=self.settings.average,
        )

    def _validation_due(self) -> bool:
        state, every = self.state, self.settings.eval_every
        if state.step in (0, state.validated_step):
            return False
        if every:
            return state.step % every == 0
        if self.budget.seconds:
            pause = time.monotonic() - self.validated_at
            if pause * VALIDATION_SHARE < self.pace.validation_seconds:
                return False
        return self._tenths() > state.validated_tenths

    def _tenths(self) -> int:
        done = self.state.step - self.state.leg_step
        return int(VALIDATIONS * self.budget.progress(done, self.pace.clock()))

    def _try_validation(self, budget: float) -> None:
        """Estimate the time of a validation; skip the test if it takes too much of the budget."""
        model, newline_id = self.state.model.eval(), self.data.tokenizer.newline_id
        held_out = self.data.of(self.data.valid)
        seconds = seconds_of(model, held_out, newline_id=newline_id, stop=self.stop)
        self.pace.measure_seconds = self.pace.validation_seconds = seconds
        model.train()
        if self.pace.test_seconds() > TEST_SHARE * budget:
            console.warn(
                f"test text skipped: measuring it would take {self.pace.test_seconds():.0f} s of the "
                f"budget; to measure it after training: gru-lm eval {self.run.directory} FILE"
            )
            self.pace.test = 0

    def _validate(self) -> None:
        """Validate the model (with averaged weights, if any), draw a sample and save it if best."""
        started = time.monotonic()
        state, tokenizer = self.state, self.data.tokenizer
        state.model.eval()
        with state.averaged():
            totals = self._measure(state.model, self.data.valid)
            self.pace.measure_seconds = time.monotonic() - started
            if not math.isfinite(totals.nats):
                raise DivergedError(f"step {state.step}: held-out loss {totals.nats:g}")
            samples = complete(
                state.model,
                tokenizer,
                samples=RECORDS_SHOWN if self.data.is_list else 1,
                length=SAMPLE_TOKENS,
                seed=self.settings.seed,
                check=self.stop,
            )
        state.model.train()
        state.validated_tenths = self._tenths()
        best = state.validated(totals.nats, totals.unknown_nats)
        if self.plan.optimizer == "nt-asgd" and state.begins_to_average(totals.nats):
            console.note(f"step {state.step:,}: weight averaging starts")
        figures = (self.counts["valid"] + Counts(**totals._asdict())).figures()
        self._append(
            valid_nats_per_token=figures["nats_per_token"],
            valid_bits_per_byte=figures["bits_per_byte"],
            valid_perplexity=figures["perplexity"],
        )
        self.run.append_sample(state.step, "\n".join(sample.text for sample in samples))
        self.validated_at = time.monotonic()
        self.pace.validation_seconds = self.validated_at - started
        console.note(
            f"step {state.step:,}: held out {figures['bits_per_byte']:.4f} bits per byte, "
            f"{figures['nats_per_token']:.4f} nats per token{'' if best else ' (not the best)'}"
        )
        if best:
            self._save(best=True)

    def _note(self, report: StepReport) -> None:
        """Record a step, and write metrics at intervals (and for the first steps of a leg)."""
        self.pace.step(report.seconds)
        self.losses.append(report.loss)
        first = report.step - self.state.leg_step <= 10
        if first or time.monotonic() - self.reported_at >= REPORT_SECONDS:
            self._append(
                loss=sum(self.losses) / len(self.losses),
                lr=report.lr,
                grad_norm=report.grad_norm if math.isfinite(report.grad_norm) else None,
                tokens_per_second=round(self.pace.tokens_per_second(), 1),
            )
            self.reported_at = time.monotonic()
            self.losses.clear()

    def _append(self, **values: Any) -> None:
        """Append a line to metrics.jsonl."""
        where = {"step": self.state.step, "tokens": self.state.tokens}
        self.run.append_metrics(where | {"seconds": round(self.pace.elapsed(), 3)} | values)

    def _figures(self, report: StepReport) -> str:
        bits = report.loss / math.log(2) / self.bytes_per_token
        shown = f"{bits:.3f} bits/byte  " if self.data.tokenizer.lossless else ""  # uncharged
        return (
            f"step {report.step:,}  loss {report.loss:.3f}  {shown}"
            f"{self.pace.tokens_per_second():,.0f} tokens/s"
        )

    def _save_due(self) -> bool:
        if self.settings.save_every:
            return self.state.step % self.settings.save_every == 0
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def _check_space(self) -> None:
        """Raise EnvironmentProblem if there is no disk space for the checkpoints of the run."""
        weights = sum(p.numel() * p.element_size() for p in self.state.model.parameters())
        # Optimizer state appears with the first step; an average exists already.
        self.run.check_space(len(self._capture()) + slots_at_most(self.plan.optimizer) * weights)

    def _save(self, *, best: bool = False) -> None:
        """Save a checkpoint, unless the newest one is up to date."""
        now = (self.state.step, self.state.validated_step)
        if now != self.saved:
            started = time.monotonic()
            self.run.save(self._capture(), self.state.step, best=best)
            self.pace.save_seconds = time.monotonic() - started
        self.saved, self.saved_at = now, time.monotonic()

    def _capture(self) -> bytes:
        self.state.seconds = self.pace.elapsed()
        return capture(
            self.state,
            self.data.tokenizer,
            config=self.settings.portable(),
            data=self.data.texts.fingerprints,
            held=self.data.seen,
            lines=self.data.lines,
            environment=self.environment,
        )

    def _measure(self, model: LanguageModel, store: TokenStore) -> Totals:
        tokenizer = self.data.tokenizer
        return measure_tokens(
            model,
            self.data.of(store),
            newline_id=tokenizer.newline_id,
            unknown_id=tokenizer.unknown_id,
            stop=self.stop,
        )

    def _best_figures(self) -> dict[str, Any] | None:
        state, store = self.state, self.data.valid
        if state.best_step < 0 or not self.counts:
            return None
        totals = Totals(len(store.tokens), state.best_nats, store.unknown, state.best_unknown_nats)
        return self._described("valid", totals, self.pace.measure_seconds)

    def _described(self, part: str, totals: Totals, seconds: float) -> dict[str, Any]:
        """The figures in the format of `eval`."""
        figures = (self.counts[part] + Counts(**totals._asdict())).figures()
        rate, several = figures["unknown_rate"], getattr(self.data.texts, part).is_several()
        found = caveats(self.data.tokenizer, rate, of=f"the {part} text", several=several)
        return figures | {
            "ci95": None,  # computed by `eval` only
            "caveats": found,
            "mode": "records" if self.counts[part].records else "columns",
            "seconds": round(seconds, 3),
            "tokens_per_second": round(totals.tokens / seconds, 1) if seconds else None,
            "checkpoint": str(self.run.directory / BEST),
            "device": str(self.device),
        }
