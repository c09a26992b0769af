"""The command line: one module per command, each a thin Typer wrapper around a plain function.

Assembles the commands, and converts exceptions into an exit code and at most three lines on stderr.
Importing this module does not import torch, so --help is fast.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from gru_lm import __version__
from gru_lm.cli import cache, corpus
from gru_lm.cli.bench import bench_cli
from gru_lm.cli.compare import compare_cli
from gru_lm.cli.eval import eval_cli
from gru_lm.cli.info import info_cli
from gru_lm.cli.options import Group, laid_out
from gru_lm.cli.sample import sample_cli
from gru_lm.cli.train import train_cli
from gru_lm.errors import EnvironmentProblem, GruLmError, Stopped, nearest

app = typer.Typer(
    cls=Group,
    help="Train, sample and measure recurrent language models.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: gru-lm train mytext.txt\n\n"
    "Every command has --help, and --debug for a traceback.",
)


@dataclass(frozen=True)
class Entry:
    """A command: its function, the options shown first in its help, and two examples."""

    shell: Callable[..., None]
    common: tuple[str, ...]
    examples: tuple[str, str]


COMMANDS = {
    "train": Entry(
        train_cli,
        (
            *("minutes", "cell", "tokenizer", "valid", "out", "resume", "from"),
            *("width", "layers", "dry-run", "json"),
        ),
        (
            "gru-lm train mytext.txt --minutes 5",
            "gru-lm train mytext.txt --cell lstm --tokenizer word --minutes 30",
        ),
    ),
    "sample": Entry(
        sample_cli,
        (
            *("prompt", "length", "samples", "temperature", "top-p", "top-k", "stop", "seed"),
            *("unique", "novel", "json"),
        ),
        (
            'gru-lm sample runs/gru-1 --prompt "Once upon" --length 200',
            "gru-lm sample runs/names --samples 1000 --unique --novel",
        ),
    ),
    "eval": Entry(
        eval_cli,
        (
            *("html", "per-token", "per-word", "per-line", "baselines", "as", "pairs", "mode"),
            "json",
        ),
        (
            "gru-lm eval runs/gru-1 other.txt --baselines",
            "gru-lm eval runs/gru-1 other.txt --per-word words.tsv --html page.html",
        ),
    ),
    "compare": Entry(
        compare_cli,
        ("cells", "match", "minutes", "seeds", "tokenizer", "out", "on", "fail-if-worse", "json"),
        (
            "gru-lm compare mytext.txt --cells gru,lstm --minutes 1 --seeds 3",
            "gru-lm compare runs/gru-1 runs/lstm-1 --on other.txt",
        ),
    ),
    "info": Entry(info_cli, ("json",), ("gru-lm info runs/gru-1", "gru-lm info runs/gru-1 --json")),
    "bench": Entry(
        bench_cli,
        ("cells", "width", "seconds", "threads", "device", "json"),
        ("gru-lm bench", "gru-lm bench --cells gru,lstm --width 256 --threads 1"),
    ),
}
for _name, _entry in COMMANDS.items():
    app.command(_name, cls=laid_out(_entry.common, _entry.examples))(_entry.shell)
app.add_typer(corpus.app, name="corpus")
app.add_typer(cache.app, name="cache")

INTERNAL = 70
PIPE_CLOSED = 141


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gru-lm {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line in sys.argv, and exit with its exit code."""
    started = time.monotonic() - time.process_time()  # before Python and the imports above
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    code = run(sys.argv[1:], started=started)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = PIPE_CLOSED if isinstance(error, BrokenPipeError) else code or _report(error)
        # Python flushes stdout again at exit: redirect it to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during exit
    gc.freeze()  # with PyTorch loaded, the final collection would take more than a second
    sys.exit(code)


def run(args: Sequence[str], *, started: float) -> int:
    """Run one command line; returns the exit code. `started` is on the monotonic clock."""
    debug = "--debug" in args
    try:
        if sys.platform not in ("linux", "darwin"):
            raise EnvironmentProblem(f"gru-lm runs on Linux and macOS, not on {sys.platform}")
        from gru_lm import caches

        caches.listener = _note
        args = [arg for arg in args if arg != "--debug"] or ["--help"]
        result = app(args, prog_name="gru-lm", standalone_mode=False, obj=started)
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        return PIPE_CLOSED
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _note(text: str) -> None:
    from gru_lm.reporting import console

    console.note(text)


def _report(error: BaseException) -> int:
    """Print the error; returns the exit code."""
    from gru_lm.reporting import console

    match error:
        case Stopped():
            console.note(error.message)
            if error.hint:
                console.note(error.hint)
            return error.exit_code
        case GruLmError():
            console.error(error.message, why=error.why, hint=error.hint)
            return error.exit_code
        case TyperException():
            message, hint = _usage(error)
            console.error(message, hint=hint)
            return 2
        case KeyboardInterrupt() | typer.Abort():
            return 130
        case SystemExit() if isinstance(error.__context__, BrokenPipeError):
            return PIPE_CLOSED  # Typer converts the BrokenPipeError
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case OSError() if error.errno in NO_ROOM:
            console.error(
                f"cannot write: {error.strerror}", hint="free some space or choose another place"
            )
            return EnvironmentProblem.exit_code
        case FileNotFoundError() if "temporary directory" in str(error):  # from tempfile
            console.error(
                "no usable directory for temporary files",
                hint="set TMPDIR to a writable directory",
            )
            return EnvironmentProblem.exit_code
        case MemoryError():
            console.error("out of memory", hint=LESS_MEMORY)
            return EnvironmentProblem.exit_code
        case RuntimeError() if "memory" in str(error) and "alloc" in str(error).lower():
            console.error("out of memory", why=str(error).splitlines()[0], hint=LESS_MEMORY)
            return EnvironmentProblem.exit_code
    console.error(
        f"internal error: {type(error).__name__}: {error}",
        hint="this is a bug: please report it with the output of the same command and --debug",
    )
    return INTERNAL


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
LESS_MEMORY = "a smaller --batch, --bptt, --width or --vocab-size"


def _usage(error: TyperException) -> tuple[str, str]:
    """The message and hint for a usage error."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "gru-lm"
    hint = f"{command} --help"
    message = getattr(error, "message", str(error))
    possible = getattr(error, "possibilities", None)
    if message.startswith("No such command"):
        name = "".join(re.findall("^[^']*'([^']*)'", message))
        near = nearest(name, getattr(context and context.command, "commands", ()))
        return f"no such command: {name}", f"{command} {near}" if near else hint
    if possible:
        near = nearest(message.rpartition(" ")[2], possible) or sorted(possible)[0]
        return message, f"did you mean {near}? {hint}"
    format_message = getattr(error, "format_message", None)
    return (format_message() if format_message else message), hint
