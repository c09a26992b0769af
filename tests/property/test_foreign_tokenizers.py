"""Laws of SentencePiece models from elsewhere: whatever their options, ids are SentencePiece's own."""

from __future__ import annotations

import functools
import io
from typing import Any

import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.text.tokenizer import load_tokenizer

LINES = [
    "The Dog WALKS .",
    "the cat sat on the mat,",
    "  the dog  ran to\tthe end of it ",
    "\ufb01n \u2026 \uff21 e\u0301 \u00e9 \u4e16\u754c \U0001f600",
]
CHARACTERS = (
    "Thedogcat .,  \t\r\u00a0\u3000\u200b\u00ad\ufb01\u2026\uff21e\u0301\u00e9\u0130"
    "\u4e16\U0001f600\0\ufffd<>/"
)
KINDS = ("unigram", "bpe", "char", "word")
SWITCHES = (
    "add_dummy_prefix",
    "remove_extra_whitespaces",
    "treat_whitespace_as_suffix",
    "byte_fallback",
    "split_by_whitespace",
)
SYMBOLS = ((), ("\n",), ("the cat", "<sos/eos>"), (" ", "e"))


@functools.cache
def trained(kind: str, rule: str, switches: tuple[bool, ...], symbols: tuple[str, ...]) -> bytes:
    model = io.BytesIO()
    options: dict[str, Any] = dict(zip(SWITCHES, switches, strict=True))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 10),
        model_writer=model,
        model_type=kind,
        vocab_size=340 if options["byte_fallback"] else 80,
        hard_vocab_limit=False,
        normalization_rule_name=rule,
        user_defined_symbols=list(symbols),
        minloglevel=3,
        **options,
    )
    return model.getvalue()


@settings(max_examples=80)
@given(
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"]),
    switches=st.tuples(*[st.booleans()] * len(SWITCHES)),
    symbols=st.sampled_from(SYMBOLS),
    lines=st.lists(
        st.text(st.sampled_from(CHARACTERS), max_size=20)
        | st.lists(st.sampled_from(" ".join(LINES).split(" "))).map(" ".join),
        max_size=5,
    ),
)
def test_ids_are_sentencepieces_own(
    kind: str,
    rule: str,
    switches: tuple[bool, ...],
    symbols: tuple[str, ...],
    lines: list[str],
) -> None:
    data = trained(kind, rule, switches, symbols)
    tokenizer = load_tokenizer(kind, data)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    expected: list[int] = []
    for line in lines:
        expected += [*processor.encode(line), tokenizer.newline_id]
    text = "".join(line + "\n" for line in lines)
    assert tokenizer.encode_text(text) == expected
    covered = list(tokenizer.encode_covering([text]))
    assert [token for part in covered for token in part.tokens_N] == expected
    decoder = tokenizer.decoder()
    again = "".join(map(decoder.push, expected)) + decoder.flush()
    if tokenizer.lossless:
        assert again == text
    assert again.count("\n") >= len(lines)
