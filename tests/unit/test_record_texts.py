"""Lists: scores equal those of each record alone; nothing depends on the order, batches or documents."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.evaluation import record_scoring, record_texts, scoring
from gru_lm.evaluation.metrics import Counts
from gru_lm.evaluation.record_scoring import record_scores
from gru_lm.evaluation.record_tables import ByRecord, PerRecord, RecordPlace, Strangest
from gru_lm.evaluation.record_texts import ScoredRecords, measure_records, sizes_of
from gru_lm.evaluation.spelling import END, Gaps
from gru_lm.evaluation.tables import PerToken, PerWord, details
from gru_lm.evaluation.texts import measure
from gru_lm.evaluation.validation import measure_tokens
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.listing import RecordDocument
from gru_lm.text.record_batches import RecordTokens
from gru_lm.text.record_keys import keys_of
from gru_lm.text.records import FILE, LINE, PARAGRAPH, Form
from gru_lm.text.tokenizer import Tokenizer
from tests.unit.test_scoring import MODEL, NEWLINE, Text, V, step_by_step, tiny_model
from tests.unit.test_spelling import ALPHABET, TOKENIZERS

RECORDS = [
    "emma",
    "the cat sat",
    "emma",
    "zoë",
    "Ünïcode 猫",
    "x",
    "a\tb ",
    " lead",
    "olivia mae",
] * 3


def listed(text: str, unit: str = LINE, name: str = "a") -> RecordDocument:
    return RecordDocument(Text(name, text), Form(unit=unit), np.ones(len(text) + 1, bool))


def lines(records: list[str]) -> RecordDocument:
    return listed("".join(f"{record}\n" for record in records))


def by_hand(model: LanguageModel, tokenizer: Tokenizer, record: str) -> np.ndarray:
    """Surprisal of each token of a record, one step at a time."""
    tokens = [*tokenizer.encode_text(record + "\n")[:-1], tokenizer.end_id]
    return -step_by_step(model, tokens, tokenizer.newline_id)


def scored(
    tokenizer: Tokenizer, documents: list[RecordDocument], **options: Any
) -> tuple[Counts, list[ScoredRecords]]:
    blocks: list[ScoredRecords] = []
    counts = measure_records(
        model_of(tokenizer), tokenizer, documents, record_tables=[blocks.append], **options
    )
    return sum(counts, Counts()), blocks


def model_of(tokenizer: Tokenizer) -> LanguageModel:
    return tiny_model(tokenizer.vocab_size)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=30), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 60),
)
def test_records_in_rows_equal_single_steps(
    records: list[list[int]], batch: int, chunk: int, row: int
) -> None:
    tokens = RecordTokens(
        np.concatenate(records).astype(np.uint8),
        np.cumsum([len(each) for each in records]),
        NEWLINE,
    )
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_scoring, "ROW_TOKENS", row)
        found_N1 = record_scores(MODEL, tokens, batch=batch, chunk=chunk, progress=seen.append)
        totals = measure_tokens(MODEL, tokens, newline_id=NEWLINE, unknown_id=3, stop=lambda: None)
    expected_N = np.concatenate([step_by_step(MODEL, each) for each in records])
    np.testing.assert_allclose(found_N1[:, 0], expected_N, rtol=1e-5, atol=1e-6)
    assert sum(seen) == len(expected_N)
    assert totals.nats == pytest.approx(-expected_N.sum(), rel=1e-6)
    assert totals.unknown_nats == pytest.approx(-expected_N[tokens.tokens == 3].sum(), rel=1e-5)


def test_a_long_record_among_short_ones_fills_no_rows_with_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([3] * 200 + [5_000, 4_000])
    tokens = RecordTokens(rng.integers(0, V, lengths.sum()), np.cumsum(lengths), NEWLINE)
    shapes: list[int] = []
    plain = scoring.forward

    def counting(model: object, inputs_BT: np.ndarray, *rest: object) -> object:
        shapes.append(inputs_BT.size)
        return plain(model, inputs_BT, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("gru_lm.evaluation.record_scoring.forward", counting)
    record_scores(MODEL, tokens)
    assert sum(shapes) < 1.4 * lengths.sum()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_record_is_scored_as_if_alone(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    total, (records,) = scored(tokenizer, [lines(RECORDS)])
    expected = [by_hand(model_of(tokenizer), tokenizer, record) for record in RECORDS]
    assert records.tokens_R.tolist() == [len(each) for each in expected]
    np.testing.assert_allclose(records.nats_R, [each.sum() for each in expected], rtol=1e-5)
    assert records.bytes_R.tolist() == [len(record.encode()) + 1 for record in RECORDS]
    text = "".join(f"{record}\n" for record in RECORDS)
    assert (total.records, total.characters, total.bytes) == (27, len(text), len(text.encode()))
    assert total.nats == pytest.approx(sum(each.sum() for each in expected), rel=1e-6)
    figures = total.figures()
    bits = (total.nats + total.spelling_nats) / math.log(2)
    assert figures["bits_per_record"] == pytest.approx(bits / 27)
    assert figures["nats_per_record"] == pytest.approx(total.nats / 27)
    assert "records" not in Counts(tokens=1).figures()


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40)
@given(texts=st.lists(st.text(ALPHABET, max_size=20), min_size=1, max_size=9))
def test_every_byte_of_any_records_is_paid_for(kind: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]
    document = lines(texts)
    blocks = [block for block in document.blocks() if block.texts]
    total, found = scored(tokenizer, [document])
    assert [text for records in found for text in records.block.texts] == [
        text for block in blocks for text in block.texts
    ]
    assert sum(int(records.bytes_R.sum()) for records in found) == total.bytes
    if not blocks:
        assert total == Counts()
        return
    # The same charges as for the text, but for that of its end, which the end of a record marks.
    text = "".join(document.pieces())
    (running,) = measure(model_of(tokenizer), tokenizer, [Text("a", text)], mode="line")
    end = 0.0 if tokenizer.lossless else Gaps(tokenizer.spacing).nats(END, None)
    assert total.spelling_nats == pytest.approx(running.spelling_nats - end, abs=1e-9)
    assert (total.tokens, total.bytes, total.characters) == (
        (running.tokens, running.bytes, running.characters)
    )
    sizes = sizes_of([document], tokenizer, stop=lambda: None)
    assert sizes.spelling_nats == pytest.approx(total.spelling_nats)
    assert (sizes.records, sizes.bytes, sizes.words) == (total.records, total.bytes, total.words)


@pytest.mark.parametrize("unit", [PARAGRAPH, FILE])
@pytest.mark.parametrize("kind", ["char", "bpe", "word", "foreign"])
def test_line_ends_within_records_are_not_their_ends(unit: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    document = listed("the cat\nsat\n\n\nolivia\n", unit)
    texts = ["the cat\nsat", "olivia"] if unit == PARAGRAPH else ["the cat\nsat\n\n\nolivia"]
    _, found = scored(tokenizer, [document])
    assert [text for records in found for text in records.block.texts] == texts
    expected = [by_hand(model_of(tokenizer), tokenizer, text).sum() for text in texts]
    nats = np.concatenate([records.nats_R for records in found])
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["char", "word"])
def test_figures_do_not_depend_on_order_batch_chunk_or_documents(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS[kind]
    records = [f"the cat {number} sat{'s' * (number % 7)}" for number in range(300)]
    expected, _ = scored(tokenizer, [lines(records)])
    order = np.random.default_rng(0).permutation(300)
    shuffled = [records[number] for number in order]
    halves = [lines(records[:100]), lines(records[100:])]
    for documents, options in (
        ([lines(records[::-1])], {}),
        ([lines(shuffled)], {"batch": 3, "chunk": 5}),
        ([lines(records)], {"batch": 1, "chunk": 1000}),
        (halves, {}),
    ):
        found, _ = scored(tokenizer, documents, **options)
        assert found.nats == pytest.approx(expected.nats, rel=1e-6)
        assert found.spelling_nats == pytest.approx(expected.spelling_nats, rel=1e-9)
        assert found.records == 300
    monkeypatch.setattr(record_texts, "AT_ONCE", 50)
    monkeypatch.setattr("gru_lm.text.records.BLOCK", 200)
    found, several = scored(tokenizer, [lines(shuffled)])
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    assert len(several) > 3

    def interval(documents: list[RecordDocument], texts: list[str]) -> tuple[float, float]:
        by_record = ByRecord()
        measure_records(
            model_of(tokenizer), tokenizer, documents, record_tables=[by_record], batch=8
        )
        found = by_record.interval(keys_of(texts)).interval
        assert found
        return found

    assert interval([lines(shuffled)], shuffled) == pytest.approx(
        interval(halves, records), rel=1e-6
    )


def test_the_strangest_are_those_of_a_sorted_list(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS["char"]
    monkeypatch.setattr("gru_lm.text.records.BLOCK", 100)
    rng = np.random.default_rng(1)
    records = ["".join(rng.choice(list("thecats "), 1 + n % 9)).strip() or "x" for n in range(200)]
    model, document = model_of(tokenizer), lines(records)
    surprisal = [by_hand(model, tokenizer, record) for record in records]
    expected = sorted(range(200), key=lambda n: (-round(float(surprisal[n].mean()), 5), n))
    for count in (1, 7, 500):
        strangest = Strangest(count, [document])
        measure_records(model, tokenizer, [document], record_tables=[strangest])
        rows = strangest.rows()
        assert len(rows) == min(count, 200)
        assert [row["nats_per_token"] for row in rows] == pytest.approx(
            [surprisal[n].mean() for n in expected[:count]], rel=1e-4
        )
        for row in rows:
            assert row["text"] == records[row["line"] - 1]
            assert row["nats"] == pytest.approx(surprisal[row["line"] - 1].sum(), rel=1e-4)
            assert row["tokens"] == len(surprisal[row["line"] - 1])
    assert "file" not in rows[0]


def table(rows: io.BytesIO) -> list[dict[str, str]]:
    header, *lines = (row.split("\t") for row in rows.getvalue().decode().splitlines())
    return [dict(zip(header, row, strict=True)) for row in lines]


@pytest.mark.parametrize("kind", ["char", "bpe", "word", "foreign"])
def test_tables_of_tokens_words_and_records_add_up(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    documents = [
        listed("the cat\nsat zoë\n\n\nolivia\n", PARAGRAPH, "one.txt"),
        listed("\n\nmae the\n", PARAGRAPH, "two.txt"),
    ]
    files = [io.BytesIO() for _ in range(3)]
    places = [RecordPlace(documents), RecordPlace(documents)]
    by_token = PerToken(files[0], tokenizer, documents, place=places[0])
    by_word = PerWord(files[1], tokenizer, documents, place=places[1])
    counts = measure_records(
        model_of(tokenizer),
        tokenizer,
        documents,
        tables=[by_token, by_word],
        record_tables=[*places, PerRecord(files[2], documents)],
        of_distribution=details(tokenizer),
    )
    by_word.finish()
    tokens, in_words, records = map(table, files)
    bits = sum(counts, Counts()).nats / math.log(2)
    for rows in (tokens, in_words):
        assert sum(float(row["surprisal_bits"]) for row in rows) == pytest.approx(bits, rel=1e-6)
    end = tokenizer.piece(tokenizer.end_id)
    assert [row["line"] for row in tokens if row["piece"] == end] == ["2", "5", "3"]
    assert [(row["file"], row["line"], row["character"], row["word"]) for row in in_words] == [
        ("one.txt", "1", "0", "the"),
        ("one.txt", "1", "3", "cat"),
        ("one.txt", "1", "7", "\\n"),
        ("one.txt", "2", "8", "sat"),
        ("one.txt", "2", "11", "zoë"),
        ("one.txt", "2", "15", end),
        ("one.txt", "5", "0", "olivia"),
        ("one.txt", "5", "6", end),
        ("two.txt", "3", "0", "mae"),
        ("two.txt", "3", "3", "the"),
        ("two.txt", "3", "7", end),
    ]
    assert [(row["file"], row["line"]) for row in records] == [
        ("one.txt", "1"),
        ("one.txt", "5"),
        ("two.txt", "3"),
    ]
    assert sum(float(row["nats"]) for row in records) == pytest.approx(bits * math.log(2), rel=1e-6)
    assert sum(int(row["tokens"]) for row in records) == len(tokens)
