"""Minimal pairs: does a model find the grammatical sentence of two more probable than the other?

Pairs in the form of BLiMP are read from JSON Lines, a folder or a zip of them, each sentence is scored
as a line of its own, and pairs are judged by paradigm and by phenomenon. Knows no run and no terminal,
and unpacks nothing to disk. Invariants: whatever is wrong with a file is an InputError with its line,
found before anything is scored; batches and their order change no result beyond rounding, and
sentences of the same tokens tie exactly; beyond the pairs themselves memory does not grow with them.

Shapes: N pairs, B sequences side by side, T tokens of a sentence.
"""

from __future__ import annotations

import codecs
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gru_lm.errors import InputError
from gru_lm.evaluation.scoring import score
from gru_lm.model.language_model import LanguageModel
from gru_lm.signals import Stop, never
from gru_lm.text import files
from gru_lm.text.tokenizer import Tokenizer

SUFFIX = ".jsonl"
MOST_BYTES = 1 << 27  # of all files together, unpacked; BLiMP has 30 MB
BATCH, CHUNK = 256, 32
_BLOCK = 1 << 13  # pairs that are encoded and put in order at once
_ENCRYPTED = 1  # a member's flag
# Their size can be held down while they are unpacked; zipfile unpacks bzip2 and LZMA at one go.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises of headers and data that make no sense.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_FORM = 'a line is {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}'

Bools = npt.NDArray[np.bool_]


class Pair(NamedTuple):
    """Two sentences, without line ends, of which the first is the acceptable one."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str | None


class PairScores(NamedTuple):
    """What a model makes of pairs, in their order."""

    log_probs_N2: np.ndarray  # float64, nats: of the good sentence and of the bad one
    tokens: int  # of all sentences, the ends of lines too
    unknown_tokens: int


def read_pairs(path: Path, *, stop: Stop = never) -> list[Pair]:
    """The pairs in a file of JSON Lines, or in all .jsonl files of a folder or a zip, by their names.

    A line is an object as in BLiMP (Warstadt et al. 2020): `sentence_good`, `sentence_bad`, and where
    they are known `UID`, the paradigm (without it, the file's name), and `linguistics_term`, the
    phenomenon; other keys and blank lines are passed over. `stop` is called before every file.

    Raises InputError, which names file and line, for all that cannot be read or is of another form,
    and for more than MOST_BYTES.
    """
    name = files.shown(path)
    pairs: list[Pair] = []
    left, found = MOST_BYTES, False
    for label, stem, data in _contents(name, path):
        stop()
        found = True
        left -= len(data)
        if left < 0:
            raise InputError(
                f"{name} holds more than {MOST_BYTES >> 20} MiB of pairs",
                hint="name a part of it at a time",
            )
        for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
            if line.strip():
                pairs.append(_pair(f"{label}, line {number}", line, stem))
    if not pairs:
        why = f"what it holds is empty; {_FORM}" if found else f"it has no file named *{SUFFIX}"
        raise InputError(
            f"{name} holds no minimal pairs",
            why=why,
            hint="name a file of JSON Lines, or a folder or a zip of them",
        )
    return pairs


def _contents(name: str, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Of each file its name as shown, its name as that of a paradigm, and its content.

    No content is much longer than MOST_BYTES, whatever it was packed from.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # the folder that it is in is closed to us
        raise files.unreadable(name, path, error) from error
    if path.suffix.lower() == ".zip" and not is_folder:
        yield from _members(name, path)
        return
    paths = [path]
    if is_folder:
        found = (file for file in path.rglob(f"*{SUFFIX}") if not file.is_dir())
        paths = sorted(file for file in found if _is_wanted(file.relative_to(path)))
    for file in paths:
        with files.reading(files.shown(file), file) as (_, stream):
            data = stream.read(MOST_BYTES + 1)
        yield files.shown(file), _printable(file.stem), data


def _members(name: str, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The same of the members of a zip."""
    within = name
    with files.reading(name, path) as (raw, _):
        try:
            with zipfile.ZipFile(raw) as archive:
                for info in sorted(archive.infolist(), key=lambda info: info.filename):
                    member = PurePosixPath(info.filename)
                    if info.is_dir() or not _is_wanted(member):
                        continue
                    within = f"{name}/{member}"
                    _check_packing(within, info)
                    with archive.open(info) as stream:
                        data = stream.read(MOST_BYTES + 1)
                    yield within, _printable(member.stem), data
        except _DAMAGED as error:
            raise InputError(
                f"{within}: damaged, or no zip", why=str(error), hint="fetch or make it again"
            ) from error


def _check_packing(name: str, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise InputError(f"{name} is encrypted", hint="unpack the zip and name the folder")
    if info.compress_type not in _BOUNDED:
        raise InputError(
            f"{name} is packed by another method than deflate",
            hint="unpack the zip and name the folder",
        )


def _is_wanted(path: Path | PurePosixPath) -> bool:
    """Whether it holds pairs, by its name: not what a system leaves beside files, as macOS does."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix == SUFFIX and not hidden


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def _pair(where: str, line: bytes, stem: str) -> Pair:
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8", why=error.reason, hint=_FORM) from error
    except (ValueError, RecursionError) as error:
        why = str(error).partition(":")[0]
        raise InputError(f"{where} is not JSON", why=why, hint=_FORM) from error
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not a JSON object", hint=_FORM)
    for key in ("sentence_good", "sentence_bad"):
        if key not in entry:
            raise InputError(f"{where} has no {key}", hint=_FORM)
        if not _is_text(entry[key]) or "\n" in entry[key]:
            raise InputError(
                f"{where}: {key} is no sentence",
                why="it must be a string with text in it, of one line",
                hint=_FORM,
            )
    for key in ("UID", "linguistics_term"):
        if key in entry and not (_is_text(entry[key]) and entry[key].isprintable()):
            raise InputError(
                f"{where}: {key} is no name",
                why="it must be a string with text in it, all of it printable",
                hint="mend it or leave it out",
            )
    return Pair(
        entry["sentence_good"],
        entry["sentence_bad"],
        entry.get("UID", stem),
        entry.get("linguistics_term"),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def score_pairs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    *,
    batch: int = BATCH,
    chunk: int = CHUNK,
    stop: Stop = never,
    progress: Callable[[int], None] = lambda _: None,
) -> PairScores:
    """The log-probability of every sentence and the end of its line, from the model's start, in nats.

    As `score` gives it for a sequence that is the sentence and a newline. `batch` sequences of about
    the same length run at once, `chunk` steps a pass. `stop` is called before every pass, `progress`
    with the number of sentences done.
    """
    log_probs_N2 = np.empty((len(pairs), 2))
    tokens = unknown_tokens = 0
    for start in range(0, len(pairs), _BLOCK):
        # The same tokens are scored once: else rounding would decide between them, as it may differ
        # with the place in a batch. To a model of words, many a pair is twice the same.
        places: dict[bytes, list[int]] = {}  # tokens to the sentences that are made of them
        block = pairs[start : start + _BLOCK]
        for place, sentence in enumerate(chain.from_iterable(pair[:2] for pair in block)):
            encoded = chain.from_iterable(tokenizer.encode([sentence + "\n"]))
            tokens_T = np.fromiter(encoded, np.int32)
            places.setdefault(tokens_T.tobytes(), []).append(place)
            tokens += len(tokens_T)
            unknown_tokens += int(np.count_nonzero(tokens_T == tokenizer.unknown_id))
        found_N = np.empty(2 * len(block))
        waiting = sorted(places, key=len)  # of like length side by side: next to no padding
        for begin in range(0, len(waiting), batch):
            running = waiting[begin : begin + batch]
            sequences = [
                (number, [np.frombuffer(data, np.int32)]) for number, data in enumerate(running)
            ]
            total_B = np.zeros(len(running))
            for portion in score(
                model,
                sequences,
                newline_id=tokenizer.newline_id,
                batch=batch,
                chunk=chunk,
                stop=stop,
            ):
                total_B[portion.document] += portion.log_probs_N.sum()
            for data, total in zip(running, total_B, strict=True):
                found_N[places[data]] = total
            progress(sum(len(places[data]) for data in running))
        log_probs_N2[start : start + len(block)] = found_N.reshape(-1, 2)
    return PairScores(log_probs_N2, tokens, unknown_tokens)


def judged(pairs: Sequence[Pair], scores: PairScores) -> dict[str, Any]:
    """Accuracies over all pairs, by phenomenon and by paradigm, as it goes into JSON; N is not 0.

    A pair is right where the good sentence is the more probable one; a tie is wrong, and counted in
    `ties`. Every accuracy is a mean over pairs; where paradigms are equally large, as in BLiMP, it is
    that of their accuracies too. `ci95` is Wilson's interval over pairs: over other pairs of these
    same paradigms, not over other paradigms. Phenomena and paradigms come in order of their first
    pairs; paradigms of one name and different phenomena are apart.
    """
    good_N, bad_N = scores.log_probs_N2.T
    right_N, tie_N = good_N > bad_N, good_N == bad_N
    by_phenomenon: dict[str, list[int]] = {}
    by_paradigm: dict[tuple[str, str | None], list[int]] = {}
    for number, pair in enumerate(pairs):
        by_paradigm.setdefault((pair.paradigm, pair.phenomenon), []).append(number)
        if pair.phenomenon is not None:
            by_phenomenon.setdefault(pair.phenomenon, []).append(number)
    return {
        **_figures(right_N, tie_N),
        "tokens": scores.tokens,
        "unknown_tokens": scores.unknown_tokens,
        "unknown_rate": scores.unknown_tokens / scores.tokens,
        "phenomena": [
            {"name": name, **_figures(right_N[of], tie_N[of])} for name, of in by_phenomenon.items()
        ],
        "paradigms": [
            {"name": name, "phenomenon": phenomenon, **_figures(right_N[of], tie_N[of])}
            for (name, phenomenon), of in by_paradigm.items()
        ],
    }


def _figures(right_N: Bools, tie_N: Bools) -> dict[str, Any]:
    right, pairs = int(right_N.sum()), len(right_N)
    return {
        "pairs": pairs,
        "accuracy": right / pairs,
        "ci95": list(wilson(right, pairs)),
        "ties": int(tie_N.sum()),
    }


def wilson(right: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    The p of which `right` of `trials`, at least one, is within z standard errors, √(p(1-p)/n):

        (p̂ + z²/2n ± z·√(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n)
    """
    z = NormalDist().inv_cdf(0.975)
    share, square = right / trials, z * z / trials
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    # Around the share, and within 0 and 1, but for rounding.
    return max(0.0, min(share, low)), min(1.0, max(share, high))
