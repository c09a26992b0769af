"""All settings of a training run: each field is a flag (with dashes), a TOML key and a JSON key.

None means "the planner chooses". A `Settings` that exists is valid. Knows nothing of what the settings
are for: names of cells, optimizers and devices are checked where they are used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from gru_lm.canonical import SHARE, check_text, codec, decimal
from gru_lm.errors import UsageError, unknown_name

TEXT, MODEL, BUDGET, TRAINING, MACHINE, KEEPING = (
    "Text and tokenizer",
    "Model",
    "Budget (the first to run out ends the run)",
    "Training",
    "Machine",
    "Checkpoints and validation",
)

LARGEST = 2**63 - 1  # limit of integers, which a checkpoint stores in 64 bits
PLACES = ("text", "valid", "test")  # fields that name texts
PATHS = (*PLACES, "start_from")  # fields that name files; not part of a checkpoint
BUDGETS = ("minutes", "epochs", "steps", "tokens")


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
    """All settings of a training run except its directory. Raises UsageError if invalid."""

    text: tuple[str, ...] = ("@docstrings",)
    start_from: str | None = None  # --from: a run, or one of its checkpoints
    valid: str | None = _option(
        TEXT, "Validation text (default: the last tenth of TEXT; of a list, a random tenth)."
    )
    test: str | None = _option(TEXT, "Test text, measured once, at the end.")
    split: str = _option(
        TEXT, "Shares of TEXT for training, validation and, optionally, testing.", "0.9,0.1"
    )
    records: str | None = _option(
        TEXT,
        "The text is a list of records in no order: each line, paragraph or file is one; none: running "
        "text (default: recognised).",
        choices=("line", "paragraph", "file", "none"),
    )
    field: str | None = _option(
        TEXT, "Records are the values of this field in tables: .csv, .tsv, .jsonl or .parquet."
    )
    group: str | None = _option(
        TEXT, "Keep records with equal values of this field on the same side of the split."
    )
    encoding: str = _option(TEXT, "Encoding of the text files.", "utf-8")
    tokenizer: str | None = _option(
        TEXT, "char, byte, bpe, unigram, word, or a SentencePiece FILE.model (default: planned)."
    )
    end_piece: str | None = _option(
        TEXT,
        "The piece of FILE.model that ends lines and documents (default: a newline, <sos/eos> or </s>).",
    )
    pieces: str | None = _option(
        TEXT, "Pieces that stay whole, separated by commas, or a file with one on each line."
    )
    vocab_size: int | None = _option(TEXT, "Size of the vocabulary, at most.", low=1)
    tokenizer_characters: int | None = _option(
        TEXT,
        "Size of the sample that bpe and unigram are trained on, at most, in characters (default: what "
        "fits into a small part of --minutes).",
        low=1,
    )
    characters: int | None = _option(
        TEXT,
        "Size of the training text, at most, in characters (default: what the budget can use).",
        low=1,
    )
    valid_characters: int | None = _option(
        TEXT,
        "Size of the validation text, at most, in characters (default: what the budget can score).",
        low=1,
    )

    cell: str | None = _option(
        MODEL, "Recurrent cell: gru, gru-before, lstm, lstm-thread or rnn (default: gru)."
    )
    layers: int | None = _option(MODEL, "Number of recurrent layers.", low=1)
    width: int | None = _option(MODEL, "Hidden units in each layer.", low=1)
    embed: int | None = _option(MODEL, "Embedding size.", low=1)
    tied: bool | None = _option(MODEL, "Tie the embedding and output matrices.")
    residual: bool | None = _option(MODEL, "Residual connections around all layers but the first.")
    softmax: str = _option(
        MODEL,
        "full, or adaptive: narrow clusters for rare pieces, much faster beyond a few thousand pieces.",
        "auto",
        choices=("auto", "full", "adaptive"),
    )
    dropout: float | None = _option(
        MODEL,
        "Dropout between and after the layers, and on the embeddings (small vocabularies: DropConnect "
        "on the recurrent weights instead).",
        low=0,
        high=0.95,
    )
    output_dropout: float | None = _option(
        MODEL, "Dropout after the last layer (default: same as --dropout).", low=0, high=0.95
    )
    input_dropout: float | None = _option(
        MODEL, "Dropout on the embeddings (default: same as --dropout).", low=0, high=0.95
    )
    embedding_dropout: float | None = _option(
        MODEL, "Dropout of whole rows of the embedding matrix.", low=0, high=0.95
    )
    weight_drop: float | None = _option(
        MODEL,
        "DropConnect on the recurrent weights (default: same as --dropout).",
        low=0,
        high=0.95,
    )
    locked: bool | None = _option(
        MODEL, "Locked dropout: one mask for all time steps of a batch (the default)."
    )
    ar: float | None = _option(MODEL, "L2 penalty on the last layer's outputs (AR).", low=0)
    tar: float | None = _option(MODEL, "L2 penalty on their change from step to step (TAR).", low=0)

    minutes: float | None = _option(
        BUDGET, "Wall time of the command (default: 5).", low=0.01, high=1e6
    )
    epochs: float | None = _option(BUDGET, "Passes over the training text.", low=0.0001, high=1e6)
    steps: int | None = _option(BUDGET, "Optimizer steps.", low=1)
    tokens: int | None = _option(BUDGET, "Training tokens.", low=1)

    batch: int | None = _option(TRAINING, "Batch size: parallel streams of text.", low=1)
    bptt: int | None = _option(TRAINING, "Length of truncated backpropagation, in tokens.", low=1)
    lr: float | None = _option(TRAINING, "Peak learning rate.", low=0)
    optimizer: str | None = _option(
        TRAINING,
        "muon (the default): orthogonalised updates for recurrent matrices, AdamW for the rest; adamw; "
        "sgd: momentum 0.9; nt-asgd: plain SGD, then an average of the weights once validation stalls.",
        choices=("muon", "adamw", "sgd", "nt-asgd"),
    )
    average: float | None = _option(
        TRAINING,
        "Exponential moving average of the weights, used as the model; the decay, such as 0.999.",
        low=0,
        high=0.999999,
    )
    schedule: str = _option(
        TRAINING,
        "Learning-rate schedule over the budget; all but constant end at zero.",
        "cosine",
        choices=("cosine", "linear", "constant"),
    )
    warmup: float = _option(
        TRAINING, "Share of the budget spent on linear warm-up.", 0.02, low=0, high=1
    )
    clip: float = _option(TRAINING, "Gradient clipping: largest norm; 0 for none.", 1.0, low=0)
    weight_decay: float | None = _option(
        TRAINING, "Weight decay of the matrices (at most 0.1 for those under Muon).", low=0
    )
    beta2: float | None = _option(
        TRAINING,
        "AdamW's β₂ (default: 0.999, or 0.99 for a text that is seen several times).",
        low=0,
        high=0.999999,
    )
    seed: int = _option(TRAINING, "Random seed.", 0, low=0)

    device: str = _option(MACHINE, "auto, cpu, cuda or cuda:I.", "auto")
    threads: int | None = _option(
        MACHINE, "CPU threads (default: all available cores).", low=1, high=4096
    )
    precision: str | None = _option(
        MACHINE,
        "Precision of matrix products in training: float32, bf16 (CUDA; a CPU with AVX512_BF16: "
        "the default) or fp16 (CUDA). Weights, states and evaluation are float32.",
        choices=("float32", "bf16", "fp16"),
    )
    deterministic: bool = _option(
        MACHINE, "Deterministic CUDA kernels: exact resume, slower.", False
    )

    save_every: int | None = _option(
        KEEPING, "Steps between checkpoints (default: about every 60 s).", low=1
    )
    eval_every: int | None = _option(
        KEEPING, "Steps between validations (default: 10 validations a run).", low=1
    )
    keep: int = _option(KEEPING, "Checkpoints to keep besides the best.", 2, low=1)
    patience: int | None = _option(
        KEEPING, "Early stopping: validations without improvement before the run ends.", low=1
    )

    def __post_init__(self) -> None:
        self.shares()
        # One spelling of each, as runs are resumed and compared by their settings.
        split = ",".join(decimal(Fraction(part.strip())) for part in self.split.split(","))
        object.__setattr__(self, "split", split)
        object.__setattr__(self, "encoding", codec(self.encoding))
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.average is not None and self.optimizer == "nt-asgd":
            raise UsageError(
                "--average does not go with --optimizer nt-asgd, which already averages the weights",
                hint="leave --average out",
            )
        if self.field is not None and self.records not in (None, "none"):
            raise UsageError(
                "--field does not go with --records: each row of a table is a record",
                hint="leave --records out",
            )
        if self.group is not None and self.field is None:
            raise UsageError("--group needs --field", hint="--field NAME, for records in a table")
        if not self.text:
            raise UsageError(
                "no text", hint="name a file, a folder or a corpus such as @docstrings"
            )

    def shares(self) -> tuple[Fraction, Fraction, Fraction]:
        """`split` as exact shares of training, validation and test text."""
        try:
            parts = [part.strip() for part in self.split.split(",")]
            shares = [Fraction(part) for part in parts] if all(map(SHARE.fullmatch, parts)) else []
        except (ValueError, ZeroDivisionError):
            shares = []
        if len(shares) not in (2, 3) or min(shares) < 0 or sum(shares) != 1 or shares[0] == 0:
            raise UsageError(
                f"--split {self.split} is not two or three shares that add up to 1",
                hint="--split 0.9,0.1 or --split 0.8,0.1,0.1",
            )
        train, valid, *test = shares
        if test and (self.valid or self.test):
            raise UsageError(
                f"--split {self.split} does not go with --valid or --test",
                hint="two shares with --valid or --test, three without",
            )
        return train, valid, test[0] if test else Fraction(0)

    def specs(self) -> tuple[str, ...]:
        """All that names a text."""
        return tuple(filter(None, (*self.text, self.valid, self.test)))

    def reads_stdin(self) -> bool:
        """Whether any of the text is standard input."""
        return "-" in self.specs()

    def given(self) -> dict[str, Any]:
        """The fields that are set, as plain values for TOML and JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["text"] = list(self.text)
        return {name: value for name, value in values.items() if value is not None}

    def portable(self) -> dict[str, Any]:
        """The settings that go into a checkpoint: all but the paths of files."""
        values = {name: value for name, value in self.given().items() if name not in PATHS}
        if self.tokenizer_file:
            values["tokenizer"] = self.tokenizer_file.name
        return values

    @property
    def tokenizer_file(self) -> Path | None:
        """The file that `tokenizer` names; None where it names a kind."""
        tokenizer = self.tokenizer or ""
        return Path(tokenizer) if tokenizer.endswith(".model") else None


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    for text in value if isinstance(value, tuple) else [value] * isinstance(value, str):
        check_text(flag, text, is_path=field.name in PATHS or text.endswith(".model"))
    if value is None or not field.metadata:
        return
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
