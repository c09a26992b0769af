"""Parts of the input texts: training, validation and test, and excerpts of them.

Running text is divided at a character position, which is the same for all tokenizers (`word` moves it to
the next end of line); a list is divided by the keys of its records (listing.py). Independent of tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from gru_lm.signals import Stop
from gru_lm.text.borders import after, at_line_ends
from gru_lm.text.documents import Document, cut, survey
from gru_lm.text.listing import PLACES, Listing, Mask, place, survey_records
from gru_lm.text.record_keys import Keys, digest_of
from gru_lm.text.records import Form
from gru_lm.text.segments import LONGEST
from gru_lm.text.sources import open_documents

Progress = Callable[[int], None]

SLICES = 32  # of an excerpt; fewer if they would be shorter than a segment


@dataclass(frozen=True)
class Part:
    """One split of the text: its documents, their lengths in characters, and a fingerprint."""

    documents: tuple[Document, ...]
    lengths: tuple[int, ...]
    fingerprint: str  # of the original text and the positions of the cuts
    returns: int = 0  # carriage returns in the original text

    @property
    def characters(self) -> int:
        """Total length in characters."""
        return sum(self.lengths)

    def is_several(self) -> bool:
        """Whether there is more than one document; slices of the same document count once."""
        wholes = [getattr(document, "document", document) for document in self.documents]
        return any(whole != wholes[0] for whole in wholes)

    def cut(self, *spans: tuple[int, int]) -> Part:
        """The characters [start, end) of each of `spans`, as separate documents."""
        documents: list[Document] = []
        lengths: list[int] = []
        for start, end in spans:
            span_documents, span_lengths = cut(self.documents, self.lengths, start, end)
            documents += span_documents
            lengths += span_lengths
        positions = [str(position) for span in spans for position in span]
        fingerprint = _digest(self.fingerprint, *positions)
        return Part(tuple(documents), tuple(lengths), fingerprint, self.returns)


@dataclass(frozen=True)
class ListPart(Part):
    """Some records of a list; `documents` hold only these, and `mask_N` marks them."""

    listing: Listing = field(kw_only=True)
    mask_N: Mask = field(kw_only=True)

    @classmethod
    def of(cls, listing: Listing, mask_N: Mask, *, name: str) -> ListPart:
        """The records in a mask; `name` identifies it in the fingerprint."""
        return cls(
            tuple(listing.selected(mask_N)),
            tuple(listing.lengths(mask_N)),
            _digest(listing.fingerprint, name),
            listing.returns,
            listing=listing,
            mask_N=mask_N,
        )

    @property
    def records(self) -> int:
        """Number of records."""
        return int(self.mask_N.sum())

    def keys(self) -> Keys:
        """The keys of its records."""
        return self.listing.keys_N[self.mask_N]

    def is_several(self) -> bool:
        return True  # each record is a document

    def narrowed(self, characters: int) -> ListPart:
        """Its records with the lowest places, of at most `characters`."""
        mask_N = self.listing.narrowed(self.mask_N, characters)
        return ListPart.of(self.listing, mask_N, name=f"{self.fingerprint} {characters}")


@dataclass(frozen=True)
class Texts:
    """The three splits; `test` may be empty."""

    train: Part
    valid: Part
    test: Part

    @cached_property
    def keys_M(self) -> Keys | None:  # noqa: N802
        """The different keys of all records of lists, used or not, sorted; None for running text."""
        parts = [part for part in (self.train, self.valid, self.test) if isinstance(part, ListPart)]
        listings = [*{id(part.listing): part.listing for part in parts}.values()]
        if len(listings) < 2:
            return listings[0].different_M if listings else None
        return np.unique(np.concatenate([listing.different_M for listing in listings]))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the splits, compared when a run is resumed, and of all records of lists."""
        names = {name: getattr(self, name).fingerprint for name in ("train", "valid", "test")}
        return names if self.keys_M is None else names | {"records": digest_of(self.keys_M)}


@dataclass(frozen=True)
class Sources:
    """The input texts: TEXT, and separate validation and test files, if any."""

    text: Part
    valid: Part | None
    test: Part | None

    def _ends(self, shares: tuple[Fraction, Fraction, Fraction]) -> list[int]:
        """Positions in TEXT where training and validation end: floor(cumulative share * n)."""
        n = self.text.characters
        return [
            n if self.valid else int(shares[0] * n),
            n if self.test else int((shares[0] + shares[1]) * n),
        ]

    def training_characters(self, shares: tuple[Fraction, Fraction, Fraction]) -> int:
        """Length of the training split in characters."""
        return self._ends(shares)[0]

    def carriage_returns(self) -> int:
        """Number of carriage returns in all texts."""
        return sum(part.returns for part in (self.text, self.valid, self.test) if part)

    def holds_out(self, shares: tuple[Fraction, Fraction, Fraction]) -> bool:
        """Whether the validation split is not empty."""
        start, end = self._ends(shares)
        return bool(self.valid.characters if self.valid else end > start)

    def split(
        self, shares: tuple[Fraction, Fraction, Fraction], *, at_line_ends: bool, stop: Stop
    ) -> Texts:
        """Split TEXT; validation and test files take the place of their share.

        With `at_line_ends`, each cut moves to the next end of a line; if that would leave the following
        split empty, to the next border between words.
        """
        ends = self._ends(shares)
        if at_line_ends:
            ends = [
                after(self.text, end, until, stop)
                for end, until in zip(ends, (*ends[1:], self.text.characters), strict=True)
            ]
        return Texts(
            train=self.text.cut((0, ends[0])),
            valid=self.valid or self.text.cut((ends[0], ends[1])),
            test=self.test or self.text.cut((ends[1], self.text.characters)),
        )


@dataclass(frozen=True)
class ListSources:
    """The input lists, as Sources."""

    text: Listing
    valid: Listing | None
    test: Listing | None

    @property
    def form(self) -> Form:
        """How records are found in the files."""
        return self.text.form

    def keys(self) -> Keys:
        """The keys of all records, of whatever part."""
        return np.concatenate([each.keys_N for each in (self.text, self.valid, self.test) if each])

    def _borders(self, shares: tuple[Fraction, Fraction, Fraction]) -> list[int]:
        """Places where training, validation and test records end."""
        train, valid = place(shares[0]), place(shares[0] + shares[1])
        return [PLACES if self.valid else train, PLACES if self.test else valid, PLACES]

    def training_characters(self, shares: tuple[Fraction, Fraction, Fraction]) -> int:
        """Length of the training records in characters, including their ends."""
        mask_N = self.text.between(0, self._borders(shares)[0])
        return int(self.text.characters_N[mask_N].sum(dtype=np.int64))

    def carriage_returns(self) -> int:
        """Number of carriage returns inside the records."""
        return sum(each.returns for each in (self.text, self.valid, self.test) if each)

    def empty_side(self, shares: tuple[Fraction, Fraction, Fraction]) -> str | None:
        """The first of "training", "validation" and "testing" without a record, if any.

        A side for testing is not needed if it has no share.
        """
        start, end, last = self._borders(shares)
        if not self.text.between(0, start).any():
            return "training"
        for side, given, low, high, is_needed in (
            ("validation", self.valid, start, end, True),
            ("testing", self.test, end, last, shares[2] > 0),
        ):
            count = len(given.keys_N) if given else self.text.between(low, high).sum()
            if not count and (is_needed or given):
                return side
        return None

    def split(
        self, shares: tuple[Fraction, Fraction, Fraction], *, at_line_ends: bool, stop: Stop
    ) -> Texts:
        """Split TEXT by the places of its records; validation and test lists replace their share."""
        del at_line_ends, stop  # records are never cut
        start, end, _ = borders = self._borders(shares)

        def part(given: Listing | None, low: int, high: int) -> ListPart:
            if given:
                return ListPart.of(given, given.between(0, PLACES), name="all")
            return ListPart.of(self.text, self.text.between(low, high), name=f"{low} {high}")

        return Texts(
            train=part(None, 0, start),
            valid=part(self.valid, start, end),
            test=part(self.test, end, borders[-1]),
        )


def open_texts(
    text: Sequence[str],
    *,
    valid: str | None,
    test: str | None,
    encoding: str,
    form: Form | None = None,
    stdin: Path | None,
    stop: Stop,
    progress: Progress,
    note: Callable[[str], None],
) -> Sources | ListSources:
    """Open and survey the given texts; with a `form`, they are lists.

    Raises InputError for a text that cannot be used.
    """

    def documents(specs: Sequence[str]) -> list[Document]:
        return open_documents(
            specs, encoding=encoding, form=form, stdin=stdin, stop=stop, note=note
        )

    def opened(specs: Sequence[str]) -> Part:
        surveyed = survey(documents(specs), stop=stop, progress=progress)
        return Part(
            surveyed.documents,
            surveyed.document_characters,
            surveyed.fingerprint,
            surveyed.carriage_returns,
        )

    def listed(specs: Sequence[str], form: Form) -> Listing:
        return survey_records(documents(specs), form, stop=stop, progress=progress)

    if form:
        return ListSources(
            listed(text, form),
            listed([valid], dataclasses.replace(form, group=None)) if valid else None,
            listed([test], dataclasses.replace(form, group=None)) if test else None,
        )
    return Sources(
        opened(text), opened([valid]) if valid else None, opened([test]) if test else None
    )


def excerpt(part: Part, characters: int | None, *, stop: Stop) -> Part:
    """An excerpt of at most `characters`, evenly spread over a part; None selects all of it.

    Of running text, slices have equal length and spacing; their borders move inwards to nearby ends of
    lines. Deterministic for a given text and length.
    """
    n = part.characters
    if characters is None or characters >= n:
        return part
    if isinstance(part, ListPart):
        return part.narrowed(characters)
    count = max(1, min(SLICES, characters // LONGEST))
    size = characters // count
    spans = [(i * n // count, i * n // count + size) for i in range(count)]
    return part.cut(*at_line_ends(part, spans, near=min(LONGEST, size // 8), stop=stop))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
