"""Load a run: its model and tokenizer, ready for scoring or sampling, and its own texts.

The contents of a checkpoint are validated before torch allocates memory for them. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gru_lm.config import Settings
from gru_lm.errors import InputError
from gru_lm.layout import PIPED_TEXT
from gru_lm.model.devices import choose_backend, set_up
from gru_lm.model.language_model import LanguageModel
from gru_lm.reporting import console
from gru_lm.signals import Stop, never
from gru_lm.text.parts import ListSources, Part, Sources, Texts, excerpt, open_texts
from gru_lm.text.records import Form
from gru_lm.text.tokenizer import Tokenizer
from gru_lm.training import directory as run_directory
from gru_lm.training.checkpoint import Checkpoint
from gru_lm.training.state import restore_model, restore_tokenizer, seen


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, with its tokenizer and checkpoint."""

    model: LanguageModel
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    device: torch.device
    seen: Mapping[str, bool]  # properties of the training text (meta.SEEN)


def load_model(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    threads: int | None = None,
    stop: Stop = never,
) -> LoadedModel:
    """Load model and tokenizer from `checkpoint`.

    Raises InputError for a damaged file, UsageError or EnvironmentProblem for an unusable device.
    """
    where = set_up(device, threads=threads, stop=stop)
    tensors = checkpoint.tensors()
    tokenizer = restore_tokenizer(checkpoint, tensors)
    backend = choose_backend(where)
    model = restore_model(checkpoint, tensors, device=where, backend=backend).eval()
    return LoadedModel(model, tokenizer, checkpoint, where, seen(checkpoint, tensors, tokenizer))


def own_text(loaded: LoadedModel, part: str, *, stop: Stop) -> Part:
    """The whole "train" or "valid" text of the checkpoint's run, even if the run used only a part.

    Raises InputError if it is missing or has changed.
    """
    directory = loaded.checkpoint.path.parent
    hint = f"gru-lm eval {loaded.checkpoint.path} FILE"
    try:
        config = run_directory.read_settings(directory)
        is_word = loaded.tokenizer.kind == "word"
        stdin = directory / PIPED_TEXT
        texts, used = read_again(config, stdin=stdin, is_word=is_word, stop=stop)
    except InputError as error:
        error.hint = hint
        raise
    if used.fingerprints[part] != loaded.checkpoint.meta["data"][part]:
        what = {"valid": "held-out", "train": "training"}[part]
        raise InputError(
            f"the {what} text of {directory} has changed since its training", hint=hint
        )
    return texts.valid if part == "valid" else texts.train


def read_sources(config: Settings, *, stdin: Path, stop: Stop) -> Sources | ListSources:
    """Open the texts named in the settings. Raises InputError if no text would be held out."""
    form = Form.of(config.given())
    with console.progress("reading", None) as advance:
        sources = open_texts(
            config.text,
            valid=config.valid,
            test=config.test,
            encoding=config.encoding,
            form=form,
            stdin=stdin,
            stop=stop,
            progress=advance,
            note=console.note,
        )
    if isinstance(sources, ListSources):
        if side := sources.empty_side(config.shares()):
            raise _without(side, sources, config)
    elif not sources.holds_out(config.shares()):
        raise InputError(
            "no text is held out for validation", hint="--split 0.9,0.1, or --valid FILE"
        )
    return sources


def _without(side: str, sources: ListSources, config: Settings) -> InputError:
    """The error for a list that leaves nothing for one side of the split."""
    option = {"validation": "valid", "testing": "test"}.get(side)
    own = getattr(config, option) if option else None
    records = getattr(sources, option) if option and own else sources.text
    if not len(records.keys_N):
        return InputError(
            f"no records in {own or ', '.join(config.text)}",
            why=f"{records.empty:,} empty ones" if records.empty else None,
            hint="name a file with records, or say with --records or --field what they are",
        )
    many = len(np.unique(records.places_N))
    if many == 1 and config.group is None:
        return InputError(
            f"no record is left for {side}: all of {', '.join(config.text)} is one record",
            why=f"each {records.form.unit} is a record",
            hint="another --records, such as --records line"
            + (f", or --{option} FILE" if option else ""),
        )
    what = f"values of {config.group}" if config.group else "different records"
    return InputError(
        f"no record is left for {side}",
        why=f"the split {config.split} decides for each of {many:,} {what}",
        hint="add records, or another --split" + (f", or --{option} FILE" if option else ""),
    )


def used_texts(whole: Texts, config: Settings, *, stop: Stop) -> Texts:
    """The excerpts of training and validation text used by the settings, and all of the test text."""
    return dataclasses.replace(
        whole,
        train=excerpt(whole.train, config.characters, stop=stop),
        valid=excerpt(whole.valid, config.valid_characters, stop=stop),
    )


def read_again(config: Settings, *, stdin: Path, is_word: bool, stop: Stop) -> tuple[Texts, Texts]:
    """Reread the texts of a run with complete settings: in full, and the part used."""
    sources = read_sources(config, stdin=stdin, stop=stop)
    whole = sources.split(config.shares(), at_line_ends=is_word, stop=stop)
    return whole, used_texts(whole, config, stop=stop)


def recorded(config: Settings) -> Settings:
    """The settings with absolute paths, so that a run can be resumed from any directory.

    Raises UsageError if a path, including that of the current directory, cannot be recorded.
    """

    def absolute(spec: str) -> str:
        if spec == "-" or spec.startswith("@") or Path(spec).is_absolute():
            return spec
        here = str(Path.cwd())
        # A glob remains one; special characters in the current directory's name are escaped.
        magic = glob.has_magic(spec) and not os.path.lexists(spec)
        return str(Path(glob.escape(here) if magic else here) / spec)

    return dataclasses.replace(
        config,
        text=tuple(map(absolute, config.text)),
        valid=absolute(config.valid) if config.valid else None,
        test=absolute(config.test) if config.test else None,
    )
