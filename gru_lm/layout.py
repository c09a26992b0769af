"""Names of the files written into directories, and signatures of generated files.

Imports no other module of the package. Invariant: generated files are recognised here and nowhere else:
by name within a run or comparison, by their first bytes anywhere.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

SUFFIX = ".safetensors"  # of checkpoints
BEST = "best" + SUFFIX
LOCK = ".lock"
_STEP = re.compile(rf"step-([0-9]{{8}}|[1-9][0-9]{{8,18}}){re.escape(SUFFIX)}")
# Temporary files, hidden and renamed once written: .NAME.RANDOM.tmp, formerly .NAME.PID.tmp.
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8}|\d{1,7})\.tmp")

# Run directory.
CONFIG, PIPED_TEXT, TOKENIZER, START, METRICS, SAMPLES, LOSS, RECORDS = (
    "config.toml",
    "text.txt",
    "tokenizer.model",  # copy of a given tokenizer, named in config.toml
    "start" + SUFFIX,  # copy of the checkpoint of --from, named in config.toml
    "metrics.jsonl",
    "samples.txt",
    "loss.png",
    "records.u64",  # keys of all records of a list (text/record_keys.py)
)
RUN_FILES = (CONFIG, PIPED_TEXT, TOKENIZER, START, METRICS, SAMPLES, LOSS, RECORDS)

# Comparison directory.
RECORD, PIPED, RESULT, RESULTS, PAGE, CURVES = (
    "compare.json",
    "piped.txt",
    "result.json",
    "results",
    "report.html",
    "curves.png",
)
PIPED_TABLES = ("piped.csv", "piped.tsv", "piped.jsonl")  # instead of PIPED
COMPARISON_FILES = (RECORD, PIPED, *PIPED_TABLES, RESULT, PAGE, CURVES)

# First bytes of generated files, which may be anywhere.
JSON_MARK = "gru_lm"  # the first key of every JSON object that a command prints or writes
TOML_MARK = "# Settings of gru-lm\n"
HTML_MARK = '<meta name="generator" content="gru-lm">'
TABLES = (  # first columns of the tables of `eval`
    ("index", "id", "piece"),
    ("file", "line", "character", "byte", "word"),
    ("line", "tokens", "nats"),
)
_BEGINNINGS = re.compile(
    b"|".join(
        (
            rb'\[?\s*\{\s*"' + JSON_MARK.encode() + b'":',
            re.escape(TOML_MARK.encode()),
            b"<!doctype html>[^\0]{0,400}" + re.escape(HTML_MARK.encode()),
            rb'\{"step": \d+, "tokens": \d+, "seconds":',  # METRICS
            rb"--- step \d+\n",  # SAMPLES
            # Log files with the stderr of `train` and `compare`.
            rb"resuming [^\n]{1,1000} after step [\d,]+\n",
            rb"(?:[^\n]{0,200}\n){0,20}text: [^\n]{1,2000} held out\ntokenizer: ",
            # The tables that commands print, kept in a file, and the description of `info`.
            rb"(?:figure\tvalue|cache\tfiles\tbytes|name\tbytes\twords)[\t\n]",
            rb"(?:row|run|cell)\t[a-z0-9/ \t]*\b(?:bits per byte|tokens/s)\b",
            rb"checkpoint {13}[^\n]{1,1000}\nmodel:\n  cell ",
            # Earlier versions, without marks: pages, comparisons of two models, benchmarks.
            b'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            b'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'',
            rb'\{\n "a": \{\n  "name": ',
            rb'\{\n "machine": \{\n  "processor": ',
            rb'\[\n \{\n  "text": "[^"\n]{1,400}",\n  "options": \[',
        )
    )
)


def step_path(directory: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return directory / f"step-{step:08d}{SUFFIX}"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint; None for any other name, such as that of a copy."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def step_paths(directory: Path) -> list[Path]:
    """The checkpoints named by step, newest first."""
    checkpoints = [
        (step, name) for name in _names(directory) if (step := step_of(Path(name))) is not None
    ]
    return [directory / name for _, name in sorted(checkpoints, reverse=True)]


def holds_checkpoint(directory: Path) -> bool:
    """Whether `directory` contains a checkpoint, intact or not."""
    return bool(step_paths(directory)) or os.path.lexists(directory / BEST)


def holds_run(folder: Path) -> bool:
    """Whether `folder` contains a run, even one without a checkpoint yet (lock and settings)."""
    names = _names(folder)
    is_started = LOCK in names and not names.isdisjoint((CONFIG, PIPED_TEXT))
    return is_started or BEST in names or any(step_of(Path(name)) is not None for name in names)


def is_piped_text(path: Path) -> bool:
    """Whether `path` is standard input as a run keeps it."""
    return path.name == PIPED_TEXT and holds_run(path.parent)


def holds_comparison(folder: Path) -> bool:
    """Whether `folder` contains a comparison, even one without a completed run yet."""
    names = _names(folder)
    return (LOCK in names or RESULTS in names) and not names.isdisjoint(
        (RECORD, PIPED, *PIPED_TABLES)
    )


def is_free(folder: Path) -> bool:
    """Whether `folder` is missing, or empty except for a lock and temporary files."""
    if not os.path.lexists(folder):
        return True
    names = _names(folder) if folder.is_dir() else {""}
    return all(name == LOCK or is_temporary(name) for name in names)


def is_temporary(name: str) -> bool:
    """Whether `name` is that of a temporary file, possibly of a dead process."""
    return _TEMPORARY.fullmatch(name) is not None


def is_folder_of_ours(folder: Path) -> bool:
    """Whether `folder` is a run or a comparison, and is therefore not searched for texts."""
    return holds_run(folder) or holds_comparison(folder)


def is_file_of_ours(path: Path) -> bool:
    """Whether `path` is a checkpoint, or another file of a run or comparison."""
    folder = path.parent
    return (
        path.suffix == SUFFIX
        or (path.name in RUN_FILES and holds_run(folder))
        or (path.name in COMPARISON_FILES and holds_comparison(folder))
        or (folder.name == RESULTS and holds_comparison(folder.parent))
    )


def begins_as_ours(head: bytes) -> bool:
    """Whether `head` is the beginning of generated output: JSON, HTML reports, tables, logs."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    return bool(_BEGINNINGS.match(head)) or _columns(head.split(b"\n", 1)[0]) in TABLES


def _columns(line: bytes) -> tuple[str, ...]:
    """The entry of TABLES that the header line of a table starts with, or ()."""
    text = line.decode("utf-8", errors="replace").strip()
    names: list[str] = []
    if text.startswith("{"):
        try:
            names = list(json.loads(text))
        except (ValueError, RecursionError):
            return ()
    else:
        names = [name.strip('"') for name in re.split("[\t,]", text)]
    return next((each for each in TABLES if tuple(names[: len(each)]) == each), ())


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()
