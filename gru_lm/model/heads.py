"""Input embeddings and output softmaxes.

In `FullSoftmax` all tokens have rows of the same width. `AdaptiveSoftmax` groups rare tokens into
clusters with narrower rows, computed only when they are the target, at a fraction of the cost for large
vocabularies. Both give exact log-probabilities, by cross_entropy.py. Knows token ids and their counts,
but no text and no recurrence.

Shapes: N positions, n positions of a slice or a cluster, V vocabulary, R rows, E embedding, H input
width of the softmax (E if tied), K clusters besides the shortlist of frequent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gru_lm.model.cross_entropy import linear_cross_entropy, target_log_probs

SHRINK = 2  # factor by which the rows of each cluster are narrower than the previous one's
# Share of the text covered by the shortlist. On subwords, less cost much perplexity and saved little
# time (8,192 pieces, 1.2 M tokens: 0.45, 0.73 and 0.82 gave perplexities of 82, 80 and 75, a full
# softmax 74); on 33,000 words it made no difference.
COVERED = 0.75
LOGIT = (
    64  # cost of a logit apart from its product (exponential, gradient, ...), in multiplications
)


class FullSoftmax(nn.Module):
    """Softmax with an output row per token, which is also its embedding if `tied`.

    Weight tying: Press and Wolf 2017. Tied embeddings are scaled to give both uses unit variance
    (Vaswani et al. 2017, section 3.4).

    With fewer `rows` than tokens, all tokens absent from the training text share the last row with
    equal probabilities, as training cannot distinguish them. In a character vocabulary these are most
    of the 256 fallback bytes, and would take most of the softmax's time.
    """

    row_V: Tensor | None

    def __init__(
        self, vocab_size: int, *, embed: int, width: int, tied: bool, rows: int = 0
    ) -> None:
        super().__init__()
        R = rows or vocab_size
        self.scale = embed**0.5 if tied else 1.0
        self.embedding = nn.Parameter(torch.randn(R, embed) / self.scale)
        self.weight = None if tied else nn.Parameter(torch.zeros(R, width))
        self.bias = nn.Parameter(torch.zeros(R))
        self.register_buffer("row_V", torch.arange(vocab_size).clamp(max=R - 1) if rows else None)
        self._shared = math.log(
            vocab_size - R + 1
        )  # log of the number of tokens sharing the last row

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings [..., E] of token ids [...]."""
        return functional.embedding(self._rows(tokens), self.embedding) * self.scale

    def table(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All embeddings [R, E], and each token's row in them."""
        return self.embedding * self.scale, self._rows(tokens)

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """The equivalent parameters without sharing: embedding [V, E], output [V, H], bias [V].

        The embedding is unscaled.
        """
        if self.row_V is None:
            return self.embedding, self._output(), self.bias
        bias_V = self.bias[self.row_V] - self._shared * self._is_shared(self.row_V)
        return self.embedding[self.row_V], self._output()[self.row_V], bias_V

    def loss(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Mean loss in nats per target, a scalar; differentiable once."""
        row_N = self._rows(targets_N)
        nats = linear_cross_entropy(hidden_NH, self._output(), self.bias, row_N)
        if self.row_V is not None:
            nats = nats + self._shared * self._is_shared(row_N).sum()
        return nats / len(targets_N)

    def target_log_probs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Log-probability of each target [N] in nats, not differentiable."""
        row_N = self._rows(targets_N)
        log_probs_N = target_log_probs(hidden_NH, self._output(), self.bias, row_N)
        return log_probs_N - self._shared * self._is_shared(row_N)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [..., V] in nats for hidden states [..., H]."""
        _, weight_VH, bias_V = self.whole()
        return functional.linear(hidden, weight_VH, bias_V).log_softmax(-1)

    @torch.no_grad()
    def set_unigram(self, counts_V: Tensor) -> None:
        """Assign rows to the tokens that occur, and set the biases to the log unigram frequencies."""
        log_frequency_V = log_frequency(counts_V)
        if self.row_V is None:
            self.bias.copy_(log_frequency_V)
            return
        seen_V = counts_V > 0
        R = len(self.bias)
        assert int(seen_V.sum()) == R - 1, "one row per token that occurs, and a shared one"
        self.row_V.copy_(torch.where(seen_V, seen_V.cumsum(0) - 1, R - 1))
        self.bias[:-1] = log_frequency_V[seen_V].to(self.bias)
        self.bias[-1] = log_frequency_V[~seen_V].logsumexp(0).to(self.bias)

    def confuses(self, counts_V: Tensor) -> bool:
        """Whether tokens with non-zero counts share a row."""
        return self.row_V is not None and bool(counts_V[self._is_shared(self.row_V).cpu()].any())

    @torch.no_grad()
    def unshare(self) -> None:
        """Give every token its own row, a copy of the shared one; probabilities stay the same."""
        embedding_VE, weight_VH, bias_V = self.whole()
        self.embedding, self.bias = nn.Parameter(embedding_VE), nn.Parameter(bias_V)
        if self.weight is not None:
            self.weight = nn.Parameter(weight_VH)
        self.row_V, self._shared = None, 0.0

    def unseen(self) -> list[int]:
        """The tokens that share a row, as they were absent from the training text."""
        if self.row_V is None:
            return []
        shared: list[int] = self._is_shared(self.row_V).nonzero()[:, 0].tolist()
        return shared

    def check(self) -> None:
        """Check the mapping from tokens to rows, e.g. after loading. Raises ValueError if invalid."""
        if self.row_V is None:
            return
        R = len(self.bias)
        counts_R = torch.bincount(self.row_V.long().clamp(0, R), minlength=R)
        if self.row_V.dtype != torch.int64 or len(counts_R) > R or (counts_R[:-1] != 1).any():
            raise ValueError("its tokens do not match its rows")

    def _output(self) -> Tensor:
        return self.embedding if self.weight is None else self.weight

    def _rows(self, tokens: Tensor) -> Tensor:
        return tokens if self.row_V is None else self.row_V[tokens]

    def _is_shared(self, rows: Tensor) -> Tensor:
        return rows == len(self.bias) - 1


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al. 2017), tied to adaptive inputs (Baevski and Auli 2019).

    Tokens are ranked by frequency in the training text. Ranks below cutoffs[0] form the shortlist, with
    full rows. Ranks from cutoffs[i-1] on form cluster i, with rows of width E / 2^i:

        p(token) = p₀(token)                       in the shortlist, one softmax with the K clusters
        p(token) = p₀(cluster i) · p_i(token)      p_i = softmax(W_i P_i h + b_i)
        embedding(token) = √E · row of W_0,  or  √E · row of W_i · P_i

    W_0 ends with one row per cluster. At initialization both uses have unit variance, as in FullSoftmax.
    """

    rank_V: Tensor

    def __init__(self, vocab_size: int, *, embed: int, cutoffs: Sequence[int]) -> None:
        super().__init__()
        E, K = embed, len(cutoffs)
        self.scale = E**0.5
        self.starts = (0, *cutoffs)
        self._sizes = [b - a for a, b in zip(self.starts, (*cutoffs, vocab_size), strict=True)]
        widths = [max(1, E // SHRINK**i) for i in range(K + 1)]
        rows = [self._sizes[0] + K, *self._sizes[1:]]
        self.weights = nn.ParameterList(
            torch.randn(count, width) / self.scale
            for count, width in zip(rows, widths, strict=True)
        )
        self.projections = nn.ParameterList(
            torch.randn(width, E) / width**0.5 for width in widths[1:]
        )
        self.biases = nn.ParameterList(torch.zeros(count) for count in rows)
        self.register_buffer("rank_V", torch.arange(vocab_size))

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings [..., E] of token ids [...]."""
        positions, parts = [], []
        for i, at_n, row_n in self._members(self.rank_V[tokens.flatten()]):
            rows = functional.embedding(row_n, self.weights[i])
            parts.append(rows @ self.projections[i - 1] if i else rows)
            positions.append(at_n)
        x_NE: Tensor = torch.cat(parts)[torch.cat(positions).argsort()] * self.scale
        return x_NE.view(*tokens.shape, x_NE.shape[1])

    def table(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All embeddings [V, E], and each token's row in them."""
        return self.embed(torch.arange(len(self.rank_V), device=self.rank_V.device)), tokens

    def loss(self, hidden_NE: Tensor, targets_N: Tensor) -> Tensor:
        """Mean loss in nats per target, a scalar; differentiable once."""
        head_N, clusters = self._split(targets_N)
        nats = linear_cross_entropy(hidden_NE, self.weights[0], self.biases[0], head_N)
        for i, at_n, row_n in clusters:
            inner = self._inner(i, hidden_NE[at_n])
            nats = nats + linear_cross_entropy(inner, self.weights[i], self.biases[i], row_n)
        return nats / len(targets_N)

    def target_log_probs(self, hidden_NE: Tensor, targets_N: Tensor) -> Tensor:
        """Log-probability of each target [N] in nats, not differentiable."""
        head_N, clusters = self._split(targets_N)
        log_probs_N = target_log_probs(hidden_NE, self.weights[0], self.biases[0], head_N)
        for i, at_n, row_n in clusters:
            inner = self._inner(i, hidden_NE[at_n])
            log_probs_N[at_n] += target_log_probs(inner, self.weights[i], self.biases[i], row_n)
        return log_probs_N

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [..., V] in nats for hidden states [..., E]."""
        shortlist = self.starts[1]
        head = functional.linear(hidden, self.weights[0], self.biases[0]).log_softmax(-1)
        parts = [head[..., :shortlist]]
        for i in range(1, len(self.starts)):
            logits = functional.linear(self._inner(i, hidden), self.weights[i], self.biases[i])
            parts.append(logits.log_softmax(-1) + head[..., shortlist + i - 1, None])
        return torch.cat(parts, -1)[..., self.rank_V]

    @torch.no_grad()
    def set_unigram(self, counts_V: Tensor) -> None:
        """Rank the tokens by frequency, and set the biases to the log unigram frequencies."""
        order_V = counts_V.argsort(descending=True, stable=True)
        self.rank_V[order_V] = torch.arange(len(order_V), device=self.rank_V.device)
        shortlist, *clusters = torch.split(log_frequency(counts_V[order_V]), self._sizes)
        shares = [cluster.logsumexp(0, keepdim=True) for cluster in clusters]
        self.biases[0].copy_(torch.cat([shortlist, *shares]))
        for bias, cluster, share in zip(self.biases[1:], clusters, shares, strict=True):
            bias.copy_(cluster - share)

    def check(self) -> None:
        """Check the ranks, e.g. after loading. Raises ValueError unless they are a permutation."""
        V = len(self.rank_V)
        if self.rank_V.dtype != torch.int64 or not torch.equal(
            self.rank_V.sort().values, torch.arange(V, device=self.rank_V.device)
        ):
            raise ValueError("its token ranks are not a permutation")

    def _inner(self, i: int, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] projected to the width of cluster i."""
        return functional.linear(hidden, self.projections[i - 1])

    def _split(self, targets_N: Tensor) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
        """Targets of the first softmax [N]; number, positions and targets of each cluster."""
        rank_N = self.rank_V[targets_N]
        _, *clusters = self._members(rank_N)
        for i, at_n, _ in clusters:
            rank_N[at_n] = self.starts[1] + i - 1
        return rank_N, clusters

    def _members(self, rank_N: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """For the shortlist and each cluster: its number, the positions and the rows of its tokens."""
        members = []
        for i, (start, size) in enumerate(zip(self.starts, self._sizes, strict=True)):
            row_N = rank_N - start
            at_n = ((row_N >= 0) & (row_N < size)).nonzero()[:, 0]
            members.append((i, at_n, row_N[at_n]))
        return members


def choose_cutoffs(counts_V: Tensor, *, embed: int) -> tuple[int, ...]:
    """Choose the first ranks of two clusters from the token counts of the training text.

    The first cluster begins where the shortlist covers COVERED of the text. The second begins where the
    expected cost per token is least: for each cluster, the probability that it holds the target times
    the cost of its projection and its logits (a product of the cluster's width, plus LOGIT, per row).
    """
    V = len(counts_V)
    if V < 3:
        return tuple(range(1, V))
    frequency_V = log_frequency(counts_V).exp().sort(descending=True).values.cpu()
    covered_V = frequency_V.cumsum(0)  # cumulative frequency up to and including each rank
    first = min(1 + int((covered_V < COVERED).sum()), V - 2)
    second = torch.arange(first + 1, V)
    rarer = 1 - covered_V[second - 1]
    cost = torch.zeros(len(second), dtype=torch.float64)
    for i, share, rows in (
        (1, 1 - covered_V[first - 1] - rarer, second - first),
        (2, rarer, V - second),
    ):
        width = max(1, embed // SHRINK**i)
        cost += share * (width * embed + rows * (width + LOGIT))
    return first, int(second[cost.argmin()])


def log_frequency(counts_V: Tensor) -> Tensor:
    """Log of the add-one smoothed relative frequency of each token, float64."""
    frequencies = counts_V.double() + 1
    return (frequencies / frequencies.sum()).log()
