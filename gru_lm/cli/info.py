"""`gru-lm info RUN`: what a checkpoint is, without building the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def info_cli(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run or a checkpoint is: its model, tokenizer, settings and figures."""
    from gru_lm.reporting import console

    values = info(run)
    if as_json:
        console.result_json(values)
        return
    for name, value in values.items():
        if isinstance(value, dict):
            console.result(f"{name}:")
            for key, inner in value.items():
                console.result(f"  {key:<20} {_plain(inner)}")
        else:
            console.result(f"{name:<22} {_plain(value)}")


def info(path: Path) -> dict[str, Any]:
    """The checkpoint's own description. Raises InputError where it is none."""
    from gru_lm.reporting import console
    from gru_lm.training import runs

    checkpoint = runs.find(path, console.warn)
    meta = dict(checkpoint.meta)
    del meta["scaler"]
    return {"checkpoint": str(checkpoint.path), "bytes": len(checkpoint.data), **meta}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
