"""What can be set, once: every field is a flag (with dashes), a TOML key and a JSON key.

Values come from defaults < a TOML file < --set key=value < flags; None means "the planner chooses".
A `Settings` that exists is valid. Knows nothing of what the settings are for: names of cells,
optimizers and devices are checked where they are used.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_type_hints

from gru_lm.errors import InputError, UsageError, unknown_name

TEXT, MODEL, BUDGET, TRAINING, MACHINE, KEEPING = (
    "Text and tokenizer",
    "Model",
    "Budget (whichever ends first)",
    "Training",
    "Machine",
    "What is kept",
)

LARGEST = 2**63 - 1  # of whole numbers, in a checkpoint too: a seed may be as large
BUDGETS = ("minutes", "epochs", "steps", "tokens")  # the fields that say how long to train


def _option(
    panel: str,
    text: str,
    default: object = None,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {"panel": panel, "help": text, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a training run but where it is written. Raises UsageError if invalid."""

    text: tuple[str, ...] = ("@docstrings",)
    valid: str | None = _option(
        TEXT, "Held-out text to validate on, instead of the last part of TEXT."
    )
    test: str | None = _option(TEXT, "Held-out text, measured once, at the end.")
    split: str = _option(
        TEXT, "Shares of TEXT that train, validate and, if a third is given, test.", "0.9,0.1"
    )
    encoding: str = _option(TEXT, "How the text files are encoded.", "utf-8")
    tokenizer: str | None = _option(
        TEXT, "char, byte, bpe, unigram, word, or a SentencePiece FILE.model."
    )
    vocab_size: int | None = _option(TEXT, "Pieces in the vocabulary, at most.", low=1)
    characters: int | None = _option(
        TEXT,
        "Characters of the training text to use, at most (else what the budget can use).",
        low=1,
    )
    valid_characters: int | None = _option(
        TEXT,
        "Characters of the held-out text to validate on, at most (else what the budget can score).",
        low=1,
    )

    cell: str | None = _option(
        MODEL, "The recurrent cell: gru (if not given), gru-before, lstm, lstm-thread, rnn."
    )
    layers: int | None = _option(MODEL, "Recurrent layers.", low=1)
    width: int | None = _option(MODEL, "Hidden units a layer.", low=1)
    embed: int | None = _option(MODEL, "Size of a token's embedding.", low=1)
    tied: bool | None = _option(MODEL, "Share the embedding's matrix with the output.")
    residual: bool | None = _option(MODEL, "Layers above the first add to what they read.")
    softmax: str = _option(
        MODEL,
        "How the next piece is predicted: full weighs all pieces alike; adaptive computes rare ones "
        "only when needed, much faster from some thousands of pieces on.",
        "auto",
        choices=("auto", "full", "adaptive"),
    )
    dropout: float | None = _option(
        MODEL,
        "Share of units dropped between and after layers; of embeddings or, where pieces are few, of "
        "recurrent weights as well.",
        low=0,
        high=0.95,
    )
    output_dropout: float | None = _option(
        MODEL, "The same after the last layer, if it is to be another.", low=0, high=0.95
    )
    input_dropout: float | None = _option(
        MODEL, "The same of the embeddings, if it is to be another.", low=0, high=0.95
    )
    embedding_dropout: float | None = _option(
        MODEL, "Share of the vocabulary dropped from a batch's input.", low=0, high=0.95
    )
    weight_drop: float | None = _option(
        MODEL, "The same of the recurrent weights, if it is to be another.", low=0, high=0.95
    )
    locked: bool | None = _option(
        MODEL, "Drop the same units at all steps of a batch (the default)."
    )
    ar: float | None = _option(MODEL, "Penalty on the square of the last layer's outputs.", low=0)
    tar: float | None = _option(
        MODEL, "Penalty on the square of their change from step to step.", low=0
    )

    minutes: float | None = _option(BUDGET, "Wall time of the whole command.", low=0.01, high=1e6)
    epochs: float | None = _option(BUDGET, "Passes over the training text.", low=0.0001, high=1e6)
    steps: int | None = _option(BUDGET, "Optimizer steps.", low=1)
    tokens: int | None = _option(BUDGET, "Training tokens.", low=1)

    batch: int | None = _option(TRAINING, "Parallel streams of text.", low=1)
    bptt: int | None = _option(TRAINING, "Tokens backpropagated through; the state goes on.", low=1)
    lr: float | None = _option(TRAINING, "Highest learning rate.", low=0)
    optimizer: str | None = _option(
        TRAINING,
        "muon (if not given): adamw, with orthogonal updates of the cells' square matrices; adamw; sgd "
        "with momentum 0.9; nt-asgd: sgd without, averaging weights once validations no longer fall.",
        choices=("muon", "adamw", "sgd", "nt-asgd"),
    )
    average: float | None = _option(
        TRAINING,
        "Decay (such as 0.999) a step of an average of the weights, which is then the model.",
        low=0,
        high=0.999999,
    )
    schedule: str = _option(
        TRAINING,
        "How the learning rate falls over the budget: to nothing, unless constant.",
        "cosine",
        choices=("cosine", "linear", "constant"),
    )
    warmup: float = _option(
        TRAINING, "Share of the budget in which the learning rate rises.", 0.02, low=0, high=1
    )
    clip: float = _option(TRAINING, "Largest norm of the gradient; 0: no limit.", 1.0, low=0)
    weight_decay: float | None = _option(
        TRAINING, "Decay of the weight matrices; of those that Muon moves, at most 0.1.", low=0
    )
    beta2: float | None = _option(
        TRAINING,
        "How much AdamW keeps of its mean squared gradients each step (if not given): 0.999 where text "
        "is seen once, 0.99 where often.",
        low=0,
        high=0.999999,
    )
    seed: int = _option(TRAINING, "Where all randomness starts.", 0, low=0)

    device: str = _option(MACHINE, "auto, cpu, cuda or cuda:I.", "auto")
    threads: int | None = _option(MACHINE, "CPU threads.", low=1, high=4096)
    precision: str | None = _option(
        MACHINE,
        "Precision of the products in training (else bf16 on a processor that has AVX512_BF16, float32 "
        "elsewhere): bf16 goes with CUDA too, fp16 with CUDA alone. Weights, states and evaluation are "
        "float32.",
        choices=("float32", "bf16", "fp16"),
    )
    deterministic: bool = _option(MACHINE, "Bit-identical resumes on CUDA too, if slower.", False)

    save_every: int | None = _option(
        KEEPING, "Steps between checkpoints (else about every 60 s).", low=1
    )
    eval_every: int | None = _option(
        KEEPING, "Steps between validations (else 10 times a run).", low=1
    )
    keep: int = _option(KEEPING, "Checkpoints kept, beside the best.", 2, low=1)
    patience: int | None = _option(
        KEEPING, "End after this many validations without a new best.", low=1
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        self.shares()
        if self.average is not None and self.optimizer == "nt-asgd":
            raise UsageError(
                "--average does not go with --optimizer nt-asgd, which has an average of its own",
                hint="leave --average out",
            )
        if not self.text:
            raise UsageError(
                "no text", hint="name a file, a folder or a corpus such as @docstrings"
            )

    def shares(self) -> tuple[Fraction, Fraction, Fraction]:
        """`split` as exact shares of training, validation and test text."""
        try:
            shares = [Fraction(part) for part in self.split.split(",")]
        except (ValueError, ZeroDivisionError):
            shares = []
        if len(shares) not in (2, 3) or min(shares) < 0 or sum(shares) != 1 or shares[0] == 0:
            raise UsageError(
                f"--split {self.split}: not two or three shares that add up to 1",
                hint="--split 0.9,0.1 or --split 0.8,0.1,0.1",
            )
        train, valid, *test = shares
        if test and (self.valid or self.test):
            raise UsageError(
                f"--split {self.split} and a held-out file both say what to hold out",
                hint="two shares with --valid or --test, three without",
            )
        return train, valid, test[0] if test else Fraction(0)

    def given(self) -> dict[str, Any]:
        """The fields that are set, as plain values for TOML and JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["text"] = list(self.text)
        return {name: value for name, value in values.items() if value is not None}

    def portable(self) -> dict[str, Any]:
        """The same for a checkpoint: without where the text lies, which is the run directory's."""
        paths = ("text", "valid", "test")
        return {name: value for name, value in self.given().items() if name not in paths}


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    if value is None or not field.metadata:
        return
    flag = "--" + field.name.replace("_", "-")
    low, high = field.metadata["low"], field.metadata["high"]
    if high is None and isinstance(value, int):
        high = LARGEST
    if low is not None and not value >= low:  # "not >=" refuses NaN too
        raise UsageError(f"{flag} must be at least {low}, not {value}")
    if high is not None and not value <= high:
        raise UsageError(f"{flag} must be at most {high}, not {value}")
    if isinstance(value, float) and value == float("inf"):
        raise UsageError(f"{flag} must be finite")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise unknown_name(field.name, value, choices)


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
            raise UsageError(f"--set {pair}: not key=value", hint="--set width=512")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            values[key.strip()] = value
    return values


def settings(*layers: Mapping[str, Any]) -> Settings:
    """Settings from mappings, the later ones stronger; None in a layer says nothing.

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
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"{name} must be {wanted.__name__}, not {value!r}")
    return value
