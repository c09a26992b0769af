"""Lists: the records of some documents, split by their keys.

One pass over a list finds the key and the length of every record. A record's place in [0, 2^64) is its
key or, with a group, the key of the group; the split and excerpts are ranges of places. Hence equal
records are never parted, the order of the files does not matter, and a list that grows keeps every old
record on its side. Independent of tokens and models.

Shapes: N records of all documents, in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gru_lm.signals import Stop
from gru_lm.text.documents import Document
from gru_lm.text.record_keys import Keys, keys_of
from gru_lm.text.records import Block, Form, read_records

PLACES = 1 << 64
_BIN_BITS = 16
_CHUNK = 1 << 20  # records

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RecordDocument:
    """Some records of a document. As text, each record is followed by a newline, which is its end."""

    document: Document
    form: Form
    is_kept_N: Mask

    @property
    def name(self) -> str:
        """The name of the whole document."""
        return self.document.name

    def blocks(self, columns: Sequence[str] = ()) -> Iterator[Block]:
        """The records in blocks, with these columns. Raises InputError if they cannot be read."""
        before = 0
        for block in read_records(self.document, self.form, columns=columns):
            kept = self.is_kept_N[before : before + len(block.texts)]
            before += len(block.texts)
            if kept.all():
                yield block
            else:
                at = np.flatnonzero(kept).tolist()
                yield Block(
                    [block.texts[i] for i in at],
                    [block.lines[i] for i in at],
                    {name: [values[i] for i in at] for name, values in block.columns.items()},
                    block.empty,
                )

    def pieces(self) -> Iterator[str]:
        for block in self.blocks():
            if block.texts:
                yield block.text


@dataclass(frozen=True, eq=False)
class Listing:
    """All records of some documents.

    `keys_N`: of the records; `places_N`: what decides their sides; `characters_N`: their lengths,
    including the end, which counts as one; `starts`: number of the first record of each document, and N.
    """

    documents: tuple[Document, ...]
    form: Form
    keys_N: Keys
    places_N: Keys
    characters_N: npt.NDArray[np.uint32]
    starts: tuple[int, ...]
    empty: int
    returns: int
    fingerprint: str

    @cached_property
    def different_M(self) -> Keys:  # noqa: N802
        """The different keys, sorted."""
        return np.unique(self.keys_N)

    def between(self, low: int, high: int) -> Mask:
        """Mask of the records with places in [low, high)."""
        mask_N = np.full(len(self.places_N), low < PLACES)
        if 0 < low < PLACES:
            mask_N &= self.places_N >= np.uint64(low)
        if high < PLACES:
            mask_N &= self.places_N < np.uint64(high)
        return mask_N

    def selected(self, is_kept_N: Mask) -> list[RecordDocument]:
        """The documents with only the records in the mask."""
        return [
            RecordDocument(document, self.form, is_kept_N[start:end])
            for document, start, end in zip(
                self.documents, self.starts, self.starts[1:], strict=False
            )
        ]

    def lengths(self, is_kept_N: Mask) -> list[int]:
        """Characters of each document's records in the mask."""
        kept_N = np.where(is_kept_N, self.characters_N, 0)
        return [
            int(kept_N[start:end].sum(dtype=np.int64))
            for start, end in zip(self.starts, self.starts[1:], strict=False)
        ]

    def narrowed(self, is_kept_N: Mask, characters: int) -> Mask:
        """The records of the mask with the lowest places, of at most `characters` in total.

        Records of equal places are taken together, and at least those of the lowest place.
        """
        # Totals by the highest bits of the place first: only records of one bin need to be sorted.
        sums = np.zeros(1 << _BIN_BITS)
        shift = np.uint64(64 - _BIN_BITS)
        for start in range(0, len(is_kept_N), _CHUNK):
            kept = slice(start, start + _CHUNK)
            places, sizes = self.places_N[kept][is_kept_N[kept]], self.characters_N[kept]
            bins = (places >> shift).astype(np.int64)
            sums += np.bincount(bins, sizes[is_kept_N[kept]], minlength=len(sums))
        totals = np.cumsum(sums)
        last = int(np.searchsorted(totals, characters, side="right"))  # the bin that does not fit
        if last == len(sums):
            return is_kept_N
        low, high = last << int(shift), (last + 1) << int(shift)
        mask_N = is_kept_N & self.between(0, low)
        left = characters - (totals[last - 1] if last else 0)
        at = np.flatnonzero(is_kept_N & self.between(low, high))
        at = at[np.argsort(self.places_N[at], kind="stable")]
        places = self.places_N[at]
        ends = np.flatnonzero(np.append(places[1:] != places[:-1], True))  # of equal places
        fitting = ends[np.cumsum(self.characters_N[at], dtype=np.int64)[ends] <= left]
        if len(fitting) or not mask_N.any():
            mask_N[at[: 1 + int(fitting[-1] if len(fitting) else ends[0])]] = True
        return mask_N


def survey_records(
    documents: Sequence[Document], form: Form, *, stop: Stop, progress: Callable[[int], None]
) -> Listing:
    """Read a list once; `progress` is called with characters. Raises InputError if it is unusable."""
    digest = hashlib.sha256()
    columns = [form.group] if form.group else []
    keys, places, lengths, starts = [], [], [], [0]
    empty = returns = 0
    for document in documents:
        count = starts[-1]
        for block in read_records(document, form, columns=columns):
            stop()
            keys.append(keys_of(block.texts))
            places.append(keys_of(block.columns[form.group]) if form.group else keys[-1])
            sizes = np.fromiter(map(len, block.texts), np.uint32, len(block.texts)) + np.uint32(1)
            lengths.append(sizes)
            digest.update(keys[-1].tobytes())
            if form.group:
                digest.update(places[-1].tobytes())
            empty += block.empty
            returns += sum(text.count("\r") for text in block.texts if "\r" in text)
            count += len(block.texts)
            progress(int(sizes.sum()))
        starts.append(count)
    keys_N = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    return Listing(
        documents=tuple(documents),
        form=form,
        keys_N=keys_N,
        places_N=np.concatenate(places) if form.group and places else keys_N,
        characters_N=np.concatenate(lengths) if lengths else np.empty(0, np.uint32),
        starts=tuple(starts),
        empty=empty,
        returns=returns,
        fingerprint=digest.hexdigest(),
    )


def place(share: Fraction) -> int:
    """The place below which `share` of all places lie."""
    return int(share * PLACES)
