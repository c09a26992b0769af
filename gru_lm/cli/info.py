"""`gru-lm info RUN`: describe a checkpoint from its metadata, without building the model."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from gru_lm.text.records import Form


def info_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all metadata as JSON.")] = False,
) -> None:
    """Describe a run or a checkpoint: model, tokenizer, progress and settings."""
    from gru_lm.reporting import console

    values = info(run)
    if as_json:
        console.result_json(values)
        return
    for name, value in _readable(values).items():
        if isinstance(value, dict):
            console.result(f"{name}:")
            for key, inner in value.items():
                console.result(f"  {key:<20} {_plain(inner)}")
        else:
            console.result(f"{name:<22} {_plain(value)}")


def info(path: Path) -> dict[str, Any]:
    """Return a checkpoint's metadata. Raises InputError if `path` is not a run or checkpoint."""
    from gru_lm.reporting import console
    from gru_lm.training import directory as run_directory

    checkpoint = run_directory.find(path, console.warn)
    meta = dict(checkpoint.meta)
    del meta["scaler"]
    return {"checkpoint": str(checkpoint.path), "bytes": len(checkpoint.data), **meta}


def _readable(values: dict[str, Any]) -> dict[str, Any]:
    """The metadata of interest to a reader, in order."""
    model = values["model"]
    return {
        "checkpoint": values["checkpoint"],
        "model": {
            "cell": model["cell"],
            "layers x width": f"{model['layers']} x {model['width']}",
            "embedding": f"{model['embed']}{', tied' if model['tied'] else ''}",
            "softmax": _softmax(model["vocab_size"], model["cutoffs"]),
        },
        "tokenizer": values["tokenizer"],
        "vocabulary": f"{model['vocab_size']:,}",
        **_records(values["config"]),
        "steps": f"{values['step']:,}",
        "tokens": f"{values['tokens']:,}",
        "best step": f"{values['best_step']:,}" if values["best_step"] >= 0 else "none yet",
        "settings": values["config"],
        "environment": values["environment"],
    }


def _records(config: dict[str, Any]) -> dict[str, str]:
    """Describe the records that a model was trained on; empty for running text.

    >>> _records({"field": "smiles"})
    {'records': "the field 'smiles' of each row"}
    """
    form = Form.of(config)
    if form is None:
        return {}
    if form.field is None:
        return {"records": f"each {form.unit}"}
    group = f", split by {form.group!r}" if form.group else ""
    return {"records": f"the field {form.field!r} of each row{group}"}


def _softmax(vocab_size: int, cutoffs: list[int]) -> str:
    """Describe the softmax: "full", or the cluster sizes of an adaptive one, most frequent first.

    >>> _softmax(9000, [1000, 4000])
    'adaptive: 1,000 + 3,000 + 5,000 pieces'
    """
    sizes = [b - a for a, b in pairwise((0, *cutoffs, vocab_size))]
    return f"adaptive: {' + '.join(f'{size:,}' for size in sizes)} pieces" if cutoffs else "full"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
