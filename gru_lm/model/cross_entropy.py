"""Cross-entropy of the logits W h + b without materializing all of them.

Positions are processed in slices of at most SLICE logits. The gradient is computed in the forward pass,
so no logits are stored or recomputed for the backward pass. Knows rows of a matrix, not their meaning.

Shapes: N positions, n positions of a slice, V rows, H width of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gru_lm.model.products import add_outer, in_bf16, product

# Logits per slice: 32 MiB in float32. Measured at V = 33,000: smaller slices lose time to repeated
# passes over the weight gradient, larger ones gain nothing.
SLICE = 1 << 23


def linear_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor
) -> Tensor:
    """Σ −log softmax(W h + b)[target] in nats, a scalar; differentiable once."""
    nats: Tensor = _LinearCrossEntropy.apply(hidden_NH, weight_VH, bias_V, targets_N)  # type: ignore[no-untyped-call]
    return nats


@torch.no_grad()
def target_log_probs(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor
) -> Tensor:
    """log softmax(W h + b)[target], [N], in nats; not differentiable."""
    log_probs_N = bias_V.new_empty(len(targets_N))
    for at, log_probs_nV in _slices(hidden_NH, weight_VH, bias_V):
        log_probs_N[at] = log_probs_nV.gather(1, targets_N[at, None])[:, 0]
    return log_probs_N


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one forward pass over slices.

    The backward pass only scales that gradient. Under autocast, products run in its dtype and the
    softmax in float32; our own bfloat16 kernel rounds only its inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor
    ) -> Tensor:
        device = hidden_NH.device.type
        native = in_bf16(weight_VH)
        autocast = torch.is_autocast_enabled(device) and not native
        dtype = torch.get_autocast_dtype(device) if autocast else weight_VH.dtype
        hidden, weight = hidden_NH.to(dtype), weight_VH.to(dtype)
        weight_HV = weight.t() if native else weight.t().contiguous()
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        d_bias, nats = torch.zeros_like(bias_V), bias_V.new_zeros(())
        for at, log_probs_nV in _slices(hidden, weight, bias_V.to(dtype)):
            target_n1 = targets_N[at, None]
            nats -= log_probs_nV.gather(1, target_n1).sum()
            d_logits_nV = log_probs_nV.exp_()  # softmax − one-hot, in place
            d_logits_nV.scatter_(1, target_n1, d_logits_nV.gather(1, target_n1) - 1)
            d_bias += d_logits_nV.sum(0)
            d_logits_nV = d_logits_nV.to(dtype)
            d_hidden[at] = product(d_logits_nV, weight_HV)
            add_outer(d_weight, d_logits_nV, hidden[at])
        ctx.save_for_backward(d_hidden.to(hidden_NH.dtype), d_weight.to(weight_VH.dtype), d_bias)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return d_hidden * scale, d_weight * scale, d_bias * scale, None


def _slices(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the positions and their log-probabilities [n, V], in float32 or float64."""
    size = max(1, min(len(hidden_NH), SLICE // len(weight_VH)))
    for start in range(0, len(hidden_NH), size):
        logits_nV = product(hidden_NH[start : start + size], weight_VH, bias_V)
        dtype = torch.promote_types(logits_nV.dtype, torch.float32)
        yield slice(start, start + len(logits_nV)), logits_nV.to(dtype).log_softmax(1)
