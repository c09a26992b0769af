"""Spelling unknown words: a distribution over words, the open-vocabulary figure, what tokens cover."""

from __future__ import annotations

import io
import math
from itertools import product

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.evaluation import spelling
from gru_lm.evaluation.spelling import Speller
from gru_lm.evaluation.texts import measure
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.unit.test_scoring import Text
from tests.unit.test_tables import LEARNT, model_for

WORDS = ["the", "then", "cat", "cats", "mat", "naïve"]


def test_the_next_byte_has_a_distribution_after_any_context() -> None:
    speller = Speller(WORDS)
    for context in [(), (spelling.END,), tuple(b"th"), tuple(b"zz"), (spelling.END, *b"ca")]:
        total = sum(speller._probability(context, symbol) for symbol in range(spelling.SYMBOLS))
        assert total == pytest.approx(1)


def test_by_hand() -> None:
    """One word, "a": after the border comes a, after a the border; both contexts were seen once."""
    shortest = dict.fromkeys((ord("a"), spelling.END), (1 + 2 / 257) / 4)
    after_border = (1 + shortest[ord("a")]) / 2
    after_a = (1 + (1 + shortest[spelling.END]) / 2) / 2  # of one symbol, and then of two
    assert Speller(["a"]).nats("a") == pytest.approx(-math.log(after_border * after_a))


def test_likely_words_cost_less_and_any_word_can_be_spelled() -> None:
    speller = Speller(WORDS)
    assert speller.nats("mats") < speller.nats("stam") < speller.nats("猫")
    assert math.isfinite(speller.nats(""))
    assert math.isfinite(speller.nats("\udc80\0"))


def test_short_words_together_have_a_probability_below_one() -> None:
    speller = Speller(["a", "ab", "b"])
    total = sum(
        math.exp(-speller.nats("".join(word)))
        for length in range(4)
        for word in product("ab", repeat=length)
    )
    assert 0.5 < total < 1


def test_the_headline_of_words_has_the_unknown_ones_spelled() -> None:
    tokenizer = train_tokenizer("word", lambda: [LEARNT])
    text = "the cats sat\non the naïve mat cats\n"
    (counts,) = measure(model_for(tokenizer), tokenizer, [Text("a", text)])
    speller = Speller(["the", "cat", "sat", "on", "mat", "and", "<unk>", "</s>", ""])
    spelled = 2 * speller.nats("cats") + speller.nats("naïve")
    assert counts.unknown_tokens == 3
    assert counts.spelling_nats == pytest.approx(spelled, rel=0.05)
    figures = counts.figures()
    bits = (counts.nats + counts.spelling_nats) / math.log(2)
    assert figures["bits_per_byte"] == pytest.approx(bits / len(text.encode()))
    assert figures["nats_per_token"] == pytest.approx(counts.nats / counts.tokens)


def foreign() -> Tokenizer:
    """A unigram model made elsewhere: it normalises, drops white space and has an unknown piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world ünï cöde ﬁne x"] * 50 + ["foo bar baz"] * 50),
        model_writer=model,
        vocab_size=40,
        model_type="unigram",
        user_defined_symbols="\n",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return load_tokenizer("unigram", model.getvalue())


TOKENIZERS = {
    "byte": load_tokenizer("byte", b""),
    "char": train_tokenizer("char", lambda: [LEARNT]),
    "bpe": train_tokenizer("bpe", lambda: [LEARNT]),
    "word": train_tokenizer("word", lambda: [LEARNT]),
    "foreign": foreign(),
}
ALPHABET = st.sampled_from("the catsmon  \t\n\r\x1c\u3000éﬁ猫🐈\u2581\ufeff")


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(st.lists(st.text(ALPHABET, max_size=30), max_size=4))
def test_what_tokens_cover_adds_up_to_the_text(kind: str, pieces: list[str]) -> None:
    tokenizer, text = TOKENIZERS[kind], "".join(pieces)
    found = list(tokenizer.encode_covering(pieces))
    tokens = [int(token) for covering in found for token in covering.tokens_N]
    assert tokens == tokenizer.encode_text(text)
    sizes = [size for covering in found for size in covering.sizes_N2.tolist()]
    assert len(sizes) == len(tokens)
    assert all(size >= 0 for pair in sizes for size in pair)
    if tokens:
        assert [sum(column) for column in zip(*sizes, strict=True)] == [
            len(text.encode()),
            len(text),
        ]
    unknown = [word for covering in found for word in covering.unknown]
    assert len(unknown) == tokens.count(
        -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
    )
    if kind == "word":
        known = {"the", "cat", "sat", "on", "mat", "and"}
        assert unknown == [word for word in text.split() if word not in known]
    if kind in ("byte", "char", "bpe"):
        assert [pair[0] for pair in sizes] == [len(tokenizer.surface(token)) for token in tokens]


def test_a_monstrous_word_is_covered_whole() -> None:
    text = "the " + "x" * 20_000 + " cat\n"
    sizes = [c.sizes_N2.sum(0).tolist() for c in TOKENIZERS["word"].encode_covering([text] * 2)]
    assert [sum(column) for column in zip(*sizes, strict=True)] == [2 * len(text)] * 2
