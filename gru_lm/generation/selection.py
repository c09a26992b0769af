"""Which of the records drawn are kept, and how many of them are complete, different and new.

Knows the texts of records, but no model. Invariant: the records kept of a prompt depend on the order of
its draws alone, not on how many are drawn at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gru_lm.generation.sampling import Sample
from gru_lm.text.record_keys import Keys, among, keys_of

RECENT = 10_000  # draws of one prompt; drawing stops ...
FEWEST = 10  # ... if fewer of them than this are kept, unless every record is
COUNTED = 1_000_000  # draws up to which different records are counted without being asked for


@dataclass
class Record(Sample):
    """One record drawn; `text` is without its prompt."""

    prompt: int = 0  # index of the prompt
    number: int = 0  # of the draw, for this prompt
    key: int = 0  # of the whole text; only of records that ended
    listed: bool | None = None  # whether it is in the list; None: unknown, or it did not end

    @property
    def ended(self) -> bool:
        """Whether its end was drawn: it was not cut by the length or a stop string."""
        return self.stop == "end"


class Selection:
    """Accepts `samples` records of every prompt: all that are drawn, or those that qualify.

    `unique`: only records that ended and were not drawn before, for this prompt or an earlier one.
    `novel`: only records that ended and are not in the list with the sorted keys `listed_M`.
    `paragraphs`: only records without a blank line, as no record of the list has one.

    Draws are judged in the order of prompts and of numbers. Counts: `drawn` records were judged, `ended`
    of them are complete, `unique` of these are different (None: not counted), and `novel` of these are
    not in the list (None: not counted, or no list); `kept` were accepted. `short` prompts were given up,
    after RECENT draws of which fewer than FEWEST were accepted.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        samples: int,
        *,
        unique: bool = False,
        novel: bool = False,
        paragraphs: bool = False,
        listed_M: Keys | None = None,
    ) -> None:
        assert listed_M is not None or not novel, "novelty needs the keys of the list"
        self.prompts = prompts
        self.samples = samples
        self.drawn = self.ended = self.kept = self.short = 0
        self.unique: int | None = 0
        self.novel: int | None = None if listed_M is None else 0
        self._must = unique, novel
        self._paragraphs = paragraphs
        self._listed_M = listed_M
        self._seen: set[int] = set()
        self.prompt = 0  # whose draws are judged now
        self._judged = self._found = 0  # of this prompt's draws
        self._recent = (
            0  # of the draws since `_judged` was last a multiple of RECENT, those accepted
        )

    @property
    def done(self) -> bool:
        """Whether no more draws are needed."""
        return self.prompt >= len(self.prompts)

    def wanted(self) -> int:
        """How many more draws of the current prompt are likely to be needed."""
        missing = self.samples - self._found
        return (
            math.ceil(missing * (self._judged + 1) / (self._found + 1))
            if any(self._must) or self._paragraphs
            else missing
        )

    def look_up(self, records: Sequence[Record]) -> None:
        """Set `key` and `listed` of records that ended."""
        if self.unique is None and self._listed_M is None:
            return
        ended = [record for record in records if record.ended]
        keys_N = keys_of(self.prompts[each.prompt] + each.text for each in ended)
        for record, key in zip(ended, keys_N.tolist(), strict=True):
            record.key = key
        if self._listed_M is not None:
            listed_N: np.ndarray = among(keys_N, self._listed_M)
            for record, listed in zip(ended, listed_N.tolist(), strict=True):
                record.listed = listed

    def accepts(self, record: Record) -> bool:
        """Judge the next draw of the current prompt; moves on to the next prompt if it was the last."""
        must_be_unique, must_be_novel = self._must
        new = False
        self.drawn += 1
        if record.ended:
            self.ended += 1
            if self.unique is not None:
                new = record.key not in self._seen
                self._seen.add(record.key)
                self.unique += new
                if self.novel is not None:
                    self.novel += new and not record.listed
        accepted = (new or not must_be_unique) and (record.listed is False or not must_be_novel)
        if self._paragraphs:
            accepted &= _is_paragraph(self.prompts[record.prompt] + record.text, record.ended)
        self.kept += accepted
        self._found += accepted
        self._recent += accepted
        self._judged += 1
        if self.drawn == COUNTED and not must_be_unique:
            self.unique = self.novel = None
            self._seen.clear()
        if self._judged % RECENT == 0:
            if self._recent < FEWEST and self._found < self.samples:
                self.short += 1
                self._next_prompt()
            self._recent = 0
        if self._found == self.samples:
            self._next_prompt()
        return accepted

    def _next_prompt(self) -> None:
        self.prompt += 1
        self._judged = self._found = self._recent = 0


def _is_paragraph(text: str, ended: bool) -> bool:
    """Whether no line is blank, except the last of a text that was cut."""
    lines = text.split("\n")
    return all(line.strip() for line in (lines if ended else lines[:-1]))
