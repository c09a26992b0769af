"""Minimal pairs: how often a model gives the grammatical sentence of a pair the higher probability.

Pairs in BLiMP format are read from a JSON Lines file, or a folder or zip of them; each sentence is
scored as a separate line, and accuracies are computed by paradigm and by phenomenon. Knows no run and no
terminal, and unpacks nothing to disk. Invariants: an invalid file raises InputError with its line before
anything is scored; batching affects results by rounding only, and sentences with the same tokens tie
exactly; apart from the pairs themselves, memory is constant.

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
from gru_lm.signals import Stop, never, unheard
from gru_lm.text import files
from gru_lm.text.tokenizer import Tokenizer

SUFFIX = ".jsonl"
MOST_BYTES = 1 << 27  # total uncompressed size of all files; BLiMP has 30 MB
BATCH, CHUNK = 256, 32
_BLOCK = 1 << 13  # pairs encoded and sorted at once
_ENCRYPTED = 1  # flag of a zip member
# Methods whose output can be limited during decompression; zipfile expands bzip2 and LZMA all at once.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Raised by zipfile for invalid headers and data.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_FORMAT = 'a line looks like {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}'

Bools = npt.NDArray[np.bool_]


class Pair(NamedTuple):
    """Two sentences without line ends: the acceptable one and the unacceptable one."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str | None


class PairScores(NamedTuple):
    """Scores of pairs, in their order."""

    log_probs_N2: np.ndarray  # float64, nats: of the good and of the bad sentence
    tokens: int  # of all sentences, including the ends of lines
    unknown_tokens: int


def read_pairs(path: Path, *, stop: Stop = never) -> list[Pair]:
    """Read a JSON Lines file, or all .jsonl files of a folder or a zip in order of name.

    A line is an object as in BLiMP (Warstadt et al. 2020): `sentence_good`, `sentence_bad`, optionally
    `UID`, the paradigm (default: the file's name), and `linguistics_term`, the phenomenon. Other keys
    and blank lines are ignored. `stop` is called before every file.

    Raises InputError, with file and line, if a file is unreadable or invalid or the total size exceeds
    MOST_BYTES.
    """
    name = files.shown(path)
    pairs: list[Pair] = []
    left, any_file = MOST_BYTES, False
    for label, stem, data in _contents(name, path):
        stop()
        any_file = True
        left -= len(data)
        if left < 0:
            raise InputError(
                f"{name} holds more than {MOST_BYTES >> 20} MiB of pairs",
                hint="evaluate a part of it at a time",
            )
        for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
            if line.strip():
                pairs.append(_pair(f"{label}, line {number}", line, stem))
    if not pairs:
        why = (
            f"there are only blank lines; {_FORMAT}"
            if any_file
            else f"it has no file named *{SUFFIX}"
        )
        raise InputError(
            f"{name} holds no minimal pairs",
            why=why,
            hint="use a JSON Lines file, or a folder or zip of such files",
        )
    return pairs


def _contents(name: str, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """For each file: its name as shown to the user, its stem, and its content.

    Content is at most MOST_BYTES + 1 bytes long, however small the compressed file.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # no permission on the parent folder
        raise files.unreadable(name, path, error) from error
    if path.suffix.lower() == ".zip" and not is_folder:
        yield from _members(name, path)
        return
    paths = [path]
    if is_folder:
        candidates = (file for file in path.rglob(f"*{SUFFIX}") if not file.is_dir())
        paths = sorted(file for file in candidates if _may_hold_pairs(file.relative_to(path)))
    for file in paths:
        with files.reading(files.shown(file), file) as (_, stream):
            data = stream.read(MOST_BYTES + 1)
        yield files.shown(file), _printable(file.stem), data


def _members(name: str, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The same for the members of a zip."""
    within = name
    with files.reading(name, path) as (raw, _):
        try:
            with zipfile.ZipFile(raw) as archive:
                for info in sorted(archive.infolist(), key=lambda info: info.filename):
                    member = PurePosixPath(info.filename)
                    if info.is_dir() or not _may_hold_pairs(member):
                        continue
                    within = f"{name}/{member}"
                    _check_packing(within, info)
                    with archive.open(info) as stream:
                        data = stream.read(MOST_BYTES + 1)
                    yield within, _printable(member.stem), data
        except _DAMAGED as error:
            raise InputError(
                f"{within}: damaged, or not a zip",
                why=str(error),
                hint="download or create it again",
            ) from error


def _check_packing(name: str, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise InputError(f"{name} is encrypted", hint="unzip the archive and use the folder")
    if info.compress_type not in _BOUNDED:
        raise InputError(
            f"{name} is not compressed with deflate, the only supported method",
            hint="unzip the archive and use the folder",
        )


def _may_hold_pairs(path: Path | PurePosixPath) -> bool:
    """Whether a file name may hold pairs; hidden files and metadata of macOS are skipped."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix == SUFFIX and not hidden


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def _pair(where: str, line: bytes, stem: str) -> Pair:
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8", why=error.reason, hint=_FORMAT) from error
    except (ValueError, RecursionError) as error:
        why = str(error).partition(":")[0]
        raise InputError(f"{where} is not JSON", why=why, hint=_FORMAT) from error
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not a JSON object", hint=_FORMAT)
    for key in ("sentence_good", "sentence_bad"):
        if key not in entry:
            raise InputError(f"{where} has no {key}", hint=_FORMAT)
        if not _is_text(entry[key]) or "\n" in entry[key]:
            raise InputError(
                f"{where}: {key} is not a sentence",
                why="it must be a non-empty string of one line",
                hint=_FORMAT,
            )
    for key in ("UID", "linguistics_term"):
        if key in entry and not (_is_text(entry[key]) and entry[key].isprintable()):
            raise InputError(
                f"{where}: {key} is not a valid name",
                why="it must be a non-empty string of printable characters",
                hint="correct it or omit it",
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
    end_id: int | None = None,
    batch: int = BATCH,
    chunk: int = CHUNK,
    stop: Stop = never,
    progress: Callable[[int], None] = unheard,
) -> PairScores:
    """Log-probability of every sentence including its end, in nats, from the zero state.

    Equals that of `score` for the sequence sentence + newline, or `end_id` in place of the newline. Runs
    `batch` sequences of similar length at once, `chunk` steps per pass. `stop` is called before every
    pass, `progress` with the number of sentences done.
    """
    log_probs_N2 = np.empty((len(pairs), 2))
    tokens = unknown_tokens = 0
    for start in range(0, len(pairs), _BLOCK):
        # Equal token sequences are scored once: rounding may depend on the place in a batch and would
        # break ties. With a word model, both sentences of many pairs have the same tokens.
        places: dict[bytes, list[int]] = {}  # tokens to the indices of their sentences
        block = pairs[start : start + _BLOCK]
        for place, sentence in enumerate(chain.from_iterable(pair[:2] for pair in block)):
            encoded = chain.from_iterable(tokenizer.encode([sentence + "\n"]))
            tokens_T = np.fromiter(encoded, np.int32)
            if end_id is not None:
                tokens_T[-1] = end_id
            places.setdefault(tokens_T.tobytes(), []).append(place)
            tokens += len(tokens_T)
            unknown_tokens += int(np.count_nonzero(tokens_T == tokenizer.unknown_id))
        sums_N = np.empty(2 * len(block))
        pending = sorted(places, key=len)  # by length, so that batches have little padding
        for begin in range(0, len(pending), batch):
            running = pending[begin : begin + batch]
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
                sums_N[places[data]] = total
            progress(sum(len(places[data]) for data in running))
        log_probs_N2[start : start + len(block)] = sums_N.reshape(-1, 2)
    return PairScores(log_probs_N2, tokens, unknown_tokens)


def judged(pairs: Sequence[Pair], scores: PairScores) -> dict[str, Any]:
    """Accuracy over all pairs, by phenomenon and by paradigm, in the form of the JSON output; N > 0.

    A pair is correct if the good sentence is more probable; a tie is incorrect, and counted in `ties`.
    Every accuracy is a mean over pairs, which equals the mean over paradigms if these are equally large,
    as in BLiMP. `ci95` is Wilson's interval for sampling further pairs from the same paradigms, not
    further paradigms. Phenomena and paradigms are in order of first occurrence; paradigms with the same
    name but different phenomena are kept apart.
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
    """The 95 % score interval of `right` of `trials` > 0 (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    The set of p whose distance from p̂ = right/n is at most z standard errors √(p(1-p)/n):

        (p̂ + z²/2n ± z·√(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n)
    """
    z = NormalDist().inv_cdf(0.975)
    share, square = right / trials, z * z / trials
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    # Rounding must not exclude the share or leave [0, 1].
    return max(0.0, min(share, low)), min(1.0, max(share, high))
