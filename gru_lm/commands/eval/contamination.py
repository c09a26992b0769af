"""Caveats about contamination: overlap of the evaluated text with the texts used in training.

Overlap is detected by content: of texts (text/overlap.py), from the sketches in the checkpoint; of
lists, by the keys of records, from the table in the run directory. Prints nothing.

Shapes: R evaluated records.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gru_lm.commands.load import LoadedModel, own_text
from gru_lm.errors import InputError
from gru_lm.layout import BEST, RECORDS
from gru_lm.signals import Stop
from gru_lm.text.documents import Document
from gru_lm.text.listing import PLACES, place
from gru_lm.text.overlap import LEAST, shared, sketch
from gru_lm.text.parts import ListPart
from gru_lm.text.record_keys import Keys, among, read_keys
from gru_lm.training import directory as run_directory
from gru_lm.training.state import lines


def text_caveats(
    loaded: LoadedModel, documents: Sequence[Document], *, is_own: bool, is_tuned: bool, stop: Stop
) -> list[str]:
    """Caveats for a text.

    `is_own`: it is the run's held-out text; `is_tuned`: settings are tuned on the held-out text.
    """
    if not documents:
        return []
    sketches = lines(loaded.checkpoint, loaded.checkpoint.tensors())
    if is_tuned:  # on the whole held-out text, of which training may have used only a part
        valid = own_text(loaded, "valid", stop=stop)
        sketches["valid"] = sketch(valid.documents, stop=stop)
    shares = dict(zip(sketches, shared(documents, [*sketches.values()], stop=stop), strict=True))
    caveats = []
    valid_share, train_share = shares.get("valid", 0.0), shares.get("train", 0.0)
    if is_tuned and (is_own or valid_share > 0.99):
        caveats.append("settings are tuned on the evaluated text itself")
    elif is_tuned and valid_share >= LEAST:
        caveats.append(f"{valid_share:.0%} of the text is in the held-out text used for tuning")
    uses = _uses(loaded)
    if uses and is_own:
        caveats.append(f"the run's own held-out text, used for {uses}: figures may be optimistic")
    elif uses and valid_share >= LEAST:
        caveats.append(f"{valid_share:.0%} of the text is in the held-out text used for {uses}")
    if train_share >= LEAST:
        caveats.append(f"{train_share:.0%} of the text is in the training text")
    return caveats


def record_caveats(loaded: LoadedModel, part: ListPart, *, is_own: bool, stop: Stop) -> list[str]:
    """Caveats for records; `is_own`: they are the run's held-out ones."""
    keys_R, uses = part.keys(), _uses(loaded)
    checkpoint = loaded.checkpoint
    table = read_keys(checkpoint.path.parent / RECORDS, str(checkpoint.meta["data"].get("records")))
    if table is None:
        notes = text_caveats(loaded, part.documents, is_own=is_own, is_tuned=False, stop=stop)
        return [
            *notes,
            f"{RECORDS} of the run is missing or damaged: which records it was trained on is unknown "
            "(gru-lm train --resume RUN writes it again)",
        ]
    sides = _sides(loaded, keys_R, table, stop)
    if sides is None:
        share = float(among(keys_R, table).mean())
        return [f"{share:.1%} of the records are in the list of the run"] if share else []
    train_share, valid_share = (float(side_R.mean()) for side_R in sides)
    caveats = []
    if uses and is_own:
        caveats.append(
            f"the run's own held-out records, used for {uses}: figures may be optimistic"
        )
    elif uses and valid_share:
        caveats.append(
            f"{valid_share:.1%} of the records are among the held-out records used for {uses}"
        )
    if train_share:
        caveats.append(f"{train_share:.1%} of the records are among the training records")
    return caveats


def _sides(
    loaded: LoadedModel, keys_R: Keys, table: Keys, stop: Stop
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """Which records are among the training and the held-out records; None if that is unknown."""
    try:
        config = run_directory.read_settings(loaded.checkpoint.path.parent)
        if not (config.group or config.valid or config.test):
            # The key of a record decides its side.
            in_list_R = among(keys_R, table)
            train, valid, _ = config.shares()
            ends = place(train), place(train + valid)
            trains_R, held_R = (
                np.ones_like(in_list_R) if end >= PLACES else keys_R < np.uint64(end)
                for end in ends
            )
            return in_list_R & trains_R, in_list_R & held_R & ~trains_R
        parts = (own_text(loaded, name, stop=stop) for name in ("train", "valid"))
        train_R, valid_R = (
            among(keys_R, np.unique(part.keys())) for part in parts if isinstance(part, ListPart)
        )
    except (InputError, ValueError):
        return None
    return train_R, valid_R


def _uses(loaded: LoadedModel) -> str:
    """The uses of the held-out text in training."""
    config = loaded.checkpoint.meta["config"]
    uses = {
        "choosing the best checkpoint": loaded.checkpoint.path.name == BEST,
        "early stopping": bool(config.get("patience")),
        "deciding when to average": config.get("optimizer") == "nt-asgd",
    }
    return " and ".join(use for use, is_so in uses.items() if is_so)
