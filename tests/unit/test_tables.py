"""Tables of surprisal: rows against sums over full distributions, and reconstruction of the text."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import pytest
import sentencepiece
import torch

from gru_lm.evaluation.collectors import Conventions
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.paired import Ends
from gru_lm.evaluation.tables import PerLine, PerToken, PerWord, details
from gru_lm.evaluation.texts import measure
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.documents import Document, Slice
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.unit.test_scoring import Text

LEARNT = "the cat sat on\nthe mat and the cat sat\n" * 9
PLAIN = "the cat  sat\n\n on mats\n"


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "byte":
        return load_tokenizer("byte", b"")
    return train_tokenizer(kind, lambda: [LEARNT])


def model_for(tokenizer: Tokenizer) -> LanguageModel:
    torch.manual_seed(1)
    config = ModelConfig(
        cell="gru", vocab_size=tokenizer.vocab_size, layers=1, width=6, embed=5, tied=False
    )
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.2, 1.2)
    return model


def rows_of(file: io.BytesIO) -> list[list[str]]:
    return [row.split("\t") for row in file.getvalue().decode().splitlines()]


def tables(
    kind: str, texts: Sequence[Document], mode: str = "stream"
) -> tuple[list[list[str]], list[list[str]], list[list[str]], Counts, Tokenizer]:
    """Rows of the token, word and line tables, after checking their headers, and the counts."""
    tokenizer = tokenizer_of(kind)
    files = [io.BytesIO() for _ in range(3)]
    per_token = PerToken(files[0], tokenizer, texts)
    per_word = PerWord(files[1], tokenizer, texts)
    per_line = PerLine(files[2], tokenizer)
    counts = measure(
        model_for(tokenizer),
        tokenizer,
        texts,
        mode=mode,
        chunk=5,
        tables=[per_token, per_word, per_line],
        of_distribution=details(tokenizer),
    )
    per_word.finish()
    per_line.finish()
    found = [rows_of(file) for file in files]
    place = ["file", "line", "character", "byte"]
    charged = ["unknown", "spelling_bits"]
    names = ["index", "id", "piece", "surprisal_bits", "entropy_bits", *place, *charged]
    assert found[0][0] == names
    names = [*place, "word", "tokens", "surprisal_bits", "corrected_bits", *charged]
    assert found[1][0] == names
    assert found[2][0] == ["line", "tokens", "nats"]
    return found[0][1:], found[1][1:], found[2][1:], sum(counts, Counts()), tokenizer


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "unigram", "word"])
@pytest.mark.parametrize("mode", ["stream", "line"])
def test_all_tables_add_up_to_the_total(kind: str, mode: str) -> None:
    texts = [Text("a\tb", PLAIN), Text("b", "naïve 猫, no end"), Text("c", "x\n")]
    tokens, per_word, per_line, counts, _ = tables(kind, texts, mode)
    nats, bits = counts.nats, counts.nats / math.log(2)
    spelled = pytest.approx(counts.spelling_nats / math.log(2), rel=1e-7)
    assert sum(float(row[10]) for row in tokens) == spelled
    assert sum(float(row[9]) for row in per_word) == spelled
    assert sum(float(row[3]) for row in tokens) == pytest.approx(bits, rel=1e-8)
    assert sum(float(row[6]) for row in per_word) == pytest.approx(bits, rel=1e-8)
    assert sum(float(row[7]) for row in per_word) == pytest.approx(bits, rel=1e-7)
    assert sum(float(row[2]) for row in per_line) == pytest.approx(nats, rel=1e-8)
    assert [int(row[0]) for row in tokens] == list(range(len(tokens)))
    assert sum(int(row[5]) for row in per_word) == len(tokens)
    assert [int(row[0]) for row in per_line] == [1, 2, 3, 4, 5]
    assert {row[5] for row in tokens} == {row[0] for row in per_word} == {"a\\tb", "b", "c"}
    expected = ["the", "cat", "sat", "\\n", "\\n", "on", "mats", "\\n", "</s>"]
    expected += ["naïve", "猫,", "no", "end", "</s>", "x", "\\n"]
    assert [row[4] for row in per_word] == expected
    unknown = ["mats", "naïve", "猫,", "no", "end", "x"] if kind == "word" else []
    assert [row[4] for row in per_word if row[8] == "1"] == unknown
    assert [row[2] for row in tokens if row[9] == "1"] == unknown
    if kind == "word":
        assert all(row[6] == row[7] for row in per_word)


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "unigram", "word"])
def test_places_are_those_of_the_text(kind: str) -> None:
    texts = [Text("a", PLAIN), Text("b", "naïve 猫, no end")]
    tokens, per_word, *_, tokenizer = tables(kind, texts)
    for name, text in (("a", PLAIN), ("b", texts[1].text)):
        data = text.encode()
        mine = [row for row in tokens if row[5] == name]
        starts = [int(row[8]) for row in mine]
        for row, start, end in zip(mine, starts, [*starts[1:], len(data)], strict=True):
            if kind != "word" and row[2] != "</s>":
                assert data[start:end] == tokenizer.surface(int(row[1]))
            assert int(row[6]) == 1 + data[:start].count(b"\n")
            whole = data[:start].decode(errors="ignore")
            assert int(row[7]) - len(whole) in (
                (0,) if data[:start].decode(errors="replace") == whole else (0, 1)
            )
        for row in (row for row in per_word if row[0] == name):
            if row[4] not in ("\\n", "</s>"):
                assert text[int(row[2]) :].lstrip().startswith(row[4])
                assert data[int(row[3]) :].decode().lstrip().startswith(row[4])


def test_places_of_a_part_are_those_of_its_whole_file() -> None:
    whole = Text("a", "é one\ntwo\nthree four\nfive")
    parts = [Slice(whole, 2, 9), Slice(whole, 16, len(whole.text))]
    tokens, per_word, *_ = tables("byte", parts)
    data = whole.text.encode()
    for rows in (tokens, per_word):
        name, line, character, byte = (5, 6, 7, 8) if rows is tokens else (0, 1, 2, 3)
        assert {row[name] for row in rows} == {"a"}
        for row in rows:
            start = int(row[byte])
            assert int(row[line]) == 1 + data[:start].count(b"\n")
            assert int(row[character]) == len(data[:start].decode())
    assert [(row[4], row[2]) for row in per_word] == [
        ("one", "2"), ("\\n", "5"), ("two", "6"), ("</s>", "9"),
        ("four", "16"), ("\\n", "20"), ("five", "21"),
    ]  # fmt: skip


def test_a_foreign_model_that_ends_lines_and_texts_alike() -> None:
    """Its end-of-line piece separates two texts without ending a line."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNT.splitlines()),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = load_tokenizer("unigram", model.getvalue())
    assert tokenizer.newline_id == tokenizer.end_id
    texts, file = [Text("a", "the cat\n"), Text("b", "the mat\nsat"), Text("c", "\n")], io.BytesIO()
    per_line, conventions = PerLine(file, tokenizer), Conventions(tokenizer)
    tables = [per_line, conventions]
    counts = measure(model_for(tokenizer), tokenizer, texts, tables=tables)
    per_line.finish()
    rows = rows_of(file)[1:]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    total = sum(count.tokens for count in counts)
    assert sum(int(row[1]) for row in rows) == total
    kenlm = conventions.figures("kenlm", name="all", words=[], size=21)
    assert kenlm["tokens"] == total - 2


def test_words_are_parted_by_any_white_space() -> None:
    text = Text("a", "a\u00a0b c\u3000d\n")
    tokenizer, file = train_tokenizer("char", lambda: [text.text]), io.BytesIO()
    table = PerWord(file, tokenizer, [text])
    of_each = details(tokenizer)
    measure(model_for(tokenizer), tokenizer, [text], tables=[table], of_distribution=of_each)
    table.finish()
    assert [row[4] for row in rows_of(file)[1:]] == ["a", "b", "c", "d", "\\n"]


def spaced(**options: object) -> Tokenizer:
    """A foreign SentencePiece model with an end-of-line piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["line of it and the cat"] * 50 + ["in the line of it"] * 50),
        model_writer=model,
        user_defined_symbols="\n",
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 60} | options,
    )
    kind = {"unigram": "unigram", "bpe": "bpe"}[str(options.get("model_type", "unigram"))]
    return load_tokenizer(kind, model.getvalue())


LOSSLESS: dict[str, object] = {
    "byte_fallback": True,
    "vocab_size": 330,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
}
OF_SPACES = {
    "suffix": lambda: spaced(treat_whitespace_as_suffix=True, **LOSSLESS),
    "suffix, normalised": lambda: spaced(treat_whitespace_as_suffix=True),
    "across spaces": lambda: spaced(split_by_whitespace=False, **LOSSLESS),
    "case folded": lambda: spaced(normalization_rule_name="nmt_nfkc_cf"),
    "suffix bpe": lambda: spaced(model_type="bpe", treat_whitespace_as_suffix=True, **LOSSLESS),
    "bytes": lambda: tokenizer_of("byte"),
    "bpe": lambda: tokenizer_of("bpe"),
    "unigram": lambda: tokenizer_of("unigram"),
    "char": lambda: tokenizer_of("char"),
    "word": lambda: tokenizer_of("word"),
}


@pytest.mark.parametrize("name", OF_SPACES)
@pytest.mark.parametrize(
    "text",
    [
        "line of it\nand  The cat line of\n",
        "a\u00a0cat\u3000猫\u2009it\r\n\tof\x1cit\u2581it \n",
        " in the line of it, in the  line of it  ",
        "\u3000\n\n \nline\u00a0",
    ],
    ids=["plain", "odd", "edges", "blank"],
)
def test_words_of_the_table_are_those_of_the_count(name: str, text: str) -> None:
    tokenizer = OF_SPACES[name]()
    texts, file, model = [Text("a", text)], io.BytesIO(), model_for(tokenizer)
    table = PerWord(file, tokenizer, texts)
    (counts,) = measure(
        model, tokenizer, texts, tables=[table], of_distribution=details(tokenizer), chunk=3
    )
    table.finish()
    rows = rows_of(file)[1:]
    names = [row[4] for row in rows if row[4] not in ("", "\\n")]
    assert names == text.split()
    assert len(names) == counts.words
    assert sum(int(row[5]) for row in rows) == counts.tokens
    bits = counts.nats / math.log(2)
    assert sum(float(row[6]) for row in rows) == pytest.approx(bits, rel=1e-7)
    assert sum(float(row[7]) for row in rows) == pytest.approx(bits, rel=1e-6)
    spelled = counts.spelling_nats / math.log(2)
    assert sum(float(row[9]) for row in rows) == pytest.approx(spelled, rel=1e-7)


def test_a_token_of_several_words_counts_to_the_first() -> None:
    tokenizer = OF_SPACES["across spaces"]()
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    assert any("▁" in piece.strip("▁") for piece in pieces)
    text, file = Text("a", "in the line of it"), io.BytesIO()
    table = PerWord(file, tokenizer, [text])
    model, of_each = model_for(tokenizer), details(tokenizer)
    (counts,) = measure(model, tokenizer, [text], tables=[table], of_distribution=of_each)
    table.finish()
    rows = rows_of(file)[1:]
    assert [row[4] for row in rows] == ["in", "the", "line", "of", "it"]
    assert any(row[5:8] == ["0", "0", "0"] for row in rows)
    assert sum(int(row[5]) for row in rows) == counts.tokens


def test_a_text_of_white_space_alone_has_one_row_of_its_charge() -> None:
    tokenizer, file = tokenizer_of("word"), io.BytesIO()
    texts = [Text("a", "  \t"), Text("b", "the cat"), Text("c", "\u3000" * 9)]
    table = PerWord(file, tokenizer, texts)
    ends = Ends(3)
    model, of_each = model_for(tokenizer), details(tokenizer)
    counts = measure(model, tokenizer, texts, tables=[table, ends], of_distribution=of_each)
    table.finish()
    rows = rows_of(file)[1:]
    assert [row[4] for row in rows if row[4] != "</s>"] == ["", "the", "cat", ""]
    spelled = sum(each.spelling_nats for each in counts) / math.log(2)
    assert sum(float(row[9]) for row in rows) == pytest.approx(spelled, rel=1e-7)
    paid = [nats_N.sum() for _, nats_N in ends.by_document()]
    assert paid == pytest.approx([each.nats + each.spelling_nats for each in counts])
    assert [int(ends_N[-1]) for ends_N, _ in ends.by_document()] == [3, 7, 27]


@torch.inference_mode()
def test_details_are_sums_over_the_whole_distribution() -> None:
    tokens, per_word, _, _, tokenizer = tables("bpe", [Text("a", PLAIN)])
    model = model_for(tokenizer)
    ids = [int(row[1]) for row in tokens]
    inputs = torch.tensor([[tokenizer.newline_id, *ids]])
    log_probs, _ = model.log_probs(inputs, model.initial_state(1))
    probs = log_probs[0].double().exp().numpy()
    entropies = [-(p * np.log2(p)).sum() for p in probs[:-1]]
    np.testing.assert_allclose([float(row[4]) for row in tokens], entropies, rtol=1e-5)

    surfaces = [tokenizer.surface(token) for token in range(tokenizer.vocab_size)]
    spaces = b" \n\t\r\v\f\x1c\x1d\x1e\x1f"  # separators of str.split
    begins = np.array([surface[:1] in spaces for surface in surfaces])
    place = 0
    for number, row in enumerate(per_word):
        count = int(row[5])
        bits = -sum(math.log2(probs[at][ids[at]]) for at in range(place, place + count))
        assert float(row[6]) == pytest.approx(bits, rel=1e-5)
        within_line = number and per_word[number - 1][4] != "\\n"
        if within_line:
            bits += math.log2(probs[place][begins].sum())
        place += count
        if row[4] != "\\n":  # no word is the last of the text here
            bits -= math.log2(probs[place][begins].sum())
        assert float(row[7]) == pytest.approx(bits, rel=1e-5)
