"""Scoring: for any batch and chunk size, probabilities equal those of a plain loop over single steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.errors import Stopped
from gru_lm.evaluation import MODES, scoring
from gru_lm.evaluation.scoring import Portion, columns, lines, score, validate
from gru_lm.evaluation.texts import measure
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import words

NEWLINE = 2
V = 9


def tiny_model(vocab_size: int = V, cell: str = "gru", seed: int = 1) -> LanguageModel:
    torch.manual_seed(seed)
    config = ModelConfig(cell=cell, vocab_size=vocab_size, layers=2, width=6, embed=5)
    model = LanguageModel(config).eval()
    with torch.no_grad():  # peaked distributions, so that a wrong state or input shows
        for parameter in model.parameters():
            parameter.uniform_(-1.2, 1.2)
    return model


MODEL = tiny_model()


@torch.inference_mode()
def step_by_step(model: LanguageModel, tokens: list[int], newline_id: int = NEWLINE) -> np.ndarray:
    """Reference: one token at a time, from the zero state fed the end-of-line token."""
    state, last, found = model.initial_state(1), newline_id, []
    for token in tokens:
        log_probs, state = model.log_probs(torch.tensor([[last]]), state)
        found.append(float(log_probs[0, 0, token]))
        last = token
    return np.array(found)


def in_chunks(tokens: list[int], size: int) -> Iterator[list[int]]:
    yield []
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


SEQUENCES = st.lists(st.lists(st.integers(0, V - 1), max_size=40), max_size=9)


@settings(max_examples=60)
@given(SEQUENCES, st.integers(1, 4), st.integers(1, 30), st.integers(1, 50), st.integers(1, 60))
def test_any_batch_and_chunk_equals_single_steps(
    sequences: list[list[int]], batch: int, chunk: int, size: int, held: int
) -> None:
    source = [(number, in_chunks(tokens, size)) for number, tokens in enumerate(sequences)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "HELD", held)
        portions = list(score(MODEL, source, newline_id=NEWLINE, batch=batch, chunk=chunk))
    order = [portion.document for portion in portions]
    assert order == sorted(order)
    for number, tokens in enumerate(sequences):
        mine = [portion for portion in portions if portion.document == number]
        assert [t for portion in mine for t in portion.tokens_N.tolist()] == tokens
        if tokens:
            found = np.concatenate([portion.log_probs_N for portion in mine])
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, step_by_step(MODEL, tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru-before", "rnn"])
def test_every_cell_carries_its_whole_state(cell: str) -> None:
    model = tiny_model(cell=cell)
    tokens = np.random.default_rng(0).integers(0, V, 50).tolist()
    portions = score(model, [(0, [tokens])], newline_id=NEWLINE, batch=3, chunk=7)
    found = np.concatenate([portion.log_probs_N for portion in portions])
    np.testing.assert_allclose(found, step_by_step(model, tokens), rtol=1e-5, atol=1e-6)


def test_memory_stays_bounded_behind_a_long_first_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "HELD", 50)
    opened = 0

    def sequences() -> Iterator[tuple[int, list[list[int]]]]:
        nonlocal opened
        yield 0, [[3] * 400]
        for opened in range(1, 200):
            yield opened, [[4] * 5]

    portions = score(MODEL, sequences(), newline_id=NEWLINE, batch=4, chunk=5)
    assert next(portions).document == 0
    for _ in range(70):
        assert next(portions).document == 0
    assert opened < 30
    assert sum(len(portion.tokens_N) for portion in portions) == 400 - 71 * 5 + 199 * 5


def test_stop_is_asked_before_every_pass() -> None:
    def stop() -> None:
        raise Stopped(15)

    with pytest.raises(Stopped):
        next(score(MODEL, [(0, [[1]])], newline_id=NEWLINE, batch=1, chunk=1, stop=stop))
    with pytest.raises(Stopped):
        validate(MODEL, np.array([1, 2]), newline_id=NEWLINE, stop=stop)


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 7), st.booleans())
def test_lines_cut_after_newlines_alone(tokens: list[int], size: int, ended: bool) -> None:
    tail = [7] if ended else []
    found = [
        np.concatenate(line).tolist()
        for line in lines(in_chunks(tokens, size), newline_id=NEWLINE, tail=tail)
    ]
    assert [token for line in found for token in line] == tokens + tail
    assert all(line for line in found)
    assert len(found) == max(bool(tail), tokens.count(NEWLINE) + (tokens[-1:] not in ([], [2])))
    assert all(NEWLINE not in line[:-1] or line[-2:] == [NEWLINE, 7] for line in found)


def columns_by_definition(tokens: list[int], batch: int, warm: int) -> float:
    batch = max(1, min(batch, len(tokens) // (scoring.LEAST * warm)))
    total = 0.0
    for column in range(batch):
        start = column * len(tokens) // batch
        end = (column + 1) * len(tokens) // batch
        first = max(0, start - warm)
        newline_or_last = tokens[first - 1] if first else NEWLINE
        total -= step_by_step(MODEL, tokens[first:end], newline_or_last)[start - first :].sum()
    return total


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, V - 1), min_size=1, max_size=150),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 8),
)
def test_validate_covers_each_token_once_in_warmed_columns(
    tokens: list[int], count: int, chunk: int, warm: int
) -> None:
    array = np.array(tokens, np.uint16)
    seen: list[int] = []
    totals = validate(
        MODEL,
        array,
        newline_id=NEWLINE,
        unknown_id=3,
        count=count,
        chunk=chunk,
        warm=warm,
        progress=seen.append,
    )
    assert totals.tokens == len(tokens) == sum(seen)
    assert totals.nats == pytest.approx(columns_by_definition(tokens, count, warm), rel=1e-5)
    assert totals.unknown_tokens == tokens.count(3)
    only_unknown = validate(MODEL, array, newline_id=NEWLINE, count=count, chunk=chunk, warm=warm)
    assert (only_unknown.unknown_tokens, only_unknown.unknown_nats) == (0, 0.0)
    assert (totals.unknown_nats > 0) == (3 in tokens)


def test_validate_warms_each_column_but_the_first() -> None:
    tokens = np.random.default_rng(2).integers(0, V, 331).tolist()
    for count, warm, chunk in ((2, 5, 3), (7, 8, 100), (64, 10, 16)):
        totals = validate(
            MODEL, np.array(tokens), newline_id=NEWLINE, count=count, chunk=chunk, warm=warm
        )
        exact = columns_by_definition(tokens, count, warm)
        assert totals.nats == pytest.approx(exact, rel=1e-5)


def test_validate_of_a_single_column_is_the_exact_stream() -> None:
    tokens = np.random.default_rng(1).integers(0, V, 300)
    stream = -step_by_step(MODEL, tokens.tolist()).sum()
    totals = validate(MODEL, tokens, newline_id=NEWLINE, count=1, chunk=64)
    assert totals.nats == pytest.approx(stream, rel=1e-5)
    assert validate(MODEL, tokens[:0], newline_id=NEWLINE) == (0, 0.0, 0, 0.0)


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_however_many_columns_run_at_once_they_are_the_same(batch: int) -> None:
    tokens_N = np.random.default_rng(3).integers(0, V, 331)
    found_N = np.full(331, np.nan)
    for positions_BT, valid_BT, figures_BTX in columns(
        MODEL, tokens_N, newline_id=NEWLINE, count=7, batch=batch, chunk=16, warm=5
    ):
        assert len(positions_BT) <= batch
        found_N[positions_BT[valid_BT]] = figures_BTX[..., 0].numpy()[valid_BT]
    exact = columns_by_definition(tokens_N.tolist(), 7, 5)
    assert -found_N.sum() == pytest.approx(exact, rel=1e-5)


# Whole texts.


@dataclass(frozen=True)
class Text:
    name: str
    text: str

    def pieces(self) -> Iterator[str]:
        for start in range(0, len(self.text), 7):
            yield self.text[start : start + 7]


BYTES = load_tokenizer("byte", b"")
BYTE_MODEL = tiny_model(BYTES.vocab_size)
TEXTS = [Text("a", "One\ntwo words\n\n"), Text("b", "naïve 猫, no end"), Text("c", "x\n")]
END = BYTES.end_id


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("batch", "chunk"), [(None, None), (1, 3), (2, 100)])
def test_measure(mode: str, batch: int | None, chunk: int | None) -> None:
    progress: list[int] = []
    heard: list[tuple[Portion, np.ndarray]] = []
    counts = measure(
        BYTE_MODEL,
        BYTES,
        TEXTS,
        mode=mode,
        batch=batch,
        chunk=chunk,
        tables=[lambda portion, covered: heard.append((portion, covered.sizes_N2))],
        of_distribution=lambda log_probs_nV: log_probs_nV[:, [3, 5]],
        progress=progress.append,
    )
    assert [c.tokens for c in counts] == [len(TEXTS[0].text) + 1, 18 + 1, 2]
    assert [c.bytes for c in counts] == [len(text.text.encode()) for text in TEXTS]
    assert [(c.words, c.lines) for c in counts] == [(3, 3), (4, 1), (1, 1)]
    assert sum(progress) == sum(c.bytes for c in counts)
    for number, text in enumerate(TEXTS):
        mine = [pair for pair in heard if pair[0].document == number]
        data = text.text.encode()
        tokens = [*data, *([END] if number < 2 else [])]
        assert [t for portion, _ in mine for t in portion.tokens_N] == tokens
        assert [size for _, sizes in mine for size in sizes[:, 0]] == [
            len(b) for b in surfaces(tokens)
        ]
        assert sum(sizes[:, 1].sum() for _, sizes in mine) == len(text.text)
        extra = np.concatenate([portion.extra_NX for portion, _ in mine])
        log_probs = np.concatenate([portion.log_probs_N for portion, _ in mine])
        assert -log_probs.sum() == pytest.approx(counts[number].nats)
        for place, token in enumerate(tokens):
            if token in (3, 5):
                assert log_probs[place] == pytest.approx(extra[place, (3, 5).index(token)])
        if mode == "stream":
            expected = [
                whole_distribution([BYTES.newline_id, *tokens][: place + 1])[[3, 5]]
                for place in range(len(tokens))
            ]
            np.testing.assert_allclose(extra, expected, rtol=1e-4, atol=1e-5)


def surfaces(tokens: list[int]) -> list[bytes]:
    return [BYTES.surface(token) for token in tokens]


@torch.inference_mode()
def whole_distribution(context: list[int]) -> np.ndarray:
    """log p of every token after `context`."""
    log_probs, _ = BYTE_MODEL.log_probs(torch.tensor([context]), BYTE_MODEL.initial_state(1))
    return log_probs[0, -1].numpy()


def nats_of(text: str, mode: str, tokenizer: Tokenizer = BYTES) -> float:
    return measure(BYTE_MODEL, tokenizer, [Text("-", text)], mode=mode)[0].nats


@settings(max_examples=30)
@given(st.text(st.sampled_from("ab \né"), max_size=60))
def test_line_mode_is_each_line_alone(text: str) -> None:
    alone = sum(nats_of(line, "stream") for line in text.split("\n")[-1:])
    alone += sum(nats_of(line + "\n", "stream") for line in text.split("\n")[:-1])
    assert nats_of(text, "line") == pytest.approx(alone, rel=1e-5)


def test_stream_mode_starts_each_document_anew_and_carries_within_it() -> None:
    found = [c.nats for c in measure(BYTE_MODEL, BYTES, TEXTS)]
    for text, nats, end in zip(TEXTS, found, ([END], [END], []), strict=True):
        tokens = [*text.text.encode(), *end]
        exact = -step_by_step(BYTE_MODEL, tokens, BYTES.newline_id).sum()
        assert nats == pytest.approx(exact, rel=1e-5)


def test_columns_of_a_short_text_are_its_exact_stream() -> None:
    row: list[int] = []  # the documents with an end-of-document token between them
    for number, text in enumerate(TEXTS):
        row += ([END] if number else []) + list(text.text.encode())
    exact = -step_by_step(BYTE_MODEL, row, BYTES.newline_id).sum()
    found = sum(c.nats for c in measure(BYTE_MODEL, BYTES, TEXTS, mode="columns"))
    assert found == pytest.approx(exact, rel=1e-5)


def extend(found: list[int], portion: Portion, _: np.ndarray) -> None:
    found += portion.tokens_N.tolist()


def test_many_columns_of_a_long_text_cover_it_and_are_near_its_stream() -> None:
    text = words(4_000)
    N, least = len(text.encode()), scoring.LEAST * scoring.WARM
    assert N // least >= 8
    exact = measure(BYTE_MODEL, BYTES, [Text("-", text)])[0]
    for batch in (3, 8):
        tokens, progress = list[int](), list[int]()
        (found,) = measure(
            BYTE_MODEL,
            BYTES,
            [Text("-", text)],
            mode="columns",
            batch=batch,
            tables=[partial(extend, tokens)],
            progress=progress.append,
        )
        assert bytes(tokens) == text.encode()
        assert sum(progress) == found.tokens == found.bytes == N
        assert found.nats == pytest.approx(exact.nats, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_text_has_no_tokens(mode: str) -> None:
    assert measure(BYTE_MODEL, BYTES, [Text("-", "")], mode=mode)[0].tokens == 0
