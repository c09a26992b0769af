"""The run directory: its lock, its files, which checkpoints are kept, and which one is meant.

    config.toml            the settings and where the text lies
    step-00001000.safetensors, best.safetensors
    metrics.jsonl samples.txt loss.png
    text.txt               the training text, if it was piped in
    .lock                  held (flock) as long as a trainer lives, so that it is never stale

A run exists from its first checkpoint on; one that never got there is removed, but for files that
this process did not make. Old checkpoints are removed only after the new one is durable, and never the
newest whole one, the best, or a file whose name is not exactly a checkpoint's. No link is followed when
a file is written. The best is
a second name of its step's file, not a copy: it costs no second write of what may be gigabytes, and
none of a budget in minutes. Damage to that file is damage to both names; an older checkpoint is then
where a resumed run goes on (`--keep` is 2 unless told), and `rewind` mends the best or forgets it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from gru_lm import atomic
from gru_lm.config import Settings, settings
from gru_lm.errors import EnvironmentProblem, GruLmError, InputError, UsageError
from gru_lm.layout import (
    BEST,
    CONFIG,
    LOCK,
    LOSS,
    METRICS,
    PIPED_TEXT,
    RUN_FILES,
    SAMPLES,
    SUFFIX,
    TOML_MARK,
    holds_checkpoint,
    step_of,
    step_path,
    step_paths,
)
from gru_lm.training import folder, reports
from gru_lm.training.checkpoint import Checkpoint, header, read

if TYPE_CHECKING:
    from gru_lm.training.loop import TrainState

Warn = Callable[[str], None]


def newest_whole(directory: Path, warn: Warn) -> Checkpoint:
    """The newest checkpoint that is whole; each one skipped is named. Raises InputError if none."""
    # Last the best, whose step's own name somebody may have removed.
    return _first_whole(directory, [*step_paths(directory), directory / BEST], warn)


def find(path: Path, warn: Warn) -> Checkpoint:
    """The checkpoint that RUN means: a file itself, a directory's best, else its newest whole one."""
    if not path.exists() and not path.is_symlink():
        hint = "ls runs" if Path("runs").is_dir() else "gru-lm train FILE starts a run"
        raise InputError(f"no run or checkpoint {path}", hint=hint)
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
            found = read(path)
        except InputError as error:
            warn(f"skipped: {error.message}: {error.why}")
            continue
        if _is_of_its_step(found):
            return found
        warn(f"skipped: {path} was renamed: it is of step {found.meta['step']:,}")
    raise InputError(
        f"{directory} cannot be used",
        why="none of its checkpoints is whole",
        hint=f"another copy of one of them: ls {directory}/*{SUFFIX}",
    )


def _is_of_its_step(checkpoint: Checkpoint) -> bool:
    return step_of(checkpoint.path) in (None, checkpoint.meta["step"])


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
    except (OSError, ValueError, RecursionError, GruLmError) as error:
        raise InputError(
            f"{path} cannot be read",
            why=str(error),
            hint=f"restore it, or begin anew with train --from {directory} TEXT",
        ) from error


@dataclass
class Run:
    """A run directory that this process, and no other, writes."""

    directory: Path
    lock: int  # the descriptor that holds .lock
    keep: int = 1
    made: list[Path] = field(default_factory=list)  # what this process made, in order

    @classmethod
    def create(cls, out: Path | None, cell: str) -> Run:
        """A directory for a new run, locked.

        Raises UsageError if it holds a run, or a file whose name a run would take, such as what a run
        left that was killed before its first checkpoint.
        """
        made = folder.make_numbered(cell) if out is None else folder.make(out)
        out = out or made[-1]
        run = cls(out, -1, made=made)
        try:
            is_new = not os.path.lexists(out / LOCK)
            if is_new:  # first, so that no lock is left in a folder of other things
                _refuse_taken(out)
            run.lock = folder.lock(out)
            if is_new:
                made.append(out / LOCK)
            _refuse_taken(out)
        except BaseException:
            run.discard()
            run.close()
            raise
        atomic.sweep(out)
        return run

    @classmethod
    def reopen(cls, directory: Path) -> Run:
        """The directory of an existing run, locked, with what dead processes left swept away."""
        _must_hold_run(directory)
        for name in (LOCK, CONFIG, METRICS, SAMPLES, LOSS):
            path = directory / name
            if os.path.lexists(path) and not folder.is_plain(path):
                what = "a link" if path.is_symlink() else "no regular file"
                raise EnvironmentProblem(
                    f"{path} is {what}, and a run writes to its own files alone",
                    hint=f"mv {path} elsewhere",
                )
        run = cls(directory, folder.lock(directory))
        atomic.sweep(directory)
        return run

    @property
    def text(self) -> Path:
        """Where text from standard input is kept."""
        return self.directory / PIPED_TEXT

    def write_settings(self, chosen: Settings) -> None:
        """Record the settings, whose paths are absolute already."""
        data = (TOML_MARK + tomli_w.dumps(chosen.given())).encode()
        assert settings(tomllib.loads(data.decode())) == chosen, "what is written can be read"
        path = self.directory / CONFIG
        if not path.exists():
            self.made.append(path)
        atomic.write_bytes(path, data)

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
        assert header(data)["step"] == step, "what could not be read again is not written"
        atomic.write_bytes(path, data)
        if best:
            atomic.link(path, self.directory / BEST)
        others = [o for o in step_paths(self.directory) if o != path and folder.is_plain(o)]
        if len(others) >= self.keep:
            whole = 1
            for old in others:
                if whole >= self.keep:
                    old.unlink(missing_ok=True)
                elif _is_whole(old):
                    whole += 1

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        folder.append(self.directory / METRICS, json.dumps(values) + "\n")

    def append_sample(self, step: int, text: str) -> None:
        """Add a sample to samples.txt."""
        folder.append(self.directory / SAMPLES, f"--- step {step}\n{text}\n\n")

    def rewind(self, state: TrainState, warn: Warn) -> None:
        """Bring the other files back to what `state`, just restored, knows.

        A best that is lost is forgotten in `state` too, so that the next validation makes another.
        """
        if not self._mend_best(state.best_step):
            warn(
                f"{self.directory / BEST} (step {state.best_step}) is missing or damaged; the next "
                "validation writes a new one"
            )
            state.best_step, state.best_nats, state.best_unknown_nats = -1, math.inf, 0.0
            state.leg_nats, state.since_best = math.inf, 0
            # There is none without a validation, so this step's, if it was the last, is repeated.
            state.validated_step = min(state.validated_step, state.step - 1)
        reports.cut_metrics(
            self.directory, step=state.step, validated_step=state.validated_step, warn=warn
        )
        reports.cut_samples(self.directory, validated_step=state.validated_step)

    def _mend_best(self, step: int) -> bool:
        """Make the best the whole file of `step`, -1 being none; whether it is."""
        best = self.directory / BEST
        if step >= 0:
            for path in (best, step_path(self.directory, step)):
                if _is_best(path, step):
                    if path != best:  # the crash came between the two names, or best is of later
                        atomic.link(path, best)
                    return True
        folder.remove([best])
        return step < 0

    def discard(self) -> None:
        """Undo a run that never saved: nothing that it made stays."""
        if not holds_checkpoint(self.directory):
            folder.remove(self.made)

    def close(self) -> None:
        """Let another trainer have the directory."""
        if self.lock >= 0:
            os.close(self.lock)


def _refuse_taken(out: Path) -> None:
    if holds_checkpoint(out):
        raise UsageError(f"{out} holds a run", hint=f"gru-lm train --resume {out}")
    for name in sorted(RUN_FILES):
        if os.path.lexists(out / name):
            raise UsageError(
                f"--out {out} holds a file {name}, which a run would overwrite",
                hint="name another directory, or remove the remains of a killed run",
            )


def _is_whole(path: Path) -> bool:
    try:
        return _is_of_its_step(read(path))
    except InputError:
        return False


def _is_best(path: Path, step: int) -> bool:
    try:
        meta = read(path).meta
    except InputError:
        return False
    return bool(meta["step"] == meta["best_step"] == step)
