"""Conventions of other tools: figures against their actual output and arithmetic."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.evaluation.conventions import (
    LmEvalFigures,
    SplitWords,
    WordSums,
    format_kenlm,
    format_lm_eval,
    format_srilm,
    kenlm_query,
    lm_eval,
    srilm,
    sums_of_tokens,
)

# Output of SRILM, with 6 digits: test text of Penn Treebank under a trigram (Good-Turing), and others.
SRILM = [
    (WordSums(-182850, words=78669, sentences=3761), 165.292, 211.009),
    (WordSums(-183187, words=78669, sentences=3761), 166.851, 213.095),
    (WordSums(-245699, words=118254, sentences=10000), 82.3605, 119.597),
    (WordSums(-11.58567, words=4, sentences=1), 207.555, 787.8011),
]


@pytest.mark.parametrize(("sums", "ppl", "ppl1"), SRILM)
def test_srilms_own_output_is_met(sums: WordSums, ppl: float, ppl1: float) -> None:
    # logprob is rounded to 6 digits, a relative error of about 1e-5 after exponentiation.
    found = srilm(sums)
    assert found == (sums.logprob, pytest.approx(ppl, rel=3e-5), pytest.approx(ppl1, rel=3e-5))


def test_denominators_on_penn_treebank() -> None:
    """78,669 words and 3,761 line ends are the 82,430 tokens of the papers; each costs 1 bit here."""
    treebank = WordSums(-82430 * math.log10(2), words=78669, sentences=3761)
    assert srilm(treebank).ppl == pytest.approx(2)
    assert srilm(treebank).ppl1 == pytest.approx(2 ** (82430 / 78669))
    assert kenlm_query(treebank).including_oovs == pytest.approx(2)
    assert kenlm_query(treebank).tokens == 82430


def test_words_out_of_vocabulary_leave_both_sides() -> None:
    sums = WordSums(-90, oov_logprob=-20, words=60, sentences=10, oovs=5, zeroprobs=3)
    assert srilm(sums) == (-70, pytest.approx(10 ** (70 / 62)), pytest.approx(10 ** (70 / 52)))
    including, excluding, oovs, tokens = kenlm_query(sums)
    assert including == pytest.approx(10 ** (90 / 70))
    assert excluding == pytest.approx(10 ** (70 / 65))
    assert (oovs, tokens) == (5, 70)


def test_a_word_models_sums() -> None:
    ln10 = math.log(10)
    one = sums_of_tokens(
        nats=9 * ln10, unknown_nats=2 * ln10, tokens=10, unknown_tokens=1, sentences=3
    )
    assert one.logprob == pytest.approx(-9)
    assert one.oov_logprob == pytest.approx(-2)
    assert (one.words, one.sentences, one.oovs) == (7, 3, 1)
    assert (one + one) == WordSums(2 * one.logprob, 2 * one.oov_logprob, 14, 6, 2)


def test_srilms_layout() -> None:
    sums = WordSums(-182850.0625, words=78669, sentences=3761)
    first, second = format_srilm("ptb.test.txt", sums).split("\n")
    assert first == "file ptb.test.txt: 3761 sentences, 78669 words, 0 OOVs"
    assert second == "0 zeroprobs, logprob= -182850.1 ppl= 165.29 ppl1= 211.0067"
    ppl, ppl1 = 10 ** (182850.0625 / 82430), 10 ** (182850.0625 / 78669)
    assert (f"{ppl:.4f}", f"{ppl1:.4f}") == ("165.2900", "211.0067")


def test_srilm_drops_zeros_and_says_undefined() -> None:
    assert format_srilm("-", WordSums(-2, words=1, sentences=1)) == (
        "file -: 1 sentences, 1 words, 0 OOVs\n0 zeroprobs, logprob= -2 ppl= 10 ppl1= 100"
    )
    assert format_srilm("a b", WordSums(-1, sentences=1)).endswith("ppl= 10 ppl1= undefined")
    unknown = WordSums(-3, oov_logprob=-3, words=2, oovs=2)
    assert format_srilm("f", unknown).endswith("logprob= 0 ppl= undefined ppl1= undefined")
    assert format_srilm("f", WordSums()) == "file f: 0 sentences, 0 words, 0 OOVs"


def test_kenlms_layout() -> None:
    assert format_kenlm(WordSums(-6, oov_logprob=-4, words=3, sentences=1, oovs=2)) == (
        "Perplexity including OOVs:\t31.622776601683793\n"
        "Perplexity excluding OOVs:\t10\n"
        "OOVs:\t2\nTokens:\t4"
    )


@pytest.mark.parametrize(
    ("logprob", "written"),
    [(-2, "100"), (-20, "100000000000000000000"), (-22, "1e22"), (-400, "inf"), (0, "1")],
)
def test_kenlms_numbers_are_short(logprob: float, written: str) -> None:
    found = format_kenlm(WordSums(logprob, words=1)).split("\n")[0].split("\t")[1]
    assert found == written


def test_kenlm_divides_by_nothing_as_c_does() -> None:
    assert format_kenlm(WordSums()).startswith("Perplexity including OOVs:\tNaN\n")


def test_lm_evals_figures() -> None:
    found = lm_eval(nats=30 * math.log(2), words=5, bytes=20)
    assert found == (pytest.approx(1.5), pytest.approx(2**1.5), pytest.approx(64))
    assert math.isnan(lm_eval(nats=0.0, words=0, bytes=0).word_perplexity)


@settings(max_examples=60)
@given(
    st.text(st.sampled_from("ab \n\t\x1c\x85\u2028\u3000") | st.characters(codec="utf-8")),
    st.integers(0, 20),
)
def test_words_are_counted_as_re_split_does(text: str, cut: int) -> None:
    words = SplitWords()
    for piece in (text[:cut], text[cut : 2 * cut], text[2 * cut :]):
        words.add(piece)
    assert words.count == len(re.split(r"\s+", text))


def test_lm_evals_table() -> None:
    """Actual output of lm-evaluation-harness 0.4.13 and its table writer, including spaces."""
    assert format_lm_eval("wikitext", LmEvalFigures(0.7155, 1.6421, 14.18961), version=2.0) == (
        "| Tasks  |Version|Filter|n-shot|    Metric     |   | Value |   |Stderr|\n"
        "|--------|------:|------|-----:|---------------|---|------:|---|------|\n"
        "|wikitext|      2|none  |     0|bits_per_byte  |↓  | 0.7155|±  |   N/A|\n"
        "|        |       |none  |     0|byte_perplexity|↓  | 1.6421|±  |   N/A|\n"
        "|        |       |none  |     0|word_perplexity|↓  |14.1896|±  |   N/A|"
    )
    assert format_lm_eval("a|b", LmEvalFigures(1.0, 2.0, 100.25)) == (
        "|Tasks|Version|Filter|n-shot|    Metric     |   |Value |   |Stderr|\n"
        "|-----|------:|------|-----:|---------------|---|-----:|---|------|\n"
        "|a\\|b |      1|none  |     0|bits_per_byte  |↓  |  1.00|±  |   N/A|\n"
        "|     |       |none  |     0|byte_perplexity|↓  |  2.00|±  |   N/A|\n"
        "|     |       |none  |     0|word_perplexity|↓  |100.25|±  |   N/A|"
    )
    whole = format_lm_eval("t", LmEvalFigures(1.0, 2.0, 27.0)).split("\n")
    assert whole[-1] == "|     |       |none  |     0|word_perplexity|↓  |   27|±  |   N/A|"
    endless = format_lm_eval("t", LmEvalFigures(1.0, 2.0, math.inf)).split("\n")
    assert endless[-1] == "|     |       |none  |     0|word_perplexity|↓  |Infinity|±  |   N/A|"
    odd = format_lm_eval("local_text_long", LmEvalFigures(0.12, 1.64, 12345678.12345))
    assert odd.split("\n")[0] == (
        "|     Tasks     |Version|Filter|n-shot|    Metric     |   |    Value    |   |Stderr|"
    )
