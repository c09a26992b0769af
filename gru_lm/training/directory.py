"""The run directory: its lock, its files, which checkpoints are kept, and which one is meant.

    config.toml            the settings and where the text lies
    step-00001000.safetensors, best.safetensors
    metrics.jsonl samples.txt loss.png
    text.txt               the training text, if it was piped in
    .lock                  held (flock) as long as a trainer lives, so that it is never stale

A run exists from its first checkpoint on; one that never got there is removed. Old checkpoints are
removed only after the new one is durable, and never the newest whole one or the best. The best is
a second name of its step's file, not a copy: it costs no second write of what may be gigabytes, and
none of a budget in minutes. Damage to that file is damage to both names; an older checkpoint is then
where a resumed run goes on (`--keep` is 2 unless told), and `rewind` mends the best or forgets it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from gru_lm import atomic
from gru_lm.config import Settings, settings
from gru_lm.errors import EnvironmentProblem, GruLmError, InputError, UsageError
from gru_lm.layout import (
    BEFORE_TRAINING,
    BEST,
    CONFIG,
    LOCK,
    METRICS,
    PIPED_TEXT,
    RUN_FILES,
    SAMPLES,
    holds_checkpoint,
    step_path,
    step_paths,
)
from gru_lm.training.checkpoint import Checkpoint, damaged, read

if TYPE_CHECKING:
    from gru_lm.training.loop import TrainState

SAMPLE = re.compile(rb"^--- step (\d{1,18})\n", re.MULTILINE)
Warn = Callable[[str], None]


def newest_whole(directory: Path, warn: Warn) -> Checkpoint:
    """The newest checkpoint that is whole; each one skipped is named. Raises InputError if none."""
    # Last the best, whose step's own name somebody may have removed.
    return _first_whole(directory, [*step_paths(directory), directory / BEST], warn)


def find(path: Path, warn: Warn) -> Checkpoint:
    """The checkpoint that RUN means: a file itself, a directory's best, else its newest whole one."""
    if not path.exists() and not path.is_symlink():
        raise InputError(f"no run or checkpoint {path}", hint="ls runs")
    if not path.is_dir():
        return read(path)
    return _first_whole(path, [path / BEST, *step_paths(path)], warn)


def _first_whole(directory: Path, paths: Sequence[Path], warn: Warn) -> Checkpoint:
    if not directory.is_dir():
        raise InputError(f"no run {directory}", hint="gru-lm train FILE starts one")
    _must_hold_run(directory)
    for path in paths:
        if path.name == BEST and not path.exists():
            continue
        try:
            return read(path)
        except InputError as error:
            warn(f"skipped: {error.message}: {error.why}")
    raise damaged(directory, "none of its checkpoints is whole")


def _must_hold_run(directory: Path) -> None:
    if not holds_checkpoint(directory):
        what = "is a file: name its directory" if directory.is_file() else "holds no checkpoint"
        raise InputError(
            f"{directory} is not a run: it {what}", hint="gru-lm train FILE starts one"
        )


def read_settings(directory: Path) -> Settings:
    """The settings that a run recorded."""
    path = directory / CONFIG
    try:
        return settings(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, GruLmError) as error:
        raise InputError(f"{path} cannot be read", why=str(error)) from error


def make_directory(out: Path) -> None:
    """Make what `--out` names, where it is not there. Raises UsageError or EnvironmentProblem."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--out {out} is a file", hint="name a directory") from error
    except OSError as error:
        raise atomic.disk_problem(out, error) from error


@dataclass
class Run:
    """A run directory that this process, and no other, writes."""

    directory: Path
    lock: int  # the descriptor that holds .lock
    keep: int = 1
    ours: bool = False  # the directory was made by this process, for this run

    @classmethod
    def create(cls, out: Path | None, cell: str) -> Run:
        """A directory for a new run, locked.

        Raises UsageError if it holds a run, or a file whose name a run would take: what a run that
        fails removes must be its own. A lock that nobody holds, without a checkpoint, is a run
        killed before its first one: what it wrote until then is taken over.
        """
        if out is None:
            for number in count(1):
                out = Path("runs") / f"{cell}-{number}"
                try:
                    out.parent.mkdir(exist_ok=True)
                except FileExistsError as error:
                    raise UsageError(
                        f"{out.parent} is not a directory, and runs would go there",
                        hint="name a directory: --out DIRECTORY",
                    ) from error
                except OSError as error:
                    raise atomic.disk_problem(out.parent, error) from error
                try:
                    out.mkdir()
                    return cls(out, lock(out), ours=True)
                except FileExistsError:
                    continue
                except OSError as error:
                    raise atomic.disk_problem(out, error) from error
        assert out is not None
        ours = not out.exists()
        make_directory(out)
        begun = (out / LOCK).exists()
        if not begun:  # first, or a kill in between would leave our mark on another's files
            _refuse_taken(out, RUN_FILES)
        run = cls(out, lock(out), ours=ours)
        try:
            _refuse_taken(out, set(RUN_FILES) - set(BEFORE_TRAINING if begun else ()))
        except UsageError:
            run.close()
            raise
        atomic.sweep(out)
        return run

    @classmethod
    def reopen(cls, directory: Path) -> Run:
        """The directory of an existing run, locked, with what dead processes left swept away."""
        _must_hold_run(directory)
        run = cls(directory, lock(directory))
        atomic.sweep(directory)
        return run

    @property
    def text(self) -> Path:
        """Where text from standard input is kept."""
        return self.directory / PIPED_TEXT

    def write_settings(self, values: dict[str, Any]) -> None:
        """Record the settings, whose paths are absolute already."""
        atomic.write_bytes(self.directory / CONFIG, tomli_w.dumps(values).encode())

    def check_space(self, size: int) -> None:
        """Raise EnvironmentProblem unless keep + 1 checkpoints of `size` bytes, and the best, fit."""
        need = (self.keep + 2) * size
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise EnvironmentProblem(
                f"{self.directory}: {free:,} bytes free, {need:,} needed for checkpoints",
                hint="free some space, or --keep 1, or a smaller --width",
            )

    def save(self, data: bytes, step: int, *, best: bool) -> None:
        """Write a step's checkpoint durably, make it the best if it is, and remove old ones."""
        path = step_path(self.directory, step)
        atomic.write_bytes(path, data)
        if best:
            atomic.link(path, self.directory / BEST)
        others = [other for other in step_paths(self.directory) if other != path]
        if len(others) >= self.keep:
            whole = 1
            for old in others:
                if whole >= self.keep:
                    old.unlink(missing_ok=True)
                elif _is_whole(old):
                    whole += 1

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        self._append(METRICS, json.dumps(values) + "\n")

    def append_sample(self, step: int, text: str) -> None:
        """Add a sample to samples.txt."""
        self._append(SAMPLES, f"--- step {step}\n{text}\n\n")

    def rewind(self, state: TrainState, warn: Warn) -> None:
        """Bring the other files back to what `state`, just restored, knows.

        A best that is lost is forgotten in `state` too, so that the next validation makes another.
        """
        if not self._mend_best(state.best_step):
            warn(f"{self.directory / BEST} of step {state.best_step} is lost; another will be made")
            state.best_step, state.best_nats, state.best_unknown_nats = -1, math.inf, 0.0
            state.leg_nats, state.since_best = math.inf, 0
            # There is none without a validation, so this step's, if it was the last, is repeated.
            state.validated_step = min(state.validated_step, state.step - 1)
        lines = [
            json.dumps(line)
            for line in metrics(self.directory)
            if line["step"]
            <= (state.validated_step if "valid_nats_per_token" in line else state.step)
        ]
        atomic.write_bytes(
            self.directory / METRICS, "".join(line + "\n" for line in lines).encode()
        )
        samples = self.directory / SAMPLES
        if samples.exists():
            content = samples.read_bytes()
            later = (
                m.start() for m in SAMPLE.finditer(content) if int(m[1]) > state.validated_step
            )
            kept = content[: next(later, len(content))]
            atomic.write_bytes(samples, kept[: kept.rfind(b"\n") + 1])  # less a header cut short

    def _mend_best(self, step: int) -> bool:
        """Make the best the whole file of `step`, -1 being none; whether it is."""
        best = self.directory / BEST
        if step >= 0:
            for path in (best, step_path(self.directory, step)):
                if _is_best(path, step):
                    if path != best:  # the crash came between the two names, or best is of later
                        atomic.link(path, best)
                    return True
        best.unlink(missing_ok=True)
        return step < 0

    def discard(self) -> None:
        """Undo a run that never saved: nothing of it stays."""
        if not holds_checkpoint(self.directory):
            for name in (*RUN_FILES, LOCK):
                (self.directory / name).unlink(missing_ok=True)
            if self.ours:
                with suppress(OSError):
                    self.directory.rmdir()
                    if self.directory.parent == Path("runs"):
                        self.directory.parent.rmdir()

    def close(self) -> None:
        """Let another trainer have the directory."""
        os.close(self.lock)

    def _append(self, name: str, text: str) -> None:
        path = self.directory / name
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            raise atomic.disk_problem(path, error) from error


def _refuse_taken(out: Path, names: Iterable[str]) -> None:
    if holds_checkpoint(out):
        raise UsageError(f"{out} holds a run", hint=f"gru-lm train --resume {out}")
    for name in sorted(names):
        if (out / name).exists():
            raise UsageError(
                f"--out {out} holds a file {name}, which a run would overwrite",
                hint="name a directory of its own",
            )


def _is_whole(path: Path) -> bool:
    try:
        read(path)
    except InputError:
        return False
    return True


def _is_best(path: Path, step: int) -> bool:
    try:
        meta = read(path).meta
    except InputError:
        return False
    return bool(meta["step"] == meta["best_step"] == step)


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one cut short by a crash is left out."""
    path = directory / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def lock(directory: Path) -> int:
    """The descriptor that holds a directory's lock until it is closed. Raises EnvironmentProblem."""
    path = directory / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise atomic.disk_problem(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that was discarded takes its lock file along: hold the one that is there.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise EnvironmentProblem(
                f"{directory} is in use by another trainer", hint="choose another --out, or wait"
            ) from error
        except FileNotFoundError:
            pass
        os.close(descriptor)
