"""Resume a run: from its directory to everything needed to continue.

The settings are those of the run; only the machine, the budget and the location of the texts may differ.
A new budget starts a new leg. The budget in the newest checkpoint is authoritative; config.toml is
written before the leg's first checkpoint, so after a crash between the two the new leg has not started.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gru_lm.commands.load import read_again, recorded
from gru_lm.commands.train.clock import READING, TOKENIZING, Spent
from gru_lm.commands.train.prepare import Prepared, held_by, read_data
from gru_lm.config import BUDGETS, Settings
from gru_lm.config_layers import settings
from gru_lm.errors import InputError, UsageError
from gru_lm.layout import CONFIG
from gru_lm.model.devices import choose_backend, choose_device, set_up
from gru_lm.model.native.kernels import bf16_available
from gru_lm.planning.model import MOST_EPOCHS
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.parts import Texts
from gru_lm.text.sources import spool_stdin
from gru_lm.training.checkpoint import Checkpoint, damaged
from gru_lm.training.directory import Run, newest_whole, read_settings
from gru_lm.training.loop import TrainState
from gru_lm.training.plan import Plan
from gru_lm.training.state import environment, lines, restore, restore_tokenizer

FREE = (*BUDGETS, "keep", "save_every", "threads", "device")  # may be edited in config.toml


def reopen(
    run: Run,
    *,
    places: Mapping[str, Any],
    budget: Mapping[str, Any],
    threads: int | None,
    device: str | None,
    spent: Spent,
    with_test: bool,
    stop: Stop,
) -> tuple[Prepared, TrainState]:
    """The newest intact checkpoint of `run`, ready for training; a `budget` starts a new leg.

    `places`: settings with the new location of moved texts. Raises InputError if the text has changed,
    UsageError if config.toml has.
    """
    directory = run.directory
    checkpoint = newest_whole(directory, console.warn)
    meta = checkpoint.meta
    stored = read_settings(directory)
    run.keep = stored.keep
    config = recorded(dataclasses.replace(_settings(run, stored, checkpoint, budget), **places))
    where = choose_device(device or config.device)
    effective = config  # adapted to this machine; not recorded
    if where.type == "cpu" and config.precision == "bf16" and not bf16_available():
        console.warn("resumed in float32: this processor has no bf16")
        effective = dataclasses.replace(config, precision="float32")
    set_up(
        device or config.device,
        threads=threads or config.threads,
        precision=effective.precision,
        deterministic=config.deterministic,
        stop=stop,
    )
    tensors = checkpoint.tensors()
    tokenizer = restore_tokenizer(checkpoint, tensors)
    is_word = tokenizer.kind == "word"
    piped = "-" in (*places.get("text", ()), places.get("valid"), places.get("test"))
    texts = _texts(run, config, meta["data"], piped=piped, is_word=is_word, stop=stop)
    spent.on(READING)
    held = meta.get("seen") or held_by(texts.train) | {"document_ends": tokenizer.ends_documents}
    data = read_data(
        texts,
        tokenizer,
        seen=held,
        lines=lines(checkpoint, tensors),
        within=config if with_test else None,
        stop=stop,
    )
    spent.on(TOKENIZING)
    backend = meta["environment"]["backend"]
    if backend == "native":  # kept if available; otherwise warned of below
        backend = choose_backend(where)
    _warn_of_changes(meta["environment"], environment(where, backend))
    state = restore(checkpoint, device=where, backend=backend, precision=effective.precision)
    run.rewind(state, console.warn)
    if budget:
        state.start_leg()
    if config != stored:
        run.write_settings(config)
    console.note(f"resuming {directory} after step {state.step:,}")
    if budget and config.characters:
        console.note(
            f"training continues on the same {config.characters:,} characters; to use more of the text: "
            f"gru-lm train --from {directory} TEXT"
        )
    prepared = Prepared(
        settings=config,
        plan=Plan.of(effective),
        data=data,
        device=where,
        backend=backend,
        spent=spent,
    )
    return prepared, state


def _warn_of_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if now.get(name) != value:
            console.warn(
                f"resumed with {name} {now.get(name)} instead of {value}: "
                "not bit-identical to an uninterrupted run"
            )


def _texts(
    run: Run,
    config: Settings,
    fingerprints: Mapping[str, str],
    *,
    piped: bool,
    is_word: bool,
    stop: Stop,
) -> Texts:
    """The texts of a run, checked against `fingerprints`. `piped`: standard input is read again."""
    directory = run.directory
    again = f"gru-lm train --resume {directory}"
    if piped and run.text.exists():
        raise UsageError(f"{run.text} already contains the piped-in text", hint=again)
    if piped:
        spool_stdin(run.text, stop=stop)
    elif config.reads_stdin() and not run.text.exists():
        raise InputError(
            f"{run.text}, the copy of the piped-in text, is missing",
            hint=f"... | {again} -",
        )
    try:
        _, texts = read_again(config, stdin=run.text, is_word=is_word, stop=stop)
        current = texts.fingerprints
        if changed := [part for part in current if current[part] != fingerprints[part]]:
            # Parts of TEXT change together, a separate --valid or --test file alone.
            own = {"valid": config.valid, "test": config.test}.get(changed[0])
            raise InputError(
                f"the {f'--{changed[0]} ' if own else ''}text of {directory} has changed since the run "
                "started",
                why=f"it was read from: {own or ', '.join(config.text)}",
                hint=f"restore the text, or start a new run: gru-lm train --from {directory} TEXT",
            )
    except BaseException as error:
        if piped:
            run.text.unlink(missing_ok=True)
        if isinstance(error, InputError) and not all(map(_is_there, config.specs())):
            held_out = "".join(f" --{n} FILE" for n in ("valid", "test") if getattr(config, n))
            error.hint = f"if the text was moved: {again} TEXT{held_out}"
        raise
    return texts


def _is_there(spec: str) -> bool:
    """Whether a text exists, as far as can be told without opening it."""
    return spec == "-" or spec.startswith("@") or glob.has_magic(spec) or Path(spec).exists()


def _settings(
    run: Run, stored: Settings, checkpoint: Checkpoint, budget: Mapping[str, Any]
) -> Settings:
    """The settings to resume with: those of config.toml, which may differ from the checkpoint's only
    in FREE.
    """
    path = run.directory / CONFIG
    try:
        saved = settings(checkpoint.meta["config"]).portable()
    except UsageError as error:
        raise damaged(checkpoint.path, error.message) from error
    edited = stored.portable()
    changed = [n for n in sorted({*edited, *saved}) if edited.get(n) != saved.get(n)]
    if fixed := [name for name in changed if name not in FREE]:
        raise UsageError(
            f"{path} was changed: {', '.join(fixed)}",
            why=f"only these may be changed: {', '.join(FREE)}",
            hint=f"restore them, or start a new run: gru-lm train --from {run.directory}",
        )
    if not budget and not set(BUDGETS).isdisjoint(changed):
        console.warn(
            f"the budget in {path} is ignored: the run resumes with the budget of its newest checkpoint "
            f"(to change it: gru-lm train --resume {run.directory} --minutes M)"
        )
    kept = {name: value for name, value in stored.given().items() if name not in BUDGETS}
    if not budget:
        budget = {name: saved[name] for name in BUDGETS if name in saved}
    elif [*budget] == ["minutes"]:  # as in a plan: further epochs would only overfit
        budget = {**budget, "epochs": MOST_EPOCHS}
    return settings(kept, budget)
