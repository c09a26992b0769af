"""Every name that we write into a directory: of runs, of comparisons, and of temporary files.

Imports nothing of ours. Invariant: what a command wrote is recognised here, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".safetensors"  # of checkpoints
BEST = "best" + SUFFIX
LOCK = ".lock"

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
BEFORE_TRAINING = (
    CONFIG,
    PIPED_TEXT,
    TOKENIZER,
    START,
)  # what a run writes before its first checkpoint
RUN_FILES = (*BEFORE_TRAINING, METRICS, SAMPLES, LOSS)

# A directory of a comparison.
RECORD, PIPED, RESULT, RESULTS, PAGE, CURVES = (
    "compare.json",
    "piped.txt",
    "result.json",
    "results",
    "report.html",
    "curves.png",
)


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step-{step:08d}{SUFFIX}"


def step_paths(directory: Path) -> list[Path]:
    """The checkpoints of steps, newest first."""
    return sorted(directory.glob(f"step-*{SUFFIX}"), reverse=True)


def holds_checkpoint(directory: Path) -> bool:
    """Whether there is a run with a checkpoint in `directory`, whole or not."""
    return bool(step_paths(directory)) or (directory / BEST).exists()


def holds_run(folder: Path) -> bool:
    """Whether a run lies in `folder`, or was begun there: checkpoints, or its lock and settings."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:
        return False
    begun = LOCK in names and not names.isdisjoint(BEFORE_TRAINING)
    return begun or any(
        name.endswith(SUFFIX) and name.startswith(("step-", "best.")) for name in names
    )


def is_ours(path: Path) -> bool:
    """Whether `path` is a checkpoint, or what a run wrote beside its own."""
    return path.suffix == SUFFIX or (path.name in RUN_FILES and holds_run(path.parent))
