"""Which texts are lists: each criterion, on lists and running texts that differ in it."""

from __future__ import annotations

import base64
import random
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import gru_lm
from gru_lm.errors import InputError
from gru_lm.text import recognise
from gru_lm.text.documents import CHUNK
from gru_lm.text.recognise import looks_like_list
from gru_lm.text.sources import open_documents
from tests.conftest import words


@dataclass
class Text:
    """A document of one text, which counts the characters that were read."""

    text: str
    name: str = "text.txt"
    read: int = 0

    def pieces(self) -> Iterator[str]:
        for start in range(0, len(self.text), CHUNK):
            self.read += CHUNK
            yield self.text[start : start + CHUNK]


def verdict(lines: Sequence[str], name: str = "text.txt") -> str | None:
    return looks_like_list([Text("\n".join(lines) + "\n", name)])


def some(seed: int, count: int, make: Callable[[random.Random], str]) -> list[str]:
    rng = random.Random(seed)
    return [make(rng) for _ in range(count)]


def name(rng: random.Random) -> str:
    return "".join(
        rng.choice(["ka", "lo", "mi", "ne", "ra", "zoë"]) for _ in range(rng.randint(2, 4))
    )


def sentence(rng: random.Random) -> str:
    what = rng.choice(["apples", "the old station", "all of them", "nothing at all", "Mr. Li"])
    return f"{rng.choice(['Tom', 'She', 'We', 'Nobody'])} {rng.choice(['sees', 'likes'])} {what}."


ATOMS = ["C", "c1ccccc1", "N", "O", "(=O)", "Cl", "[nH]", "C(C)C", "C#N", "/C=C/", "[C@@H]"]
RECORDS = {
    "names": some(1, 500, name),
    "molecules": some(2, 500, lambda rng: "".join(rng.choices(ATOMS, k=rng.randint(3, 20)))),
    "passwords": some(3, 500, lambda rng: name(rng) + rng.choice(["1", "!!", "", "_99", "$"])),
    "domains": some(4, 500, lambda rng: name(rng) + ".example"),
    "Chinese names": some(5, 500, lambda rng: "".join(rng.choices("王李张刘陈伟芳娜敏静", k=3))),
    "words of five letters": some(6, 500, lambda rng: "".join(rng.choices("abcdefgh", k=5))),
    "hashes": some(7, 500, lambda rng: rng.randbytes(16).hex()),
    "proteins": some(8, 200, lambda rng: "".join(rng.choices("ACDEFGHIKLM", k=rng.randint(60, 600)))),
    "a few with spaces": [*some(9, 480, name), *["van der kalo"] * 20],
    "one blank line in many": [*some(10, 1500, name), "", *some(11, 1500, name), "", ""],
    "just enough": some(12, 20, name),
}  # fmt: skip
MAYBE = {
    "full names": some(1, 500, lambda rng: f"{name(rng).title()} {name(rng).title()}"),
    "sentences": some(2, 500, sentence),
    "utterances": some(3, 500, lambda rng: f"play {name(rng)}" + " louder" * rng.randint(0, 3)),
    "addresses": some(4, 500, lambda rng: f"{rng.randint(1, 99)} Oak Road, St. {name(rng).title()}"),
    "log lines": some(5, 500, lambda rng: f"2024-01-02 12:00:{rng.randint(10, 59)} GET /{name(rng)}"),
    "log lines of one width": some(
        15, 500, lambda rng: f"2024-01-02 12:00:00 host sshd[99]: {rng.randbytes(8).hex()} accepted"
    ),
    "Russian sentences": some(
        16, 500, lambda rng: "В " + " ".join(rng.choices(["доме", "лесу"], k=rng.randint(12, 25)))
    ),
    "Chinese sentences": some(6, 500, lambda rng: "他" + "".join(rng.choices("喜欢苹果", k=5)) + "。"),
    "a column of numbers": [str(number) for number in range(500)],
    "a series": some(7, 500, lambda rng: f"{rng.gauss(0, 1):.3e}"),
    "dates": [f"2024-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 29)],
    "a table by its commas": some(8, 500, lambda rng: f"{name(rng)},{rng.randint(1, 9)},{name(rng)}"),
    "a twentieth and more with spaces": [*some(9, 470, name), *["van der kalo"] * 30],
}  # fmt: skip
PROSE = " ".join(some(20, 2000, sentence))
ONCE = "".join(
    some(
        21,
        2000,
        lambda rng: rng.choice("吾輩は猫である名前まだ無い") * 3 + rng.choice(["", "", "、", "。"]),
    )
)
SOURCE = Path(gru_lm.__file__).read_text() + Path(recognise.__file__).read_text()
RUNNING = {
    "too few lines": some(1, 19, name),
    "one line": ["".join(some(2, 500, name))],
    "nothing": [""],
    "names with blank lines": [line for each in some(3, 500, name) for line in (each, "")],
    "wrapped prose": textwrap.wrap(PROSE, 72),
    "wrapped prose without capitals": textwrap.wrap(PROSE.lower().replace(".", ""), 72),
    "paragraphs on lines": [PROSE[start : start + 900] for start in range(0, len(PROSE), 900)],
    "long lines without sentences": some(
        30, 50, lambda rng: "on " + " ".join(name(rng) for _ in range(rng.randint(60, 140)))
    ),
    "two sentences on a line": some(31, 500, lambda rng: f"{sentence(rng)} {sentence(rng)}"),
    "long lines without spaces": some(
        32, 200, lambda rng: "".join(rng.choices("吾輩は猫である名前まだ無い", k=rng.randint(40, 120)))
    ),
    "indented lines": some(
        33, 500, lambda rng: rng.choice(["", "", "  "]) + f"call {name(rng)}" + " or" * rng.randint(0, 9)
    ),
    "short paragraphs on lines": textwrap.wrap(PROSE, 300),
    "verse": some(4, 500, lambda rng: f"And {name(rng)} the {name(rng)}" + rng.choice(",!?")),
    "verse that goes on": some(5, 500, lambda rng: rng.choice("aATb") + f"nd so the {name(rng)}"),
    "Japanese paragraphs": [ONCE[start : start + 200] for start in range(0, len(ONCE), 200)],
    "the same without marks": textwrap.wrap(ONCE.replace("、", "").replace("。", ""), 150),
    "source code": SOURCE.split("\n"),
    "source code without blank lines": [line for line in SOURCE.split("\n") if line],
    "code without indents": some(6, 500, lambda rng: f"{name(rng)}={rng.randint(1, 9)};"),
    "markup": some(7, 500, lambda rng: f"<li>{name(rng)}</li>"),
    "a word a line": PROSE.replace(".", " .").split(),
    "base64": textwrap.wrap(base64.b64encode(random.Random(8).randbytes(9_000)).decode(), 76),
    "FASTA": some(9, 500, lambda rng: ">" + name(rng) if rng.random() < 0.3 else name(rng).upper()),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS)
def test_records(kind: str) -> None:
    assert verdict(RECORDS[kind]) == "records"


@pytest.mark.parametrize("kind", MAYBE)
def test_maybe(kind: str) -> None:
    assert verdict(MAYBE[kind]) == "maybe"


@pytest.mark.parametrize("kind", RUNNING)
def test_running_text(kind: str) -> None:
    assert verdict(RUNNING[kind]) is None


@pytest.mark.parametrize("kind", ["names", "molecules", "sentences", "wrapped prose"])
def test_neither_order_nor_line_ends_matter(kind: str) -> None:
    lines = (RECORDS | MAYBE | RUNNING)[kind]
    expected = verdict(lines)
    assert looks_like_list([Text("\r\n".join(lines))]) == expected
    if kind != "wrapped prose":
        assert verdict(sorted(lines)) == verdict(lines[::-1]) == expected


def test_a_table_by_its_name() -> None:
    assert verdict(RECORDS["names"], "names.csv") == "maybe"
    assert verdict(RECORDS["names"], "names.jsonl.gz") == "maybe"


def test_the_least_sure_of_several_texts_decides() -> None:
    names, sentences, prose = (
        Text("\n".join(lines))
        for lines in (RECORDS["names"], MAYBE["sentences"], RUNNING["wrapped prose"])
    )
    assert looks_like_list([names, names]) == "records"
    assert looks_like_list([names, sentences]) == "maybe"
    assert looks_like_list([names, sentences, prose]) is None
    assert looks_like_list([]) is None


def test_only_the_beginning_is_read() -> None:
    text = Text("\n".join(RECORDS["names"] * 400))
    others = [Text(text.text) for _ in range(recognise.DOCUMENTS)]
    assert len(text.text) > 4 * recognise.SAMPLE
    assert looks_like_list([text, *others]) == "records"
    assert text.read <= recognise.SAMPLE + CHUNK
    assert others[-1].read == 0


def test_a_record_cut_at_the_end_of_the_sample_is_left_out() -> None:
    lines = [*some(1, 20, name), "x" * 2 * recognise.SAMPLE]
    assert verdict(lines) == "records"


@pytest.mark.slow
def test_the_corpora_here_and_a_text_of_the_tests(tmp_path: Path) -> None:
    assert looks_like_list(open_documents(["@docstrings"])) is None
    path = tmp_path / "text.txt"
    path.write_text(words(4000), encoding="utf-8")
    assert looks_like_list(open_documents([str(path)])) is None


def test_what_cannot_be_decoded_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\n".join(RECORDS["names"]).encode("latin-1"))
    with pytest.raises(InputError, match="not utf-8"):
        looks_like_list(open_documents([str(path)]))
