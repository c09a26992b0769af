"""Sampling: filters against their definitions, and text against the model's own probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.errors import DivergedError, Stopped, UsageError
from gru_lm.generation import sampling
from gru_lm.generation.sampling import Choice, StopStrings, complete, draw, generate, normalise
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.tokenizer import Decoder, Tokenizer, load_tokenizer, train_tokenizer

BYTES = load_tokenizer("byte", b"")


def tiny_model(vocab_size: int, cell: str = "gru") -> LanguageModel:
    torch.manual_seed(3)
    config = ModelConfig(cell=cell, vocab_size=vocab_size, layers=2, width=6, embed=5)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.2, 1.2)
    return model


MODEL = tiny_model(BYTES.vocab_size)

# One row of log-probabilities, with ties and with tokens of no probability at all.
ROW = st.lists(
    st.sampled_from([-math.inf, -3.0, -2.0, -1.0, 0.0]) | st.floats(-20, 0), min_size=1, max_size=12
).filter(lambda row: max(row) > -math.inf)


def as_rows(row: list[float]) -> np.ndarray:
    return normalise(np.array([row, [*row[1:], row[0]]]))


def kept(log_probs_NV: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in log_probs_NV]


def check_kept(before: np.ndarray, after: np.ndarray) -> list[set[int]]:
    """Those kept have their old ratios and sum to one."""
    np.testing.assert_allclose(np.exp(after).sum(axis=1), 1)
    for old, new, tokens in zip(before, after, kept(after), strict=True):
        some = sorted(tokens)
        shift = new[some] - old[some]
        np.testing.assert_allclose(shift, shift[0], atol=1e-9)
    return kept(after)


def fewest(probs: Sequence[float], order: Iterable[int], mass: float) -> set[int]:
    chosen: set[int] = set()
    total = 0.0
    for token in order:
        if total >= mass:
            break
        chosen.add(token)
        total += probs[token]
    return {token for token in chosen if probs[token] > 0}


@given(ROW, st.integers(1, 14))
def test_top_k(row: list[float], k: int) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, sampling.keep_top_k(before, k)), strict=True
    ):
        least = sorted(probs, reverse=True)[min(k, len(probs)) - 1]
        assert found == {t for t, p in enumerate(probs) if p >= least and p > 0}


@given(ROW, st.floats(0.01, 0.99))
def test_top_p(row: list[float], p: float) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, sampling.keep_top_p(before, p)), strict=True
    ):
        order = sorted(range(len(probs)), key=lambda t: (-probs[t], t))
        total = math.fsum(probs[t] for t in found)
        assert total >= p - 1e-9
        assert len(found) <= len(fewest(probs, order, p + 1e-9))
        assert len(found) >= len(fewest(probs, order, p - 1e-9))


@given(ROW, st.floats(0.001, 1))
def test_min_p(row: list[float], p: float) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, sampling.keep_min_p(before, p)), strict=True
    ):
        assert found >= {t for t, q in enumerate(probs) if q >= p * max(probs) * (1 + 1e-9)}
        assert found <= {t for t, q in enumerate(probs) if q >= p * max(probs) * (1 - 1e-9)}
        assert int(np.argmax(probs)) in found


@given(ROW, st.floats(0.01, 0.99))
def test_typical(row: list[float], mass: float) -> None:
    before = as_rows(row)
    for probs, found in zip(
        np.exp(before), check_kept(before, sampling.keep_typical(before, mass)), strict=True
    ):
        entropy = -sum(p * math.log(p) for p in probs if p > 0)
        far = {t: abs(-math.log(p) - entropy) for t, p in enumerate(probs) if p > 0}
        assert found
        assert math.fsum(probs[t] for t in found) >= mass - 1e-9
        left_out = [distance for t, distance in far.items() if t not in found]
        farthest = max(far[t] for t in found)
        assert all(distance >= farthest - 1e-9 for distance in left_out)
        # Fewest: without the farthest of them the mass is not reached.
        last = min((t for t in found if far[t] >= farthest - 1e-9), key=lambda t: probs[t])
        rest = math.fsum(probs[t] for t in found) - max(
            probs[t] for t in found if far[t] >= farthest - 1e-9
        )
        assert rest < mass + 1e-9 or probs[last] == 0


@given(ROW, st.floats(0.01, 50))
def test_temperature(row: list[float], temperature: float) -> None:
    before = as_rows(row)
    powered = np.exp(before - before.max(axis=1, keepdims=True)) ** (1 / temperature)
    powered /= powered.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(sampling.apply_temperature(before, temperature)), powered, atol=1e-9
    )


def test_a_tiny_temperature_is_greedy_and_no_number_overflows() -> None:
    for temperature in (1e-308, 5e-324):
        found = sampling.apply_temperature(as_rows([-1.0, -2.0, -math.inf]), temperature)
        assert np.exp(found[0]).tolist() == [1, 0, 0]


@given(ROW, st.floats(0.1, 10))
def test_repetition_penalty(row: list[float], penalty: float) -> None:
    before = as_rows(row)
    seen = np.zeros(before.shape, bool)
    seen[:, ::2] = True
    powered = np.exp(before)
    powered[seen] **= penalty
    powered /= powered.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(sampling.penalise_repetition(before, seen, penalty)), powered, rtol=1e-6, atol=1e-12
    )


@given(ROW, st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_distribution(row: list[float], u: float) -> None:
    log_probs = as_rows(row)
    for probs, token in zip(np.exp(log_probs), draw(log_probs, [u, u]), strict=True):
        assert probs[token] > 0
        assert math.fsum(probs[:token]) <= u + 1e-9
        assert math.fsum(probs[: token + 1]) >= u - 1e-9


def test_draw_never_takes_what_cannot_be() -> None:
    log_probs = np.array([[-math.inf, -math.inf, 0.0, -math.inf]])
    for u in (0.0, 0.5, math.nextafter(1, 0)):
        assert draw(log_probs, [u]) == [2]


def test_draws_follow_the_distribution() -> None:
    log_probs = np.log(np.array([[0.1, 0.6, 0.3]]))
    random = np.random.default_rng(0)
    counts = np.bincount([draw(log_probs, [random.random()])[0] for _ in range(4000)])
    np.testing.assert_allclose(counts / 4000, [0.1, 0.6, 0.3], atol=0.03)


def test_filters_work_in_the_documented_order() -> None:
    log_probs = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    seen = np.zeros((1, 4), bool)
    # top-k 2 leaves 4/7 and 3/7, so that a nucleus of 0.55 keeps one token; alone it keeps two.
    assert kept(Choice(top_k=2, top_p=0.55).distribution(log_probs, seen)) == [{0}]
    assert kept(Choice(top_p=0.55).distribution(log_probs, seen)) == [{0, 1}]
    assert Choice().distribution(log_probs, seen) is log_probs


def test_each_option_does_what_its_filter_does() -> None:
    log_probs = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    seen = np.array([[True, False, False, True]])
    for choice, expected in (
        (Choice(temperature=0.7), sampling.apply_temperature(log_probs, 0.7)),
        (Choice(top_k=3), sampling.keep_top_k(log_probs, 3)),
        (Choice(min_p=0.6), sampling.keep_min_p(log_probs, 0.6)),
        (Choice(typical=0.5), sampling.keep_typical(log_probs, 0.5)),
        (Choice(repetition_penalty=2), sampling.penalise_repetition(log_probs, seen, 2)),
    ):
        np.testing.assert_array_equal(choice.distribution(log_probs, seen), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "--temperature -0.1 is out of range"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"min_p": -0.1}, "--min-p"),
        ({"typical": 0.0}, "--typical"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0"),
    ],
)
def test_values_without_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Choice(**wrong)


# Stop strings.


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.integers(1, 5),
)
def test_stop_strings_cut_wherever_the_text_was_cut(text: str, stops: list[str], size: int) -> None:
    filters, shown, stopped = StopStrings(stops), "", False
    for start in range(0, len(text), size):
        passed, stopped = filters.push(text[start : start + size])
        shown += passed
        if stopped:
            break
        # What was shown is final: it never turns out to be the start of a stop string.
        assert not any(
            shown.endswith(stop[:1]) and text[len(shown) - 1 :].startswith(stop) for stop in stops
        )
    if not stopped:
        shown += filters.flush()
    # The first to be complete ends the text, and the leftmost of those that are complete by then.
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert stopped == bool(places)
    if not places:
        assert shown == text
    elif size == 1:
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert shown == text[: min(text[:ends].find(s) for s in stops if s in text[:ends])]


# Whole texts.


class Scripted(LanguageModel):
    """Almost surely says the given tokens, one after another, whatever it reads."""

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        super().__init__(ModelConfig(cell="rnn", vocab_size=vocab_size, layers=1, width=1, embed=1))
        self.script = list(script)
        self.said = -1

    def log_probs(self, tokens_BT: torch.Tensor, state_LSBH: torch.Tensor) -> Any:
        self.said += 1
        scores = torch.zeros(*tokens_BT.shape, self.config.vocab_size)
        scores[..., self.script[self.said]] = 60.0
        return scores.log_softmax(-1), state_LSBH


def say(script: Sequence[int], **options: Any) -> tuple[list[str], sampling.Sample]:
    steps = list(generate(Scripted(script, BYTES.vocab_size), BYTES, **options))
    assert "".join(step.text for step in steps) == steps[-1].sample.text
    return [step.text for step in steps], steps[-1].sample


def test_bytes_that_do_not_yet_make_a_character_are_held_back() -> None:
    parts, sample = say("a猫é".encode(), length=6)
    assert parts == ["a", "", "", "猫", "", "é", ""]
    assert (sample.stop, sample.tokens) == ("length", 6)


def test_a_character_cut_by_the_length_is_left_out() -> None:
    _, sample = say("a猫".encode(), length=3)
    assert (sample.text, sample.stop, sample.tokens) == ("a", "length", 3)


def test_a_stop_string_ends_the_text_across_tokens_and_held_back_bytes() -> None:
    parts, sample = say("one猫two".encode(), length=9, stop_strings=["e猫t", "zzz"])
    assert parts == ["o", "n", "", "", "", "", ""]
    assert (sample.text, sample.stop, sample.tokens) == ("on", "stop", 7)


def test_what_only_looked_like_a_stop_string_comes_out() -> None:
    parts, sample = say(b"one\n\ntwo", length=5, stop_strings=["\n\n\n"])
    assert parts == ["o", "n", "e", "", "", "\n\n"]
    assert (sample.text, sample.stop) == ("one\n\n", "length")


def test_the_end_of_the_document_ends_the_text() -> None:
    _, sample = say([*"a猫".encode()[:3], BYTES.end_id, 65], length=9, stop_strings=["x"])
    assert (sample.text, sample.stop, sample.tokens) == ("a\ufffd", "end", 4)


def test_a_model_of_no_numbers_is_said_to_be_one() -> None:
    model = tiny_model(BYTES.vocab_size)
    with torch.no_grad():
        model.output_bias[3] = math.nan
    with pytest.raises(DivergedError):
        complete(model, BYTES, length=1)


def test_no_length_is_no_text() -> None:
    assert complete(MODEL, BYTES, samples=2, length=0) == [sampling.Sample(stop="length")] * 2


def test_probabilities_step_by_step_are_those_of_the_full_pass() -> None:
    prompt = BYTES.encode_text("To be")
    (sample,) = complete(MODEL, BYTES, prompt, length=60, choice=Choice(top_k=40), seed=5)
    made = regenerate(prompt, length=60, choice=Choice(top_k=40), seed=5)
    inputs = torch.tensor([[BYTES.newline_id, *prompt, *made[:-1]]])
    with torch.inference_mode():
        log_probs, _ = MODEL.log_probs(inputs, MODEL.initial_state(1))
    exact = sum(float(log_probs[0, len(prompt) + i, token]) for i, token in enumerate(made))
    assert sample.logprob == pytest.approx(exact, rel=1e-5)


def regenerate(prompt: list[int], **options: Any) -> list[int]:
    """The tokens that a sample is made of, as its decoder hears them."""
    heard: list[int] = []

    class Listening(Decoder):
        def push(self, token: int) -> str:
            heard.append(token)
            return super().push(token)

    class Listened:
        def __getattr__(self, name: str) -> Any:
            return getattr(BYTES, name)

        def decoder(self) -> Decoder:
            surfaces = [BYTES.surface(token) for token in range(BYTES.vocab_size)]
            return Listening(surfaces, end_id=BYTES.end_id, drop_leading_space=False)

    complete(MODEL, Listened(), prompt, **options)  # type: ignore[arg-type]
    return heard[len(prompt) :]


@pytest.mark.parametrize("cell", ["gru", "lstm", "gru-before"])
def test_a_sample_does_not_depend_on_its_neighbours(cell: str) -> None:
    model = tiny_model(BYTES.vocab_size, cell)
    options: dict[str, Any] = {"length": 40, "seed": 7, "stop_strings": ["e", "\n"]}
    together = complete(model, BYTES, [65], samples=5, **options)
    assert len({sample.text for sample in together}) > 1
    assert len({sample.tokens for sample in together}) > 1  # some end before others
    for count in (1, 3):
        for alone, sample in zip(
            complete(model, BYTES, [65], samples=count, **options), together, strict=False
        ):
            assert (alone.text, alone.tokens, alone.stop) == (
                sample.text,
                sample.tokens,
                sample.stop,
            )
            assert alone.logprob == pytest.approx(sample.logprob, rel=1e-5)


def test_the_same_seed_gives_the_same_text_and_another_another() -> None:
    first, again, other = (complete(MODEL, BYTES, length=80, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first.text != other.text


def test_greedy_takes_the_most_probable_token_whatever_the_seed() -> None:
    texts = {
        complete(MODEL, BYTES, length=30, seed=seed, choice=Choice(temperature=0))[0].text
        for seed in range(3)
    }
    assert len(texts) == 1
    made = regenerate([], length=30, choice=Choice(temperature=0))
    with torch.inference_mode():
        inputs = torch.tensor([[BYTES.newline_id, *made[:-1]]])
        log_probs, _ = MODEL.log_probs(inputs, MODEL.initial_state(1))
    assert log_probs[0].argmax(-1).tolist() == made


def test_a_penalty_reaches_prompt_and_sampled_tokens_of_each_sample_alone() -> None:
    choice = Choice(repetition_penalty=1e6)  # seen tokens are as good as forbidden
    made = regenerate([65, 66], length=100, choice=choice)
    assert len(made) > 20  # until the end of the document is drawn
    assert len({65, 66, *made}) == len(made) + 2


def test_a_lossless_tokenizers_unknown_token_is_never_drawn() -> None:
    class WithUnknown:
        unknown_id = 65

        def __init__(self, lossless: bool) -> None:
            self.lossless = lossless

        def __getattr__(self, name: str) -> Any:
            return getattr(BYTES, name)

    def text(tokenizer: Any) -> str:
        script = Scripted([65] * 20, BYTES.vocab_size)
        return complete(script, tokenizer, length=20)[0].text

    assert text(WithUnknown(False)) == "A" * 20
    assert "A" not in text(WithUnknown(True))


def test_a_long_prompt_is_read_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = np.random.default_rng(0).integers(0, 256, 50).tolist()
    whole = complete(MODEL, BYTES, prompt, length=20)[0]
    monkeypatch.setattr(sampling, "READ", 7)
    passes = complete(MODEL, BYTES, prompt, length=20)[0]
    assert passes.text == whole.text
    assert passes.logprob == pytest.approx(whole.logprob, rel=1e-5)


def test_a_word_tokenizer_goes_on_after_the_prompts_last_word(words: Tokenizer) -> None:
    script = words.encode_text("the cat\nsat")
    model = Scripted(script, words.vocab_size)
    sample = complete(model, words, words.encode_text("on"), length=4)[0]
    assert sample.text == " the cat\nsat"
    model = Scripted(script, words.vocab_size)
    assert complete(model, words, length=4)[0].text == "the cat\nsat"


def test_after_a_space_the_text_brings_none_of_its_own(words: Tokenizer) -> None:
    prompt = words.encode_text("on ")
    assert prompt == words.encode_text("on")  # no token holds the space
    for script, text in (("the cat\nsat", "the cat\nsat"), ("\nsat on a", "\nsat on <unk>")):
        model = Scripted(words.encode_text(script), words.vocab_size)
        (sample,) = complete(model, words, prompt, length=4, after_space=True)
        assert sample.text == text


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer("word", lambda: ["the cat sat on the mat\n"] * 3)


def test_stop_is_asked_before_every_token() -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise Stopped(2)

    steps = generate(MODEL, BYTES, length=10, check=check)
    assert len([next(steps), next(steps), next(steps)]) == 3
    with pytest.raises(Stopped):
        next(steps)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**63), st.integers(1, 3), st.integers(0, 12))
def test_any_seed_counts_its_tokens(seed: int, samples: int, length: int) -> None:
    for sample in complete(MODEL, BYTES, samples=samples, length=length, seed=seed):
        assert sample.tokens <= length
        assert sample.logprob <= 0
        assert sample.stop in ("length", "end")
