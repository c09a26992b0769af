"""Records drawn: independence of the batch, their distribution, unique and novel ones, prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from gru_lm.errors import DivergedError, Stopped
from gru_lm.generation import records, rows, selection
from gru_lm.generation.choice import Choice
from gru_lm.generation.records import draw_records
from gru_lm.generation.selection import Record, Selection
from gru_lm.generation.uniform import base_of, sequences, uniform
from gru_lm.model.language_model import LanguageModel
from gru_lm.text.record_keys import keys_of
from gru_lm.text.tokenizer import Tokenizer
from tests.lists import fitted, names

LIST = names(300)
LISTED = np.unique(keys_of(LIST))
Fitted = tuple[LanguageModel, Tokenizer]


@pytest.fixture(scope="module")
def small() -> Fitted:
    return fitted(LIST, steps=40)


def drawn(
    of: Fitted, prompts: Sequence[str] = ("",), samples: int = 10, **options: Any
) -> tuple[list[Record], Selection]:
    """The records of a selection, and its counts."""
    selecting = {name: options.pop(name) for name in ("unique", "novel") if name in options}
    chosen = Selection(prompts, samples, listed_M=LISTED, **selecting)
    settings = {"length": 100, "one_line": True, **options}
    made = [each for batch in draw_records(*of, chosen, **settings) for each in batch]
    assert len(made) == chosen.kept
    return made, chosen


def few_rows(patch: pytest.MonkeyPatch, most: int) -> None:
    for name in ("MOST", "FEWEST", "FIRST"):
        patch.setattr(rows, name, most)


def test_characters_that_no_record_has_are_never_drawn() -> None:
    of = fitted(LIST, steps=5, shared=True)
    made, _ = drawn(of, samples=2000, choice=Choice(temperature=5))
    assert {*"".join(record.text for record in made)} <= {*"".join(LIST)}


def test_no_paragraph_has_a_blank_line() -> None:
    chosen = Selection([""], 3, paragraphs=True)
    texts = ["a\n\nb", "a\nb", "\na", "a\n", "c", " ", "d\n \ne", "f"]
    kept = [text for text in texts if chosen.accepts(Record(text=text, stop="end"))]
    assert kept == ["a\nb", "c", "f"]
    assert (chosen.drawn, chosen.kept, chosen.done) == (8, 3, True)
    cut = Selection(["a\n"], 2, paragraphs=True)
    assert cut.accepts(Record(text="b\n", stop="length"))
    assert not cut.accepts(Record(text="\nb", stop="length"))


CHOICES = (
    Choice(),
    Choice(temperature=0),
    Choice(temperature=1.3, top_k=9),
    Choice(top_p=0.9),
    Choice(min_p=0.1),
    Choice(typical=0.8),
    Choice(repetition_penalty=1.5, temperature=0.7, top_k=20, top_p=0.95, min_p=0.01, typical=0.9),
)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("most", [1, 5])
def test_a_record_depends_on_the_seed_and_its_number_alone(
    small: Fitted, choice: Choice, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"choice": choice, "seed": 5, "with_logprobs": True}
    whole, counts = drawn(small, samples=60, **options)
    assert [each.number for each in whole] == list(range(60))
    few_rows(monkeypatch, most)
    monkeypatch.setattr(records, "AHEAD", 7)
    again, other = drawn(small, samples=60, **options)
    assert again == whole
    assert vars(other) == vars(counts)
    assert drawn(small, samples=13, **options)[0] == whole[:13]


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_cells_without_a_sampling_kernel(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = fitted(LIST, cell=cell, steps=10)
    whole, _ = drawn(of, samples=30, length=20)
    few_rows(monkeypatch, 4)
    again, _ = drawn(of, samples=30, length=20)
    assert [each.text for each in again] == [each.text for each in whole]


def test_another_seed_gives_other_records(small: Fitted) -> None:
    first, second = (drawn(small, samples=30, seed=seed)[0] for seed in (1, 2))
    assert sum(a.text == b.text for a, b in zip(first, second, strict=True)) < 15


def test_log_probabilities_are_those_of_the_full_pass(small: Fitted) -> None:
    model, tokenizer = small
    for record in drawn(small, samples=20, with_logprobs=True)[0]:
        tokens = [*tokenizer.encode_text(record.text), tokenizer.end_id]
        assert [token for token, _, _ in record.logprobs] == tokens
        assert record.tokens == len(tokens)
        inputs = torch.tensor([[tokenizer.newline_id, *tokens[:-1]]])
        with torch.inference_mode():
            log_probs, _ = model.target_log_probs(
                inputs, torch.tensor([tokens]), model.initial_state(1)
            )
        assert [nats for _, _, nats in record.logprobs] == pytest.approx(
            log_probs[0].tolist(), abs=1e-4
        )
        assert record.logprob == pytest.approx(float(log_probs.sum()), rel=1e-5)


def test_records_come_as_often_as_the_model_says(small: Fitted) -> None:
    """Against the probabilities of whole records, given that none is empty or holds a line break."""
    model, tokenizer = small
    made, _ = drawn(small, samples=4000, seed=11)
    counts = Counter(record.text for record in made)
    probs = {record.text: math.exp(record.logprob) for record in made}
    with torch.inference_mode():
        start, _ = model.log_probs(torch.tensor([[tokenizer.newline_id]]), model.initial_state(1))
    breaks = [token for token in range(len(start[0, 0])) if tokenizer.surface(token) == b"\n"]
    allowed = 1 - float(start[0, 0].exp()[[tokenizer.end_id, *breaks]].sum())
    common = [text for text, prob in probs.items() if 4000 * prob >= 8]
    assert len(common) > 20
    expected = [4000 * probs[text] / allowed for text in common]
    observed = [counts[text] for text in common]
    expected.append(4000 - sum(expected))
    observed.append(4000 - sum(observed))
    assert chisquare(observed, np.array(expected)).pvalue > 1e-3


def test_neighbours_are_independent(small: Fitted) -> None:
    made, _ = drawn(small, samples=5000, seed=1)
    firsts = [record.text[0] for record in made]
    common = [letter for letter, _ in Counter(firsts).most_common(8)]
    for lag in (1, 2, 64):
        pairs = Counter(zip(firsts, firsts[lag:], strict=False))
        table = [[pairs[first, second] for second in common] for first in common]
        assert chi2_contingency(table).pvalue > 1e-3, lag


def test_no_record_is_empty_or_holds_a_line_break(small: Fitted) -> None:
    model, tokenizer = fitted(LIST, steps=0)
    with torch.no_grad():
        bias_V = model.head.get_parameter("bias")
        bias_V[[tokenizer.end_id, tokenizer.newline_id]] += 3.0
    made, _ = drawn((model, tokenizer), samples=300)
    assert all(record.text and "\n" not in record.text for record in made)
    made, _ = drawn((model, tokenizer), samples=300, one_line=False)
    assert any("\n" in record.text for record in made)
    # After a prompt a record may end at once.
    assert "" in {record.text for record in drawn((model, tokenizer), ["ma"], samples=300)[0]}


@pytest.mark.parametrize("most", [3, 512])
def test_unique_and_novel_ones_are_found(
    small: Fitted, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_rows(monkeypatch, most)
    plain, counts = drawn(small, samples=400, seed=2)
    texts = [record.text for record in plain]
    assert counts.ended == counts.drawn == 400
    assert counts.unique == len(set(texts)) < 400
    assert counts.novel == len(set(texts) - set(LIST))
    unique, counts = drawn(small, samples=150, seed=2, unique=True)
    assert [each.text for each in unique] == list(dict.fromkeys(texts))[:150]
    assert counts.drawn == 1 + unique[-1].number
    assert counts.unique == 150
    novel, counts = drawn(small, samples=150, seed=2, novel=True)
    assert [each.text for each in novel] == [t for t in texts if t not in set(LIST)][:150]
    both, counts = drawn(small, samples=100, seed=2, unique=True, novel=True)
    found = [each.text for each in both]
    assert found == [t for t in dict.fromkeys(texts) if t not in set(LIST)][:100]
    assert counts.kept == counts.novel == 100
    assert counts.unique is not None
    assert counts.unique > 100


def test_prompts_each_have_their_records_in_order(
    small: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["ma", "", "lo", "ma"] * 5
    made, counts = drawn(small, prompts, samples=3, seed=9)
    assert [(each.prompt, each.number) for each in made] == [
        (prompt, number) for prompt in range(20) for number in range(3)
    ]
    assert made[:3] == drawn(small, ["ma"], samples=3, seed=9)[0]
    assert [each.text for each in made[:3]] != [each.text for each in made[9:12]]
    few_rows(monkeypatch, 2)
    assert drawn(small, prompts, samples=3, seed=9)[0] == made
    assert counts.drawn == 60


@pytest.mark.parametrize("most", [2, 512])
def test_prompts_are_unique_and_novel_together(
    small: Fitted, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["m", "ma", "", "m"]
    options: dict[str, Any] = {"samples": 12, "seed": 4, "unique": True, "novel": True}
    made, counts = drawn(small, prompts, **options)
    texts = [prompts[each.prompt] + each.text for each in made]
    assert len(set(texts)) == len(texts) == 48
    assert not set(texts) & set(LIST)
    assert [each.prompt for each in made] == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 12
    few_rows(monkeypatch, most)
    monkeypatch.setattr(records, "AHEAD", 30)
    again, others = drawn(small, prompts, **options)
    assert again == made
    assert (others.drawn, others.unique) == (counts.drawn, counts.unique)


def test_it_gives_up_when_hardly_any_qualify(
    small: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "RECENT", 50)
    monkeypatch.setattr(selection, "FEWEST", 2)
    greedy = Choice(temperature=0)
    made, counts = drawn(small, ["ma", "lo"], samples=5, unique=True, choice=greedy)
    assert [each.prompt for each in made] == [0, 1]  # the one that comes first, of each
    assert (counts.short, counts.drawn, counts.unique) == (2, 100, 2)
    made, counts = drawn(small, samples=1, unique=True, choice=greedy)  # found at once
    assert (counts.short, counts.drawn, len(made)) == (0, 1, 1)
    # Records that do not end are never unique or novel.
    for asked in ("unique", "novel"):
        options: dict[str, Any] = {asked: True, "length": 2, "choice": greedy}
        made, counts = drawn(small, samples=5, **options)
        assert (made, counts.short, counts.ended) == ([], 1, 0)


def test_length_bounds_a_record(small: Fitted) -> None:
    full, _ = drawn(small, samples=30, with_logprobs=True)
    for length in (1, 2, 3):
        cut, counts = drawn(small, samples=30, length=length, with_logprobs=True)
        for short, whole in zip(cut, full, strict=True):
            assert short.logprobs == whole.logprobs[:length]
            assert whole.text.startswith(short.text)
            assert short.stop == ("end" if whole.tokens <= length else "length")
            assert short.listed is None or short.ended
        assert counts.ended == sum(each.ended for each in cut) < 30
    assert {(each.text, each.stop) for each in drawn(small, length=0)[0]} == {("", "length")}


def test_stop_strings_cut_a_record(small: Fitted) -> None:
    full, _ = drawn(small, samples=40, with_logprobs=True)
    cut, counts = drawn(small, samples=40, stop_strings=["na", "zz"], with_logprobs=True)
    for short, whole in zip(cut, full, strict=True):
        assert short.text == whole.text.partition("na")[0]
        assert short.stop == ("stop" if "na" in whole.text else "end")
        assert short.logprobs == whole.logprobs[: short.tokens]
        assert short.logprob == pytest.approx(sum(nats for _, _, nats in short.logprobs))
    assert 0 < counts.ended < 40


@pytest.mark.parametrize(
    ("kind", "vocab_size"), [("byte", None), ("bpe", 300), ("unigram", 300), ("word", None)]
)
def test_other_tokenizers(
    kind: str, vocab_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [f"{first} {second}" for first, second in zip(LIST, names(300, 1), strict=True)]
    of = fitted(two, kind=kind, vocab_size=vocab_size, steps=30)
    options: dict[str, Any] = {"samples": 6, "with_logprobs": True, "length": 30}
    prompts = ["", two[0].split()[0], two[1].split()[0][:1], "zebra "]
    made, _ = drawn(of, prompts, **options)
    for each in made:
        whole = prompts[each.prompt] + each.text
        assert whole.split()
        assert "\n" not in whole
        assert of[1].unknown_id not in [token for token, _, _ in each.logprobs]
    few_rows(monkeypatch, 3)
    assert drawn(of, prompts, **options)[0] == made


def test_characters_of_several_bytes_are_whole() -> None:
    of = fitted(["é猫", "猫é"], kind="byte", steps=200)
    made, _ = drawn(of, samples=40, choice=Choice(min_p=0.2))
    assert {each.text for each in made} == {"é猫", "猫é"}
    cut, _ = drawn(of, samples=40, choice=Choice(min_p=0.2), length=4)
    assert {each.text for each in cut} == {"é", "猫"}


def test_a_model_of_no_numbers_is_said_to_be_one() -> None:
    model, tokenizer = fitted(LIST, steps=0)
    with torch.no_grad():
        model.head.get_parameter("bias")[3] = math.nan
    with pytest.raises(DivergedError):
        drawn((model, tokenizer))


def test_a_signal_ends_it_between_steps(small: Fitted) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 30:
            raise Stopped(2)

    chosen = Selection([""], 10**9)
    batches = draw_records(*small, chosen, length=100, one_line=True, check=check)
    made = 0
    with pytest.raises(Stopped):
        for made, _ in enumerate(batches):  # noqa: B007
            pass
    assert asked == 30
    assert 5 < made < 30


def test_what_waits_is_bounded(small: Fitted) -> None:
    chosen = Selection([""] * 100, 1000, unique=True)
    batches = draw_records(*small, chosen, length=100, one_line=True)
    for _ in range(50):
        next(batches)
    frame = batches.gi_frame  # type: ignore[attr-defined]
    queue = frame.f_locals["queue"]
    assert len(queue._waiting) + queue._rows.active <= records.AHEAD


# Selection.


def record(text: str, *, prompt: int = 0, stop: str = "end") -> Record:
    return Record(text=text, stop=stop, prompt=prompt)


def judged(chosen: Selection, made: Sequence[Record]) -> Iterator[bool]:
    chosen.look_up(made)
    yield from map(chosen.accepts, made)


def test_counts_are_of_ended_records_and_nested() -> None:
    chosen = Selection([""], 9, listed_M=np.unique(keys_of(["b"])))
    made = [record("a"), record("a"), record("b"), record("c", stop="length"), record("c")]
    assert all(judged(chosen, made))
    assert (chosen.drawn, chosen.ended, chosen.unique, chosen.novel) == (5, 4, 3, 2)
    assert [each.listed for each in made] == [False, False, True, None, False]
    without = Selection([""], 9)
    assert all(judged(without, made))
    assert (without.unique, without.novel) == (3, None)


def test_the_whole_text_is_looked_up_with_its_prompt() -> None:
    chosen = Selection(["an", "a"], 1, unique=True, listed_M=np.unique(keys_of(["anna"])))
    made = [record("na"), record("nna", prompt=1), record("b", prompt=1)]
    assert [*judged(chosen, made)] == [True, False, True]
    assert [each.listed for each in made] == [True, True, False]
    assert chosen.done


def test_different_records_are_counted_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "COUNTED", 3)
    listed_M = np.unique(keys_of(["b"]))
    made = [record("a"), record("b"), record("a"), record("b"), record("c")]
    chosen = Selection([""], 9, listed_M=listed_M)
    assert all(judged(chosen, made))
    assert (chosen.drawn, chosen.ended, chosen.unique, chosen.novel) == (5, 5, None, None)
    asked = Selection([""], 9, unique=True, listed_M=listed_M)
    assert [*judged(asked, made)] == [True, True, False, False, True]
    assert (asked.unique, asked.novel) == (3, 2)


# Random numbers.


def test_numbers_are_uniform_and_independent() -> None:
    draws, positions = np.arange(400), np.arange(200)
    table = np.stack(
        [uniform(sequences(base_of(3, 0), draws), np.full_like(draws, at)) for at in positions], 1
    )
    assert 0 <= table.min() < 1e-4 < 1 - 1e-4 < table.max() < 1
    cells = np.floor(table * 10).astype(int)
    assert chisquare(np.bincount(cells.ravel())).pvalue > 1e-3
    for first, second in (
        (cells[:, :-1], cells[:, 1:]),  # positions of a draw
        (cells[:-1], cells[1:]),  # draws
        (cells[:-1, :-1], cells[1:, 1:]),
    ):
        pairs = np.bincount((10 * first + second).ravel(), minlength=100).reshape(10, 10)
        assert chi2_contingency(pairs).pvalue > 1e-3


def test_numbers_depend_on_each_part_of_their_place() -> None:
    draws = np.array([0, 1, 2**40])
    found = {
        float(value)
        for seed in (0, 1, 2**70)
        for prompt in (0, 1)
        for at in (0, 1)
        for value in uniform(sequences(base_of(seed, prompt), draws), np.full(3, at))
    }
    assert len(found) == 36
    one = sequences(base_of(5, 0), np.array([7]))
    many = sequences(base_of(5, 0), np.arange(10))
    assert one == many[7]
