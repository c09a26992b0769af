"""Declaration of options: settings as options, and the layout of `--help`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from gru_lm.config import Settings
from gru_lm.errors import UsageError

RECORDED = {
    "batch",
    "bptt",
    "lr",
    "optimizer",
    "weight_decay",
    "beta2",
}  # in every run's config.toml
COMMON, OTHER = "Common options", "Other options"
MOST_COMMON = 12


class _WithoutTypes:
    """A command or group whose help shows no type for flags without a value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag:
                param.metavar = ""
        return params


class Group(_WithoutTypes, TyperGroup):
    """A group of commands."""


def laid_out(common: Sequence[str], examples: Sequence[str]) -> type[TyperCommand]:
    """A command class whose `--help` starts with the `common` options and ends with `examples`.

    `common`: names without dashes, in order; --help is added last. All other options stay in their own
    panels.
    """
    assert len(common) < MOST_COMMON
    order = [f"--{name}" for name in (*common, "help")]

    class LaidOut(_WithoutTypes, TyperCommand):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.epilog = "\n\n".join(["Examples:", *(f"  {example}" for example in examples)])

        def get_params(self, ctx: Any) -> list[Any]:
            params = super().get_params(ctx)
            first: dict[str, TyperOption] = {}
            for param in params:
                if not isinstance(param, TyperOption):
                    continue
                name = next((name for name in order if name in param.opts), None)
                if name:
                    first[name] = param
                    param.rich_help_panel = COMMON
                elif not param.rich_help_panel:
                    param.rich_help_panel = OTHER
            shown = [first[name] for name in order]
            return [*shown, *(param for param in params if param not in shown)]

    return LaidOut


def with_settings(**helps: str | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that replaces a command's **flags with an option for every field of Settings.

    `helps`: help texts that replace those of the fields, by name; None hides the option.
    """
    hints = get_type_hints(Settings)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[
                hints[field.name] | None,
                typer.Option(
                    help=helps.get(field.name, _help(field)),
                    hidden=helps.get(field.name, "") is None,
                    rich_help_panel=field.metadata["panel"],
                    show_default=False,
                ),
            ],
        )
        for field in dataclasses.fields(Settings)
        if field.metadata
    ]

    def decorated(shell: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(shell, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]

        @functools.wraps(shell)
        def command(**arguments: Any) -> None:
            shell(**arguments)

        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
        return command

    return decorated


def _help(field: dataclasses.Field[Any]) -> str:
    shown = (
        "" if field.default is None or field.default is False else f" (default: {field.default})"
    )
    return f"{field.metadata['help']}{shown}"


def refuse_ignored(config: Settings, given: Iterable[Mapping[str, Any]]) -> None:
    """Raise UsageError if a `given` setting has no effect in combination with the others.

    `given`: the layers merged into `config`. The config.toml of a run is exempt, as it sets everything.
    """
    layers = [{key.replace("-", "_") for key in layer} for layer in given]
    named = {name for layer in layers if not layer >= RECORDED for name in layer}
    corpora = all(
        spec.startswith("@") for spec in (*config.text, config.valid, config.test) if spec
    )
    for name, is_void, without, hint in (
        ("split", config.valid, "--valid, with which all of TEXT is trained on", "--valid"),
        ("beta2", config.optimizer in ("sgd", "nt-asgd"), f"--optimizer {config.optimizer}", ""),
        ("residual", config.residual and config.layers == 1, "--layers 1", ""),
        ("encoding", corpora, "a named corpus, which is UTF-8", ""),
    ):
        if name in named and is_void:
            raise UsageError(
                f"--{name} has no effect with {without}",
                hint=f"leave --{name} out" + (f", or {hint}" if hint else ""),
            )
