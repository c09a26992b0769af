"""The run directory: lock, files, and the rotation and lookup of checkpoints.

    config.toml            the settings, with absolute paths of the text
    step-00001000.safetensors, best.safetensors
    metrics.jsonl samples.txt loss.png
    text.txt               the training text, if it came from standard input
    .lock                  held (flock) while a trainer is running, so it cannot be stale

A run exists once it has a checkpoint; until then, a failure removes the files this process created. Old
checkpoints are deleted only after the new one is durable; never the newest intact one, the best, or a
file whose name is not exactly that of a checkpoint. Symbolic links are not followed when writing.

best.safetensors is a hard link to its step's file: a copy might take gigabytes, and part of a budget in
minutes. If that file is damaged, a run resumes from an older checkpoint (`--keep` defaults to 2), and
`rewind` restores or resets the best.
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
from gru_lm.config import Settings
from gru_lm.config_layers import settings
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
    """The newest intact checkpoint; warns of damaged ones. Raises InputError if there is none."""
    # The best comes last, in case the file named after its step was removed.
    return _first_whole(directory, [*step_paths(directory), directory / BEST], warn)


def find(path: Path, warn: Warn) -> Checkpoint:
    """Resolve RUN to a checkpoint: a file, or the best or else the newest intact one of a directory.

    Raises InputError if there is none.
    """
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
        warn(f"skipped: {path} was renamed: it is from step {found.meta['step']:,}")
    raise InputError(
        f"{directory} cannot be used",
        why="all of its checkpoints are damaged",
        hint=f"restore one of them from a backup: ls {directory}/*{SUFFIX}",
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
    """Read a run's config.toml. Raises InputError if it is missing or invalid."""
    path = directory / CONFIG
    try:
        return settings(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, GruLmError) as error:
        raise InputError(
            f"{path} cannot be read",
            why=str(error),
            hint=f"restore it, or start a new run: gru-lm train --from {directory} TEXT",
        ) from error


@dataclass
class Run:
    """A run directory, locked by this process."""

    directory: Path
    lock: int  # file descriptor of the locked .lock
    keep: int = 1
    made: list[Path] = field(default_factory=list)  # created by this process, in order

    @classmethod
    def create(cls, out: Path | None, cell: str) -> Run:
        """Create and lock the directory of a new run.

        Raises UsageError if it already contains a run, or a file that a run would overwrite, such as
        those of a run killed before its first checkpoint.
        """
        made = folder.make_numbered(cell) if out is None else folder.make(out)
        out = out or made[-1]
        run = cls(out, -1, made=made)
        try:
            is_new = not os.path.lexists(out / LOCK)
            if (
                is_new
            ):  # checked before locking too, to leave no lock file in an unrelated directory
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
        """Lock the directory of an existing run, and remove temporary files of dead processes.

        Raises InputError if it is not a run, EnvironmentProblem if it is locked or contains links.
        """
        _must_hold_run(directory)
        for name in (LOCK, CONFIG, METRICS, SAMPLES, LOSS):
            path = directory / name
            if os.path.lexists(path) and not folder.is_plain(path):
                what = "a symbolic link" if path.is_symlink() else "not a regular file"
                raise EnvironmentProblem(
                    f"{path} is {what}; a run writes only to its own files",
                    hint=f"mv {path} elsewhere",
                )
        run = cls(directory, folder.lock(directory))
        atomic.sweep(directory)
        return run

    @property
    def text(self) -> Path:
        """Where text from standard input is kept."""
        return self.directory / PIPED_TEXT

    def write_settings(self, config: Settings) -> None:
        """Write config.toml. The paths must be absolute."""
        data = (TOML_MARK + tomli_w.dumps(config.given())).encode()
        assert settings(tomllib.loads(data.decode())) == config, "settings survive a round trip"
        path = self.directory / CONFIG
        if not path.exists():
            self.made.append(path)
        atomic.write_bytes(path, data)

    def check_space(self, size: int) -> None:
        """Raise EnvironmentProblem unless keep + 1 checkpoints of `size` bytes and the best fit."""
        need = (self.keep + 2) * size
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise EnvironmentProblem(
                f"{self.directory}: {free:,} bytes free, {need:,} needed for checkpoints",
                hint="free some space, or --keep 1, or a smaller --width",
            )

    def save(self, data: bytes, step: int, *, best: bool) -> None:
        """Write a checkpoint durably, link it as best if `best`, and delete old ones."""
        path = step_path(self.directory, step)
        assert header(data)["step"] == step, "only readable checkpoints are written"
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
        """Append a line to metrics.jsonl."""
        folder.append(self.directory / METRICS, json.dumps(values) + "\n")

    def append_sample(self, step: int, text: str) -> None:
        """Append a sample to samples.txt."""
        folder.append(self.directory / SAMPLES, f"--- step {step}\n{text}\n\n")

    def rewind(self, state: TrainState, warn: Warn) -> None:
        """Reset metrics, samples and the best checkpoint to the restored `state`.

        If the best checkpoint is lost, also resets it in `state`: the next validation writes a new one.
        """
        if not self._mend_best(state.best_step):
            warn(
                f"{self.directory / BEST} (step {state.best_step}) is missing or damaged; the next "
                "validation writes a new one"
            )
            state.best_step, state.best_nats, state.best_unknown_nats = -1, math.inf, 0.0
            state.leg_nats, state.since_best = math.inf, 0
            # If this step was the last one validated, repeat the validation.
            state.validated_step = min(state.validated_step, state.step - 1)
        reports.cut_metrics(
            self.directory, step=state.step, validated_step=state.validated_step, warn=warn
        )
        reports.cut_samples(self.directory, validated_step=state.validated_step)

    def _mend_best(self, step: int) -> bool:
        """Restore best.safetensors for `step` (-1: none) and return whether that succeeded."""
        best = self.directory / BEST
        if step >= 0:
            for path in (best, step_path(self.directory, step)):
                if _is_best(path, step):
                    if path != best:  # a crash before linking, or best is from a later step
                        atomic.link(path, best)
                    return True
        folder.remove([best])
        return step < 0

    def discard(self) -> None:
        """Remove the files of a run without a checkpoint that this process created."""
        if not holds_checkpoint(self.directory):
            folder.remove(self.made)

    def close(self) -> None:
        """Release the lock."""
        if self.lock >= 0:
            os.close(self.lock)


def _refuse_taken(out: Path) -> None:
    if holds_checkpoint(out):
        raise UsageError(f"{out} already contains a run", hint=f"gru-lm train --resume {out}")
    for name in sorted(RUN_FILES):
        if os.path.lexists(out / name):
            raise UsageError(
                f"--out {out} contains a file {name}, which a run would overwrite",
                hint="choose another directory, or remove the files of a killed run",
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
