"""Softmaxes against literal constructions: loss, gradients, distributions, slicing, memory, cutoffs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from gru_lm.model import cross_entropy as slicing
from gru_lm.model.cross_entropy import linear_cross_entropy, target_log_probs
from gru_lm.model.heads import (
    AdaptiveSoftmax,
    FullSoftmax,
    choose_cutoffs,
)

Head = FullSoftmax | AdaptiveSoftmax
CUTOFFS = [(), (1,), (5,), (1, 2), (3, 11), (7, 8, 20)]


def make(cutoffs: tuple[int, ...], *, V: int = 29, E: int = 6, tied: bool = True) -> Head:
    """A float64 head with random parameters and ranks, for hidden states of width E."""
    torch.manual_seed(V + E)
    head: Head
    if cutoffs:
        head = AdaptiveSoftmax(V, embed=E, cutoffs=cutoffs)
    else:
        head = FullSoftmax(V, embed=E if tied else 3, width=E, tied=tied)
    head = head.double()
    head.set_unigram(torch.randint(0, 50, (V,)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


@contextmanager
def slices_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "SLICE", size)
        yield


def literal(head: AdaptiveSoftmax, hidden_NE: Tensor) -> Tensor:
    """Log-probabilities of all tokens [N, V], computed token by token as in the papers."""
    first = linear(hidden_NE, head.weights[0], head.biases[0]).softmax(-1)
    starts = [*head.starts, len(head.rank_V)]
    columns = []
    for rank in head.rank_V.tolist():
        i = max(i for i, start in enumerate(head.starts) if start <= rank)
        if i == 0:
            columns.append(first[:, rank])
            continue
        inner = hidden_NE @ head.projections[i - 1].t()
        within = linear(inner, head.weights[i], head.biases[i]).softmax(-1)
        assert within.shape[1] == starts[i + 1] - starts[i]
        columns.append(first[:, head.starts[1] + i - 1] * within[:, rank - starts[i]])
    return torch.stack(columns, -1).log()


def literal_embedding(head: AdaptiveSoftmax, token: int) -> Tensor:
    rank = int(head.rank_V[token])
    i = max(i for i, start in enumerate(head.starts) if start <= rank)
    row = head.weights[i][rank - head.starts[i]]
    return head.scale * (row if i == 0 else row @ head.projections[i - 1])


def gradients(loss: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, wanted, materialize_grads=True))


@settings(max_examples=60)
@given(
    N=st.integers(1, 40),
    V=st.integers(1, 30),
    H=st.integers(1, 9),
    size=st.integers(1, 400),
    seed=st.integers(0, 9),
)
def test_sliced_cross_entropy_matches_torch(N: int, V: int, H: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    hidden, weight, bias = (
        (3 * torch.randn(*shape, dtype=torch.float64)).requires_grad_()
        for shape in ((N, H), (V, H), (V,))
    )
    targets = torch.randint(0, V, (N,))
    expected = cross_entropy(linear(hidden, weight, bias), targets, reduction="none")
    with slices_of(size):
        found = linear_cross_entropy(hidden, weight, bias, targets)
        log_probs = target_log_probs(hidden, weight, bias, targets)
    torch.testing.assert_close(found, expected.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_probs, -expected, rtol=1e-12, atol=1e-12)
    inputs = [hidden, weight, bias]
    for one, other in zip(
        gradients(5 * found, inputs), gradients(5 * expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@settings(max_examples=40)
@given(data=st.data(), N=st.integers(1, 30), V=st.integers(3, 30), size=st.integers(1, 300))
def test_adaptive_matches_its_literal_construction(
    data: st.DataObject, N: int, V: int, size: int
) -> None:
    cutoffs = data.draw(st.sets(st.integers(1, V - 1), min_size=1, max_size=4).map(sorted))
    head = make(tuple(cutoffs), V=V)
    assert isinstance(head, AdaptiveSoftmax)
    hidden = torch.randn(N, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, V, (N,))
    dense = literal(head, hidden)
    expected = -dense.gather(1, targets[:, None]).mean()
    with slices_of(size):
        loss = head.loss(hidden, targets)
        log_probs = head.target_log_probs(hidden, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log_probs, dense.gather(1, targets[:, None])[:, 0].detach())
    torch.testing.assert_close(head.log_probs(hidden), dense)
    inputs = [hidden, *head.parameters()]
    for one, other in zip(gradients(loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_the_distribution_sums_to_one(cutoffs: tuple[int, ...]) -> None:
    log_probs = make(cutoffs).log_probs(torch.randn(2, 5, 6, dtype=torch.float64))
    assert log_probs.shape == (2, 5, 29)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_embeddings_and_their_gradient(cutoffs: tuple[int, ...]) -> None:
    head = make(cutoffs)
    tokens = torch.randint(0, 29, (4, 7))
    table = head.table(torch.arange(0))[0]
    found = head.embed(tokens)
    torch.testing.assert_close(found, table[tokens])
    weights = torch.randn_like(found)
    parameters = list(head.parameters())
    if isinstance(head, AdaptiveSoftmax):
        table = torch.stack([literal_embedding(head, token) for token in range(29)])
        torch.testing.assert_close(head.table(torch.arange(0))[0], table)
    for one, other in zip(
        gradients((found * weights).sum(), parameters),
        gradients((table[tokens] * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_initial_distribution_is_the_unigram_distribution(cutoffs: tuple[int, ...]) -> None:
    head = make(cutoffs)
    counts = torch.randint(0, 1000, (29,))
    head.set_unigram(counts)
    log_probs = head.log_probs(torch.zeros(1, 6, dtype=torch.float64))[0]
    expected = ((counts + 1).double() / (counts + 1).sum()).log()
    torch.testing.assert_close(log_probs, expected)
    if isinstance(head, AdaptiveSoftmax):
        by_rank = torch.empty_like(counts)
        by_rank[head.rank_V] = counts
        assert torch.equal(by_rank, counts.sort(descending=True).values)


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_gradients_by_finite_differences(cutoffs: tuple[int, ...]) -> None:
    head = make(cutoffs, E=4)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 28, 7, 7, 13])
    names = [name for name, _ in head.named_parameters()]

    def loss(hidden: Tensor, *values: Tensor) -> Tensor:
        held = dict(zip(names, values, strict=True))
        done: Tensor = torch.func.functional_call(
            _Loss(head), {f"head.{n}": v for n, v in held.items()}, (hidden, targets)
        )
        return done

    parameters = [p.detach().clone().requires_grad_() for p in head.parameters()]
    with slices_of(60):
        assert torch.autograd.gradcheck(loss, (hidden, *parameters), fast_mode=True)


class _Loss(torch.nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self.head.loss(hidden, targets)


def test_second_backward_gives_the_same_gradients() -> None:
    head = make((3, 11))
    loss = head.loss(torch.randn(9, 6, dtype=torch.float64), torch.arange(9))
    parameters = list(head.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    for one, other in zip(once, torch.autograd.grad(2 * loss, parameters), strict=True):
        torch.testing.assert_close(2 * one, other)


def test_clusters_without_targets_get_zero_gradients() -> None:
    """Zero, not None: the optimizer would skip None, and its state would depend on the batches seen."""
    head = make((3, 11))
    assert isinstance(head, AdaptiveSoftmax)
    common = head.rank_V.argsort()[:2]
    head.loss(head.embed(common), common).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert not head.weights[2].grad.any()
    torch.testing.assert_close(head.target_log_probs(head.embed(common), common).shape, (2,))


class Largest(TorchDispatchMode):
    """Records the size, in elements, of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("cutoffs", [(), (50, 400)])
def test_logits_are_never_materialized_at_once(cutoffs: tuple[int, ...]) -> None:
    V, E, N, size = 2000, 8, 1000, 1 << 16
    head = make(cutoffs, V=V, E=E)
    hidden = torch.randn(N, E, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, V, (N,))
    with slices_of(size), Largest() as largest:
        head.loss(hidden, targets).backward()
        head.target_log_probs(hidden, targets)
    assert largest.elements <= size < N * V
    assert largest.elements > size / 3, "sanity check of the measurement"


def test_embedding_lookup_does_not_touch_the_whole_vocabulary() -> None:
    head, tokens = make((50, 400), V=2000, E=8), torch.arange(0, 2000, 100)
    with Largest() as largest:
        head.embed(tokens)
    assert largest.elements <= len(tokens) * 8


@pytest.mark.parametrize("cutoffs", [(), (3, 11)])
def test_autocast_is_close_to_float32(cutoffs: tuple[int, ...]) -> None:
    head = make(cutoffs, E=16).float()
    hidden = torch.randn(40, 16, requires_grad=True)
    targets = torch.randint(0, 29, (40,))
    inputs = [hidden, *head.parameters()]
    exact = head.loss(hidden, targets)
    with torch.autocast("cpu", torch.bfloat16), slices_of(200):
        rough = head.loss(hidden, targets)
        embedded = head.embed(targets)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    torch.testing.assert_close(embedded.float(), head.embed(targets), rtol=0.05, atol=0.05)
    for one, other in zip(gradients(rough, inputs), gradients(exact, inputs), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.05 * other.norm()


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=300),
    embed=st.integers(1, 600),
)
def test_cutoffs_lie_within_the_vocabulary_for_any_counts(counts: list[int], embed: int) -> None:
    V = len(counts)
    cutoffs = choose_cutoffs(torch.tensor(counts), embed=embed)
    assert len(cutoffs) == min(2, V - 1)
    assert sorted({0, *cutoffs, V}) == [0, *cutoffs, V]


def test_cutoffs_save_most_of_the_cost_on_zipfian_text() -> None:
    V, E = 33_000, 200
    zipf = 1e6 / torch.arange(1, V + 1)
    first, second = choose_cutoffs(zipf[torch.randperm(V)], embed=E)
    rarer = 1 - zipf.cumsum(0) / zipf.sum()
    weights = first * E
    weights += float(rarer[first] - rarer[second]) * (second - first) * E / 2
    weights += float(rarer[second]) * (V - second) * E / 4
    assert weights < V * E / 9


def test_ranks_must_be_a_permutation() -> None:
    head = make((3, 11))
    assert isinstance(head, AdaptiveSoftmax)
    head.check()
    good = head.rank_V
    for bad in (good % 28, good + 1, good - 1, good.double(), good.int()):
        head.rank_V = bad
        with pytest.raises(ValueError, match="permutation"):
            head.check()


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_absent_from_training_share_a_row(tied: bool) -> None:
    torch.manual_seed(3)
    counts_V = torch.randint(1, 9, (29,)) * (torch.arange(29) % 3 == 1)
    head = FullSoftmax(29, embed=6 if tied else 4, width=6, tied=tied, rows=11).double()
    head.set_unigram(counts_V)
    torch.testing.assert_close(head.whole()[2].exp().sum(), torch.ones((), dtype=torch.float64))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hidden_NH, targets_N = torch.randn(29, 6, dtype=torch.float64), torch.arange(29)
    log_probs_NV = head.log_probs(hidden_NH)
    torch.testing.assert_close(log_probs_NV.exp().sum(1), torch.ones(29, dtype=torch.float64))
    assert (log_probs_NV[:, [0, 2, 3]] == log_probs_NV[:, :1]).all(), "shared row, same probability"
    assert not torch.equal(log_probs_NV[:, 1], log_probs_NV[:, 4])
    found_N = head.target_log_probs(hidden_NH, targets_N)
    torch.testing.assert_close(found_N, log_probs_NV.diagonal())
    torch.testing.assert_close(head.loss(hidden_NH, targets_N), -found_N.mean())
    table, rows = head.table(targets_N)
    torch.testing.assert_close(table[rows], head.embed(targets_N))
    embedded = head.embed(targets_N)
    assert not head.confuses(counts_V)
    assert head.confuses(counts_V + 1)
    head.unshare()
    assert len(head.bias) == 29
    assert not head.confuses(counts_V + 1)
    torch.testing.assert_close(head.log_probs(hidden_NH), log_probs_NV)
    torch.testing.assert_close(head.loss(hidden_NH, targets_N), -found_N.mean())
    torch.testing.assert_close(head.embed(targets_N), embedded)


def test_rows_must_match_tokens() -> None:
    head = FullSoftmax(29, embed=6, width=6, tied=True, rows=11)
    head.check()
    assert head.row_V is not None
    good = head.row_V
    for bad in (good % 10, good + 1, good.double(), good.int(), good * 0, good.clamp(max=9)):
        head.row_V = bad
        with pytest.raises(ValueError, match="rows"):
            head.check()
