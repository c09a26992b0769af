"""N-grams from ARPA files: against explicit backoff and kenlm, and interpolated with a word model."""

from __future__ import annotations

import gzip
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.errors import EnvironmentProblem, InputError, UsageError
from gru_lm.evaluation.arpa import Ngram, open_arpa
from gru_lm.evaluation.conventions import kenlm_query
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.ngram import (
    Mixture,
    Pairs,
    TokenScores,
    baseline,
    em_step,
    interpolate,
    lines_of,
    scores,
    tune_weight,
    word_sums,
    words_of,
)
from gru_lm.evaluation.scoring import Portion
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

UNIGRAMS = {"<unk>": (-1.2, 0), "<s>": (-99, -0.3), "</s>": (-0.7, 0)}
UNIGRAMS |= {"a": (-0.6, -0.2), "b": (-0.5, -0.1)}
BIGRAMS = {("<s>", "a"): -0.25, ("a", "b"): -0.4, ("b", "</s>"): -0.3, ("a", "a"): -0.9}
ARPA = "\n".join(
    [
        "\\data\\",
        f"ngram 1={len(UNIGRAMS)}",
        f"ngram 2={len(BIGRAMS)}",
        "\n\\1-grams:",
        *(f"{p}\t{word}\t{backoff}" for word, (p, backoff) in UNIGRAMS.items()),
        "\n\\2-grams:",
        *(f"{p}\t{first} {word}" for (first, word), p in BIGRAMS.items()),
        "\n\\end\\\n",
    ]
)


def by_hand(words: Iterable[str]) -> list[float]:
    """log10 p of each word and of </s>: of the bigram, or backoff plus unigram."""
    known = [word if word in UNIGRAMS else "<unk>" for word in words]
    return [
        BIGRAMS.get((first, word), UNIGRAMS[first][1] + UNIGRAMS[word][0])
        for first, word in pairwise(["<s>", *known, "</s>"])
    ]


@pytest.fixture
def ngram(tmp_path: Path) -> Ngram:
    pytest.importorskip("kenlm")
    path = tmp_path / "tiny.arpa"
    path.write_text(ARPA, encoding="utf-8")
    return open_arpa(path)


LINES = ["a b\n", "\n", " b  a a\tc \n", "d\n", "<unk> a </s>\n", "a\u00a0b a\0 \u2028\n"]


def test_lines_score_as_backing_off_does(ngram: Ngram) -> None:
    for line, (log_probs_N, unknown_N) in zip(LINES[:4], scores(ngram, LINES[:4]), strict=True):
        words = line.split()
        assert log_probs_N / math.log(10) == pytest.approx(by_hand(words), abs=1e-6)
        assert unknown_N.tolist() == [word not in UNIGRAMS for word in words] + [False]
    ((log_probs_N, _),) = scores(ngram, ["a b"])
    assert log_probs_N / math.log(10) == pytest.approx(by_hand(["a", "b"])[:-1], abs=1e-6)


def test_sums_are_kenlms(ngram: Ngram) -> None:
    """For every line, including unusual spaces; without NUL, which would end the C string."""
    full = [ngram.model.full_scores(line[:-1].replace("\0", "x")) for line in LINES]
    tokens = [token for line in full for token in line]
    total, oov_total = sum(p for p, _, _ in tokens), sum(p for p, _, oov in tokens if oov)
    oovs = sum(oov for _, _, oov in tokens)
    sums = word_sums(ngram, LINES)
    assert (sums.words, sums.sentences, sums.oovs) == (len(tokens) - 6, 6, oovs)
    assert oovs == 6
    assert sums.logprob == pytest.approx(total, rel=1e-12)
    assert sums.oov_logprob == pytest.approx(oov_total, rel=1e-12)
    text = Counts(bytes=40, unknown_tokens=oovs, spelling_nats=2.5)
    row = baseline(ngram, LINES, text=text, same_unknown=True)
    assert row["perplexity"] == pytest.approx(10 ** (-total / len(tokens)))
    assert row["perplexity_excluding_oovs"] == pytest.approx(
        10 ** (-(total - oov_total) / (len(tokens) - oovs))
    )
    bits = -total * math.log2(10) + 2.5 / math.log(2)
    assert row["bits_per_byte"] == pytest.approx(bits / 40), "spelled as the model's"
    for other in (
        baseline(ngram, LINES, text=replace(text, unknown_tokens=1), same_unknown=True),
        baseline(ngram, LINES, text=text, same_unknown=False),
    ):
        assert other["bits_per_byte"] is None, "other words are unknown"
    nothing = baseline(ngram, [], text=Counts(), same_unknown=True)
    assert (nothing["perplexity"], nothing["bits_per_byte"]) == (None, None)
    assert row["name"].endswith("tiny.arpa (2-gram)")


@settings(max_examples=40)
@given(st.text("a \n"), st.integers(1, 9))
def test_lines_of_a_text_in_pieces(text: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(lines_of(pieces)) == text.splitlines(keepends=True)


def test_packed_files_are_read(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    path = tmp_path / "tiny.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode()))
    assert word_sums(open_arpa(path), ["a\n"]).logprob == pytest.approx(sum(by_hand("a")))


def test_packed_files_that_kenlm_does_not_read(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    path = tmp_path / "tiny.arpa.zst"
    path.write_bytes(zstandard.compress(ARPA.encode()))
    with pytest.raises(InputError, match=r"tiny\.arpa\.zst: kenlm does not read zstd"):
        open_arpa(path)


BAD = {
    "empty": (b"", "is empty"),
    "prose": (b"# x\n\nHello\n", "is not an ARPA file"),
    "noise": (bytes(range(256)) * 4, "is binary, not text"),
    "kenlm": (b"mmap lm http://kheafield.com/code format version 5\n\0", "is a KenLM binary"),
    "packed": (gzip.compress(ARPA.encode()), "is gzip, compressed under another name"),
    "negative": (ARPA.replace("2=4", "2=-4").encode(), "line 3: invalid n-gram count"),
    "boundless": (ARPA.replace("2=4", "2=" + "9" * 40).encode(), "line 3: invalid n-gram count"),
    "huge": (ARPA.replace("2=4", "2=4000000000").encode(), "line 3: invalid n-gram count"),
    "number": (ARPA.replace("-0.4\ta", "x\ta").encode(), "line 14: damaged"),
    "word": (ARPA.replace("a b", "a zz").encode(), "line 14: damaged"),
    "many": (ARPA.replace("2=4", "2=3").encode(), "line 16: damaged"),
    "positive": (ARPA.replace("-0.6\ta", "0.6\ta").encode(), "line 9: damaged"),
    "short": (ARPA[: ARPA.index("\\2-")].encode(), "damaged"),
    "cut": (ARPA[:-3].encode(), "damaged"),
    "unbegun": (ARPA.replace("<s>", "<z>").encode(), "damaged"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    path = tmp_path / "bad (file).arpa"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_arpa(path)
    assert caught.value.message.startswith(str(path))
    assert message in caught.value.message
    assert caught.value.hint
    said = caught.value.why or ""
    assert "threw" not in said
    assert "Byte" not in said
    assert len(said) <= 200


def test_kenlms_reason_is_passed_on(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    path = tmp_path / "bad.arpa"
    path.write_bytes(BAD["many"][0])
    with pytest.raises(InputError) as caught:
        open_arpa(path)
    assert caught.value.why == r"Expected \end\ but the ARPA file has -0.9\x09a a"
    with pytest.raises(InputError, match="no such file"):
        open_arpa(tmp_path / "other.arpa")


def test_without_kenlm_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "kenlm", None
    )  # how Python marks a module that cannot be imported
    with pytest.raises(EnvironmentProblem) as caught:
        open_arpa(tmp_path / "any.arpa")
    assert caught.value.hint == "pip install 'gru-lm[ngram]'"


def word_tokenizer(text: str) -> Tokenizer:
    return train_tokenizer("word", lambda: [text])


def portions(tokens: list[int], log_probs: Any, *, size: int, document: int = 0) -> list[Portion]:
    slices = [slice(start, start + size) for start in range(0, len(tokens), size)]
    tokens_N = np.array(tokens, np.int32)
    extra_N0 = np.empty((len(tokens), 0))
    return [Portion(document, tokens_N[at], log_probs[at], extra_N0[at]) for at in slices]


SIZES = np.empty((0, 2))  # sizes of tokens, unused by n-grams


TEXT = "a b\n\n b  a e c\na a\u00a0b zz <unk>\na"  # e, c: not in the ARPA; zz: in neither


@pytest.mark.parametrize("size", [1, 3, 100])
def test_with_weight_1_it_is_kenlm_whatever_the_portions(size: int, ngram: Ngram) -> None:
    tokenizer = word_tokenizer("<unk> a b e c")
    tokens = tokenizer.encode_text(TEXT)
    found = TokenScores(ngram, tokenizer)
    mixture = Mixture(found, weight=1)
    for portion in portions(tokens, np.full(len(tokens), -1.0), size=size):
        mixture(portion, SIZES)
    # The last line has no newline and therefore no </s>.
    sums = word_sums(ngram, ["a b\n", "\n", "b a e c\n", "a a b zz <unk>\n", "a"])
    assert mixture.counts.tokens == sums.words + sums.sentences
    assert mixture.counts.nats == pytest.approx(-math.log(10) * sums.logprob, rel=1e-6)
    perplexity = mixture.counts.figures()["perplexity"]
    assert perplexity == pytest.approx(10 ** (-sums.logprob / mixture.counts.tokens))
    assert mixture.counts.unknown_tokens == 2
    assert found.unknown_tokens() == sums.oovs == 4
    assert kenlm_query(sums).oovs == 4


def test_words_that_the_ngrams_lack_share_what_is_unknown_to_them(ngram: Ngram) -> None:
    tokenizer = word_tokenizer("<unk> a b e c\n")
    every = [token for token in range(tokenizer.vocab_size) if token != tokenizer.end_id]
    found = TokenScores(ngram, tokenizer)
    assert found.lacking() == 2
    whole = 0.0
    for token in every:  # each at the start of a line
        start = TokenScores(ngram, tokenizer)
        (portion,) = portions([token], np.zeros(1), size=1)
        tokens_N, _, ngram_N = start(portion)
        whole += float(np.exp(start.shared(tokens_N, ngram_N)).sum())
    start = ["a", "b", "</s>", "<unk>"]  # have a probability after <s> in the n-grams
    assert whole == pytest.approx(sum(10 ** by_hand([word])[0] for word in start), rel=1e-6)
    nats = {}
    for weight in (0.5, 1):
        mixture = Mixture(TokenScores(ngram, tokenizer), weight=weight)
        for portion in portions(tokenizer.encode_text("e\n"), np.full(2, -1.0), size=9):
            mixture(portion, SIZES)
        nats[weight] = mixture.counts.nats
    e, end = by_hand(["e"])
    halves = [(math.exp(-1) + 10**e / 3) / 2, (math.exp(-1) + 10**end) / 2]
    assert nats[0.5] == pytest.approx(-sum(map(math.log, halves)), rel=1e-6)
    assert nats[1] == pytest.approx(-(e + end) * math.log(10), rel=1e-6)


def test_documents_start_lines_and_their_end_is_the_neural_models_alone(ngram: Ngram) -> None:
    tokenizer = word_tokenizer("<unk> a b")
    first, second = tokenizer.encode_text("a a"), tokenizer.encode_text("a b\n")
    pairs = Pairs(TokenScores(ngram, tokenizer))
    first.append(tokenizer.end_id)
    for number, tokens in enumerate((first, second)):
        for portion in portions(tokens, -np.arange(1.0, 1 + len(tokens)), size=2, document=number):
            pairs(portion, SIZES)
    model_N, ngram_N = pairs.arrays()
    assert model_N.tolist() == [-1, -2, -3, -1, -2, -3]
    expected = [*by_hand("aa")[:2], -3 / math.log(10), *by_hand("ab")]
    assert ngram_N / math.log(10) == pytest.approx(expected, abs=1e-6)


def test_what_kenlm_gets() -> None:
    tokenizer = word_tokenizer("<unk> a b<c <unk> été\n")
    words = words_of(tokenizer)
    tokens = tokenizer.encode_text("été b<c <unk> new\n")
    assert [words[token] for token in tokens] == ["été", "b<c", "<unk>", "<unk>", "</s>"]
    assert words[tokenizer.end_id] is None


def test_another_vocabulary_is_refused(ngram: Ngram) -> None:
    tokenizer = word_tokenizer("<unk> a b A B")
    for text, good in (("a b A zz\n" * 9, True), ("a A B zz\n" * 9, False), ("zz\n", True)):
        found = TokenScores(ngram, tokenizer)
        tokens = tokenizer.encode_text(text)
        for portion in portions(tokens, np.zeros(len(tokens)), size=9):
            found(portion)
        if good:
            found.check_overlap()
        else:
            with pytest.raises(InputError, match="does not match the model") as caught:
                found.check_overlap()
            assert caught.value.why == "it has 1 of the 3 words of this text known to the model"


def test_only_word_models_go_with_it(ngram: Ngram) -> None:
    with pytest.raises(UsageError, match="char tokens"):
        TokenScores(ngram, train_tokenizer("char", lambda: ["abc"]))


LN_P = st.floats(-20, 0)
PAIRS = st.lists(st.tuples(LN_P, LN_P | st.just(-math.inf)), min_size=1, max_size=30)


def sides(pairs: list[tuple[float, float]]) -> tuple[Any, Any]:
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


@settings(max_examples=40)
@given(PAIRS, st.floats(0, 1))
def test_interpolation_mixes_probabilities(pairs: list[tuple[float, float]], w: float) -> None:
    expected = [math.log((1 - w) * math.exp(a) + w * math.exp(b) + 1e-300) for a, b in pairs]
    a_N, b_N = sides(pairs)
    found = np.maximum(interpolate(a_N, b_N, weight=w), math.log(1e-300))
    assert found == pytest.approx(expected, abs=1e-9)
    assert interpolate(a_N, b_N, weight=0) is a_N
    assert interpolate(a_N, b_N, weight=1) is b_N


@settings(max_examples=40)
@given(PAIRS, st.floats(0.01, 0.99))
def test_a_step_of_em_never_loses(pairs: list[tuple[float, float]], w: float) -> None:
    a_N, b_N = sides(pairs)
    after = em_step(a_N, b_N, w)
    assert 0 <= after <= 1
    gain = interpolate(a_N, b_N, weight=after) - interpolate(a_N, b_N, weight=w)
    assert gain.sum() >= -1e-9


def test_the_tuned_weight_is_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    p_a, p_b = rng.uniform(0.05, 1, 400), rng.uniform(0.05, 1, 400)
    weight = tune_weight(np.log(p_a), np.log(p_b))
    slope = ((p_b - p_a) / ((1 - weight) * p_a + weight * p_b)).mean()
    curvature = (((p_b - p_a) / ((1 - weight) * p_a + weight * p_b)) ** 2).mean()
    assert 0.01 < weight < 0.99
    assert abs(slope / curvature) < 1e-6  # size of a Newton step to the optimum


def test_the_tuned_weight_finds_the_edges_and_the_truth() -> None:
    ones = np.zeros(50)
    assert tune_weight(ones - 1, ones - 5) == pytest.approx(0, abs=1e-6)
    assert tune_weight(ones - 5, ones - 1) == pytest.approx(1, abs=1e-6)
    assert tune_weight(ones, ones) == 0.5
    # Three quarters of the tokens are drawn from b; both models are certain of their own tokens.
    b_N = np.where(np.arange(400) % 4, -1e-9, -30.0)
    assert tune_weight(-30 - b_N, b_N) == pytest.approx(0.75, abs=1e-6)
    with pytest.raises(InputError, match="no token"):
        tune_weight(np.empty(0), np.empty(0))
