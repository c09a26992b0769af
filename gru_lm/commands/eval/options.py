"""Optional outputs of `gru-lm eval`: which are requested, and their files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gru_lm.errors import UsageError
from gru_lm.evaluation import TABLES

if TYPE_CHECKING:
    from gru_lm.text.documents import Document


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Optional measurements and files in addition to the plain figures."""

    per_token: Path | None = None
    per_word: Path | None = None
    per_line: Path | None = None
    id_column: str | None = None  # of a table of records
    strangest: int | None = None  # number of records
    html: Path | None = None
    context_curve: Path | None = None
    convention: str | None = None
    baselines: bool = False
    pairs: Path | None = None
    interpolate: Path | None = None  # an ARPA file
    weight: float | None = None  # of its n-grams; None: tuned
    cache: Mapping[str, float] | None = None  # settings that differ from the defaults
    dynamic: str | None = None  # the method
    dynamic_settings: Mapping[str, float] = field(default_factory=dict)
    tune: bool = False  # cache and dynamic evaluation, on the run's own validation text

    def files(self) -> list[Path]:
        """The files to be written."""
        written = (self.per_token, self.per_word, self.per_line, self.html, self.context_curve)
        return [path for path in written if path]

    def tables(self) -> list[Path]:
        """The tables among them."""
        return [path for path in (self.per_token, self.per_word, self.per_line) if path]


def form_of(table: Path) -> str:
    """The format of a table, from its file name; TSV if there is no suffix."""
    return table.suffix.lower() or TABLES[0]


def check_outputs(outputs: Outputs, documents: Sequence[Document]) -> None:
    """Raise UsageError if an output would overwrite an input, a model, another output or a non-file."""
    wholes = (getattr(document, "document", document) for document in documents)
    named = (
        outputs.pairs,
        outputs.interpolate,
        *(getattr(whole, "path", None) for whole in wholes),
    )
    inputs = [path for path in named if path and path.exists()]
    outs = outputs.files()
    for number, out in enumerate(outs):
        if str(out) == "-":
            raise UsageError("this output cannot go to standard output (-)", hint="use a file name")
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is not a regular file", hint="choose another output file")
        if out.exists() and any(out.samefile(path) for path in inputs):
            raise UsageError(
                f"{out} is an input and would be overwritten", hint="choose another output file"
            )
        if out.suffix == ".safetensors":
            raise UsageError(
                f"{out} has the file name of a model", hint="choose another output file"
            )
        if out.absolute() in [other.absolute() for other in outs[:number]]:
            raise UsageError(f"{out} is given for two outputs", hint="use a separate file for each")
    for table in outputs.tables():
        if form_of(table) not in TABLES:
            raise UsageError(
                f"{table}: tables are written as {', '.join(TABLES)}, not {table.suffix}",
                hint=f"{table.with_suffix('.csv')}",
            )
