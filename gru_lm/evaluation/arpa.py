"""N-gram models in ARPA format, loaded by the optional package `kenlm`.

This is the only module that imports the package. Invariant: kenlm is native code that trusts the header
of a file, so every header is checked before kenlm opens the file.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gru_lm.errors import EnvironmentProblem, InputError
from gru_lm.text import files

_BINARY = b"mmap lm http://kheafield.com/code"
_COUNT = re.compile(rb"ngram +\d+=\s*(\d+)\s*")
_MIN_ENTRY = 4  # bytes: a probability, a tab, a word, a newline
_MAX_RATIO = 1000  # of compression
_REBUILD = "build it again, for example with KenLM's lmplz, or download it again"


@dataclass(frozen=True)
class Ngram:
    """A loaded model; `name` is the file name as shown to the user."""

    name: str
    model: Any  # kenlm.Model
    state: type[Any]  # kenlm.State


def open_arpa(path: Path) -> Ngram:
    """Load an ARPA file, compressed (.gz, .bz2, .xz) or not.

    Raises EnvironmentProblem if kenlm is not installed or memory runs out, InputError if the file is not
    a valid ARPA file. If it has no <unk>, kenlm warns on standard error and uses probability 1e-100.
    """
    try:
        import kenlm
    except ImportError as error:
        raise EnvironmentProblem(
            "n-gram models need the package kenlm",
            why=str(error),
            hint="pip install 'gru-lm[ngram]'",
        ) from error
    name = files.shown(path)
    _check_head(name, path)
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return Ngram(name, kenlm.Model(os.fsencode(path), config), kenlm.State)
    except Exception as error:  # the type depends on what the C++ code throws
        raise _load_error(name, path, error) from error


def _check_head(name: str, path: Path) -> None:
    r"""Reject files that are not ARPA, and counts that would make kenlm access invalid memory."""
    if path.suffix.lower() == ".zst":
        raise InputError(f"{name}: kenlm does not read zstd", hint="decompress it with zstd -d")
    with files.reading(name, path) as (raw, stream):
        head = stream.read(4096)
        if head.startswith(_BINARY):
            raise InputError(
                f"{name} is a KenLM binary", hint="use the ARPA file from which it was built"
            )
        files.judge(name, path, head, "utf-8")
        stream.seek(0)
        lines = enumerate(iter(partial(stream.readline, 1 << 16), b""), 1)
        header = itertools.dropwhile(lambda line: not line[1].strip() or line[1][:1] == b"#", lines)
        number, line = next(header, (1, b""))
        if line.rstrip(b"\r\n") != b"\\data\\":
            raise InputError(
                f"{name} is not an ARPA file",
                why=rf'line {number} is "{_shown(line)}" instead of "\data\"',
                hint="use an n-gram model in ARPA format, as written by lmplz and ngram-count",
            )
        max_entries = os.fstat(raw.fileno()).st_size // _MIN_ENTRY
        if path.suffix.lower() in files.PACKED:
            max_entries *= _MAX_RATIO
        for number, line in header:
            if not line.strip():
                return
            count = _COUNT.fullmatch(line)
            if not count or len(count[1]) > 18 or int(count[1]) > max_entries:
                raise InputError(
                    f"{name}, line {number}: invalid n-gram count",
                    why=_shown(line),
                    hint=_REBUILD,
                )


def _shown(line: bytes) -> str:
    text = line.strip()[:120].decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _load_error(name: str, path: Path, error: Exception) -> InputError | EnvironmentProblem:
    """Reduce "Cannot read model 'F' (where threw What because `X'. Why Byte: N)" to line and reason."""
    message = str(error)
    if isinstance(error, MemoryError) or "ailed to allocate" in message:
        return EnvironmentProblem(
            f"{name}: not enough memory to load the model", hint="use a smaller, pruned model"
        )
    message = re.sub(r"^Cannot read model .*? \((?=\w+/\w+\.\w+:\d|End of file)", "", message)
    message = re.sub(r"^.*? threw [\w:]+(?: because `.*?')?\.\s+", "", message).removesuffix(")")
    if at := re.search(r"(?: at byte \d+)? Byte: (\d+)$", message):
        # kenlm reports the start of a malformed number, but the end of anything else.
        offset = int(at[1]) - (not message.startswith("Could not parse"))
        with files.reading(name, path) as (_, stream):
            ends = itertools.accumulate(map(len, stream))
            line = 1 + sum(1 for _ in itertools.takewhile(lambda end: end <= offset, ends))
        message, name = message[: at.start()], f"{name}, line {line}"
    if message.startswith("End of file"):
        message = "the file ends too early"
    why = _shown(message.partition(".  ")[0].encode())
    return InputError(f"{name}: damaged or invalid", why=why, hint=_REBUILD)
