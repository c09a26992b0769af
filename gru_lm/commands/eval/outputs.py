"""Optional outputs of `gru-lm eval`: tables, plots and reports.

`Collectors` gathers them in a single pass over the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from gru_lm.evaluation.record_tables import ByRecord, PerRecord, RecordPlace, Strangest
from gru_lm.evaluation.record_texts import RecordTable, measure_records
from gru_lm.evaluation.scoring import OfDistribution
from gru_lm.evaluation.statistics import Estimate
from gru_lm.evaluation.tables import PerLine, PerToken, PerWord, details
from gru_lm.evaluation.texts import Reading, Table, measure
from gru_lm.reporting import console
from gru_lm.reporting.plots import context_png
from gru_lm.reporting.report import eval_page
from gru_lm.signals import Stop
from gru_lm.text.documents import Document, readings
from gru_lm.text.listing import RecordDocument
from gru_lm.text.parts import ListPart
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
        part: ListPart | None,
    ) -> None:
        """`files`: a file open for writing for each path in `outputs`; `part`: the records of a list."""
        self.outputs, self.tokenizer, self.documents = outputs, tokenizer, documents
        self.files, self.part = files, part
        self.lists = [each for each in documents if isinstance(each, RecordDocument)]
        self.by_block, self.by_record = ByBlock(), ByRecord()
        self.conventions = Conventions(tokenizer, tokenizer.end_id if self.lists else None)
        self.used = TokenCounts(tokenizer.vocab_size)
        self.tables: list[Table] = [self.conventions, self.used]
        self.record_tables: list[RecordTable] = [self.by_record]
        if not self.lists:
            self.tables.append(self.by_block)
        self.by_word = self.by_line = self.shown = None
        self.strangest: Strangest | None = None
        if path := outputs.per_token:
            by_token = PerToken(
                files[path], tokenizer, documents, form=form_of(path), place=self._place()
            )
            self.tables.append(by_token)
        if path := outputs.per_word:
            self.by_word = PerWord(
                files[path], tokenizer, documents, form=form_of(path), place=self._place()
            )
        if (path := outputs.per_line) and not self.lists:
            self.by_line = PerLine(files[path], tokenizer, form=form_of(path))
        if outputs.html:
            self.shown = Shown(tokenizer, is_list=bool(self.lists))
        self.tables += [each for each in (self.by_word, self.by_line, self.shown, mixture) if each]
        self._add_record_tables()

    def _place(self) -> RecordPlace | None:
        """The place of tokens in a list."""
        if not self.lists:
            return None
        place = RecordPlace(self.lists)
        self.record_tables.append(place)
        return place

    def _add_record_tables(self) -> None:
        id_column = self.outputs.id_column
        if self.lists and (path := self.outputs.per_line):
            by_record = PerRecord(
                self.files[path], self.lists, id_column=id_column, form=form_of(path)
            )
            self.record_tables.append(by_record)
        if self.outputs.strangest:
            self.strangest = Strangest(self.outputs.strangest, self.lists, id_column=id_column)
            self.record_tables.append(self.strangest)

    def measure(
        self,
        loaded: LoadedModel,
        *,
        mode: str,
        batch: int | None,
        chunk: int | None,
        stop: Stop,
        progress: Callable[[float], None],
    ) -> list[Counts]:
        """Score the documents, and pass all tokens and records to the tables."""
        options: dict[str, Any] = {
            "batch": batch,
            "chunk": chunk,
            "tables": self.tables,
            "of_distribution": self.of_distribution(),
            "stop": stop,
            "progress": progress,
        }
        if not self.lists:
            return measure(loaded.model, self.tokenizer, self.documents, mode=mode, **options)
        column = self.outputs.id_column
        return measure_records(
            loaded.model,
            self.tokenizer,
            self.lists,
            columns=[] if column is None else [column],
            record_tables=self.record_tables,
            **options,
        )

    def interval(self) -> Estimate:
        """Bits per byte with its confidence interval."""
        if self.part:
            return self.by_record.interval(self.part.keys())
        return self.by_block.interval()

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
                blocks=[] if self.lists else self._along(),
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
