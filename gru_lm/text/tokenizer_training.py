"""Training of SentencePiece models: `char` and `word` by counting, `bpe` and `unigram` by SentencePiece.

Counting reads the whole text in constant memory. SentencePiece runs single-threaded in a child
process, so that an abort in native code becomes a clean error, on an evenly spread sample of the
text. Independent of encoding. Invariant: the same text and sample size give the same bytes.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from gru_lm import atomic
from gru_lm.errors import InputError, UsageError
from gru_lm.signals import Stop
from gru_lm.text import tokenizer_model as models
from gru_lm.text.segments import LONGEST, segments

SAMPLE_CHARACTERS = 10_000_000
CHARACTERS_PER_PIECE = 330  # characters of text per piece of the default vocabulary
MAX_COUNTED_PIECES = 65_536  # default limit of `char` and `word`: ids fit in 16 bits
MAX_WORD = 128  # characters
# Distinct words held while counting, about half a gigabyte; beyond it the rarer half is dropped.
_MAX_COUNTED_WORDS = 4_000_000
_SPECIALS = 3  # <unk>, </s>, end of line
_CHILD = Path(__file__).with_name("tokenizer_child.py")
_UNHOLDABLE = re.compile(f"[{models.UNHOLDABLE}]")

Pieces = Callable[[], Iterable[str]]


def train_model(
    kind: str,
    pieces: Pieces,
    *,
    vocab_size: int | None,
    characters: int | None = None,
    reserved: int = 0,
    stop: Stop,
) -> bytes:
    """Train a model of `kind` (char, word, bpe or unigram) on the text of `pieces()`; serialise it.

    bpe and unigram use a sample of at most `characters` (default SAMPLE_CHARACTERS). `reserved`: pieces
    of `vocab_size` that are not part of the model. Raises UsageError for an impossible `vocab_size`,
    InputError if SentencePiece fails.
    """
    if vocab_size is not None and vocab_size > models.MAX_PIECES:
        raise _size_error(kind, vocab_size, f"at most {models.MAX_PIECES}")
    if kind == "char":
        return _char(pieces, vocab_size, reserved, stop)
    if kind == "word":
        return _word(pieces, vocab_size, reserved, stop)
    return _subword(kind, pieces, vocab_size, characters or SAMPLE_CHARACTERS, reserved, stop)


def _size_error(kind: str, vocab_size: int, bound: str) -> UsageError:
    return UsageError(
        f"--vocab-size {vocab_size} is impossible with --tokenizer {kind} and this text",
        hint=f"use {bound}, or omit --vocab-size",
    )


def _char(pieces: Pieces, vocab_size: int | None, reserved: int, stop: Stop) -> bytes:
    """All characters of the text, or the most frequent; others are spelled in bytes."""
    specials = _SPECIALS + 256 + reserved
    if vocab_size is not None and vocab_size <= specials:
        raise _size_error("char", vocab_size, f"at least {specials + 1}")
    counts: Counter[str] = Counter()
    for piece in pieces():
        counts.update(piece)
        stop()
    for character in models.UNHOLDABLE + models.NEWLINE:
        counts.pop(character, None)
    # Always included: without its own piece, a space would be spelled in the bytes of ▁.
    space = (models.SPACE, max(counts.pop(" ", 0), 1))
    kept = _most_frequent(counts, (vocab_size or MAX_COUNTED_PIECES) - specials - 1)
    return models.build("char", [space, *kept], spell_bytes=True)


def _word(pieces: Pieces, vocab_size: int | None, reserved: int, stop: Stop) -> bytes:
    """The words of the text, most frequent first; by default at most MAX_COUNTED_PIECES pieces.

    If the text contains a literal <unk>, all words are kept; otherwise words that occur once become
    unknown, so that the unknown token is trained.
    """
    specials = _SPECIALS + reserved
    if vocab_size is not None and vocab_size <= specials:
        raise _size_error("word", vocab_size, f"at least {specials + 1}")
    counts: Counter[str] = Counter()
    rest = ""
    for piece in pieces():
        words = (rest + piece).split()
        rest = words.pop()[: MAX_WORD + 1] if words and not piece[-1:].isspace() else ""
        counts.update(word for word in words if len(word) <= MAX_WORD)
        if len(counts) > _MAX_COUNTED_WORDS:
            counts = _frequent_half(counts)
        stop()
    if rest:
        counts[rest] += 1
    marked = counts.pop(models.UNKNOWN, 0)
    least = 1 if marked else 2
    held = Counter(
        {
            word: count
            for word, count in counts.items()
            if count >= least and len(word) <= MAX_WORD and not _UNHOLDABLE.search(word)
        }
    )
    kept = _most_frequent(held, (vocab_size or MAX_COUNTED_PIECES) - specials)
    return models.build(
        "word", ((models.SPACE + word, count) for word, count in kept), spell_bytes=False
    )


def _frequent_half(counts: Counter[str]) -> Counter[str]:
    """Keep the words above the median count, at most half of all."""
    least = statistics.median_high(counts.values())
    return Counter({word: count for word, count in counts.items() if count > least})


def _most_frequent(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]


def _subword(
    kind: str,
    pieces: Pieces,
    vocab_size: int | None,
    characters: int,
    reserved: int,
    stop: Stop,
) -> bytes:
    total = 0
    for piece in pieces():
        total += len(piece)
        stop()
    try:
        sample = partial(_spread, pieces, total, characters)
        data = _trained(kind, sample, total, vocab_size=vocab_size, reserved=reserved, stop=stop)
    except OSError as error:
        raise atomic.disk_problem(Path(tempfile.gettempdir()), error) from error
    largest = len(models.checked(data).pieces) + reserved
    if vocab_size is not None and largest < vocab_size:
        raise _size_error(kind, vocab_size, f"at most {largest}")
    return data


def _trained(
    kind: str, pieces: Pieces, total: int, *, vocab_size: int | None, reserved: int, stop: Stop
) -> bytes:
    alphabet: set[str] = set()
    with tempfile.TemporaryFile() as sample:
        for segment in pieces():
            stop()
            for line in _UNHOLDABLE.split(segment.rstrip("\n")):
                if line:
                    alphabet.update(line)
                    sample.write(line.encode() + b"\n")
        if " " not in alphabet:  # as in `_char`, the space must have a piece
            alphabet.add(" ")
            sample.write(b" \n")
        least = _SPECIALS + 256 + len(alphabet) + reserved
        if vocab_size is not None and vocab_size < least:
            raise _size_error(kind, vocab_size, f"at least {least}")
        sample.seek(0)
        size = (vocab_size or default_vocab_size(least, total)) - reserved
        return _train_in_child(kind, sample, size, stop)


def default_vocab_size(least: int, characters: int) -> int:
    """`least`, plus one piece per CHARACTERS_PER_PIECE characters, up to 32,768.

    A piece spans about four characters, so that each occurs about eighty times, enough to learn it.
    Larger vocabularies cover more text per step, and an adaptive softmax makes them cheap
    (docs/planner.md).
    """
    return least + min(32_768, characters // CHARACTERS_PER_PIECE)


def _spread(pieces: Pieces, total: int, characters: int) -> Iterator[str]:
    """Sample segments of about `characters` in total, evenly spread over `total` characters."""
    seen = kept = 0
    for batch in segments(pieces()):
        for segment in batch:
            if kept * total <= seen * characters:
                kept += len(segment)
                yield segment
            seen += len(segment)


def _train_in_child(kind: str, sample: IO[bytes], vocab_size: int, stop: Stop) -> bytes:
    options = {
        "model_type": kind,
        "vocab_size": vocab_size,
        "hard_vocab_limit": False,  # fewer pieces for a small text instead of an error
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,  # for indentation: a third fewer tokens in source code
        "byte_fallback": True,
        "user_defined_symbols": [models.NEWLINE],
        "unk_id": 0,
        "eos_id": 1,
        "bos_id": -1,
        "pad_id": -1,
        "character_coverage": 1.0,
        "max_sentence_length": 4 * LONGEST,  # bytes; longer lines would be skipped silently
        "num_threads": 1,  # the model depends on the number of threads
        "minloglevel": 2,
    }
    # -P: modules of this folder must not shadow those of the standard library. New session: Ctrl-C
    # reaches only this process, which then kills the child.
    command = [sys.executable, "-P", str(_CHILD), json.dumps(options)]
    with tempfile.TemporaryFile() as model, tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(
            command, stdin=sample, stdout=model, stderr=messages, start_new_session=True
        )
        try:
            while child.poll() is None:
                stop()
                try:
                    child.wait(timeout=0.05)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            messages.seek(0)
            output = messages.read().decode(errors="replace").strip().splitlines()
            code = child.returncode
            status = f"killed by signal {-code}" if code < 0 else f"its exit code is {code}"
            raise InputError(
                f"SentencePiece could not train a {kind} tokenizer on this text",
                why=output[-1][:200] if output else status,
                hint="use --tokenizer char or --tokenizer byte, which always work",
            )
        model.seek(0)
        return model.read()
