"""Rows of `eval` for models that adapt to the text: neural cache and dynamic evaluation.

Connects evaluation/cache.py and evaluation/dynamic.py with the run's own training and validation text.
Prints progress; writes no files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gru_lm.commands.load import LoadedModel, own_text
from gru_lm.errors import unknown_name
from gru_lm.evaluation.adaptation import Tuned, beginning
from gru_lm.evaluation.cache import CacheSettings, score_with_cache, tune_cache
from gru_lm.evaluation.dynamic import (
    BATCHES,
    DEFAULTS,
    METHODS,
    STREAMS,
    DynamicSettings,
    gradient_rms,
    score_dynamically,
    tune_dynamic,
)
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.scoring import Portion
from gru_lm.evaluation.texts import Reading
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.batches import Batches
from gru_lm.text.documents import Document

Row = dict[str, Any]


def check_settings(
    *, cache: Mapping[str, Any] | None, method: str | None, dynamic: Mapping[str, Any]
) -> None:
    """Raise UsageError if a setting of the cache or of dynamic evaluation is invalid."""
    CacheSettings(**cache or {})
    if method is not None:
        _dynamic_settings(method, dynamic)


def with_cache(
    loaded: LoadedModel,
    documents: Sequence[Document],
    *,
    given: Mapping[str, Any],
    tune: bool,
    size: int,
    stop: Stop,
) -> Row:
    """Figures with the neural cache. `given`: fixed settings; with `tune`, the others are tuned."""
    model, newline_id = loaded.model, loaded.tokenizer.newline_id
    settings, tuned = CacheSettings(**given), None
    if tune:
        with console.progress("tuning the cache", 1.0) as advance:
            tuned = tune_cache(
                model,
                _own_sequences(loaded, stop=stop),
                newline_id=newline_id,
                given=given,
                stop=stop,
                progress=advance,
            )
        settings = tuned.best
    score = partial(score_with_cache, settings=settings)
    counts = _counts(loaded, documents, "scoring with the cache", score, size=size, stop=stop)
    return _row("cache", settings, tuned, counts)


def dynamically(
    loaded: LoadedModel,
    documents: Sequence[Document],
    *,
    method: str,
    given: Mapping[str, Any],
    tune: bool,
    size: int,
    stop: Stop,
) -> Row:
    """Figures with dynamic evaluation by `method`; otherwise as `with_cache`."""
    model, newline_id = loaded.model, loaded.tokenizer.newline_id
    settings, tuned, rms = _dynamic_settings(method, given), None, None
    if method == "rms":
        whole = STREAMS * BATCHES * settings.segment
        with console.progress("computing gradients on the training text", whole) as advance:
            rms = gradient_rms(
                model,
                _training_batches(loaded, settings.segment, stop=stop),
                stop=stop,
                progress=advance,
            )
    if tune:
        with console.progress("tuning dynamic evaluation", 1.0) as advance:
            tuned = tune_dynamic(
                model,
                _own_sequences(loaded, stop=stop),
                newline_id=newline_id,
                start=settings,
                given=given,
                rms=rms,
                stop=stop,
                progress=advance,
            )
        settings = tuned.best
    score = partial(score_dynamically, settings=settings, rms=rms)
    counts = _counts(loaded, documents, "dynamic evaluation", score, size=size, stop=stop)
    return _row(f"dynamic {method}", settings, tuned, counts)


def _dynamic_settings(method: str, given: Mapping[str, Any]) -> DynamicSettings:
    if method not in METHODS:
        raise unknown_name("method of dynamic evaluation", method, METHODS)
    return dataclasses.replace(DEFAULTS[method], **given)


def _counts(
    loaded: LoadedModel,
    documents: Sequence[Document],
    what: str,
    score: Callable[..., Iterator[Portion]],
    *,
    size: int,
    stop: Stop,
) -> list[Counts]:
    reading = Reading(loaded.tokenizer, documents)
    with console.progress(what, size) as advance:
        portions = score(
            loaded.model,
            reading.sequences(),
            newline_id=loaded.tokenizer.newline_id,
            stop=stop,
            progress=lambda tokens_N: advance(reading.bytes_of(tokens_N)),
        )
        return reading.account(portions)


def _row(
    name: str,
    settings: CacheSettings | DynamicSettings,
    tuned: Tuned[CacheSettings] | Tuned[DynamicSettings] | None,
    counts: list[Counts],
) -> Row:
    row: Row = {"name": name, "settings": dataclasses.asdict(settings)}
    if tuned:
        row["tuned_on_tokens"] = tuned.tokens
        row["tried"] = [
            {
                "settings": dataclasses.asdict(each),
                "nats_per_token": nats if math.isfinite(nats) else None,
            }
            for each, nats in tuned.tried
        ]
    return row | sum(counts, Counts()).figures()


def _own_sequences(loaded: LoadedModel, *, stop: Stop) -> Any:
    """The run's own validation text, for tuning."""
    valid = own_text(loaded, "valid", stop=stop)
    return Reading(loaded.tokenizer, valid.documents).sequences()


def _training_batches(
    loaded: LoadedModel, segment: int, *, stop: Stop
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of STREAMS parallel streams from the beginning of the run's training text."""
    train = Reading(loaded.tokenizer, own_text(loaded, "train", stop=stop).documents)
    text, tokens = beginning(train.sequences(), STREAMS * BATCHES * segment)
    batches = Batches(
        tokens=np.concatenate([chunk for _, chunks in text for chunk in chunks]),
        batch=STREAMS,
        bptt=segment,
        seed=0,
    )
    for position in range(tokens // (STREAMS * segment)):
        batch = batches(position)
        yield batch.inputs_BT, batch.targets_BT
