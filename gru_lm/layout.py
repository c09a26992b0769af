"""Every name that we write into a directory, and how a file of ours begins.

Imports nothing of ours. Invariant: what a command wrote is recognised here, and nowhere else: by its
name where it lies in a run or a comparison, by its first bytes wherever it lies.
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
# Hidden, and renamed once written: .NAME.RANDOM.tmp, or .NAME.PID.tmp in earlier versions.
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8}|\d{1,7})\.tmp")

# A run directory.
CONFIG, PIPED_TEXT, TOKENIZER, START, METRICS, SAMPLES, LOSS = (
    "config.toml",
    "text.txt",
    "tokenizer.model",  # where it was given: what config.toml names
    "start" + SUFFIX,  # the checkpoint that --from began with, likewise
    "metrics.jsonl",
    "samples.txt",
    "loss.png",
)
RUN_FILES = (CONFIG, PIPED_TEXT, TOKENIZER, START, METRICS, SAMPLES, LOSS)

# A directory of a comparison.
RECORD, PIPED, RESULT, RESULTS, PAGE, CURVES = (
    "compare.json",
    "piped.txt",
    "result.json",
    "results",
    "report.html",
    "curves.png",
)
COMPARISON_FILES = (RECORD, PIPED, RESULT, PAGE, CURVES)

# How files begin that may lie anywhere.
JSON_MARK = "gru_lm"  # the first key of every JSON object that a command prints or writes
TOML_MARK = "# Settings of gru-lm\n"
HTML_MARK = '<meta name="generator" content="gru-lm">'
TABLES = (  # the first columns of `eval`'s tables
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
            # What `train` and `compare` say on stderr, kept as a log.
            rb"resuming [^\n]{1,1000} after step [\d,]+\n",
            rb"(?:[^\n]{0,200}\n){0,20}text: [^\n]{1,2000} held out\ntokenizer: ",
            # The tables that commands print, kept in a file, and the description of `info`.
            rb"(?:figure\tvalue|cache\tfiles\tbytes|name\tbytes\twords)[\t\n]",
            rb"(?:row|run|cell)\t[a-z0-9/ \t]*\b(?:bits per byte|tokens/s)\b",
            rb"checkpoint {13}[^\n]{1,1000}\nmodel:\n  cell ",
            # Before there were marks: pages, comparisons of two models, benchmarks.
            b'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            b'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'',
            rb'\{\n "a": \{\n  "name": ',
            rb'\{\n "machine": \{\n  "processor": ',
            rb'\[\n \{\n  "text": "[^"\n]{1,400}",\n  "options": \[',
        )
    )
)


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step-{step:08d}{SUFFIX}"


def step_of(path: Path) -> int | None:
    """The step that the name of a checkpoint says; None for any other name, such as a copy's."""
    found = _STEP.fullmatch(path.name)
    return int(found[1]) if found else None


def step_paths(directory: Path) -> list[Path]:
    """The checkpoints of steps, newest first."""
    found = [
        (step, name) for name in _names(directory) if (step := step_of(Path(name))) is not None
    ]
    return [directory / name for _, name in sorted(found, reverse=True)]


def holds_checkpoint(directory: Path) -> bool:
    """Whether there is a run with a checkpoint in `directory`, whole or not."""
    return bool(step_paths(directory)) or os.path.lexists(directory / BEST)


def holds_run(folder: Path) -> bool:
    """Whether a run lies in `folder`, or was begun there: checkpoints, or its lock and settings."""
    names = _names(folder)
    begun = LOCK in names and not names.isdisjoint((CONFIG, PIPED_TEXT))
    return begun or BEST in names or any(step_of(Path(name)) is not None for name in names)


def holds_comparison(folder: Path) -> bool:
    """Whether a comparison lies in `folder`, or was begun there."""
    names = _names(folder)
    return (LOCK in names or RESULTS in names) and not names.isdisjoint((RECORD, PIPED))


def is_free(folder: Path) -> bool:
    """Whether `folder` is missing, or holds a lock and temporary files at most."""
    if not os.path.lexists(folder):
        return True
    names = _names(folder) if folder.is_dir() else {""}
    return all(name == LOCK or is_temporary(name) for name in names)


def is_temporary(name: str) -> bool:
    """Whether `name` is that of a file being written, or of one whose writer died."""
    return _TEMPORARY.fullmatch(name) is not None


def is_folder_of_ours(folder: Path) -> bool:
    """Whether nothing in `folder` is text to be found, since a run or a comparison lies there."""
    return holds_run(folder) or holds_comparison(folder)


def is_file_of_ours(path: Path) -> bool:
    """Whether `path` is a checkpoint, or what a run or a comparison wrote beside its own."""
    folder = path.parent
    return (
        path.suffix == SUFFIX
        or (path.name in RUN_FILES and holds_run(folder))
        or (path.name in COMPARISON_FILES and holds_comparison(folder))
        or (folder.name == RESULTS and holds_comparison(folder.parent))
    )


def begins_as_ours(head: bytes) -> bool:
    """Whether `head` is the beginning of what a command prints or writes: JSON, pages, tables."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    return bool(_BEGINNINGS.match(head)) or _columns(head.split(b"\n", 1)[0]) in TABLES


def _columns(line: bytes) -> tuple[str, ...]:
    """The first columns that the first line of a table names, as many as the table of TABLES has."""
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
