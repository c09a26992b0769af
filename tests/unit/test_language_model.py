"""The language model: carried state, tied weights, unigram initialization, parameter counts."""

from typing import Any

import pytest
import torch

from gru_lm.errors import UsageError
from gru_lm.model import cross_entropy
from gru_lm.model.cells import CELLS
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.regularize import Regularization

V, B, T = 11, 3, 12
HEADS: list[dict[str, Any]] = [{}, {"tied": True}, {"tied": True, "cutoffs": (2, 5)}]


def make(
    cell: str = "gru", regularization: Regularization | None = None, **changes: object
) -> LanguageModel:
    torch.manual_seed(0)
    values = {"vocab_size": V, "layers": 2, "width": 8, "embed": 5, **changes}
    config = ModelConfig(cell=cell, **values)
    model = LanguageModel(config, regularization=regularization).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("head", HEADS)
def test_chunks_with_carried_state_match_the_full_pass(cell: str, head: dict[str, Any]) -> None:
    model, x = make(cell, **head), tokens()
    whole, after_whole = model.log_probs(x, model.initial_state(B))
    state, parts = model.initial_state(B), []
    for chunk in x.split([1, 4, 7], dim=1):
        part, state = model.log_probs(chunk, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, after_whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_loss_and_log_probs_agree(head: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "SLICE", 4 * V)  # several slices, the last one short
    model, x, y = make(**head), tokens(0), tokens(1)
    state = model.initial_state(B)
    log_probs, _ = model.log_probs(x, state)
    targets, _ = model.target_log_probs(x, y, state)
    loss, penalty, _ = model.loss(x, y, state)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(B, T, dtype=torch.float64))
    torch.testing.assert_close(targets, log_probs.gather(-1, y[..., None])[..., 0])
    torch.testing.assert_close(loss, -targets.mean())
    assert penalty == 0


def test_initial_distribution_is_unigram() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(cell="gru", vocab_size=V, layers=1, width=8, embed=5))
    counts = torch.arange(V) * 10
    model.set_unigram(counts)
    log_probs, _ = model.log_probs(tokens(), model.initial_state(B))
    expected = ((counts + 1) / (counts + 1).sum()).log().expand(B, T, V)
    torch.testing.assert_close(log_probs, expected)


def test_tied_weights_are_counted_once() -> None:
    untied, tied, projected = make(embed=8), make(embed=8, tied=True), make(embed=5, tied=True)
    assert untied.parameter_count() - tied.parameter_count() == V * 8
    assert projected.to_embedding is not None
    assert (
        projected.parameter_count() == sum(p.numel() for p in projected.parameters()) - 2 * 2 * 8
    )  # redundant biases of r and z in two layers


def test_dropout_needs_noise() -> None:
    model, x = make(regularization=Regularization(dropout=0.5)), tokens()
    state = model.initial_state(B)
    assert torch.equal(model.loss(x, x, state)[0], model.loss(x, x, state)[0])
    noise = torch.Generator().manual_seed(0)
    noisy = [model.loss(x, x, state, noise)[0].item() for _ in range(2)]
    assert noisy[0] != noisy[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"layers": 1000},
        {"vocab_size": 1 << 30},
        {"embed": -1},
        *(
            {"cutoffs": cutoffs, "tied": True}
            for cutoffs in ([0, 2], [2, 2], [3, 2], [1, 5], [1.5])
        ),
        {"cutoffs": [True], "tied": True},
        {"cutoffs": list(range(1, 50)), "tied": True, "vocab_size": 100},
        {"cutoffs": [1, 2]},
    ],
)
def test_invalid_sizes_are_rejected(wrong: dict[str, Any]) -> None:
    values = {"cell": "gru", "vocab_size": 5, "layers": 1, "width": 4, "embed": 4, **wrong}
    with pytest.raises(UsageError):
        ModelConfig(**values)


def test_unknown_cell_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        ModelConfig(cell="gruu", vocab_size=5, layers=1, width=4, embed=4)
    assert "did you mean gru?" in str(caught.value.hint)
