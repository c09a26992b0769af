"""The fields of config.Settings as Typer options, so that one place says what can be set."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from gru_lm.config import Settings


def with_settings(shell: Callable[..., None]) -> Callable[..., None]:
    """`shell` with an option for every field of Settings in place of its **flags."""
    own = [
        parameter
        for parameter in inspect.signature(shell, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    hints = get_type_hints(Settings)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[
                hints[field.name] | None,
                typer.Option(
                    help=_help(field), rich_help_panel=field.metadata["panel"], show_default=False
                ),
            ],
        )
        for field in dataclasses.fields(Settings)
        if field.metadata
    ]

    @functools.wraps(shell)
    def command(**arguments: Any) -> None:
        shell(**arguments)

    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
    return command


def _help(field: dataclasses.Field[Any]) -> str:
    shown = (
        "" if field.default is None or field.default is False else f" (default: {field.default})"
    )
    return f"{field.metadata['help']}{shown}"
