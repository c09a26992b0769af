"""Cross-entropy of a product, W h + b, without ever holding all its logits: the softmaxes' arithmetic.

Slice after slice of the positions, at most SLICE logits each; the gradient is made in the forward
pass, so nothing is kept or done twice. Knows rows of a matrix, not what they stand for.

Shapes: N positions, n positions of a slice, V rows, H what a row is multiplied with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gru_lm.model.products import add_outer, in_bf16, product

# Logits of a slice: 32 MiB in float32. Measured: at V = 33,000 smaller slices lose to the many passes
# over the gradient of the weights, larger ones gain nothing.
SLICE = 1 << 23


def linear_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor
) -> Tensor:
    """Σ −log softmax(W h + b)[target], in nats: a scalar to differentiate (once)."""
    done: Tensor = _LinearCrossEntropy.apply(hidden_NH, weight_VH, bias_V, targets_N)  # type: ignore[no-untyped-call]
    return done


@torch.no_grad()
def target_log_probs(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor
) -> Tensor:
    """log softmax(W h + b)[target] [N], in nats; not to be differentiated."""
    log_probs_N = bias_V.new_empty(len(targets_N))
    for at, log_probs_nV in _slices(hidden_NH, weight_VH, bias_V):
        log_probs_N[at] = log_probs_nV.gather(1, targets_N[at, None])[:, 0]
    return log_probs_N


class _LinearCrossEntropy(torch.autograd.Function):
    """Slice after slice of the positions; forward makes the gradient too, so nothing is kept or redone.

    Backward only scales what is there, by whatever factor the loss was multiplied with. Under autocast
    the products are in its type and the softmax in float32; by our own kernels, only what they multiply
    is in its type.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor
    ) -> Tensor:
        device = hidden_NH.device.type
        ours = in_bf16(weight_VH)
        autocast = torch.is_autocast_enabled(device) and not ours
        dtype = torch.get_autocast_dtype(device) if autocast else weight_VH.dtype
        hidden, weight = hidden_NH.to(dtype), weight_VH.to(dtype)
        turned_HV = weight.t() if ours else weight.t().contiguous()
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        d_bias, nats = torch.zeros_like(bias_V), bias_V.new_zeros(())
        for at, log_probs_nV in _slices(hidden, weight, bias_V.to(dtype)):
            target_n1 = targets_N[at, None]
            nats -= log_probs_nV.gather(1, target_n1).sum()
            d_logits_nV = log_probs_nV.exp_()  # softmax − one-hot, in place
            d_logits_nV.scatter_(1, target_n1, d_logits_nV.gather(1, target_n1) - 1)
            d_bias += d_logits_nV.sum(0)
            d_logits_nV = d_logits_nV.to(dtype)
            d_hidden[at] = product(d_logits_nV, turned_HV)
            add_outer(d_weight, d_logits_nV, hidden[at])
        ctx.save_for_backward(d_hidden.to(hidden_NH.dtype), d_weight.to(weight_VH.dtype), d_bias)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return d_hidden * scale, d_weight * scale, d_bias * scale, None


def _slices(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the positions, and their log-probabilities [n, V] in float32 or wider."""
    size = max(1, min(len(hidden_NH), SLICE // len(weight_VH)))
    for start in range(0, len(hidden_NH), size):
        logits_nV = product(hidden_NH[start : start + size], weight_VH, bias_V)
        kind = torch.promote_types(logits_nV.dtype, torch.float32)
        yield slice(start, start + len(logits_nV)), logits_nV.to(kind).log_softmax(1)
