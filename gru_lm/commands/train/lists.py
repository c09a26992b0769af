"""Lists of records: recognised where nothing was said, described, and remembered in the run directory.

Prints notes to stderr. The keys of all records go into the run directory (layout.RECORDS), so that
`sample --novel` needs no text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from gru_lm.commands.load import read_sources
from gru_lm.config import Settings
from gru_lm.evaluation.validation import measure_tokens
from gru_lm.layout import RECORDS
from gru_lm.model.language_model import LanguageModel
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.dataset import Data
from gru_lm.text.parts import ListPart, ListSources, Sources, Texts
from gru_lm.text.recognise import looks_like_list
from gru_lm.text.record_batches import RecordTokens
from gru_lm.text.record_keys import among, read_keys, write_keys
from gru_lm.text.records import LINE, ROW
from gru_lm.text.sources import open_documents
from gru_lm.text.tables import format_of

MEASURED = 1000  # training records
BY_HEART = 0.7  # of the held-out loss; a lower training loss comes of learning by heart


def read_texts(
    config: Settings, *, stdin: Path, stop: Stop
) -> tuple[Settings, Sources | ListSources]:
    """Open the texts; where nothing was said of records, decide whether they are a list.

    Returns the settings with the decision, which is announced.
    """
    if config.records is None and config.field is None:
        config = dataclasses.replace(config, records=_recognised(config, stdin=stdin, stop=stop))
    return config, read_sources(config, stdin=stdin, stop=stop)


def _recognised(config: Settings, *, stdin: Path, stop: Stop) -> str:
    documents = open_documents(
        config.text, encoding=config.encoding, stdin=stdin, stop=stop, note=console.note
    )
    found = looks_like_list(documents)
    if found == "records":
        console.note(
            "the text is a list: each line is trained as a record of its own, in no order "
            "(--records none: as running text)"
        )
        return LINE
    if found == "maybe" and any(format_of(document.name) for document in documents):
        console.note(
            "the text is read as it is; with --field NAME, each row of the table would be a record, "
            "and a random tenth of them held out"
        )
    elif found == "maybe":
        console.note(
            "the text looks like a list; with --records line, each line would be a record of its own, "
            "in no order, and a random tenth of them held out"
        )
    return "none"


def describe(whole: Texts, *, held_out: float) -> None:
    """Print what a list holds, and warnings if held-out lists repeat training records, or if groups
    leave a share far from `held_out` for validation.
    """
    train, valid, test = whole.train, whole.valid, whole.test
    if not (isinstance(train, ListPart) and isinstance(valid, ListPart)):
        return
    listing = train.listing
    total, different = len(listing.keys_N), len(listing.different_M)
    kind = "empty or without the field" if listing.form.unit == ROW else "empty"
    empty = f"; skipped, since {kind}: {listing.empty:,}" if listing.empty else ""
    sides = f"{train.records:,} for training, {valid.records:,} held out"
    if isinstance(test, ListPart) and test.records:
        sides += f", {test.records:,} for testing"
    console.note(f"records: {total:,} ({different:,} different), {sides}{empty}")
    for said in repeated(whole).values():
        console.warn(said)
    share = valid.records / total
    if listing.form.group and valid.listing is listing and not 0.5 < share / held_out < 2:
        console.warn(
            f"{share:.1%} of the records are held out instead of {held_out:.1%}: the groups by "
            f"{listing.form.group} are few or of unequal size"
        )


def repeated(whole: Texts) -> dict[str, str]:
    """Warnings for "valid" and "test" if some of their records are training records."""
    said = {}
    if isinstance(whole.train, ListPart):
        listing, known = whole.train.listing, None
        for name, what in (("valid", "held-out"), ("test", "test")):
            part = getattr(whole, name)
            if part.listing is listing and not listing.form.group:
                continue  # equal records are on the same side
            known = np.unique(whole.train.keys()) if known is None else known
            share = float(among(part.keys(), known).mean()) if part.records else 0.0
            if share:
                said[name] = f"{share:.1%} of the {what} records are among the training records too"
    return said


def compare_losses(model: LanguageModel, data: Data, *, held_out: float, stop: Stop) -> None:
    """Print the loss on some training records beside that on the held-out ones, in nats per token.

    Warns if the model has learnt the training records by heart.
    """
    assert isinstance(data.training, RecordTokens)
    some = data.training.some(MEASURED)
    totals = measure_tokens(model, some, newline_id=some.first_id, unknown_id=None, stop=stop)
    loss = totals.nats / totals.tokens
    console.note(f"on training records: {loss:.4f} nats per token; held out: {held_out:.4f}")
    if loss < BY_HEART * held_out:
        console.warn(
            "the model has learnt many of the training records by heart, and will repeat them: more "
            "--dropout or a smaller --width generalises better, and sample --novel leaves them out"
        )


def remember(directory: Path, texts: Texts) -> None:
    """Write the keys of all records into a run directory, unless they are there."""
    if texts.keys_M is None:
        return
    if read_keys(directory / RECORDS, texts.fingerprints["records"]) is None:
        write_keys(directory / RECORDS, texts.keys_M)
