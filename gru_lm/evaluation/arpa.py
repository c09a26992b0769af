"""An n-gram model from an ARPA file, read through the `kenlm` package.

The package is an optional extra, imported here alone. Invariant: kenlm is native code that trusts a
file's header, so nothing reaches it whose header was not checked.
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
_LEAST_ENTRY = 4  # bytes: a probability, a tab, a word, a newline
_MOST_PACKED = 1000  # times smaller than its text a compressed file may be
_MAKE = "make it again, for example with KenLM's lmplz, or fetch it again"


@dataclass(frozen=True)
class Ngram:
    """A model in memory; `name` is its file's, as shown to a user."""

    name: str
    model: Any  # kenlm.Model
    state: type[Any]  # kenlm.State


def open_arpa(path: Path) -> Ngram:
    """The model in an ARPA file, which may be packed (.gz, .bz2, .xz).

    Raises EnvironmentProblem without kenlm or the memory, InputError for all that is wrong with the
    file. Where the file has no <unk>, kenlm says so on standard error and takes 1e-100.
    """
    try:
        import kenlm
    except ImportError as error:
        raise EnvironmentProblem(
            "n-grams need the package kenlm", why=str(error), hint="pip install 'gru-lm[ngram]'"
        ) from error
    name = files.shown(path)
    _check_head(name, path)
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return Ngram(name, kenlm.Model(os.fsencode(path), config), kenlm.State)
    except Exception as error:  # what C++ throws comes as one or another
        raise _refused(name, path, error) from error


def _check_head(name: str, path: Path) -> None:
    r"""Refuse what is no ARPA file, and a header that would make kenlm leave its memory."""
    with files.reading(name, path) as (raw, stream):
        head = stream.read(4096)
        if head.startswith(_BINARY):
            raise InputError(
                f"{name} is a KenLM binary", hint="name the ARPA file that it was built from"
            )
        files.judge(name, path, head, "utf-8")
        stream.seek(0)
        lines = enumerate(iter(partial(stream.readline, 1 << 16), b""), 1)
        passed = itertools.dropwhile(lambda line: not line[1].strip() or line[1][:1] == b"#", lines)
        number, line = next(passed, (1, b""))
        if line.rstrip(b"\r\n") != b"\\data\\":
            raise InputError(
                f"{name} is not an ARPA file",
                why=rf'line {number} is "{_shown(line)}" instead of "\data\"',
                hint="name an n-gram model in ARPA format, as lmplz and ngram-count write it",
            )
        room = os.fstat(raw.fileno()).st_size // _LEAST_ENTRY
        if path.suffix.lower() in files.PACKED:
            room *= _MOST_PACKED
        for number, line in passed:
            if not line.strip():
                return
            counted = _COUNT.fullmatch(line)
            if not counted or len(counted[1]) > 18 or int(counted[1]) > room:
                raise InputError(
                    f"{name}, line {number}: no count of n-grams that can be true",
                    why=_shown(line),
                    hint=_MAKE,
                )


def _shown(line: bytes) -> str:
    text = line.strip()[:120].decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _refused(name: str, path: Path, error: Exception) -> InputError | EnvironmentProblem:
    """What of "Cannot read model 'F' (where threw What because `X'. Why Byte: N)" helps a user."""
    said = str(error)
    if isinstance(error, MemoryError) or "ailed to allocate" in said:
        return EnvironmentProblem(
            f"{name}: there is not the memory to load it", hint="name a smaller, pruned model"
        )
    said = re.sub(r"^Cannot read model .*? \((?=\w+/\w+\.\w+:\d|End of file)", "", said)
    said = re.sub(r"^.*? threw [\w:]+(?: because `.*?')?\.\s+", "", said).removesuffix(")")
    if at := re.search(r"(?: at byte \d+)? Byte: (\d+)$", said):
        # A number is refused where it begins, anything else once it was read.
        offset = int(at[1]) - (not said.startswith("Could not parse"))
        with files.reading(name, path) as (_, stream):
            ends = itertools.accumulate(map(len, stream))
            line = 1 + sum(1 for _ in itertools.takewhile(lambda end: end <= offset, ends))
        said, name = said[: at.start()], f"{name}, line {line}"
    if said.startswith("End of file"):
        said = "the file ends too early"
    why = _shown(said.partition(".  ")[0].encode())
    return InputError(f"{name}: damaged, or not usable", why=why, hint=_MAKE)
