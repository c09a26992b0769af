"""What must be said of a text that is measured, where the run knows it: what was it used for before?

Overlap is found by content (text/overlap.py), in the sketches that the checkpoint holds. Prints nothing.
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
    """The caveats of a text: `is_own`: the held-out text; `is_tuned`: settings are tuned here."""
    if not documents:
        return []
    sketches = lines(loaded.checkpoint, loaded.checkpoint.tensors())
    if is_tuned:  # on all of it, of which training may have used a part
        valid = own_text(loaded, "valid", stop=stop)
        sketches["valid"] = sketch(valid.documents, stop=stop)
    shares = dict(zip(sketches, shared(documents, [*sketches.values()], stop=stop), strict=True))
    found = []
    valid_share, train_share = shares.get("valid", 0.0), shares.get("train", 0.0)
    if is_tuned and (is_own or valid_share > 0.99):
        found.append("tuned on the text that is measured: the tuned figures flatter")
    elif is_tuned and valid_share >= LEAST:
        found.append(f"{valid_share:.0%} of the text is in the held-out text that is tuned on here")
    uses = _uses(loaded)
    if uses and is_own:
        found.append(f"the run's own held-out text, used for {uses}: the figures may flatter")
    elif uses and valid_share >= LEAST:
        found.append(f"{valid_share:.0%} of the text is in the held-out text used for {uses}")
    if train_share >= LEAST:
        found.append(f"{train_share:.0%} of the text is in the training text")
    return found


def _uses(loaded: LoadedModel) -> str:
    """What the held-out text decided in training."""
    config = loaded.checkpoint.meta["config"]
    uses = {
        "choosing the best checkpoint": loaded.checkpoint.path.name == BEST,
        "early stopping": bool(config.get("patience")),
        "deciding when to average": config.get("optimizer") == "nt-asgd",
    }
    return " and ".join(use for use, is_so in uses.items() if is_so)
