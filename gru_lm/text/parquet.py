"""Tables in Parquet, row by row, by the optional package pyarrow.

Knows nothing of the other formats. Invariant: memory does not grow with the number of row
groups, of which one is held, compressed.
"""

from __future__ import annotations

from collections.abc import Iterator

from gru_lm.errors import EnvironmentProblem, InputError
from gru_lm.text import files
from gru_lm.text.columns import Columns
from gru_lm.text.documents import Document, FileDocument
from gru_lm.text.records import Block

ROWS = 4096  # in a block


def read_parquet(document: Document, wanted: Columns) -> Iterator[Block]:
    """The rows of a Parquet file; `lines` are their numbers from 1.

    Raises EnvironmentProblem if pyarrow is not installed, InputError for a damaged file and as
    tables.read_rows.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise EnvironmentProblem(
            "Parquet needs the package pyarrow",
            why=str(error),
            hint="pip install 'gru-lm[parquet]'",
        ) from error
    assert isinstance(document, FileDocument)
    document.check()
    with files.reading(document.name, document.path) as (raw, _):
        try:
            table = ParquetFile(raw)
            wanted.check(table.schema_arrow.names)
            names = list(wanted.cells())
            first = 1
            for batch in table.iter_batches(ROWS, columns=names, use_threads=False):
                lines = list(range(first, first + batch.num_rows))
                cells = {
                    name: [
                        value if isinstance(value, str) else wanted.text(name, value, row)
                        for row, value in zip(lines, batch.column(name).to_pylist(), strict=True)
                    ]
                    for name in names
                }
                yield wanted.block(cells, lines)
                first += batch.num_rows
        except pyarrow.ArrowException as error:
            raise files.damaged(document.name, document.path, error) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{document.name}, after row {first - 1:,}: not utf-8", why=str(error)
            ) from error
    document.check()
