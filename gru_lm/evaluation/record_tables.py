"""Tables and statistics of lists, updated with scored records: rows, places, intervals, the strangest.

Independent of models and file formats. Invariant: the rows of a table sum to the total of the list.

Shapes: R records.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from gru_lm.evaluation.record_texts import ScoredRecords
from gru_lm.evaluation.rows import Rows, Value
from gru_lm.evaluation.statistics import Estimate, records_interval
from gru_lm.evaluation.tables import Place
from gru_lm.text.listing import RecordDocument
from gru_lm.text.records import ROW
from gru_lm.text.tokenizer import escaped

_Strange = tuple[
    float, int, dict[str, Any]
]  # nats per token, minus its number in the list, the record


class ByRecord:
    """Nats including charges (spelling.py) and bytes of each record."""

    def __init__(self) -> None:
        self._nats, self._bytes = array("d"), array("q")

    def __call__(self, records: ScoredRecords) -> None:
        self._nats.frombytes((records.nats_R + records.spelling_R).tobytes())
        self._bytes.frombytes(records.bytes_R.tobytes())

    def interval(self, keys_R: np.ndarray) -> Estimate:
        """Bits per byte with its confidence interval, given the records' keys (record_keys.py)."""
        nats_R, bytes_R = np.frombuffer(self._nats), np.frombuffer(self._bytes, np.int64)
        return records_interval(nats_R / math.log(2), bytes_R, keys_R)


class RecordPlace(Place):
    """Position of the next token: line in the file (from 1), character and byte in its record (from 0).

    In a table, the line is that on which the row begins.
    """

    def __init__(self, documents: Sequence[RecordDocument]) -> None:
        super().__init__(documents)
        self._counts_lines = documents[0].form.unit != ROW
        self._following = deque[tuple[int, int]]()  # line and bytes of the records not yet entered
        self._bytes = 0  # of the current record
        self.line = self.character = self.byte = 0

    def __call__(self, records: ScoredRecords) -> None:
        """Append records, before their tokens."""
        self._following.extend(zip(records.block.lines, records.bytes_R.tolist(), strict=True))
        if self.byte == self._bytes:
            self._next()

    def enter(self, document: int) -> None:
        self.document = document

    def move(self, size_2: Sequence[int], *, newline: bool) -> None:
        super().move(size_2, newline=newline and self._counts_lines)
        if self.byte == self._bytes and self._following and size_2[0]:
            self._next()

    def _next(self) -> None:
        self.line, self._bytes = self._following.popleft()
        self.character = self.byte = 0


class PerRecord:
    """One row per record, in the order of the list: line on which it begins, tokens, nats.

    With several documents, their names come first; `id_column` names a column that is copied as `id`.
    """

    def __init__(
        self,
        file: BinaryIO,
        documents: Sequence[RecordDocument],
        *,
        id_column: str | None = None,
        form: str = ".tsv",
    ) -> None:
        self._names = [escaped(each.name) for each in documents] if len(documents) > 1 else None
        self._id_column = id_column
        columns = ["file"] * bool(self._names) + ["line"] + ["id"] * (id_column is not None)
        self._rows = Rows(file, " ".join([*columns, "tokens", "nats"]), form)

    def __call__(self, records: ScoredRecords) -> None:
        columns: list[Sequence[Value]] = []
        if self._names:
            columns.append([self._names[records.document]] * len(records.tokens_R))
        columns.append(records.block.lines)
        if self._id_column is not None:
            columns.append([_cell(each) for each in records.block.columns[self._id_column]])
        columns += [records.tokens_R.tolist(), records.nats_R.tolist()]
        self._rows.write(zip(*columns, strict=True))


def _cell(text: str) -> str:
    """Escaped for a table, with its spaces."""
    return " ".join(map(escaped, text.split(" ")))


class Strangest:
    """The `count` records of the largest surprisal per token; of equal ones, the first."""

    def __init__(
        self, count: int, documents: Sequence[RecordDocument], *, id_column: str | None = None
    ) -> None:
        self._count = count
        self._names = [each.name for each in documents] if len(documents) > 1 else None
        self._id_column = id_column
        self._read = 0
        self._heap: list[_Strange] = []  # the least strange first

    def __call__(self, records: ScoredRecords) -> None:
        each_R = records.nats_R / records.tokens_R
        if len(self._heap) == self._count:
            candidates = np.flatnonzero(each_R > self._heap[0][0])
        else:
            candidates = np.arange(len(each_R))
        strongest = candidates[np.argsort(-each_R[candidates], kind="stable")][: self._count]
        for at in strongest.tolist():
            item = (float(each_R[at]), -(self._read + at), self._described(records, at))
            if len(self._heap) < self._count:
                heapq.heappush(self._heap, item)
            else:
                heapq.heappushpop(self._heap, item)
        self._read += len(each_R)

    def rows(self) -> list[dict[str, Any]]:
        """The records, the strangest first."""
        return [
            {"nats_per_token": value if math.isfinite(value) else None, **record}
            for value, _, record in sorted(self._heap, key=lambda item: item[:2], reverse=True)
        ]

    def _described(self, records: ScoredRecords, at: int) -> dict[str, Any]:
        nats = float(records.nats_R[at])
        where: dict[str, Any] = {"line": records.block.lines[at]}
        if self._names:
            where = {"file": self._names[records.document], **where}
        if self._id_column is not None:
            where["id"] = records.block.columns[self._id_column][at]
        return {
            "nats": nats if math.isfinite(nats) else None,
            "tokens": int(records.tokens_R[at]),
            **where,
            "text": records.block.texts[at],
        }
