"""Rows of `eval` for an n-gram model (ARPA file): alone, and interpolated with a word model.

Connects evaluation/ngram.py with the run's own validation text. Prints progress; writes no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gru_lm.commands.load import LoadedModel, own_text
from gru_lm.evaluation.arpa import open_arpa
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.ngram import (
    Mixture,
    Pairs,
    TokenScores,
    baseline,
    lines_of,
    tune_weight,
)
from gru_lm.evaluation.texts import measure
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.documents import Document, readings


class Interpolation:
    """An n-gram model and its interpolation with the word model of a run."""

    def __init__(
        self, loaded: LoadedModel, arpa: Path, *, weight: float | None, stop: Stop
    ) -> None:
        """`weight`: weight of the n-grams; None: tuned on the run's own validation text."""
        self._loaded = loaded
        self._ngram = open_arpa(arpa)
        self._scores = TokenScores(self._ngram, loaded.tokenizer)
        self._tuned_on: int | None = None
        if weight is None:
            weight, self._tuned_on = self._tune(stop)
        self._weight = weight

    def _tune(self, stop: Stop) -> tuple[float, int]:
        """The best weight on the run's own validation text, and the number of its tokens."""
        loaded = self._loaded
        valid = own_text(loaded, "valid", stop=stop)
        scores = TokenScores(self._ngram, loaded.tokenizer)
        pairs = Pairs(scores)
        with console.progress("tuning the n-gram weight", None) as advance:
            measure(
                loaded.model,
                loaded.tokenizer,
                valid.documents,
                tables=[pairs],
                stop=stop,
                progress=advance,
            )
        scores.check_overlap()
        of_model_N, of_ngrams_N = pairs.arrays()
        return tune_weight(of_model_N, of_ngrams_N), len(of_model_N)

    def mixture(self) -> Mixture:
        """A table for the pass over the evaluated text."""
        return Mixture(self._scores, weight=self._weight)

    def caveats(self) -> list[str]:
        """Caveats to be reported with the rows."""
        lacking = self._scores.lacking()
        shared = "words of the model, which share the probability of <unk> in the mixture"
        return [f"{self._ngram.name} lacks {lacking:,} {shared}"] if lacking else []

    def rows(
        self, mixture: Mixture, documents: Sequence[Document], total: Counts
    ) -> dict[str, Any]:
        """The rows `ngram` and `interpolated` for `documents`, which `mixture` has seen.

        `total`: the counts of the neural model on them. Raises InputError if the vocabularies differ
        too much.
        """
        self._scores.check_overlap()
        unknown = self._scores.unknown_tokens()
        lines = (line for pieces in readings(documents) for line in lines_of(pieces))
        text = dataclasses.replace(total, tokens=0, nats=0.0, unknown_tokens=0, unknown_nats=0.0)
        return {
            "ngram": baseline(
                self._ngram, lines, text=total, same_unknown=unknown == total.unknown_tokens
            ),
            "interpolated": {
                "name": f"interpolated with {self._ngram.name}",
                "weight": self._weight,
                "tuned_on_tokens": self._tuned_on,
                "unknown_to_the_ngrams": unknown,
                **(mixture.counts + text).figures(),
            },
        }
