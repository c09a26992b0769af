"""Choosing the next token from N distributions: temperature, filters, and the draw itself.

Works on log-probabilities, independent of model, tokenizer and text. All functions are pure: randomness
is passed in as uniform numbers in [0, 1).

Shapes: N samples, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gru_lm.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Sampling parameters. The defaults leave the model's distribution unmodified.

    Applied in this order: repetition penalty, temperature, top-k, top-p, min-p, typical; each filter
    receives the renormalised output of the previous one. Raises UsageError if a value is out of range.
    """

    temperature: float = 1.0  # 0: greedy, the most probable token; filters are ignored
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed, valid in (
            ("temperature", "of 0 or more", 0 <= self.temperature < float("inf")),
            ("top-k", "of 0 (off) or more", self.top_k >= 0),
            ("top-p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min-p", "from 0 to 1", 0 <= self.min_p <= 1),
            ("typical", "above 0 and at most 1", 0 < self.typical <= 1),
            ("repetition-penalty", "above 0", 0 < self.repetition_penalty < float("inf")),
        ):
            if not valid:
                value = getattr(self, name.replace("-", "_"))
                raise UsageError(f"--{name} {value} is out of range", hint=f"use a value {allowed}")

    def choose(
        self, log_probs_NV: np.ndarray, seen_NV: np.ndarray, uniform_N: np.ndarray
    ) -> np.ndarray:
        """Choose one token per row [N]: the argmax if greedy, else drawn with `uniform_N` in [0, 1)."""
        filtered_NV = self.distribution(log_probs_NV, seen_NV)
        if self.temperature > 0:
            return draw(filtered_NV, uniform_N)
        tokens_N: np.ndarray = filtered_NV.argmax(axis=1)
        return tokens_N

    def distribution(self, log_probs_NV: np.ndarray, seen_NV: np.ndarray) -> np.ndarray:
        """The filtered log-probabilities [N, V]; `seen_NV` marks the tokens to penalise."""
        if self.repetition_penalty != 1:
            log_probs_NV = penalise_repetition(log_probs_NV, seen_NV, self.repetition_penalty)
        if self.temperature == 0:
            return (
                log_probs_NV  # filters do not apply; `typical` could remove the most probable token
            )
        if self.temperature != 1:
            log_probs_NV = apply_temperature(log_probs_NV, self.temperature)
        if self.top_k:
            log_probs_NV = keep_top_k(log_probs_NV, self.top_k)
        if self.top_p < 1:
            log_probs_NV = keep_top_p(log_probs_NV, self.top_p)
        if self.min_p:
            log_probs_NV = keep_min_p(log_probs_NV, self.min_p)
        if self.typical < 1:
            log_probs_NV = keep_typical(log_probs_NV, self.typical)
        return log_probs_NV


def normalise(log_probs_NV: np.ndarray) -> np.ndarray:
    """Shift each row so that its probabilities sum to one."""
    shifted_NV: np.ndarray = log_probs_NV - log_probs_NV.max(axis=1, keepdims=True)
    shifted_NV -= np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True))
    return shifted_NV


def _keep(log_probs_NV: np.ndarray, kept_NV: np.ndarray) -> np.ndarray:
    return normalise(np.where(kept_NV, log_probs_NV, -np.inf))


def _first_of_mass(probs_NV: np.ndarray, order_NV: np.ndarray, mass: float) -> np.ndarray:
    """Mask of the shortest prefix of the given order whose probabilities reach `mass`."""
    sorted_NV = np.take_along_axis(probs_NV, order_NV, axis=1)
    before_NV = np.cumsum(sorted_NV, axis=1) - sorted_NV
    kept_NV = np.empty(probs_NV.shape, bool)
    np.put_along_axis(kept_NV, order_NV, before_NV < mass, axis=1)
    return kept_NV


def penalise_repetition(
    log_probs_NV: np.ndarray, seen_NV: np.ndarray, penalty: float
) -> np.ndarray:
    """Raise the probability of each token in `seen_NV` to the power of `penalty`; renormalise.

    Keskar et al. 2019 (CTRL), section 4.1, applied to log-probabilities: on logits the effect would
    depend on an additive constant to which the softmax is invariant.
    """
    return normalise(np.where(seen_NV, log_probs_NV * penalty, log_probs_NV))


def apply_temperature(log_probs_NV: np.ndarray, temperature: float) -> np.ndarray:
    """Raise every probability to the power of 1 / temperature; renormalise."""
    # Subtract the maximum first, so that a tiny temperature overflows to -inf and not to NaN.
    shifted_NV = log_probs_NV - log_probs_NV.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        return normalise(shifted_NV / temperature)


def keep_top_k(log_probs_NV: np.ndarray, k: int) -> np.ndarray:
    """Keep the k most probable tokens, including ties with the last (Fan et al. 2018)."""
    V = log_probs_NV.shape[1]
    if k >= V:
        return log_probs_NV
    least_N1 = np.partition(log_probs_NV, V - k, axis=1)[:, V - k, None]
    return _keep(log_probs_NV, log_probs_NV >= least_N1)


def keep_top_p(log_probs_NV: np.ndarray, p: float) -> np.ndarray:
    """Keep the smallest set of most probable tokens with mass p (nucleus: Holtzman et al. 2020)."""
    order_NV = np.argsort(-log_probs_NV, axis=1, kind="stable")
    return _keep(log_probs_NV, _first_of_mass(np.exp(log_probs_NV), order_NV, p))


def keep_min_p(log_probs_NV: np.ndarray, p: float) -> np.ndarray:
    """Keep tokens at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    least_N1 = log_probs_NV.max(axis=1, keepdims=True) + np.log(p)
    return _keep(log_probs_NV, log_probs_NV >= least_N1)


def keep_typical(log_probs_NV: np.ndarray, mass: float) -> np.ndarray:
    """Keep the smallest set with this mass of the tokens whose surprisal is nearest to the entropy.

    Locally typical sampling: Meister et al. 2023.
    """
    probs_NV = np.exp(log_probs_NV)
    finite_NV = np.where(probs_NV > 0, log_probs_NV, 0)
    entropy_N1 = -(probs_NV * finite_NV).sum(axis=1, keepdims=True)
    order_NV = np.argsort(np.abs(-log_probs_NV - entropy_N1), axis=1, kind="stable")
    return _keep(log_probs_NV, _first_of_mass(probs_NV, order_NV, mass))


def draw(log_probs_NV: np.ndarray, uniform_N: np.ndarray) -> np.ndarray:
    """The token of each row [N] at which the cumulative probability first exceeds u in [0, 1)."""
    cumulative_NV = np.cumsum(np.exp(log_probs_NV), axis=1)
    total_N = cumulative_NV[:, -1]
    # u * total may round up to the total, past the last token of nonzero probability.
    threshold_N = np.minimum(uniform_N * total_N, np.nextafter(total_N, 0))
    tokens_N: np.ndarray = (cumulative_NV <= threshold_N[:, None]).sum(axis=1)
    return tokens_N
