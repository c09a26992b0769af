"""Foreign SentencePiece models: other versions, normalisation rules and types, and ends of lines."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gru_lm.errors import InputError
from gru_lm.text.parallel import encode_all, encode_texts
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, read_tokenizer, train_tokenizer
from tests.unit.test_tokenizer import decoded, foreign

# Trained by spm_train 0.2.0 with defaults; later versions have different Unicode data.
OLDER = Path(__file__).parents[1] / "fixtures" / "sentencepiece-0.2.0.model.xz"
LINES = ["The Dog WALKS .", "the cat sat on the mat,", "the dog ran to the end of it"] * 20
RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")
PROBE = (
    "The Dog WALKS .\n  the  cat\t\ufb01n \u2026 \uff21\uff22 \u337f \ufdfa e\u0301 \u3000x\u00a0y\n"
    "\u0130stanbul Stra\u00dfe \U0001f600 \u200b\u00ad z\r\n\n x\n"
)
# As trained by the recipes of icefall.
RECOGNISER = {
    "user_defined_symbols": ["<blk>", "<sos/eos>"],
    "unk_id": 2,
    "bos_id": -1,
    "eos_id": -1,
}


def made(kind: str = "unigram", **options: Any) -> bytes:
    return foreign(
        LINES, model_type=kind, **{"vocab_size": 60, "hard_vocab_limit": False} | options
    )


def as_sentencepiece(data: bytes, text: str, newline_id: int) -> list[int]:
    """Encode each line with SentencePiece itself, followed by its end."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    *lines, last = text.split("\n")
    ids = [token for line in lines for token in (*processor.encode(line), newline_id)]
    return [*ids, *processor.encode(last)]


def same_ids(data: bytes, tokenizer: Tokenizer, text: str = PROBE) -> bool:
    return tokenizer.encode_text(text) == as_sentencepiece(data, text, tokenizer.newline_id)


def test_an_older_versions_defaults() -> None:
    data = lzma.decompress(OLDER.read_bytes())
    tokenizer = load_tokenizer("unigram", data)
    assert same_ids(data, tokenizer)
    assert not tokenizer.lossless


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["unigram", "bpe", "char", "word"])
def test_rules_of_sentencepiece(kind: str, rule: str) -> None:
    data = made(kind, normalization_rule_name=rule)
    assert same_ids(data, load_tokenizer(kind, data))


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char", "word"])
def test_rules_of_ones_own(tmp_path: Path, kind: str) -> None:
    """User-defined rules give a map that no version of SentencePiece includes."""
    rules = tmp_path / "rules.tsv"
    rules.write_text("61\t62\n74 68 65\t54\nFB01\t66 69\n1F600\t\n2026\t2E 2E 2E\n")
    data = made(kind, normalization_rule_tsv=str(rules))
    assert same_ids(data, load_tokenizer(kind, data))


def test_words_are_read_with_their_normaliser() -> None:
    data = made("word", normalization_rule_name="nmt_nfkc_cf")
    word = load_tokenizer("word", data)
    tokens = word.encode_text("The Dog WALKS .")
    assert [word.piece(token) for token in tokens] == ["▁the", "▁dog", "▁walks", "▁."]
    assert same_ids(data, word)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *((kind, False) for kind in ("unigram", "bpe", "char", "word")),
        ("unigram", True),
        ("bpe", True),
    ],
)
def test_long_lines(kind: str, suffix: bool) -> None:
    """The ids equal those of the whole line, wherever its parts and the blocks end."""
    data = made(kind, treat_whitespace_as_suffix=suffix)
    tokenizer = load_tokenizer(kind, data)
    text = "the cat sat  on the mat, the dog ran to the end of it " * 700 + "\nthe cat"
    assert same_ids(data, tokenizer, text)
    for size in (100, 9000, 100_000):
        blocks = tokenizer.encoder.blocks([text], size)
        found = [token for block in blocks for token in tokenizer.encoder.encode(block)]
        assert found == tokenizer.encode_text(text)
    covered = list(tokenizer.encode_covering([text]))
    assert sum(int(part.sizes_N2[:, 0].sum()) for part in covered) == len(text)


def test_words_of_our_own_are_looked_up_by_white_space() -> None:
    word = train_tokenizer("word", lambda: ["the cat sat\n" * 3])
    assert word.encode_text("The cat\tno such sat") == [0, 3, 0, 0, 4]
    again = load_tokenizer("word", word.data)
    assert again.encode_text("The cat\tno such sat") == [0, 3, 0, 0, 4]


def test_a_recognisers_model_ends_lines_as_it_does_utterances() -> None:
    data = made(**RECOGNISER)
    tokenizer = load_tokenizer("unigram", data)
    assert tokenizer.piece(tokenizer.newline_id) == "<sos/eos>"
    assert tokenizer.end_id == tokenizer.newline_id == 1
    assert same_ids(data, tokenizer, "the cat\n\nsat\n")
    assert decoded(tokenizer, tokenizer.encode_text("the cat\n\nsat")) == "the cat\n\nsat"


@pytest.mark.parametrize("symbols", [["</s>"], ["<a>", "</s>"]])
def test_an_end_of_sentence_that_the_user_defined(symbols: list[str]) -> None:
    data = made(user_defined_symbols=symbols, bos_id=-1, eos_id=-1)
    tokenizer = load_tokenizer("unigram", data)
    assert tokenizer.piece(tokenizer.newline_id) == "</s>"


def test_what_ended_lines_before_still_does() -> None:
    """A newline, else its byte, else the end of a sentence, independent of other pieces."""
    ends = "<sos/eos>"
    newline = load_tokenizer("bpe", made("bpe", user_defined_symbols=["\n", ends]))
    assert newline.piece(newline.newline_id) == r"\n"
    assert newline.piece(newline.end_id) == "</s>"
    spelled = made("bpe", user_defined_symbols=[ends], byte_fallback=True, vocab_size=320)
    byte = load_tokenizer("bpe", spelled)
    assert byte.piece(byte.newline_id) == "<0x0A>"
    control = load_tokenizer("bpe", made("bpe", user_defined_symbols=[ends]))
    assert control.piece(control.newline_id) == "</s>"


@pytest.mark.parametrize("piece", ["<blk>", "<sos/eos>", "▁t"])
def test_a_named_piece_ends_lines_and_documents(piece: str) -> None:
    data = made(**RECOGNISER | {"user_defined_symbols": ["<blk>", "<sos/eos>", "\n"]})
    tokenizer = load_tokenizer("unigram", data, end_piece=piece)
    assert tokenizer.piece(tokenizer.newline_id) == piece
    assert tokenizer.end_id == tokenizer.newline_id
    assert tokenizer.end_piece == piece
    assert tokenizer.fingerprint != load_tokenizer("unigram", data).fingerprint
    assert same_ids(data, tokenizer, "a cat\nsat")


@pytest.mark.parametrize("piece", ["<unk>", "nothing of it", ""])
def test_a_named_piece_that_cannot_end_lines(piece: str) -> None:
    with pytest.raises(InputError) as caught:
        load_tokenizer("unigram", made(**RECOGNISER), end_piece=piece)
    assert "--end-piece" in caught.value.message
    assert "'<blk>', '<sos/eos>'" in str(caught.value.hint)


def test_where_no_piece_ends_lines_the_option_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    path.write_bytes(made("bpe", user_defined_symbols=["<blk>"], bos_id=-1, eos_id=-1))
    with pytest.raises(InputError) as caught:
        read_tokenizer(path)
    assert str(caught.value.hint) == "--end-piece PIECE, where PIECE is one of its pieces: '<blk>'"
    assert read_tokenizer(path, end_piece="<blk>").newline_id == 1


def test_a_byte_tokenizer_has_no_piece_to_name() -> None:
    with pytest.raises(InputError):
        load_tokenizer("byte", b"", end_piece="a")


def test_workers_end_lines_alike() -> None:
    tokenizer = load_tokenizer("unigram", made(**RECOGNISER), end_piece="<blk>")
    texts = [["the cat\nsat\n", "on it\n"]] * 3
    found = [ids.tolist() for ids in encode_all(tokenizer, texts, workers=2, stop=lambda: None)]
    assert found == [encode_texts(tokenizer, block).tolist() for block in texts]


def test_space_behind_words_is_dropped_at_a_lines_end() -> None:
    data = made("bpe", treat_whitespace_as_suffix=True)
    tokenizer = load_tokenizer("bpe", data)
    assert tokenizer.whitespace_as_suffix
    assert same_ids(data, tokenizer)
    text = "the cat sat\non the mat,\n\nthe dog"
    assert decoded(tokenizer, tokenizer.encode_text(text)) == text
    assert not load_tokenizer("bpe", made("bpe")).whitespace_as_suffix
