"""Charges of lossy tokenizers: the distribution over spellings, bits per byte, covered text."""

from __future__ import annotations

import io
import math
from itertools import product

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.evaluation import spelling
from gru_lm.evaluation.spelling import Charges, Gaps, Speller, count_spacing
from gru_lm.evaluation.texts import measure, text_counts
from gru_lm.text.tokenizer import Spacing, Tokenizer, load_tokenizer, train_tokenizer
from tests.unit.test_scoring import Text
from tests.unit.test_tables import LEARNT, model_for

WORDS = ["the", "then", "cat", "cats", "mat", "naïve"]


def test_the_next_byte_has_a_distribution_after_any_context() -> None:
    speller, end = Speller(WORDS), spelling._END
    for context in [b"", end, b"th", b"zz", end + b"ca"]:
        total = sum(speller._probability(context, symbol) for symbol in range(256))
        # 256 bytes and the end symbol; one byte never occurs.
        assert total == pytest.approx(1, abs=1 / 257)


def test_by_hand() -> None:
    """The single word "a": a follows the border, the border follows a; each context occurs once."""
    shortest = (1 + 2 / 257) / 4  # of both symbols, in the empty context
    after_border = (1 + shortest) / 2
    after_a = (1 + (1 + shortest) / 2) / 2  # contexts of one symbol, then of two
    assert Speller(["a"]).nats(b"a") == pytest.approx(-math.log(after_border * after_a))


def test_likely_words_cost_less_and_any_word_can_be_spelled() -> None:
    speller = Speller(WORDS)
    assert speller.nats(b"mats") < speller.nats(b"stam") < speller.nats("猫".encode())
    assert math.isfinite(speller.nats(b""))
    assert math.isfinite(speller.nats(b"\xed\0"))


def test_short_words_together_have_a_probability_below_one() -> None:
    speller = Speller(["a", "ab", "b"])
    total = sum(
        math.exp(-speller.nats(bytes(word)))
        for length in range(4)
        for word in product(b"ab", repeat=length)
    )
    assert 0.5 < total < 1


COUNTED = {"between": {"=": 500, "  ": 20, "\t": 1}, "end": {"\r": 40}, "start": {"    ": 9}}


@pytest.mark.parametrize("counts", [None, COUNTED], ids=["fixed", "counted"])
@pytest.mark.parametrize("place", spelling.PLACES[:-1])
def test_all_gaps_of_a_place_together_have_a_probability_of_at_most_one(
    place: str, counts: Spacing | None
) -> None:
    gaps = Gaps(counts)
    white = [chr(c) for c in range(0x3001) if chr(c).isspace() and chr(c) != "\n"]
    assert len(white) == 28
    some = [
        *white,
        "",
        "=",
        *map("".join, product(" \t\r\xa0", repeat=2)),
        " " * 3,
        " " * 4,
        " " * 8,
    ]
    total = math.exp(-gaps.nats(place, None)) + sum(
        math.exp(-gaps.nats(place, gap)) for gap in dict.fromkeys(some)
    )
    assert 0.9 < total < 1
    kept = math.exp(-gaps.body_nats(changed=False)) + math.exp(-gaps.body_nats(changed=True))
    assert kept == pytest.approx(1)


def test_gaps_by_hand() -> None:
    """c / (n + T) for counted gaps, plus 99 pseudocounts of the default."""
    gaps = Gaps(COUNTED)
    assert gaps.nats("between", None) == pytest.approx(-math.log(599 / (620 + 2)))
    spelled = math.exp(-gaps._speller.nats(b"  "))
    assert gaps.nats("between", "  ") == pytest.approx(-math.log((20 + 2 * spelled) / 622))
    spelled = math.exp(-gaps._speller.nats(b" \t "))
    assert gaps.nats("between", " \t ") == pytest.approx(-math.log(2 * spelled / 622))
    assert Gaps(None).nats("start", None) == pytest.approx(-math.log(99 / 100))
    # Any text after the last token has a positive, finite cost.
    assert math.isfinite(Gaps(None).nats("end", " " * 5_000))


def charged(tokenizer: Tokenizer, text: str, pieces: int = 10_000) -> float:
    parts = [text[at : at + pieces] for at in range(0, len(text), pieces)]
    return float(
        sum(nats.sum() for _, nats in Charges(tokenizer).of(tokenizer.encode_covering(parts)))
    )


def test_the_headline_of_words_has_the_unknown_ones_spelled() -> None:
    tokenizer = train_tokenizer("word", lambda: [LEARNT])
    text = "the cats sat\non the naïve mat cats\n"
    (counts,) = measure(model_for(tokenizer), tokenizer, [Text("a", text)])
    speller = Speller(["the", "cat", "sat", "on", "mat", "and", "<unk>", "</s>", ""])
    spelled = 2 * speller.nats(b"cats") + speller.nats("naïve".encode())
    assert counts.unknown_tokens == 3
    assert counts.spelling_nats == pytest.approx(spelled, rel=0.05)
    figures = counts.figures()
    bits = (counts.nats + counts.spelling_nats) / math.log(2)
    assert figures["bits_per_byte"] == pytest.approx(bits / len(text.encode()))
    assert figures["nats_per_token"] == pytest.approx(counts.nats / counts.tokens)


PLAIN = "the cat sat on\nthe mat and the cat\n\nsat\n"
MORE_BYTES = {
    "eight spaces": PLAIN.replace(" ", " " * 8),
    "two spaces": PLAIN.replace(" ", "  "),
    "tabs": PLAIN.replace(" ", "\t"),
    "no-break spaces": PLAIN.replace(" ", "\u00a0"),
    "ideographic spaces": PLAIN.replace(" ", "\u3000"),
    "CR": PLAIN.replace("\n", "\r\n"),
    "form feeds": PLAIN.replace("\n\n", "\n\f\n"),
    "separators": PLAIN.replace(" ", "\x1f"),
    "indentation": "    " + PLAIN.replace("\n", "\n    "),
    "trailing spaces": PLAIN.replace("\n", "  \n"),
    "spaces at the end": PLAIN + " " * 40,
    "spaces at the start": " " * 40 + PLAIN,
}


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("case", MORE_BYTES)
def test_white_space_of_words_is_charged_wherever_it_stands(case: str, counted: bool) -> None:
    tokenizer, text = TOKENIZERS["word"], MORE_BYTES[case]
    if counted:
        tokenizer = tokenizer.with_spacing(count_spacing(tokenizer, [Text("a", LEARNT)]))
    assert tokenizer.encode_text(text) == tokenizer.encode_text(PLAIN)
    changed = sum(a != b for a, b in zip(text.split("\n"), PLAIN.split("\n"), strict=True))
    # Every gap has a positive cost; an unusual one costs several bits.
    assert 0 < charged(tokenizer, PLAIN) < 0.2
    assert charged(tokenizer, text) > 3 * changed


@pytest.mark.parametrize("kind", ["word", "foreign", "cased", "suffix"])
def test_white_space_alone_is_charged_and_cannot_be_had_for_nothing(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    for text in (" " * 100, "\u3000\t\r", "\x1c"):
        (counts,) = measure(model_for(tokenizer), tokenizer, [Text("a", text)])
        assert counts.bytes == len(text.encode())
        assert counts.nats + counts.spelling_nats > 3
        assert text_counts([Text("a", text)], tokenizer, stop=lambda: None).spelling_nats == (
            pytest.approx(counts.spelling_nats)
        )
    (counts,) = measure(model_for(tokenizer), tokenizer, [Text("a", "")])
    assert counts.nats + counts.spelling_nats == 0


def test_the_training_text_tells_what_white_space_is_usual() -> None:
    tokenizer = TOKENIZERS["word"]
    windows = LEARNT.replace("\n", "\r\n") * 20
    spacing = count_spacing(tokenizer, [Text("a", windows)])
    assert spacing
    assert spacing["end"] == {"\r": 360}
    assert spacing["between"] == {"=": windows.count(" ")}
    used = charged(tokenizer.with_spacing(spacing), windows)
    assert used < 0.5 * windows.count("\n") < 0.1 * charged(tokenizer, windows)
    assert count_spacing(TOKENIZERS["bpe"], [Text("a", windows)]) is None


@pytest.mark.parametrize("kind", ["word", "whole", "foreign", "cased", "suffix", "bytes"])
@settings(max_examples=60)
@given(
    st.lists(
        st.text(st.sampled_from("the Cat \t\n\r\x1c\u3000éﬁ猫\u2581"), max_size=20), max_size=3
    )
)
def test_texts_of_the_same_tokens_are_told_apart(kind: str, pieces: list[str]) -> None:
    """The text can be reconstructed from the tokens and the charged text of each."""
    tokenizer, text = TOKENIZERS[kind], "".join(pieces)
    found = list(tokenizer.encode_covering(pieces))
    covered = b"".join(part for each in found for part in each.texts or ())
    assert covered + (found[-1].rest or b"") == text.encode()
    assert all(each.rest is None for each in found[:-1])
    nats = [nats for _, each in Charges(tokenizer).of(found) for nats in each.tolist()]
    assert all(value > 0 for value in nats)


@pytest.mark.parametrize("kind", ["word", "whole", "cased", "suffix", "bytes"])
def test_all_texts_of_the_same_tokens_together_have_a_probability_of_at_most_one(kind: str) -> None:
    tokenizer, found = TOKENIZERS[kind], dict[tuple[int, ...], float]()
    tokenizer = tokenizer.with_spacing(count_spacing(tokenizer, [Text("a", LEARNT)]))
    for length in range(1, 5):
        for text in map(
            "".join, product(" \thHz" if kind == "cased" else " \t\nhz", repeat=length)
        ):
            tokens = tuple(tokenizer.encode_text(text))
            found[tokens] = found.get(tokens, 0.0) + math.exp(-charged(tokenizer, text))
    assert len(found) > 20
    assert 0.5 < max(found.values()) < 1


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("foreign", "hello world", "hello   world"),  # white space is folded
        ("foreign", "fine", "ﬁne"),  # NFKC
        ("foreign", "x", "ｘ"),
        ("foreign", "hello 猫", "hello 犬"),  # both unknown
        ("cased", "the cat", "The CAT"),  # case folding
        ("cased", "the cat", "the\u00a0cat"),
        ("suffix", "the cat", " the cat "),
        ("bytes", "the cat", "the\u2581cat"),
    ],
)
def test_what_a_foreign_model_loses_is_charged(kind: str, same: str, other: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.encode_text(same) == tokenizer.encode_text(other)
    plain, changed = charged(tokenizer, same), charged(tokenizer, other)
    if "猫" in same:
        assert min(plain, changed) > 10
    else:
        assert plain + 5 < changed


def test_a_space_at_the_end_of_words_is_charged_as_one_at_their_start() -> None:
    """The last word of a line has none, and one after it is as dear as one before it."""
    found = {}
    for kind in ("foreign", "suffix"):
        tokenizer = TOKENIZERS[kind]
        spacing = count_spacing(tokenizer, [Text("a", "hello world\nthe cat\nbaz\n" * 30)])
        tokenizer = tokenizer.with_spacing(spacing)
        texts = ("the cat\nhello\n", "the cat", "the   cat\n", "  the cat  ", "the cat\r\n")
        found[kind] = [charged(tokenizer, text) for text in texts]
        assert max(found[kind][:2]) < 0.5
    assert found["suffix"] == pytest.approx(found["foreign"], rel=0.1)


def foreign(**options: object) -> Tokenizer:
    """A foreign unigram model that normalises, drops white space and has an unknown piece."""
    model = io.BytesIO()
    options = {"vocab_size": 40} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world ünï cöde ﬁne x"] * 50 + ["the cat baz"] * 50),
        model_writer=model,
        model_type="unigram",
        user_defined_symbols="\n",
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return load_tokenizer("unigram", model.getvalue())


TOKENIZERS = {
    "byte": load_tokenizer("byte", b""),
    "char": train_tokenizer("char", lambda: [LEARNT]),
    "bpe": train_tokenizer("bpe", lambda: [LEARNT]),
    "word": train_tokenizer("word", lambda: [LEARNT]),
    "whole": train_tokenizer("word", lambda: [LEARNT], whole=["h", "zh", " z", "th", "at "]),
    "foreign": foreign(),
    "cased": foreign(normalization_rule_name="nmt_nfkc_cf"),
    "suffix": foreign(treat_whitespace_as_suffix=True),
    "bytes": foreign(
        byte_fallback=True,
        vocab_size=320,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    ),
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
    if kind == "word":
        texts = [word for covering in found for word in covering.texts or ()]
        words = [word.decode().strip() for word in texts if not word.endswith(b"\n")]
        assert words == text.split()
    if kind in ("byte", "char", "bpe"):
        assert [pair[0] for pair in sizes] == [len(tokenizer.surface(token)) for token in tokens]


@pytest.mark.parametrize("before", [0, 1, 2**16 - 5, 2**16])
@pytest.mark.parametrize("pieces", [1_000, 2**16, 10**6])
def test_a_word_longer_than_a_block_is_spelled_whole(before: int, pieces: int) -> None:
    """All 100,000 letters are charged, to the right word, wherever block borders fall."""
    tokenizer = TOKENIZERS["word"]
    head, word = "a " * (before // 2) + "the ", "xq" * 50_000
    text = f"{head}{word} cat\n"
    parts = [text[at : at + pieces] for at in range(0, len(text), pieces)]
    found = list(tokenizer.encode_covering(parts))
    texts = [part for each in found for part in each.texts or ()]
    assert texts[-3:] == [f" {word}".encode(), b" cat", b"\n"]
    tokens = [int(token) for each in found for token in each.tokens_N]
    assert len(tokens) == before // 2 + 4
    assert tokens == tokenizer.encode_text(text)
    sizes = [size for each in found for size in each.sizes_N2.tolist()]
    assert sizes[-3:] == [[100_001] * 2, [4, 4], [1, 1]]


def test_a_long_word_costs_as_much_as_its_letters() -> None:
    tokenizer, word = TOKENIZERS["word"], "the" * 30_000
    alone = Speller(["the", "cat", "sat", "on", "mat", "and"])
    expected = alone.nats(word.encode())
    assert charged(tokenizer, f"the {word} cat\n") == pytest.approx(expected, rel=0.05)
    assert expected > 1_000
