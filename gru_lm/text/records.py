"""Records: the lines, paragraphs or files of a list, or the rows of a table.

A record is a document of its own; the records of a list have no order. Independent of models and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LINE, PARAGRAPH, FILE, ROW = UNITS = ("line", "paragraph", "file", "row")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How records are found in files."""

    unit: str  # one of UNITS
    field: str | None = None  # of a row: the name of the column with the text
    group: str | None = None  # of a row: the name of a column that is not split

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Form | None:
        """The form in settings, as in a checkpoint; None for running text."""
        unit, field = config.get("records"), config.get("field")
        if field is not None:
            return cls(unit=ROW, field=field, group=config.get("group"))
        return None if unit in (None, "none") else cls(unit=unit)
