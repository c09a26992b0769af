"""Caveats about contamination: overlap of the evaluated text with the texts used in training.

Overlap is detected by content (text/overlap.py), from the sketches in the checkpoint. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from gru_lm.commands.load import LoadedModel, own_text
from gru_lm.layout import BEST
from gru_lm.signals import Stop
from gru_lm.text.documents import Document
from gru_lm.text.overlap import LEAST, shared, sketch
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


def _uses(loaded: LoadedModel) -> str:
    """The uses of the held-out text in training."""
    config = loaded.checkpoint.meta["config"]
    uses = {
        "choosing the best checkpoint": loaded.checkpoint.path.name == BEST,
        "early stopping": bool(config.get("patience")),
        "deciding when to average": config.get("optimizer") == "nt-asgd",
    }
    return " and ".join(use for use, is_so in uses.items() if is_so)
