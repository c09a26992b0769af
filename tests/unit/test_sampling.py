"""Sampling: frequencies against the model's probabilities, seeds, stop strings, partial characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.errors import DivergedError, Stopped
from gru_lm.generation import border, sampling
from gru_lm.generation.choice import Choice
from gru_lm.generation.prompt import Opening, Prompt, read_prompt
from gru_lm.generation.sampling import complete, generate
from gru_lm.generation.writing import StopStrings
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

BYTES = load_tokenizer("byte", b"")


def tiny_model(vocab_size: int, cell: str = "gru") -> LanguageModel:
    torch.manual_seed(3)
    config = ModelConfig(cell=cell, vocab_size=vocab_size, layers=2, width=6, embed=5)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.2, 1.2)
    return model


def tokens_of(prompt: Sequence[int]) -> Prompt:
    """A prompt of these very tokens."""
    return Prompt(tuple(prompt), (Opening(tuple(prompt)),), 0)


MODEL = tiny_model(BYTES.vocab_size)

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
        # Printed text is final: it never becomes the start of a stop string.
        assert not any(
            shown.endswith(stop[:1]) and text[len(shown) - 1 :].startswith(stop) for stop in stops
        )
    if not stopped:
        shown += filters.flush()
    # The stop string that is complete first ends the text; of several, the leftmost.
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert stopped == bool(places)
    if not places:
        assert shown == text
    elif size == 1:
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert shown == text[: min(text[:ends].find(s) for s in stops if s in text[:ends])]


# Whole texts.


class Scripted(LanguageModel):
    """A model that generates the given tokens in order, almost surely and whatever its input."""

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
        model.head.bias[3] = math.nan
    with pytest.raises(DivergedError):
        complete(model, BYTES, length=1)


def test_no_length_is_no_text() -> None:
    assert complete(MODEL, BYTES, samples=2, length=0) == [sampling.Sample(stop="length")] * 2


def test_probabilities_step_by_step_are_those_of_the_full_pass() -> None:
    prompt = BYTES.encode_text("To be")
    (sample,) = complete(
        MODEL, BYTES, tokens_of(prompt), length=60, choice=Choice(top_k=40), seed=5
    )
    made = regenerate(prompt, length=60, choice=Choice(top_k=40), seed=5)
    inputs = torch.tensor([[BYTES.newline_id, *prompt, *made[:-1]]])
    with torch.inference_mode():
        log_probs, _ = MODEL.log_probs(inputs, MODEL.initial_state(1))
    exact = sum(float(log_probs[0, len(prompt) + i, token]) for i, token in enumerate(made))
    assert sample.logprob == pytest.approx(exact, rel=1e-5)


class Listening(LanguageModel):
    """MODEL, recording the latest tokens read by its first stream."""

    def __init__(self) -> None:
        super().__init__(MODEL.config)
        self.load_state_dict(MODEL.state_dict())
        self.heard: list[int] = []

    def log_probs(self, tokens_BT: torch.Tensor, state_LSBH: torch.Tensor) -> Any:
        self.heard.append(int(tokens_BT[0, -1]))
        return super().log_probs(tokens_BT, state_LSBH)


def regenerate(prompt: list[int], *, length: int, **options: Any) -> list[int]:
    """The tokens of a sample, as read by the model when sampling one more."""
    model = Listening().eval()
    (sample,) = complete(model, BYTES, tokens_of(prompt), length=length + 1, **options)
    _, *made = model.heard
    return [*made, BYTES.end_id] if sample.tokens <= length else made


@pytest.mark.parametrize("cell", ["gru", "lstm", "gru-before"])
def test_a_sample_does_not_depend_on_its_neighbours(cell: str) -> None:
    model = tiny_model(BYTES.vocab_size, cell)
    options: dict[str, Any] = {"length": 40, "seed": 7, "stop_strings": ["e", "\n"]}
    together = complete(model, BYTES, tokens_of([65]), samples=5, **options)
    assert len({sample.text for sample in together}) > 1
    assert len({sample.tokens for sample in together}) > 1  # some end before others
    for count in (1, 3):
        for alone, sample in zip(
            complete(model, BYTES, tokens_of([65]), samples=count, **options),
            together,
            strict=False,
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
    choice = Choice(repetition_penalty=1e6)  # effectively forbids seen tokens
    made = regenerate([65, 66], length=100, choice=choice)
    assert len(made) > 20  # until the end-of-document token is drawn
    assert len({65, 66, *made}) == len(made) + 2


def test_the_unknown_token_is_drawn_only_if_allowed_and_needed() -> None:
    class WithUnknown:
        unknown_id = 65

        def __init__(self, lossless: bool) -> None:
            self.lossless = lossless

        def __getattr__(self, name: str) -> Any:
            return getattr(BYTES, name)

    def text(tokenizer: Any, **options: Any) -> str:
        script = Scripted([65] * 20, BYTES.vocab_size)
        return complete(script, tokenizer, length=20, **options)[0].text

    assert text(WithUnknown(False), allow_unknown=True) == "A" * 20
    for lossless, allowed in ((False, False), (True, False), (True, True)):
        assert "A" not in text(WithUnknown(lossless), allow_unknown=allowed)


def test_a_long_prompt_is_read_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = np.random.default_rng(0).integers(0, 256, 50).tolist()
    whole = complete(MODEL, BYTES, tokens_of(prompt), length=20)[0]
    monkeypatch.setattr(border, "READ", 7)
    passes = complete(MODEL, BYTES, tokens_of(prompt), length=20)[0]
    assert passes.text == whole.text
    assert passes.logprob == pytest.approx(whole.logprob, rel=1e-5)


def test_a_word_tokenizer_goes_on_after_the_prompts_last_word(words: Tokenizer) -> None:
    script = words.encode_text("the cat\nsat")
    model = Scripted(script, words.vocab_size)
    sample = complete(model, words, read_prompt(words, "on"), length=4)[0]
    assert sample.text == " the cat\nsat"
    model = Scripted(script, words.vocab_size)
    assert complete(model, words, length=4)[0].text == "the cat\nsat"


def test_after_a_space_the_text_brings_none_of_its_own(words: Tokenizer) -> None:
    assert words.encode_text("on ") == words.encode_text("on")  # no token holds the space
    for script, text in (("the cat\nsat", "the cat\nsat"), ("\nsat on a", "\nsat on <unk>")):
        model = Scripted(words.encode_text(script), words.vocab_size)
        (sample,) = complete(model, words, read_prompt(words, "on "), length=4, allow_unknown=True)
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


@settings(max_examples=20)
@given(st.integers(0, 2**63), st.integers(1, 3), st.integers(0, 12))
def test_any_seed_counts_its_tokens(seed: int, samples: int, length: int) -> None:
    for sample in complete(MODEL, BYTES, samples=samples, length=length, seed=seed):
        assert sample.tokens <= length
        assert sample.logprob <= 0
        assert sample.stop in ("length", "end")
