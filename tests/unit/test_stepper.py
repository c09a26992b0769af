"""Step-by-step inference against a full pass in float64; the kernel's sampling against Python's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gru_lm.errors import DivergedError
from gru_lm.generation.choice import Choice, draw, normalise
from gru_lm.generation.prompt import read_prompt
from gru_lm.generation.sampling import complete
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.native import build, step
from gru_lm.model.native.step import NativeStepper
from gru_lm.model.stepper import Stepper, make_stepper
from gru_lm.text.tokenizer import load_tokenizer

kernels = pytest.mark.skipif(not build.available(), reason=f"no kernels: {build.problem()}")
BYTES = load_tokenizer("byte", b"")
T = 4


def model_of(cell: str, *, H: int, V: int = 50, **sizes: Any) -> LanguageModel:
    torch.manual_seed(H)
    config = ModelConfig(cell=cell, vocab_size=V, width=H, **({"layers": 1, "embed": 9} | sizes))
    model = LanguageModel(config, backend="native").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.7, 0.7)
    return model


def whole_pass(model: LanguageModel, tokens_NT: np.ndarray, state_LSNH: Tensor) -> np.ndarray:
    """Next-token log-probabilities of the reference backend, in float64 [N, T, V]."""
    exact = LanguageModel(model.config, backend="reference").double()
    exact.load_state_dict(model.state_dict())
    with torch.inference_mode():
        log_probs_NTV, _ = exact.log_probs(torch.from_numpy(tokens_NT), state_LSNH.double())
    return log_probs_NTV.numpy()


def check(model: LanguageModel, N: int, kind: type) -> None:
    L, S = model.config.layers, model.recurrent.states
    state_LSNH = torch.randn(L, S, N, model.config.width)
    tokens_NT = np.random.default_rng(N).integers(0, model.config.vocab_size, (N, T))
    expected_NTV = whole_pass(model, tokens_NT, state_LSNH)
    stepper = make_stepper(model, state_LSNH)
    assert type(stepper) is kind
    for t in range(T):
        found_NV = stepper.log_probs(tokens_NT[:, t])
        assert found_NV.shape == (N, model.config.vocab_size)
        assert abs(found_NV - expected_NTV[:, t]).max() <= 1e-5 * abs(expected_NTV).max()


@kernels
@pytest.mark.parametrize("cell", ["gru", "gru-before"])
@pytest.mark.parametrize("H", [1, 2, 7, 15, 16, 17, 31, 33, 48, 65, 70])
def test_kernel_at_all_widths(cell: str, H: int) -> None:
    for layers, tied, N in ((1, False, 1), (2, True, 3), (2, False, 64)):
        check(model_of(cell, H=H, layers=layers, tied=tied), N, NativeStepper)


@kernels
@pytest.mark.parametrize("cell", ["gru", "gru-before"])
def test_a_large_vocabulary_has_no_table(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "TABLE", 0)
    for layers, tied, N, rows in ((1, False, 1, 0), (2, True, 9, 0), (1, True, 2, 60)):
        check(model_of(cell, H=21, V=323, layers=layers, tied=tied, rows=rows), N, NativeStepper)


@kernels
def test_tokens_that_share_a_row() -> None:
    for tied in (True, False):
        check(model_of("gru", H=16, V=323, tied=tied, rows=66), 2, NativeStepper)


@pytest.mark.parametrize(
    "model",
    [
        model_of("lstm", H=7, layers=2),
        model_of("lstm-thread", H=6),
        model_of("gru", H=9, tied=True, cutoffs=(20, 30)),
        model_of("gru", H=8).double(),
    ],
    ids=["lstm", "lstm-thread", "adaptive", "float64"],
)
def test_other_models_use_the_fallback(model: LanguageModel) -> None:
    if model.config.cutoffs or next(model.parameters()).dtype == torch.float64:
        state_LSNH = torch.zeros(1, 1, 3, model.config.width).to(next(model.parameters()).dtype)
        tokens_NT = np.arange(3 * T).reshape(3, T)
        stepper = make_stepper(model, state_LSNH)
        assert type(stepper) is Stepper
        expected_NTV = whole_pass(model, tokens_NT, state_LSNH)
        for t in range(T):
            np.testing.assert_allclose(
                stepper.log_probs(tokens_NT[:, t]), expected_NTV[:, t], atol=1e-4
            )
    else:
        check(model, 3, Stepper)


def test_fallback_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "available", lambda: False)
    model = model_of("gru", H=8)
    model.recurrent.backend = "fused"
    check(model, 3, Stepper)


@pytest.mark.parametrize("cell", ["gru", "gru-before", "lstm"])
def test_streams_can_be_dropped(cell: str) -> None:
    model = model_of(cell, H=20, layers=2)
    state_LSNH = torch.randn(2, model.recurrent.states, 12, 20)
    tokens_NT = np.random.default_rng(0).integers(0, 50, (12, T))
    expected_NTV = whole_pass(model, tokens_NT, state_LSNH)
    stepper = make_stepper(model, state_LSNH)
    rows = list(range(12))
    for t, leave in enumerate([{0, 5}, {11}, {1, 2, 3}, set()]):
        found_NV = stepper.log_probs(tokens_NT[rows, t])
        np.testing.assert_allclose(found_NV, expected_NTV[rows, t], atol=2e-5)
        stay = [at for at, row in enumerate(rows) if row not in leave]
        stepper.keep(stay)
        rows = [rows[at] for at in stay]


def drawn(
    model: LanguageModel, uniform_NT: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    N = len(uniform_NT)
    state_LSNH = torch.randn(1, 1, N, model.config.width, generator=torch.manual_seed(1))
    stepper = NativeStepper(model, state_LSNH)
    return stepper.sample(np.zeros(N, np.int64), uniform_NT, **options)


@pytest.mark.parametrize("cell", ["gru", "gru-before", "lstm"])
def test_streams_can_be_started_anew(cell: str) -> None:
    """In rows of their own, as others go on: each has the probabilities of a full pass."""
    model = model_of(cell, H=18, layers=2)
    L, S = model.config.layers, model.recurrent.states
    states_LSNH = torch.randn(L, S, 5, 18)
    tokens_NT = np.random.default_rng(1).integers(0, 50, (5, T))
    expected_NTV = whole_pass(model, tokens_NT, states_LSNH)
    stepper = make_stepper(model, model.initial_state(3))
    stepper.keep([])

    def expect(*places: tuple[int, int]) -> None:
        """Feed each row a token of a stream: the number of the stream and of the token."""
        found_NV = stepper.log_probs(np.array([tokens_NT[place] for place in places]))
        for found_V, place in zip(found_NV, places, strict=True):
            np.testing.assert_allclose(found_V, expected_NTV[place], atol=1e-4)

    stepper.start(np.array([0, 1]), states_LSNH[:, :, [0, 1]])
    expect((0, 0), (1, 0))
    stepper.start(np.array([0]), states_LSNH[:, :, [2]])
    expect((2, 0), (1, 1))
    stepper.start(np.array([2]), states_LSNH[:, :, [3]])
    expect((2, 1), (1, 2), (3, 0))
    stepper.keep([2])
    expect((3, 1))
    stepper.start(np.array([1, 2]), states_LSNH[:, :, [4]])  # one state for both
    expect((3, 2), (4, 0), (4, 0))


@kernels
@pytest.mark.parametrize("V", [1, 5, 16, 17, 300])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 4.0},
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.4},
        {"typical": 0.5},
        {"repetition_penalty": 3.0},
        {"repetition_penalty": 0.5, "temperature": 0.7, "top_k": 100, "top_p": 0.9, "min_p": 0.01}
        | {"typical": 0.9},
    ],
    ids=str,
)
def test_sampling_matches_the_python_filters(options: dict[str, Any], V: int) -> None:
    N, steps = 40, 6
    model = model_of("gru", H=12, V=V)
    never = [1, 3] if V > 3 else []
    uniform_NT = np.random.default_rng(V).random((N, steps))
    seen_NV = np.random.default_rng(V).random((N, V)) < 0.3
    marked_NV = seen_NV.copy()
    tokens_NT, log_probs_NT = drawn(model, uniform_NT, never=never, seen_NV=marked_NV, **options)
    # The same streams and tokens by the reference implementation.
    state_LSNH = torch.randn(1, 1, N, 12, generator=torch.manual_seed(1))
    read_NT = np.hstack([np.zeros((N, 1), np.int64), tokens_NT[:, :-1]])
    exact_NTV = whole_pass(model, read_NT, state_LSNH)
    for t in range(steps):
        allowed_NV = exact_NTV[:, t].copy()
        allowed_NV[:, never] = -math.inf
        chosen_NV = Choice(**options).distribution(normalise(allowed_NV), seen_NV)
        low_N, high_N = (draw(chosen_NV, uniform_NT[:, t] + off) for off in (-1e-5, 1e-5))
        assert (low_N <= tokens_NT[:, t]).all()
        assert (tokens_NT[:, t] <= high_N).all()
        np.put_along_axis(seen_NV, tokens_NT[:, t, None], True, axis=1)
    assert (seen_NV == marked_NV).all() == ("repetition_penalty" in options)
    expected_NT = np.take_along_axis(exact_NTV, tokens_NT[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(log_probs_NT, expected_NT, rtol=1e-5, atol=1e-5)


@kernels
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 3}, set(range(20))),  # ties with the last are kept
        ({"top_k": 3, "never": [0]}, set(range(1, 20))),
        ({"top_p": 0.22}, set(range(5))),  # the first tokens among ties
        ({"typical": 0.22}, set(range(5))),
        ({"min_p": 1.0}, set(range(20))),
        ({"top_p": 1e-9, "min_p": 0.5}, {0}),
    ],
    ids=str,
)
def test_ties(options: dict[str, Any], kept: set[int]) -> None:
    model = model_of("gru", H=3, V=20)
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.weight.zero_()
    tokens_NT, _ = drawn(model, np.linspace(0, 0.9999, 400)[:, None], **options)
    assert set(tokens_NT.ravel().tolist()) == kept


@kernels
def test_greedy_sampling_and_extreme_temperatures() -> None:
    model = model_of("gru", H=12, V=300)
    tokens_NT, _ = drawn(model, np.zeros((5, 8)), temperature=0)
    again_NT, _ = drawn(model, np.full((5, 8), 0.999), temperature=1e-300)
    assert (tokens_NT == again_NT).all()
    state_LSNH = torch.randn(1, 1, 5, 12, generator=torch.manual_seed(1))
    read_NT = np.hstack([np.zeros((5, 1), np.int64), tokens_NT[:, :-1]])
    assert (whole_pass(model, read_NT, state_LSNH).argmax(axis=2) == tokens_NT).all()
    hot_NT, log_probs_NT = drawn(model, np.array([[0.0], [0.999]]), temperature=1e300, never=[0])
    assert hot_NT.tolist() == [[1], [299]]
    assert np.isfinite(log_probs_NT).all()


@kernels
def test_zero_probability_is_never_drawn() -> None:
    model = model_of("gru", H=3, V=40)
    with torch.no_grad():
        model.head.bias[:] = -math.inf
        model.head.bias[[17, 30]] = 0.0
    uniform_NT = np.array([[0.0], [0.5], [math.nextafter(1, 0)]])
    assert set(drawn(model, uniform_NT)[0].ravel().tolist()) <= {17, 30}
    assert drawn(model, uniform_NT, never=[30])[0].tolist() == [[17]] * 3
    # What is left has a probability that float32 does not tell from 0.
    with torch.no_grad():
        model.head.bias[30] = 200.0
    for options in ({}, {"temperature": 0.5}, {"top_k": 2}):
        assert drawn(model, uniform_NT, never=[30], **options)[0].tolist() == [[17]] * 3


@kernels
@pytest.mark.parametrize("cell", ["gru", "gru-before"])
def test_stream_does_not_depend_on_batch_or_threads(cell: str) -> None:
    model = model_of(cell, H=70, V=300, layers=2)
    tokens_NT = np.random.default_rng(0).integers(0, 300, (21, 3))
    found = []
    before = torch.get_num_threads()
    try:
        for N, threads in ((21, 1), (21, 3), (1, 1), (1, 2), (8, 2), (13, 5)):
            torch.set_num_threads(threads)
            stepper = NativeStepper(model, torch.zeros(2, 1, N, 70))
            found.append([stepper.log_probs(tokens_NT[:N, t])[0] for t in range(3)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@kernels
def test_result_does_not_depend_on_steps_per_call() -> None:
    model = model_of("gru", H=24, V=60)
    uniform_NT = np.random.default_rng(3).random((3, 9))
    whole_NT, nats_NT = drawn(model, uniform_NT, never=[2])
    state_LSNH = torch.randn(1, 1, 3, 24, generator=torch.manual_seed(1))
    stepper = NativeStepper(model, state_LSNH)
    last_N = np.zeros(3, np.int64)
    for start, end in ((0, 1), (1, 4), (4, 9)):
        some_NT, some_nats_NT = stepper.sample(last_N, uniform_NT[:, start:end], never=[2])
        np.testing.assert_array_equal(some_NT, whole_NT[:, start:end])
        np.testing.assert_array_equal(some_nats_NT, nats_NT[:, start:end])
        last_N = some_NT[:, -1]


@kernels
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"choice": Choice(top_k=40, repetition_penalty=1.5)},
        {"choice": Choice(temperature=0, typical=0.1)},
        {"stop_strings": ["e", "\n"]},
    ],
    ids=str,
)
def test_kernel_generates_the_same_texts(options: dict[str, Any]) -> None:
    """The same seed gives the same text with and without the kernel, alone and in a batch."""
    model = model_of("gru", H=24, V=BYTES.vocab_size)
    options = {"prompt": read_prompt(BYTES, "AB"), "length": 60, "seed": 4} | options
    together = complete(model, BYTES, samples=5, **options)
    alone = complete(model, BYTES, **options)
    assert alone[0] == together[0]
    model.recurrent.backend = "fused"
    without = complete(model, BYTES, samples=5, **options)
    for one, other in zip(together, without, strict=True):
        assert (one.text, one.tokens, one.stop) == (other.text, other.tokens, other.stop)
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)


@kernels
def test_nan_logits_raise() -> None:
    model = model_of("gru", H=8, V=BYTES.vocab_size)
    with torch.no_grad():
        model.head.bias[3] = math.nan
    for choice in (Choice(), Choice(temperature=0), Choice(top_k=3)):
        with pytest.raises(DivergedError):
            complete(model, BYTES, length=3, choice=choice)
