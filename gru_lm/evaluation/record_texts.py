"""Evaluates lists: records in, counts and tables of surprisal out.

Each record is a sequence of its own: from the zero state, fed the end-of-line token, to end_id, which
covers the line end after it in the text of its document. Independent of runs and terminals. Invariants:
every token is scored, and tables are given the records in their order; charges (spelling.py) are those
of the text; memory does not grow with the list.

Shapes: N tokens, R records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gru_lm.evaluation.metrics import Counts, TextCounter
from gru_lm.evaluation.record_scoring import record_scores
from gru_lm.evaluation.scoring import COLUMN_BATCH, COLUMN_CHUNK, OfDistribution, Portion
from gru_lm.evaluation.spelling import Charges
from gru_lm.evaluation.texts import Covered, Table, counts_of, text_counts
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never, unheard
from gru_lm.text.documents import Document
from gru_lm.text.listing import RecordDocument
from gru_lm.text.record_batches import RecordTokens
from gru_lm.text.records import Block
from gru_lm.text.tokenizer import Covering, Tokenizer

AT_ONCE = 1 << 18  # tokens scored together, at least, if there are so many


class ScoredRecords(NamedTuple):
    """Consecutive records of one document, with the columns asked for, and sums over each."""

    document: int
    block: Block
    tokens_R: npt.NDArray[np.int64]
    nats_R: npt.NDArray[np.float64]  # of the tokens
    spelling_R: npt.NDArray[np.float64]  # charges (spelling.py)
    bytes_R: npt.NDArray[np.int64]  # UTF-8, with one for the end


# Called with all records, in order, before the tables of their tokens.
RecordTable = Callable[[ScoredRecords], None]


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A block of records: their tokens [N], where each ends [R], and the text covered by the tokens."""

    document: int
    block: Block
    tokens_N: npt.NDArray[np.int32]
    ends_R: npt.NDArray[np.int64]
    bytes_R: npt.NDArray[np.int64]
    covered: Covered
    counts: Counts  # of the text


def measure_records(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[RecordDocument],
    *,
    columns: Sequence[str] = (),
    batch: int | None = None,
    chunk: int | None = None,
    tables: Sequence[Table] = (),
    record_tables: Sequence[RecordTable] = (),
    of_distribution: OfDistribution | None = None,
    stop: Stop = never,
    progress: Callable[[float], None] = unheard,
) -> list[Counts]:
    """Score the records of `documents`; return the counts of each. `progress`: with characters scored.

    `tables` as in texts.measure; `record_tables` are given the records with these `columns`. Errors of
    reading a document propagate.
    """
    totals = [Counts() for _ in documents]
    for blocks in _gathered(_encoded(tokenizer, documents, columns), AT_ONCE):
        tokens_N = np.concatenate([each.tokens_N for each in blocks])
        before = np.cumsum([0, *(len(each.tokens_N) for each in blocks)])
        ends_R = np.concatenate(
            [each.ends_R + start for each, start in zip(blocks, before, strict=False)]
        )
        per_token = sum(each.counts.characters for each in blocks) / len(tokens_N)
        scores_NX = record_scores(
            model,
            RecordTokens(tokens_N, ends_R, tokenizer.newline_id),
            batch=batch or COLUMN_BATCH,
            chunk=chunk or COLUMN_CHUNK,
            of_distribution=of_distribution,
            stop=stop,
            progress=partial(_advance, progress, per_token),
        )
        for each, scores_nX in zip(blocks, np.split(scores_NX, before[1:-1]), strict=True):
            portion = Portion(each.document, each.tokens_N, scores_nX[:, 0], scores_nX[:, 1:])
            totals[each.document] += each.counts + counts_of(portion, tokenizer.unknown_id)
            scored = _scored(each, portion)
            for record_table in record_tables:
                record_table(scored)
            for table in tables:
                table(portion, each.covered)
    return totals


def _advance(progress: Callable[[float], None], per_token: float, tokens: int) -> None:
    progress(tokens * per_token)


def sizes_of(documents: Sequence[Document], tokenizer: Tokenizer, *, stop: Stop) -> Counts:
    """The counts of texts or lists without a model: sizes, and charges (spelling.py)."""
    lists = [each for each in documents if isinstance(each, RecordDocument)]
    if not lists:
        return text_counts(documents, tokenizer, stop=stop)
    total, charges = Counts(), Charges(tokenizer)
    for document in lists:
        for block in document.blocks():
            stop()
            total += _counted(text := block.text, block)
            if not tokenizer.lossless:
                for _, charged_N in _charged(tokenizer, charges, text):
                    total += Counts(spelling_nats=float(charged_N.sum()))
    return total


def _counted(text: str, block: Block) -> Counts:
    counter = TextCounter()
    counter.add(text)
    return counter.counts() + Counts(records=len(block.texts))


def _encoded(
    tokenizer: Tokenizer, documents: Sequence[RecordDocument], columns: Sequence[str]
) -> Iterator[_Encoded]:
    """Encode the records of all documents, block by block."""
    charges = Charges(tokenizer)
    for number, document in enumerate(documents):
        for block in document.blocks(columns):
            if not block.texts:
                continue
            # Encoding them together is much faster, and lines are encoded independently.
            text = block.text
            coverings, charged = zip(*_charged(tokenizer, charges, text), strict=True)
            tokens_N = np.concatenate([each.tokens_N for each in coverings]).astype(np.int32)
            sizes_N2 = np.concatenate([each.sizes_N2 for each in coverings])
            lengths = map(len, block.texts if text.isascii() else map(str.encode, block.texts))
            bytes_R = np.fromiter(lengths, np.int64, len(block.texts)) + 1
            # The token that covers the line end after a record ends it; tokens of no bytes may follow.
            ends_R = np.searchsorted(np.cumsum(sizes_N2[:, 0]), np.cumsum(bytes_R)) + 1
            tokens_N[ends_R - 1] = tokenizer.end_id
            lossy = None if tokenizer.lossless else [t for each in coverings for t in each.texts]
            spelling_N = np.concatenate(charged)
            counts = _counted(text, block) + Counts(spelling_nats=float(spelling_N.sum()))
            covered = Covered(sizes_N2, spelling_N, lossy)
            yield _Encoded(number, block, tokens_N, ends_R, bytes_R, covered, counts)


def _charged(
    tokenizer: Tokenizer, charges: Charges, text: str
) -> Iterator[tuple[Covering, np.ndarray]]:
    """The coverings of records, with charges. There is none for the end of the text: records end."""
    coverings = tokenizer.encode_covering([text])
    return charges.of(covering._replace(rest=None) for covering in coverings)


def _gathered(blocks: Iterator[_Encoded], tokens: int) -> Iterator[list[_Encoded]]:
    """Lists of blocks with at least `tokens` tokens, except the last."""
    waiting: list[_Encoded] = []
    have = 0
    for block in blocks:
        waiting.append(block)
        have += len(block.tokens_N)
        if have >= tokens:
            yield waiting
            waiting, have = [], 0
    if waiting:
        yield waiting


def _scored(encoded: _Encoded, portion: Portion) -> ScoredRecords:
    starts_R = np.append(0, encoded.ends_R[:-1])
    return ScoredRecords(
        encoded.document,
        encoded.block,
        encoded.ends_R - starts_R,
        -np.add.reduceat(portion.log_probs_N, starts_R),
        np.add.reduceat(encoded.covered.spelling_N, starts_R),
        encoded.bytes_R,
    )
