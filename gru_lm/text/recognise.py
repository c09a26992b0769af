"""Lists recognised by their beginning: whether the lines of texts are records.

A wrong "records" changes how a model is trained, so every sign of running text forbids it; "maybe" costs
a note. Looks at characters alone; independent of languages' words. Invariant: reads at most SAMPLE
characters of each of DOCUMENTS documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from gru_lm.text.documents import Document
from gru_lm.text.tables import format_of

Verdict = Literal["records", "maybe"]
DOCUMENTS = 8
SAMPLE = 1 << 18  # characters
FEWEST = 20  # lines
LONGEST = 500  # characters of a line, on average
LONGEST_WORD = 60  # the same, for lines without spaces in scripts that hardly use them
NARROWEST = 50  # characters: the least width to which text without spaces is broken

_SPACE = re.compile(r"\S\s+\S")
_NO_WORD = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"[\d\W_eE]+")
_WIDE_STOP = re.compile("[。，、；：！？…｡､]")
_END_INSIDE = re.compile(
    r"(?<=\w\w\w)[.!?][\"'”’)]*\s+[^\W\d_a-zа-яα-ω]"  # not after "St." and "Mr."
    r"|[。！？｡][」』”）]*[^」』”）\s]"
)
_GOES_ON = re.compile(r"[,;:]\s*$")
_END_OF_CODE = re.compile(r"[;{}]\s*$")


def looks_like_list(documents: Sequence[Document]) -> Verdict | None:
    """Whether the lines of texts are records: "records", "maybe", or None for running text.

    The beginning of each text is judged by itself, and the least sure verdict holds for all. None, if

    - it has fewer than FEWEST lines, or more than one blank line in a thousand;
    - it has a paragraph a line: more than LONGEST characters on average, or LONGEST_WORD of a script
      such as Chinese or Thai, or the end of a sentence inside a fifth of the lines;
    - its lines go on, as those of prose and verse: most have spaces, and a tenth end in , ; or :, or
      they begin with small and capital letters by turns, or most end where the next word would not
      have fitted (unless nearly all begin with a capital letter or a digit);
    - it is code: a twentieth of the lines is indented, a fiftieth has no letter or digit, or a fifth
      ends in ; { or }, or begins with <;
    - it is broken without regard to words (base64): half of the lines are equally long, of NARROWEST
      characters or more; or FASTA: a hundredth of the lines start with >.

    Else "records", if not more than a twentieth of the lines has a space inside, and not more than a
    twentieth the punctuation of Chinese or Japanese sentences; else "maybe". At most "maybe", too, for
    what could be a table or a series: by the name of the file, or since nine tenths of the lines have
    the same number of , ; or |, or half have no letters.
    """
    verdicts = {_verdict(document) for document in documents[:DOCUMENTS]}
    if not verdicts or None in verdicts:
        return None
    return "maybe" if "maybe" in verdicts else "records"


def _verdict(document: Document) -> Verdict | None:
    lines = _first_lines(document)
    while lines and not lines[-1].strip():
        lines.pop()
    full = [line for line in lines if line.strip()]
    if len(full) < FEWEST or len(lines) - len(full) > len(lines) // 1000:
        return None
    spaced = _share(_SPACE.search(line) for line in full)
    if _has_paragraphs(full) or _is_code(full) or _is_broken(full) or _is_fasta(full):
        return None
    if spaced > 0.5 and _goes_on(full):
        return None
    if spaced > 0.05 or _share(_WIDE_STOP.search(line) for line in full) > 0.05:
        return "maybe"
    return "maybe" if format_of(document.name) or _is_table(full) else "records"


def _first_lines(document: Document) -> list[str]:
    """The complete lines among the first SAMPLE characters; a carriage return is white space."""
    pieces: list[str] = []
    characters = 0
    for piece in document.pieces():
        pieces.append(piece)
        characters += len(piece)
        if characters > SAMPLE:
            break
    lines = "".join(pieces).split("\n")
    if characters > SAMPLE:
        lines.pop()
    return lines


def _share(found: Iterable[object]) -> float:
    """The share of true values; 0 if there are none."""
    flags = [bool(each) for each in found]
    return sum(flags) / max(1, len(flags))


def _has_paragraphs(lines: Sequence[str]) -> bool:
    characters = sum(map(len, lines))
    wide = sum(not character.isascii() for line in lines for character in line)
    spaces = sum(line.count(" ") for line in lines)
    has_no_words = wide > characters / 2 and spaces < characters / 20
    longest = LONGEST_WORD if has_no_words else LONGEST
    return (
        characters > longest * len(lines)
        or _share(_END_INSIDE.search(line) for line in lines) > 0.2
    )


def _goes_on(lines: Sequence[str]) -> bool:
    if _share(_GOES_ON.search(line) for line in lines) > 0.1:
        return True
    small = [line[0].islower() for line in lines if line[0].lower() != line[0].upper()]
    if len(small) > len(lines) / 2 and 0.15 < _share(small) < 0.85:
        return True
    width = sorted(map(len, lines))[int(0.98 * len(lines))]  # some words are longer than a line
    unfit = (
        len(line) + 1 + len(after.split(None, 1)[0]) > width for line, after in pairwise(lines)
    )
    begun = _share(line[0].isupper() or line[0].isdigit() for line in lines)
    return begun < 0.9 and _share(unfit) > 0.5


def _is_code(lines: Sequence[str]) -> bool:
    return (
        _share(line[0].isspace() for line in lines) > 0.05
        or _share(_NO_WORD.fullmatch(line) for line in lines) > 0.02
        or _share(line[0] == "<" or _END_OF_CODE.search(line) for line in lines) > 0.2
    )


def _is_broken(lines: Sequence[str]) -> bool:
    length, count = Counter(map(len, lines)).most_common(1)[0]
    return (
        length >= NARROWEST and count > len(lines) / 2 and _share(map(_SPACE.search, lines)) < 0.5
    )


def _is_fasta(lines: Sequence[str]) -> bool:
    return _share(line.startswith(">") for line in lines) > 0.01


def _is_table(lines: Sequence[str]) -> bool:
    for separator in ",;|":
        count, often = Counter(line.count(separator) for line in lines).most_common(1)[0]
        if count and often > 0.9 * len(lines):
            return True
    return _share(_NUMBER.fullmatch(line) for line in lines) > 0.5
