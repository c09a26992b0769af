"""Settings from mappings, TOML files and `key=value` pairs.

Precedence: defaults < a TOML file < --set key=value < flags. The settings are defined in config.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from gru_lm.config import LARGEST, Settings
from gru_lm.errors import InputError, UsageError, unknown_name


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of settings. Raises InputError where it cannot be read, UsageError for no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML", why=str(error)) from error


def parse_set(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is TOML, or a plain string where it is not.

    >>> parse_set(["width=64", "cell=lstm"])
    {'width': 64, 'cell': 'lstm'}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair} is not KEY=VALUE", hint="--set width=512")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            values[key.strip()] = value
    return values


def settings(*layers: Mapping[str, Any]) -> Settings:
    """Settings from mappings; later ones take precedence, and None sets nothing.

    Raises UsageError for an unknown key (with the nearest known one) and for a wrong type or value.
    """
    hints = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            name = key.replace("-", "_")
            if name not in hints:
                raise unknown_name("setting", key, hints)
            if value is not None:
                values[name] = _typed(name, hints[name], value)
    return Settings(**values)


def _typed(name: str, hint: Any, value: Any) -> Any:
    if name == "text":
        parts = [value] if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
        raise UsageError(f"{name} must be a list of strings, not {value!r}")
    wanted = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    if wanted is float and type(value) is int and abs(value) <= LARGEST:
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"{name} must be {wanted.__name__}, not {value!r}")
    return value
