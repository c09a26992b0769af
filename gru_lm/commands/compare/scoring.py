"""The figures of one model in a comparison: on texts, or on the records of a list.

Prints a note. Invariant: the sums collected for the difference are those behind the figures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gru_lm.commands.load import LoadedModel
from gru_lm.evaluation.metrics import Counts, caveats
from gru_lm.evaluation.paired import Groups
from gru_lm.evaluation.record_texts import measure_records
from gru_lm.evaluation.texts import Table, measure
from gru_lm.reporting import console
from gru_lm.signals import Stop
from gru_lm.text.documents import Document
from gru_lm.text.listing import RecordDocument


def scored(
    opened: LoadedModel,
    documents: Sequence[Document],
    table: Table | Groups,
    *,
    of: str,
    size: int | None,
    stop: Stop,
) -> dict[str, Any]:
    """The figures of a model; also fills `table`, which is of Groups for a list.

    `of`: the name of the text in caveats. `size`: in bytes, of a list in characters.
    """
    started = time.monotonic()
    with console.progress("scoring", size) as advance:
        if isinstance(table, Groups):
            counts = measure_records(
                opened.model,
                opened.tokenizer,
                [each for each in documents if isinstance(each, RecordDocument)],
                record_tables=[table],
                stop=stop,
                progress=advance,
            )
        else:
            counts = measure(
                opened.model,
                opened.tokenizer,
                documents,
                tables=[table],
                stop=stop,
                progress=advance,
            )
    total = sum(counts, Counts())
    figures, seconds = total.figures(), time.monotonic() - started
    bits, spelled = figures["bits_per_byte"], total.spelling_nats
    shown = "no finite value in" if bits is None else f"{bits:.4f}"
    console.note(f"measured: {shown} bits per byte ({seconds:.0f} s)")
    names = ["bits_per_byte", "nats_per_token", "perplexity"]
    names += ["records", "bits_per_record"] if isinstance(table, Groups) else []
    return {
        **{name: figures[name] for name in names},
        "spelling_share": spelled / (total.nats + spelled) if spelled else 0.0,
        "caveats": caveats(
            opened.tokenizer, total.unknown_rate(), of=of, several=len(documents) > 1
        ),
    }
