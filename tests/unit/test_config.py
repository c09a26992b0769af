"""Settings: precedence of their sources, invalid values, and hints."""

from __future__ import annotations

import dataclasses
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gru_lm.config import Settings
from gru_lm.config_layers import parse_set, read_toml, settings
from gru_lm.errors import InputError, UsageError


def test_later_layers_are_stronger_and_none_says_nothing() -> None:
    made = settings({"width": 1, "seed": 1, "lr": 1}, {"width": 2, "seed": None}, {"lr": 0.5})
    assert (made.width, made.seed, made.lr) == (2, 1, 0.5)


def test_keys_may_have_dashes_as_flags_do() -> None:
    assert settings({"weight-decay": 1, "vocab-size": 300}).given()["weight_decay"] == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "--width must be at least 1, not 0"),
        ({"width": 1.5}, "width must be int, not 1.5"),
        ({"width": True}, "width must be int, not True"),
        ({"width": "64"}, "width must be int, not '64'"),
        ({"tied": 1}, "tied must be bool, not 1"),
        ({"lr": float("nan")}, "--lr must be at least 0, not nan"),
        ({"lr": float("inf")}, "--lr must be finite"),
        ({"lr": -1.0}, "--lr must be at least 0"),
        ({"dropout": 1.0}, "--dropout must be at most 0.95"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 2**63}, "--seed must be at most"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"minutes": 0.0}, "--minutes must be at least 0.01"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"precision": "float16"}, "unknown precision"),
        ({"text": 3}, "text must be a list of strings"),
        ({"text": []}, "no text"),
        ({"split": "0.9,0.2"}, "--split 0.9,0.2"),
        ({"split": "0,1"}, "--split 0,1"),
        ({"split": "1.5,-0.5"}, "--split"),
        ({"split": "1"}, "--split 1 is not"),
        ({"split": "1/0,1"}, "--split"),
        ({"widht": 3}, "unknown setting 'widht'"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(values)
    assert message in caught.value.message


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        settings({"widht": 3})
    assert "did you mean width?" in str(caught.value.hint)


def test_shares_are_exact() -> None:
    assert settings({"split": "0.9,0.1"}).shares() == (Fraction(9, 10), Fraction(1, 10), 0)
    assert settings({"split": "1/3,1/3,1/3"}).shares() == (Fraction(1, 3),) * 3


def test_a_set_value_is_toml_or_else_a_string() -> None:
    pairs = ["width=64", "lr = 1e-3", "tied=true", "cell=lstm", 'split="0.8,0.2"', "valid=a=b"]
    assert parse_set(pairs) == {
        "width": 64,
        "lr": 0.001,
        "tied": True,
        "cell": "lstm",
        "split": "0.8,0.2",
        "valid": "a=b",
    }
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_set(["width"])


def test_a_file_that_is_missing_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("width = ")
    with pytest.raises(UsageError, match="is not TOML"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not TOML"):
        read_toml(tmp_path / "bad.toml")


def test_given_settings_survive_a_file() -> None:
    made = settings({"width": 3, "lr": 1e-4, "tied": False, "text": ["a", "@b"], "minutes": 2})
    assert settings(tomllib.loads(tomli_w.dumps(made.given()))) == made


def test_every_option_has_a_help_text() -> None:
    fields = [field for field in dataclasses.fields(Settings) if field.metadata]
    assert all(len(field.metadata["help"]) > 10 for field in fields)
    assert all(field.metadata["panel"] for field in fields)
