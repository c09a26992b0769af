"""Tokenizers: any Unicode text survives a round trip, and tokens do not depend on how it is split."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.text import tokenizer_encoders as encoders
from gru_lm.text import tokenizer_model as models
from gru_lm.text.parallel import encode_texts, gather
from gru_lm.text.segments import LONGEST, blocks, segments, split
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

LOSSLESS = ("char", "byte", "bpe", "unigram")
PROSE = (
    "the cat sat on the mat,\nthe dog: \u4e16\u754c ran\tto the end  of it\r\n    and <unk> on\n"
    * 400
)
NO_SPACE = "\u4e16\u754c\u4eba\u751f\n\u4eba\u4e16\u754c\u3002\n" * 800
AWKWARD = (
    "\n\r\t \0\x1f\u2581\u2585\u2047\u200b\u200d\ufeff\ufffd\u00e9"
    "e\u0301\U0001f468\U0001f600<unk></s><0x41>the"
)

characters = st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from(AWKWARD), st.sampled_from(PROSE)
)
texts = st.one_of(
    st.text(characters, max_size=60),
    st.lists(
        st.sampled_from(["the ", "cat", "  ", " ", "\n", "\u2581", "<unk>", "</s>", "\r\n", "\0"])
    ).map("".join),
)


@functools.cache
def trained(kind: str, text: str = PROSE) -> Tokenizer:
    return train_tokenizer(kind, lambda: [text])


def decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    decoder = tokenizer.decoder()
    return "".join(map(decoder.push, tokens)) + decoder.flush()


@pytest.mark.parametrize("training_text", [PROSE, NO_SPACE], ids=["prose", "no-space"])
@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150)
@given(text=texts)
def test_any_text_comes_back(kind: str, training_text: str, text: str) -> None:
    tokenizer = trained(kind, training_text)
    tokens = tokenizer.encode_text(text)
    assert tokenizer.lossless
    assert decoded(tokenizer, tokens) == text
    assert b"".join(map(tokenizer.surface, tokens)) == text.encode()
    assert tokenizer.unknown_id not in tokens
    assert tokenizer.end_id not in tokens


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_character_there_is_comes_back(kind: str) -> None:
    every = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000, 7))))
    tokenizer = trained(kind)
    for text in (every, " ".join(every[:5000])):
        tokens = tokenizer.encode_text(text)
        assert decoded(tokenizer, tokens) == text
        assert tokenizer.unknown_id not in tokens


@pytest.mark.parametrize("kind", [*LOSSLESS, "word"])
@settings(max_examples=100)
@given(pieces=st.lists(st.text(characters, max_size=12)))
def test_tokens_do_not_depend_on_the_pieces(kind: str, pieces: list[str]) -> None:
    tokenizer = trained(kind)
    whole = tokenizer.encode_text("".join(pieces))
    assert [token for tokens in tokenizer.encode(pieces) for token in tokens] == whole


@pytest.mark.parametrize("kind", [*LOSSLESS, "word"])
@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 20 * LONGEST + 5])
def test_long_lines_do_not_depend_on_the_pieces(kind: str, length: int) -> None:
    tokenizer = trained(kind)
    text = ("x" * 11 + "the cat " * length)[:length] + "\nend" + "y" * length
    whole = tokenizer.encode_text(text)
    for step in (1000, LONGEST, 70_001):
        pieces = [text[start : start + step] for start in range(0, len(text), step)]
        assert [token for tokens in tokenizer.encode(pieces) for token in tokens] == whole
    if tokenizer.lossless:
        assert decoded(tokenizer, whole) == text


@given(pieces=st.lists(st.text(st.sampled_from("ab\n"), max_size=6)))
def test_segments_are_the_text(pieces: list[str]) -> None:
    found = [segment for group in segments(pieces) for segment in group]
    assert "".join(found) == "".join(pieces)
    assert all(segment.endswith("\n") for segment in found[:-1])
    assert all("\n" not in segment[:-1] for segment in found)


@given(pieces=st.lists(st.text(st.sampled_from("ab\n"), max_size=6)), size=st.integers(1, 20))
def test_blocks_are_whole_segments(pieces: list[str], size: int) -> None:
    found = list(blocks(pieces, size))
    assert "".join(found) == "".join(pieces)
    assert [segment for block in found for segment in split(block)] == split("".join(pieces))


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 5 * LONGEST + 1])
@pytest.mark.parametrize("end", ["", "\n", "\nx"])
@pytest.mark.parametrize("size", [100, LONGEST - 1, LONGEST, 2 * LONGEST + 5])
def test_blocks_of_a_long_line(length: int, end: str, size: int) -> None:
    text = "a\n" + "x" * length + end
    found = blocks([text], size)
    assert [segment for block in found for segment in split(block)] == split(text)


@pytest.mark.parametrize("kind", [*LOSSLESS, "word"])
@settings(max_examples=60)
@given(
    documents=st.lists(st.lists(st.text(characters, max_size=12)), min_size=1),
    size=st.integers(1, 30),
)
def test_tokens_do_not_depend_on_the_blocks(
    kind: str, documents: list[list[str]], size: int
) -> None:
    tokenizer = trained(kind)
    expected = encode_texts(tokenizer, ["".join(pieces) for pieces in documents]).tolist()
    gathered = gather(documents, tokenizer.encoder, size)
    assert [t for block in gathered for t in encode_texts(tokenizer, block).tolist()] == expected
    ends = expected.count(tokenizer.end_id)
    assert ends == len(documents) - 1


def plainly(tokenizer: Tokenizer) -> encoders.PieceEncoder:
    """An encoder that calls SentencePiece for each segment."""
    model = models.checked(tokenizer.data)
    return encoders.PieceEncoder(
        model, tokenizer.data, newline_id=tokenizer.newline_id, lossless=True
    )


@pytest.mark.parametrize("training_text", [PROSE, NO_SPACE], ids=["prose", "no-space"])
def test_the_table_of_characters_is_what_sentencepiece_does(training_text: str) -> None:
    char = trained("char", training_text)
    assert isinstance(char.encoder, encoders.CharEncoder)
    every = "".join(map(chr, range(0x110000)))
    assert (char.encoder.encode(every) == plainly(char).encode(every)).all()


words = st.lists(st.sampled_from([*PROSE.split(), *AWKWARD, " ", " ", "  ", "   ", "\n", "\t"]))


@pytest.mark.parametrize("training_text", [PROSE, NO_SPACE], ids=["prose", "no-space"])
@settings(max_examples=200)
@given(text=texts | words.map("".join) | words.map(" ".join))
def test_word_by_word_is_what_sentencepiece_does(training_text: str, text: str) -> None:
    bpe = trained("bpe", training_text)
    assert isinstance(bpe.encoder, encoders.WordwiseEncoder)
    assert bpe.encoder.encode(text).tolist() == plainly(bpe).encode(text).tolist()


@settings(max_examples=150)
@given(words=st.lists(st.lists(st.sampled_from(["the", "cat", "<unk>", "unseen", "mat,"]))))
def test_word_gives_back_single_spaced_lines(words: list[list[str]]) -> None:
    tokenizer = trained("word")
    text = "\n".join(" ".join(line) for line in words)
    expected = text.replace("unseen", "<unk>")
    assert decoded(tokenizer, tokenizer.encode_text(text)) == expected


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=100)
@given(data=st.data())
def test_any_tokens_decode(kind: str, data: st.DataObject) -> None:
    tokenizer = trained(kind)
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    surfaces = b"".join(map(tokenizer.surface, tokens))
    assert decoded(tokenizer, tokens) == surfaces.decode(errors="replace")
