"""Neural cache and dynamic evaluation, against literal transcriptions of the equations in the papers.

Also checks that they never use later tokens or other documents, and leave the model unchanged.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gru_lm.errors import DivergedError, InputError, Stopped, UsageError
from gru_lm.evaluation import cache, dynamic
from gru_lm.evaluation.adaptation import beginning, segments
from gru_lm.evaluation.cache import CacheSettings, score_with_cache, tune_cache
from gru_lm.evaluation.dynamic import (
    DEFAULTS,
    DynamicSettings,
    gradient_rms,
    score_dynamically,
    tune_dynamic,
)
from gru_lm.evaluation.scoring import Portion, score
from gru_lm.model.language_model import LanguageModel, ModelConfig

NEWLINE, V = 2, 13
HEADS: list[dict[str, Any]] = [{}, {"tied": True, "cutoffs": (4, 8), "cell": "lstm"}]


def make(*, seed: int = 0, **changes: Any) -> LanguageModel:
    torch.manual_seed(seed)
    values = {"cell": "gru", "vocab_size": V, "layers": 2, "width": 6, "embed": 4, **changes}
    model = LanguageModel(ModelConfig(**values)).double().eval()
    with torch.no_grad():  # peaked distributions, so that a wrong state or input shows
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return model


def text(count: int, seed: int = 0) -> list[int]:
    """Tokens with frequencies like those of words."""
    return (np.random.default_rng(seed).zipf(1.5, count) % V).tolist()


def in_chunks(tokens: list[int], size: int = 7) -> Iterator[list[int]]:
    yield []
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def collect(portions: Iterator[Portion], *documents: list[int]) -> list[np.ndarray]:
    """Log-probabilities by document; asserts that the portions hold its tokens in order."""
    seen, found = list(portions), []
    assert [portion.document for portion in seen] == sorted(p.document for p in seen)
    for number, tokens in enumerate(documents):
        mine = [portion for portion in seen if portion.document == number]
        assert [token for portion in mine for token in portion.tokens_N.tolist()] == tokens
        assert all(len(p.tokens_N) == len(p.log_probs_N) == len(p.extra_NX) for p in mine)
        found.append(np.concatenate([np.empty(0), *(portion.log_probs_N for portion in mine)]))
        assert found[-1].dtype == np.float64
    return found


def sequences(*documents: list[int]) -> list[tuple[int, Iterator[list[int]]]]:
    return [(number, in_chunks(tokens)) for number, tokens in enumerate(documents)]


def plain(model: LanguageModel, *documents: list[int]) -> list[np.ndarray]:
    found = score(model, sequences(*documents), newline_id=NEWLINE, batch=1, chunk=11)
    return collect(found, *documents)


def cached(
    model: LanguageModel, *documents: list[int], chunk: int = 9, **settings: Any
) -> list[np.ndarray]:
    found = score_with_cache(
        model,
        sequences(*documents),
        newline_id=NEWLINE,
        settings=CacheSettings(**settings),
        chunk=chunk,
    )
    return collect(found, *documents)


def adapted(
    model: LanguageModel,
    settings: DynamicSettings,
    *documents: list[int],
    rms: list[Tensor] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    found = score_dynamically(
        model, sequences(*documents), newline_id=NEWLINE, settings=settings, rms=rms, stop=stop
    )
    return collect(found, *documents)


def batches(count: int, B: int = 3, T: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of training text that continue B streams."""
    streams = np.array([text(count * T + 1, seed=100 + row) for row in range(B)])
    starts = range(0, count * T, T)
    return [(streams[:, at : at + T], streams[:, at + 1 : at + 1 + T]) for at in starts]


# Shared parts.


def test_segments_are_the_document_with_what_comes_before_each_token() -> None:
    tokens = text(50)
    for size in (1, 4, 7, 50, 60):
        found = list(segments(in_chunks(tokens), size=size, newline_id=NEWLINE))
        assert [len(targets) for _, targets in found[:-1]] == [size] * (len(found) - 1)
        assert np.concatenate([targets for _, targets in found]).tolist() == tokens
        inputs = np.concatenate([inputs for inputs, _ in found]).tolist()
        assert inputs == [NEWLINE, *tokens[:-1]]
    assert list(segments([[], []], size=3, newline_id=NEWLINE)) == []


def test_the_beginning_is_so_many_tokens_of_the_documents_in_order() -> None:
    documents = [text(20), [], text(5), text(40)]
    whole = [token for tokens in documents for token in tokens]
    for most in (1, 7, 8, 20, 21, 64, 65, 1000):
        kept, count = beginning(sequences(*documents), most)
        assert count == min(most, len(whole))
        found = [[int(token) for chunk in chunks for token in chunk] for _, chunks in kept]
        assert [token for tokens in found for token in tokens] == whole[:count]
        assert [number for number, _ in kept] == list(range(len(kept)))
    with pytest.raises(InputError):
        beginning(sequences([], []), 5)


# The cache.


def by_the_paper(
    model: LanguageModel, tokens: list[int], window: int, theta: float, weight: float
) -> np.ndarray:
    """Grave et al., equations 3 to 5, with the full distribution at every step."""
    inputs = torch.tensor([[NEWLINE, *tokens[:-1]]])
    with torch.no_grad():
        hidden = model.hidden(inputs, model.initial_state(1))[0][0]
        log_probs = model.log_probs(inputs, model.initial_state(1))[0][0]
    found = []
    for t, token in enumerate(tokens):
        of_model = [math.exp(x) for x in log_probs[t].tolist()]
        of_cache = [0.0] * len(of_model)
        for i in range(max(0, t - window), t):
            of_cache[tokens[i]] += math.exp(theta * float(hidden[t] @ hidden[i]))
        total = sum(of_cache)
        mixed = [
            (1 - weight) * p + weight * q / total if total else p
            for p, q in zip(of_model, of_cache, strict=True)
        ]
        assert sum(mixed) == pytest.approx(1)
        found.append(math.log(mixed[token]))
    return np.array(found)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("window", "theta"), [(1, 0.7), (6, 0.0), (8, 2.5), (1000, 0.4)])
def test_the_cache_is_the_papers(head: dict[str, Any], window: int, theta: float) -> None:
    model, tokens = make(**head), text(40)
    exact = by_the_paper(model, tokens, window, theta, 0.3)
    for chunk in (1, 5, 8, 100):
        (found,) = cached(model, tokens, chunk=chunk, window=window, theta=theta, weight=0.3)
        np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-10)


def test_a_large_window_is_read_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make(), text(40)
    monkeypatch.setattr(cache, "SLICE", 90)  # 3 rows of a window of 30
    (found,) = cached(model, tokens, chunk=100, window=30, theta=0.4, weight=0.3)
    np.testing.assert_allclose(found, by_the_paper(model, tokens, 30, 0.4, 0.3), rtol=1e-10)


def test_a_cache_without_weight_is_the_plain_model() -> None:
    model, tokens = make(), text(40)
    (found,) = cached(model, tokens, window=5, theta=1.0, weight=0.0, chunk=11)
    assert np.array_equal(found, plain(model, tokens)[0])


def test_probabilities_with_a_cache_sum_to_one() -> None:
    model = make()
    for context in ([], text(1), text(23)):
        ends = [[*context, token] for token in range(V)]
        found = cached(model, *ends, window=15, theta=1.5, weight=0.4)
        assert sum(math.exp(log_probs[-1]) for log_probs in found) == pytest.approx(1, abs=1e-12)


def test_products_beyond_any_exponential_are_no_matter() -> None:
    (found,) = cached(make(), [5] * 30, window=20, theta=1000.0, weight=0.4)
    assert np.isfinite(found).all()
    assert (found[1:] >= math.log(0.4)).all()


def test_the_cache_is_emptied_between_documents() -> None:
    model, documents = make(), [text(30), [], text(25, seed=1)]
    settings = {"window": 12, "theta": 0.5, "weight": 0.3}
    for found, tokens in zip(cached(model, *documents, **settings), documents, strict=True):
        np.testing.assert_allclose(found, cached(model, tokens, **settings)[0], atol=1e-12)


def test_the_cache_is_tuned_over_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in {
        "WINDOWS": (3, 20),
        "THETAS": (0.0, 0.5),
        "WEIGHTS": (0.1, 0.3),
        "TUNE_TOKENS": 45,
    }.items():
        monkeypatch.setattr(cache, name, values)
    model, documents, shares = make(), [text(30), text(40, seed=1)], list[float]()
    tuned = tune_cache(model, sequences(*documents), newline_id=NEWLINE, progress=shares.append)
    assert sum(shares) == pytest.approx(1)
    assert tuned.tokens == 45
    assert len({settings for settings, _ in tuned.tried}) == len(tuned.tried) == 8
    for settings, nats in tuned.tried:
        found = cached(model, documents[0], documents[1][:15], **dataclasses.asdict(settings))
        assert nats == pytest.approx(-np.concatenate(found).mean(), rel=1e-10)
    assert (tuned.best, min(nats for _, nats in tuned.tried)) in tuned.tried
    part = tune_cache(
        model, sequences(*documents), newline_id=NEWLINE, given={"window": 5, "weight": 0.2}
    )
    assert [settings for settings, _ in part.tried] == [
        CacheSettings(window=5, theta=theta, weight=0.2) for theta in (0.0, 0.5)
    ]


# Dynamic evaluation.


def by_definition(
    model: LanguageModel,
    settings: DynamicSettings,
    tokens: list[int],
    sizes: list[Tensor] | None = None,
) -> np.ndarray:
    """Krause et al., with explicit updates, on a copy of the model."""
    model = copy.deepcopy(model)
    trained = [parameter.detach().clone() for parameter in model.parameters()]
    state, last, found = model.initial_state(1), NEWLINE, list[float]()
    for start in range(0, len(tokens), settings.segment):
        part = tokens[start : start + settings.segment]
        log_probs, state = model.log_probs(torch.tensor([[last, *part[:-1]]]), state)
        of_targets = log_probs[0, range(len(part)), part]
        found += of_targets.tolist()
        model.zero_grad()
        (-of_targets.mean()).backward()
        with torch.no_grad():
            for i, (w, w0) in enumerate(zip(model.parameters(), trained, strict=True)):
                assert w.grad is not None
                if sizes is None:
                    step = -settings.lr * w.grad + settings.decay * (w0 - w)
                else:
                    average = sum(size.mean() for size in sizes) / len(sizes)
                    norm = (sizes[i] / average).clamp(max=1 / settings.decay)
                    step = -settings.lr * w.grad / (sizes[i] + settings.epsilon)
                    step += settings.decay * (w0 - w) * norm
                w.add_(step)
        state, last = state.detach(), part[-1]
    return np.array(found)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("segment", [1, 5])
def test_sgd_is_as_defined(head: dict[str, Any], segment: int) -> None:
    model, tokens = make(**head), text(33)
    settings = DynamicSettings(method="sgd", lr=0.3, decay=0.1, segment=segment)
    (found,) = adapted(model, settings, tokens)
    np.testing.assert_allclose(found, by_definition(model, settings, tokens), rtol=1e-10)
    assert np.abs(found - plain(model, tokens)[0]).max() > 0.01


@pytest.mark.parametrize("head", HEADS)
def test_rms_is_as_defined(head: dict[str, Any]) -> None:
    model, tokens = make(**head), text(33)
    copied, squares = copy.deepcopy(model), [torch.zeros_like(p) for p in model.parameters()]
    state, read = model.initial_state(3), batches(6)
    for inputs, targets in read:
        log_probs, state = copied.log_probs(torch.from_numpy(inputs), state.detach())
        copied.zero_grad()
        (-log_probs.gather(2, torch.from_numpy(targets)[..., None]).mean()).backward()
        for square, weight in zip(squares, copied.parameters(), strict=True):
            assert weight.grad is not None
            square.add_(weight.grad**2 / len(read))
    rms = [square.detach().sqrt() for square in squares]
    counts: list[int] = []
    for mine, size in zip(gradient_rms(model, read, progress=counts.append), rms, strict=True):
        np.testing.assert_allclose(mine, size, rtol=1e-10)
    assert counts == [12] * 6

    # The decay is clipped for some weights only.
    settings = DynamicSettings(method="rms", lr=0.01, decay=0.4, segment=5, epsilon=1e-3)
    average = torch.stack([size.mean() for size in rms]).mean()
    clipped = torch.cat([(0.4 * size / average > 1).flatten() for size in rms])
    assert clipped.any()
    assert not clipped.all()
    (found,) = adapted(model, settings, tokens, rms=rms)
    np.testing.assert_allclose(found, by_definition(model, settings, tokens, rms), rtol=1e-10)
    assert np.abs(found - plain(model, tokens)[0]).max() > 0.01


SGD = DynamicSettings(method="sgd", lr=0.5, decay=0.01, segment=5)
RMS = DynamicSettings(method="rms", lr=0.03, decay=0.01, segment=5, epsilon=1e-3)


def size_for(model: LanguageModel, settings: DynamicSettings) -> list[Tensor] | None:
    return gradient_rms(model, batches(6)) if settings.method == "rms" else None


@pytest.mark.parametrize("settings", [SGD, RMS], ids=["sgd", "rms"])
def test_a_rate_of_zero_is_the_plain_score(settings: DynamicSettings) -> None:
    model, documents = make(), [text(33), [], text(12, seed=1)]
    still = dataclasses.replace(settings, lr=0)
    found = adapted(model, still, *documents, rms=size_for(model, settings))
    for mine, exact in zip(found, plain(model, *documents), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [SGD, RMS], ids=["sgd", "rms"])
def test_each_document_is_read_by_the_trained_model(settings: DynamicSettings) -> None:
    model, documents = make(), [text(33), text(21, seed=1)]
    rms = size_for(model, settings)
    for found, tokens in zip(adapted(model, settings, *documents, rms=rms), documents, strict=True):
        assert np.array_equal(found, adapted(model, settings, tokens, rms=rms)[0])


@pytest.mark.parametrize("place", [0, 6, 10])
def test_no_probability_depends_on_what_is_not_yet_read(place: int) -> None:
    model, tokens = make(), text(30)
    rms = gradient_rms(model, batches(6))
    before = [
        cached(model, tokens, window=8, theta=0.5, weight=0.3)[0],
        adapted(model, SGD, tokens)[0],
        adapted(model, RMS, tokens, rms=rms)[0],
    ]
    changed = [*tokens[:place], (tokens[place] + 1) % V, *tokens[place + 1 :]]
    after = [
        cached(model, changed, window=8, theta=0.5, weight=0.3)[0],
        adapted(model, SGD, changed)[0],
        adapted(model, RMS, changed, rms=rms)[0],
    ]
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one[:place], other[:place])
        assert (one[place:] != other[place:]).all()
    # The model must not have learned from the changed token when scoring it: probabilities of all its
    # possible values sum to one.
    ends = [[*tokens[:place], token] for token in range(V)]
    for settings in (SGD, RMS):
        found = adapted(model, settings, *ends, rms=rms)
        assert sum(math.exp(log_probs[-1]) for log_probs in found) == pytest.approx(1, abs=1e-12)


def test_the_model_is_left_as_it_was_whatever_happens() -> None:
    model = make()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    objects, calls = [id(parameter) for parameter in model.parameters()], 0

    def unchanged() -> bool:
        return all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())

    def untouched() -> bool:
        no_gradients = all(parameter.grad is None for parameter in model.parameters())
        same = objects == [id(parameter) for parameter in model.parameters()]
        return unchanged() and no_gradients and same and not model.training

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            assert not unchanged(), "the weights have been updated"
            raise Stopped(15)

    adapted(model, SGD, text(40), text(20))
    adapted(model, RMS, text(40), rms=gradient_rms(model, batches(3)))
    assert untouched()
    with pytest.raises(Stopped):
        adapted(model, SGD, text(40), stop=stop)
    assert untouched()
    portions = score_dynamically(model, [(0, [text(40)])], newline_id=NEWLINE, settings=SGD)
    for _ in range(3):
        next(portions)
    assert not unchanged()
    portions.close()
    assert untouched()


def test_a_model_that_leaves_the_finite_numbers_is_an_error() -> None:
    model = make()
    with torch.no_grad():
        model.head.bias[0] = math.inf
    with pytest.raises(DivergedError, match="sgd"):
        adapted(model, SGD, text(40))
    assert not model.training
    tuned = tune_dynamic(model, sequences(text(9)), newline_id=NEWLINE, start=SGD)
    assert {nats for _, nats in tuned.tried} == {math.inf}
    for given in ("lr", "decay"):
        tuned = tune_dynamic(
            model, sequences(text(9)), newline_id=NEWLINE, start=SGD, given={given}
        )
        assert {getattr(settings, given) for settings, _ in tuned.tried} == {getattr(SGD, given)}


def test_a_repetitive_text_gains() -> None:
    model, tokens = make(), text(17) * 8
    rms = gradient_rms(model, batches(6))
    still = plain(model, tokens)[0].sum()
    for found in (
        cached(model, tokens, window=100, theta=1.0, weight=0.3)[0],
        adapted(model, SGD, tokens)[0],
        adapted(model, RMS, tokens, rms=rms)[0],
    ):
        assert found.sum() > 0.9 * still


@pytest.mark.parametrize("method", dynamic.METHODS)
def test_rate_and_decay_are_tuned(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "TUNE_TOKENS", 45)
    monkeypatch.setitem(dynamic.RATES, method, (0.001, 0.01, 900.0, 1000.0))
    monkeypatch.setitem(dynamic.DECAYS, method, (0.0, 0.1, 0.5))
    model, documents, shares = make(), [text(30), text(40, seed=1)], list[float]()
    start = dataclasses.replace(DEFAULTS[method], decay=0.1, segment=4)
    rms = size_for(model, start)
    tuned = tune_dynamic(
        model,
        sequences(*documents),
        newline_id=NEWLINE,
        start=start,
        rms=rms,
        progress=shares.append,
    )
    assert sum(shares) == pytest.approx(1)
    assert tuned.tokens == 45
    pairs = [(settings.lr, settings.decay) for settings, _ in tuned.tried]
    assert pairs[:3] == [(0.001, 0.1), (0.01, 0.1), (900.0, 0.1)]  # stops here
    assert pairs[3:] == [(0.01, 0.0), (0.01, 0.5)]
    for settings, nats in tuned.tried:
        assert settings.segment == 4
        if settings.lr < 1:
            found = adapted(model, settings, documents[0], documents[1][:15], rms=rms)
            assert nats == pytest.approx(-np.concatenate(found).mean(), rel=1e-10)
    assert (tuned.best, min(nats for _, nats in tuned.tried)) in tuned.tried


@pytest.mark.parametrize(
    "wrong",
    [
        *({"window": value} for value in (0, 1 << 30)),
        *({"theta": value} for value in (-0.1, math.inf, math.nan)),
        *({"weight": value} for value in (-0.1, 1.0, math.nan)),
    ],
)
def test_impossible_caches_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        CacheSettings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "smg"},
        *({"lr": value} for value in (-0.1, math.inf, math.nan)),
        *({"decay": value} for value in (-0.1, 1.1, math.nan)),
        {"segment": 0},
        {"epsilon": 0.0},
    ],
)
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DynamicSettings(**{"method": "sgd", "lr": 0.1, "decay": 0.1, **wrong})


def test_gradients_of_no_text_are_refused() -> None:
    with pytest.raises(InputError):
        gradient_rms(make(), [])
