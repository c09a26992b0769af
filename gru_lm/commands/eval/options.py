"""The optional outputs of `gru-lm eval`: which are asked for, and where they go. Imports no torch."""

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
    """What to measure and to write beside the plain figures; all of it is optional."""

    per_token: Path | None = None
    per_word: Path | None = None
    per_line: Path | None = None
    html: Path | None = None
    context_curve: Path | None = None
    convention: str | None = None
    baselines: bool = False
    pairs: Path | None = None
    interpolate: Path | None = None  # an ARPA file
    weight: float | None = None  # of its n-grams; None: tuned
    cache: Mapping[str, float] | None = None  # settings other than the usual ones
    dynamic: str | None = None  # the method
    dynamic_settings: Mapping[str, float] = field(default_factory=dict)
    tune: bool = False  # cache and dynamic evaluation, on the run's own held-out text

    def files(self) -> list[Path]:
        """What will be written."""
        written = (self.per_token, self.per_word, self.per_line, self.html, self.context_curve)
        return [path for path in written if path]

    def tables(self) -> list[Path]:
        """Those of them that are tables."""
        return [path for path in (self.per_token, self.per_word, self.per_line) if path]


def form_of(table: Path) -> str:
    """The form of a table, by the ending of its name: one of TABLES; without an ending, the first."""
    return table.suffix.lower() or TABLES[0]


def check_outputs(outputs: Outputs, documents: Sequence[Document]) -> None:
    """Raise UsageError where what is to be written would replace what is read, or something else."""
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
            raise UsageError("tables and pages are written to files, not to -", hint="name a file")
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is not a regular file", hint="name a file to be written")
        if out.exists() and any(out.samefile(path) for path in inputs):
            raise UsageError(f"{out} is read here, and not to be replaced", hint="another name")
        if out.suffix == ".safetensors":
            raise UsageError(f"{out} has the name of a model", hint="another name")
        if out.absolute() in [other.absolute() for other in outs[:number]]:
            raise UsageError(f"{out} cannot hold two things at once", hint="a name for each")
    for table in outputs.tables():
        if form_of(table) not in TABLES:
            raise UsageError(
                f"{table}: tables are written as {', '.join(TABLES)}, not {table.suffix}",
                hint=f"{table.with_suffix('.csv')}",
            )
