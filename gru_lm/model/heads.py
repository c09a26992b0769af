"""The vocabulary's two ends: tokens in, as embeddings; hidden states out, as distributions.

`FullSoftmax` gives every token a row as wide as every other. `AdaptiveSoftmax` gives rare tokens, in
clusters, narrow rows that are computed only when a cluster is meant; it costs a large vocabulary a
fraction of the arithmetic. Both give exact log-probabilities, by cross_entropy.py. Knows token ids and
their counts, but no text and no recurrence.

Shapes: N positions, n positions of a slice or a cluster, V vocabulary, C tokens of a cluster,
E embedding, H what the softmax reads (E if tied), K clusters beside the most frequent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gru_lm.model.cross_entropy import linear_cross_entropy, target_log_probs

SHRINK = 2  # each cluster's rows are that many times narrower than those before
# Of the text, by full rows. On subwords, less cost much perplexity and saved little time (8,192 pieces,
# 1.2 M tokens: 0.45, 0.73, 0.82 gave 82, 80, 75, a full softmax 74); on 33,000 words it was all one.
COVERED = 0.75
LOGIT = 64  # multiplications of a product that cost as much as all else that is done with a logit


class FullSoftmax(nn.Module):
    """A row of the output matrix for every token; tied, it is the token's embedding too.

    Tying: Press and Wolf 2017. Embeddings are then scaled so that both uses see unit variance
    (Vaswani et al. 2017, section 3.4).

    With fewer `rows` than tokens, those that the training text lacks share the last row, alike in
    probability: nothing could tell them apart. Of a vocabulary of characters, that is most of the 256
    bytes that spell others, and would be most of the softmax's arithmetic.
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
        self._shared = math.log(vocab_size - R + 1)  # of the number of tokens of the last row

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [...] as vectors [..., E]."""
        return functional.embedding(self._rows(tokens), self.embedding) * self.scale

    def table(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings [R, E], and the row that each token reads."""
        return self.embedding * self.scale, self._rows(tokens)

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same function with a row for each token: embedding [V, E], output [V, H], bias [V].

        The embedding is unscaled.
        """
        if self.row_V is None:
            return self.embedding, self._output(), self.bias
        bias_V = self.bias[self.row_V] - self._shared * self._is_shared(self.row_V)
        return self.embedding[self.row_V], self._output()[self.row_V], bias_V

    def loss(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Mean nats of the targets, a scalar to differentiate (once)."""
        row_N = self._rows(targets_N)
        nats = linear_cross_entropy(hidden_NH, self._output(), self.bias, row_N)
        if self.row_V is not None:
            nats = nats + self._shared * self._is_shared(row_N).sum()
        return nats / len(targets_N)

    def target_log_probs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """log p of each target [N], in nats; not to be differentiated."""
        row_N = self._rows(targets_N)
        log_probs_N = target_log_probs(hidden_NH, self._output(), self.bias, row_N)
        return log_probs_N - self._shared * self._is_shared(row_N)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """The distributions [..., V] that hidden states [..., H] mean, in nats."""
        _, weight_VH, bias_V = self.whole()
        return functional.linear(hidden, weight_VH, bias_V).log_softmax(-1)

    @torch.no_grad()
    def set_unigram(self, counts_V: Tensor) -> None:
        """Give the tokens that occur their rows; start from the unigram distribution: log frequency."""
        log_frequency_V = log_frequency(counts_V)
        if self.row_V is None:
            self.bias.copy_(log_frequency_V)
            return
        seen_V = counts_V > 0
        R = len(self.bias)
        assert int(seen_V.sum()) == R - 1, (
            "a row for each token that occurs, and one for the others"
        )
        self.row_V.copy_(torch.where(seen_V, seen_V.cumsum(0) - 1, R - 1))
        self.bias[:-1] = log_frequency_V[seen_V].to(self.bias)
        self.bias[-1] = log_frequency_V[~seen_V].logsumexp(0).to(self.bias)

    def confuses(self, counts_V: Tensor) -> bool:
        """Whether tokens that occur share a row."""
        return self.row_V is not None and bool(counts_V[self._is_shared(self.row_V).cpu()].any())

    @torch.no_grad()
    def unshare(self) -> None:
        """Give each token a row of its own, which starts as a copy of the shared one."""
        embedding_VE, weight_VH, bias_V = self.whole()
        self.embedding, self.bias = nn.Parameter(embedding_VE), nn.Parameter(bias_V)
        if self.weight is not None:
            self.weight = nn.Parameter(weight_VH)
        self.row_V, self._shared = None, 0.0

    def check(self) -> None:
        """Raise ValueError unless tokens and rows go together, as in a file they might not."""
        if self.row_V is None:
            return
        R = len(self.bias)
        counts_R = torch.bincount(self.row_V.long().clamp(0, R), minlength=R)
        if self.row_V.dtype != torch.int64 or len(counts_R) > R or (counts_R[:-1] != 1).any():
            raise ValueError("its tokens do not fit its rows")

    def _output(self) -> Tensor:
        return self.embedding if self.weight is None else self.weight

    def _rows(self, tokens: Tensor) -> Tensor:
        return tokens if self.row_V is None else self.row_V[tokens]

    def _is_shared(self, rows: Tensor) -> Tensor:
        return rows == len(self.bias) - 1


class AdaptiveSoftmax(nn.Module):
    """Clusters by frequency (Grave et al. 2017), tied with adaptive inputs (Baevski and Auli 2019).

    Tokens are ranked by frequency in training. Ranks below cutoffs[0] are the shortlist: full rows.
    Ranks from cutoffs[i-1] on are cluster i, with rows E / 2^i wide:

        p(token) = p₀(token)                       in the shortlist, one softmax with the K clusters
        p(token) = p₀(cluster i) · p_i(token)      p_i = softmax(W_i P_i h + b_i)
        embedding(token) = √E · row of W_0,  or  √E · row of W_i · P_i

    W_0 ends with a row for each cluster. The start gives both uses unit variance, as tying does.
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
        """Token ids [...] as vectors [..., E]."""
        places, parts = [], []
        for i, at_n, row_n in self._members(self.rank_V[tokens.flatten()]):
            rows = functional.embedding(row_n, self.weights[i])
            parts.append(rows @ self.projections[i - 1] if i else rows)
            places.append(at_n)
        x_NE: Tensor = torch.cat(parts)[torch.cat(places).argsort()] * self.scale
        return x_NE.view(*tokens.shape, x_NE.shape[1])

    def table(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings [V, E], and the row that each token reads."""
        return self.embed(torch.arange(len(self.rank_V), device=self.rank_V.device)), tokens

    def loss(self, hidden_NE: Tensor, targets_N: Tensor) -> Tensor:
        """Mean nats of the targets, a scalar to differentiate (once)."""
        head_N, clusters = self._split(targets_N)
        nats = linear_cross_entropy(hidden_NE, self.weights[0], self.biases[0], head_N)
        for i, at_n, row_n in clusters:
            inner = self._inner(i, hidden_NE[at_n])
            nats = nats + linear_cross_entropy(inner, self.weights[i], self.biases[i], row_n)
        return nats / len(targets_N)

    def target_log_probs(self, hidden_NE: Tensor, targets_N: Tensor) -> Tensor:
        """log p of each target [N], in nats; not to be differentiated."""
        head_N, clusters = self._split(targets_N)
        log_probs_N = target_log_probs(hidden_NE, self.weights[0], self.biases[0], head_N)
        for i, at_n, row_n in clusters:
            inner = self._inner(i, hidden_NE[at_n])
            log_probs_N[at_n] += target_log_probs(inner, self.weights[i], self.biases[i], row_n)
        return log_probs_N

    def log_probs(self, hidden: Tensor) -> Tensor:
        """The distributions [..., V] that hidden states [..., E] mean, in nats."""
        shortlist = self.starts[1]
        head = functional.linear(hidden, self.weights[0], self.biases[0]).log_softmax(-1)
        parts = [head[..., :shortlist]]
        for i in range(1, len(self.starts)):
            logits = functional.linear(self._inner(i, hidden), self.weights[i], self.biases[i])
            parts.append(logits.log_softmax(-1) + head[..., shortlist + i - 1, None])
        return torch.cat(parts, -1)[..., self.rank_V]

    @torch.no_grad()
    def set_unigram(self, counts_V: Tensor) -> None:
        """Rank the tokens, and start from the unigram distribution: biases = log frequency."""
        order_V = counts_V.argsort(descending=True, stable=True)
        self.rank_V[order_V] = torch.arange(len(order_V), device=self.rank_V.device)
        shortlist, *clusters = torch.split(log_frequency(counts_V[order_V]), self._sizes)
        shares = [cluster.logsumexp(0, keepdim=True) for cluster in clusters]
        self.biases[0].copy_(torch.cat([shortlist, *shares]))
        for bias, cluster, share in zip(self.biases[1:], clusters, shares, strict=True):
            bias.copy_(cluster - share)

    def check(self) -> None:
        """Raise ValueError unless every token has a rank of its own, as in a file it might not."""
        V = len(self.rank_V)
        if self.rank_V.dtype != torch.int64 or not torch.equal(
            self.rank_V.sort().values, torch.arange(V, device=self.rank_V.device)
        ):
            raise ValueError("its ranks of tokens are no permutation")

    def _inner(self, i: int, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] as cluster i reads them."""
        return functional.linear(hidden, self.projections[i - 1])

    def _split(self, targets_N: Tensor) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
        """The targets of the first softmax [N]; and each cluster's number, positions and targets."""
        rank_N = self.rank_V[targets_N]
        _, *clusters = self._members(rank_N)
        for i, at_n, _ in clusters:
            rank_N[at_n] = self.starts[1] + i - 1
        return rank_N, clusters

    def _members(self, rank_N: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """For the shortlist and each cluster: its number, the positions of its tokens, their rows."""
        found = []
        for i, (start, size) in enumerate(zip(self.starts, self._sizes, strict=True)):
            row_N = rank_N - start
            at_n = ((row_N >= 0) & (row_N < size)).nonzero()[:, 0]
            found.append((i, at_n, row_N[at_n]))
        return found


def choose_cutoffs(counts_V: Tensor, *, embed: int) -> tuple[int, ...]:
    """Where two clusters begin, for training text of these counts.

    The first where the shortlist covers COVERED of the text. The second for the least work: in the
    share of positions whose token is in a cluster, its projection and its rows, each at its width and
    what a logit costs beside the product.
    """
    V = len(counts_V)
    if V < 3:
        return tuple(range(1, V))
    frequency_V = log_frequency(counts_V).exp().sort(descending=True).values.cpu()
    covered_V = frequency_V.cumsum(0)  # by each rank and all before it
    first = min(1 + int((covered_V < COVERED).sum()), V - 2)
    second = torch.arange(first + 1, V)
    rarer = 1 - covered_V[second - 1]
    work = torch.zeros(len(second), dtype=torch.float64)
    for i, share, rows in (
        (1, 1 - covered_V[first - 1] - rarer, second - first),
        (2, rarer, V - second),
    ):
        width = max(1, embed // SHRINK**i)
        work += share * (width * embed + rows * (width + LOGIT))
    return first, int(second[work.argmin()])


def log_frequency(counts_V: Tensor) -> Tensor:
    """The log of each token's frequency, smoothed by one, float64."""
    frequencies = counts_V.double() + 1
    return (frequencies / frequencies.sum()).log()
