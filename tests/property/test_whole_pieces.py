"""Pieces that stay whole: each occurrence is one token, for every kind, wherever a text is split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.text.pieces import LONGEST_PIECE, listed, spelled
from gru_lm.text.segments import LONGEST
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer
from gru_lm.text.tokenizer_whole import Finder, gaps
from tests.property.test_tokenizer_roundtrip import LOSSLESS, PROSE, decoded, trained

KINDS = [*LOSSLESS, "word"]
NAMES = ["<unk>", "</s>", "<0x41>", "the", " the", "cat ", "  ", " ", "世", "é", "aa", "aaa", "ab"]
printable = st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"], exclude_characters="▁")
short = st.text(st.sampled_from("abc "), min_size=1, max_size=4)
piece = st.one_of(short, st.sampled_from(NAMES), st.text(printable, min_size=1, max_size=5))
wholes = st.lists(piece, min_size=1, max_size=8, unique=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], str]:
    """Pieces, and a text in which many of them occur and overlap."""
    whole = draw(wholes)
    parts = [
        *whole,
        *(each[:-1] for each in whole),
        "a",
        "b",
        " ",
        "\n",
        "▁",
        "the cat",
        "\0",
        "\r",
    ]
    some = st.one_of(st.sampled_from(parts), st.text(max_size=3))
    return whole, "".join(draw(st.lists(some, max_size=25)))


def keeping(kind: str, whole: Sequence[str]) -> Tokenizer:
    return load_tokenizer(kind, trained(kind).data, whole=whole)


def parted(text: str, whole: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The definition: from left to right, the longest piece first; the text before each piece."""
    start = at = 0
    while at < len(text):
        found = max((each for each in whole if text.startswith(each, at)), key=len, default="")
        if found:
            yield text[start:at], found
            start = at + len(found)
        at += len(found) or 1
    yield text[start:], ""


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80)
@given(case=cases())
def test_each_occurrence_is_one_token_and_the_rest_is_encoded_as_before(
    kind: str, case: tuple[list[str], str]
) -> None:
    whole, text = case
    plain, tokenizer = trained(kind), keeping(kind, whole)
    expected: list[int] = []
    for gap, found in parted(text, whole):
        expected += plain.encode_text(gap)
        if found:
            expected.append(plain.vocab_size + whole.index(found))
    tokens = tokenizer.encode_text(text)
    assert tokens == expected
    if tokenizer.lossless:
        assert decoded(tokenizer, tokens) == text
        assert b"".join(map(tokenizer.surface, tokens)) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(case=cases(), step=st.integers(1, 9), size=st.integers(1, 20))
def test_tokens_depend_on_the_text_alone(
    kind: str, case: tuple[list[str], str], step: int, size: int
) -> None:
    whole, text = case
    tokenizer = keeping(kind, whole)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    whole_tokens = tokenizer.encode_text(text)
    assert [token for tokens in tokenizer.encode(pieces) for token in tokens] == whole_tokens
    blocks = list(tokenizer.encoder.blocks(pieces, size))
    assert "".join(blocks) == text
    assert [t for block in blocks for t in tokenizer.encoder.encode(block)] == whole_tokens
    if not tokenizer.lossless:
        found = list(tokenizer.encode_covering(pieces))
        texts = [part for each in found for part in each.texts or ()]
        assert b"".join(texts) + (found[-1].rest or b"") == text.encode()
        first = tokenizer.vocab_size - len(whole)
        for token, covered in zip(whole_tokens, texts, strict=True):
            assert token < first or covered.endswith(whole[token - first].encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, LONGEST - 2, LONGEST + 1])
def test_a_long_line_is_never_cut_inside_a_piece(kind: str, before: int) -> None:
    tokenizer = keeping(kind, ["<ab>", "<ab> <cd>", "世"])
    line = "x" * before + "<ab> <cd>" + "the cat " * 1_500 + "<ab><ab> <c" + "y" * 9_000 + "世<ab"
    text = f"{line}\n{line}<ab>\n\n{line} <cd>"
    tokens = tokenizer.encode_text(text)
    first = tokenizer.vocab_size - 3
    assert [tokens.count(first + number) for number in range(3)] == [6 + 1, 3, 3]
    pieces = [text[at : at + 999] for at in range(0, len(text), 999)]
    for size in (1, 2 * LONGEST + 5):
        blocks = list(tokenizer.encoder.blocks(pieces, size))
        assert "".join(blocks) == text
        assert [t for block in blocks for t in tokenizer.encoder.encode(block).tolist()] == tokens
    if tokenizer.lossless:
        assert decoded(tokenizer, tokens) == text


@settings(max_examples=200)
@given(case=cases())
def test_occurrences_are_found_from_left_to_right_and_the_longest_first(
    case: tuple[list[str], str],
) -> None:
    whole, text = case
    found, marks = Finder(whole).split(text)
    lines = [(gap, each) for gap, each in parted(text, [*whole, "\n"])]
    assert list(zip(found, [*marks, ""], strict=True)) == lines
    pieces = [text[at : at + 2] for at in range(0, len(text), 2)]
    assert "".join(gaps(pieces, whole)) == "\n".join(found)


@given(pieces=wholes | st.lists(st.sampled_from([",", '"', 'a"', '","', ".txt", "a.txt", " "])))
def test_a_list_is_read_as_it_was_spelled(pieces: list[str]) -> None:
    distinct = tuple(dict.fromkeys(pieces))
    assert not distinct or listed(spelled(pieces)) == distinct
    assert not spelled(pieces).endswith(".txt")


def test_thousands_of_pieces_that_share_beginnings() -> None:
    chains = ["a" * length for length in range(1, LONGEST_PIECE + 1)]
    numbers = [f"<{number}>" for number in range(3_000)]
    signs = [chr(0x4E00 + number) * 2 for number in range(3_000)]
    whole = [*chains, *numbers, *signs, *"]-^[\\"]
    text = "a" * 300 + "b<17>x<3000><2999>" + signs[7] + signs[2_999] + signs[5][0] + "]-^\\[\n"
    expected = ["a" * 256, "a" * 44, "<17>", "<2999>", signs[7], signs[2_999], *"]-^\\[", "\n"]
    assert Finder(whole).split(text)[1] == expected
    tokenizer = keeping("char", whole)
    assert decoded(tokenizer, tokenizer.encode_text(PROSE + text)) == PROSE + text
