"""Model options: shape, and regularization during training.

The single definition of both: settings, plans, models and checkpoint validation take their fields from
here. A new option is a field here and a setting of the same name in config.py. Does not import torch.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a model, excluding its vocabulary size."""

    cell: str
    layers: int
    width: int
    embed: int
    tied: bool = False
    residual: bool = False  # residual connections around all layers but the first


@dataclass(frozen=True, kw_only=True)
class RegularizationOptions:
    """Dropout and activation penalties during training."""

    dropout: float = 0.0  # between layers
    output_dropout: float | None = None  # after the last layer; None: same as `dropout`
    input_dropout: float = 0.0  # on the embeddings
    embedding_dropout: float = (
        0.0  # of whole word types, at all positions (Gal and Ghahramani 2016)
    )
    weight_drop: float = 0.0  # DropConnect on recurrent weights (Merity, Keskar and Socher 2018)
    locked: bool = False  # one mask for all time steps of a batch (both papers)
    ar: float = 0.0  # α of `activation_penalty`
    tar: float = 0.0  # β of `activation_penalty`


def names(options: type[Any]) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in fields(options)]


def field_types(options: type[Any]) -> dict[str, type]:
    """The types of a dataclass's fields, without None.

    >>> field_types(RegularizationOptions)["output_dropout"]
    <class 'float'>
    """
    hints = get_type_hints(options)
    return {
        name: next(kind for kind in get_args(hint) if kind is not types.NoneType)
        if isinstance(hint, types.UnionType)
        else hint
        for name, hint in hints.items()
    }
