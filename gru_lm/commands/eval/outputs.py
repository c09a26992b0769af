"""Optional outputs of `gru-lm eval`: tables, plots and reports.

`Collectors` gathers them in a single pass over the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gru_lm.commands.eval.options import Outputs, form_of
from gru_lm.commands.load import LoadedModel
from gru_lm.evaluation.adaptation import beginning
from gru_lm.evaluation.baselines import baselines
from gru_lm.evaluation.collectors import ByBlock, Conventions, Shown, TokenCounts, split_words
from gru_lm.evaluation.context import context_curve
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.ngram import Mixture
from gru_lm.evaluation.scoring import OfDistribution
from gru_lm.evaluation.tables import PerLine, PerToken, PerWord, details
from gru_lm.evaluation.texts import Reading, Table
from gru_lm.reporting import console
from gru_lm.reporting.plots import context_png
from gru_lm.reporting.report import eval_page
from gru_lm.signals import Stop
from gru_lm.text.documents import Document, readings
from gru_lm.text.tokenizer import Tokenizer

MOST_OF_CONTEXT = 1 << 23  # tokens of the text used for a context curve, at most


class Collectors:
    """The tables updated with every scored token, and the outputs made from them."""

    def __init__(
        self,
        outputs: Outputs,
        tokenizer: Tokenizer,
        documents: Sequence[Document],
        files: Mapping[Path, BinaryIO],
        mixture: Mixture | None,
    ) -> None:
        """`files`: a file open for writing for each path in `outputs`."""
        self.outputs, self.tokenizer, self.documents = outputs, tokenizer, documents
        self.files = files
        self.by_block, self.conventions = ByBlock(), Conventions(tokenizer)
        self.used = TokenCounts(tokenizer.vocab_size)
        self.tables: list[Table] = [self.by_block, self.conventions, self.used]
        if outputs.per_token:
            form = form_of(outputs.per_token)
            self.tables.append(PerToken(files[outputs.per_token], tokenizer, documents, form=form))
        self.by_word = self.by_line = self.shown = None
        if outputs.per_word:
            form = form_of(outputs.per_word)
            self.by_word = PerWord(files[outputs.per_word], tokenizer, documents, form=form)
        if outputs.per_line:
            form = form_of(outputs.per_line)
            self.by_line = PerLine(files[outputs.per_line], tokenizer, form=form)
        if outputs.html:
            self.shown = Shown(tokenizer)
        self.tables += [each for each in (self.by_word, self.by_line, self.shown, mixture) if each]

    def of_distribution(self) -> OfDistribution | None:
        """The function of each predictive distribution required by the tables, if any."""
        outputs = self.outputs
        return details(self.tokenizer) if outputs.per_token or outputs.per_word else None

    def finish(self) -> None:
        """Write the remaining rows of the tables."""
        for table in (self.by_word, self.by_line):
            if table:
                table.finish()

    def names(self) -> list[str]:
        """Names of the documents."""
        return [document.name for document in self.documents]

    def convention(self, total: Counts) -> tuple[dict[str, Any], list[str]]:
        """Figures in the convention of another tool, and their caveats."""
        convention, names = self.outputs.convention, self.names()
        assert convention
        words = split_words(self.documents) if convention == "lm-eval" else []
        caveat = f"the words counted by --as {convention} are pieces of this model"
        figures = self.conventions.figures(
            convention,
            name=names[0] if len(names) == 1 else f"{len(names)} files",
            words=words,
            size=total.bytes,
        )
        of_words = self.tokenizer.kind == "word" and not self.tokenizer.whole
        return figures, [] if words or of_words else [caveat]

    def baselines(self, total: Counts, *, stop: Stop) -> list[dict[str, Any]]:
        """Figures of baselines without a neural model."""
        pieces = (piece for pieces in readings(self.documents) for piece in pieces)
        return baselines(self.used.counts_V, pieces, spelling_nats=total.spelling_nats, stop=stop)

    def context_curve(self, loaded: LoadedModel, *, stop: Stop) -> dict[str, Any]:
        """The loss by tokens of context; also writes the plot."""
        assert self.outputs.context_curve
        text, _ = beginning(Reading(self.tokenizer, self.documents).sequences(), MOST_OF_CONTEXT)
        with console.progress("measuring the use of context", 1.0) as advance:
            curve = context_curve(
                loaded.model,
                [np.concatenate(chunks) for _, chunks in text],
                newline_id=self.tokenizer.newline_id,
                stop=stop,
                progress=advance,
            )
        values = curve.as_dict()
        plot = context_png(values, f"{curve.targets:,} targets")
        self.files[self.outputs.context_curve].write(plot)
        return values

    def write_page(self, result: Mapping[str, Any], total: Counts) -> None:
        """Write the HTML report, if requested."""
        if self.outputs.html and self.shown:
            names = self.names()
            page = eval_page(
                dict(result),
                title=", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
                blocks=self._along(),
                tokens=self.shown.tokens,
                shown_of=(len(self.shown.tokens), total.tokens),
            )
            self.files[self.outputs.html].write(page.encode())

    def _along(self) -> list[tuple[int, float]]:
        """For each block, the number of tokens up to its end and its bits per byte."""
        points, read = [], 0
        for nats, size, tokens in self.by_block.sums():
            read += int(tokens)
            if size:
                points.append((read, float(nats / math.log(2) / size)))
        return points
