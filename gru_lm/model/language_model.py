"""The language model: embedding -> recurrent stack -> softmax, in torch alone.

Predicts every next token of B parallel streams from the tokens so far. Knows token ids, but no
text, no files and no command line. Randomness comes in as an argument (`noise`): without it there
is no dropout, so evaluating a model cannot depend on what was evaluated before.

Shapes: B batch, T time, N tokens, V vocabulary, E embedding, H hidden, L layers, S cell states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from gru_lm.errors import UsageError, unknown_name
from gru_lm.model.cells import CELLS, Cell
from gru_lm.model.recurrent import Recurrent, dropout

# Far beyond use: what a checkpoint may claim before memory is asked for.
LIMITS = {"vocab_size": 1 << 24, "layers": 128, "width": 1 << 16, "embed": 1 << 16}
SLICE = 1 << 22  # logits of one slice where only the targets' are wanted: 16 MiB in float32


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What determines the shape of a model. Raises UsageError where a value makes no sense."""

    cell: str
    vocab_size: int
    layers: int
    width: int
    embed: int
    tied: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise unknown_name("cell", self.cell, CELLS)
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise UsageError(f"{name} must be 1 to {limit:,}, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be in [0, 1), not {self.dropout}")


class LanguageModel(nn.Module):
    """P(next token | tokens so far), with the state carried by the caller.

    >>> config = ModelConfig(cell="gru", vocab_size=5, layers=1, width=8, embed=4)
    >>> model = LanguageModel(config)
    >>> tokens_BT = torch.zeros(2, 3, dtype=torch.long)
    >>> log_probs_BTV, state_LSBH = model.log_probs(tokens_BT, model.initial_state(2))
    >>> tuple(log_probs_BTV.shape), tuple(state_LSBH.shape)
    ((2, 3, 5), (1, 1, 2, 8))
    """

    def __init__(self, config: ModelConfig, *, backend: str = "fused") -> None:
        super().__init__()
        self.config = config
        E, H, V = config.embed, config.width, config.vocab_size
        self.embedding = nn.Embedding(V, E)
        self.recurrent = Recurrent(
            config.cell,
            inputs=E,
            width=H,
            layers=config.layers,
            dropout=config.dropout,
            backend=backend,
        )
        # A tied output shares the embedding's matrix, so the hidden state is first brought to E.
        self.to_embedding = nn.Linear(H, E, bias=False) if config.tied and E != H else None
        self.output_weight = None if config.tied else nn.Parameter(torch.zeros(V, H))
        self.output_bias = nn.Parameter(torch.zeros(V))
        if config.tied:
            # Scaled so that both uses see unit variance (Vaswani et al. 2017, section 3.4).
            nn.init.normal_(self.embedding.weight, std=E**-0.5)
        self.embedding_scale = E**0.5 if config.tied else 1.0

    @torch.no_grad()
    def set_unigram(self, counts_V: Tensor) -> None:
        """Start from the unigram distribution: output bias = log of smoothed frequency."""
        frequencies = counts_V.double() + 1
        self.output_bias.copy_((frequencies / frequencies.sum()).log())

    def initial_state(self, batch: int) -> Tensor:
        """The zero state of `batch` streams: [L, S, B, H]."""
        shape = (self.config.layers, self.recurrent.states, batch, self.config.width)
        return self.output_bias.new_zeros(shape)

    def hidden(
        self, tokens_BT: Tensor, state_LSBH: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the softmax reads, [B, T, H] (E if tied), and the state after the last token."""
        p = self.config.dropout
        x_TBE = self.embedding(tokens_BT.t()) * self.embedding_scale
        h_TBH, state_LSBH = self.recurrent(dropout(x_TBE, p, noise), state_LSBH, noise)
        h_TBH = dropout(h_TBH, p, noise)
        if self.to_embedding is not None:
            h_TBH = self.to_embedding(h_TBH)
        return h_TBH.transpose(0, 1), state_LSBH

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities [..., V] of hidden states [..., H]."""
        weight = self.embedding.weight if self.output_weight is None else self.output_weight
        return linear(hidden, weight, self.output_bias)

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        state_LSBH: Tensor,
        noise: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean nats a token (a scalar to differentiate), and the state after the last token."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH, noise)
        logits_NV = self.logits(hidden_BTH.flatten(0, 1))
        return cross_entropy(logits_NV, targets_BT.flatten()), state_LSBH

    def log_probs(self, tokens_BT: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """The whole distribution after every token, [B, T, V] in nats, and the state after."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH)
        return self.logits(hidden_BTH).log_softmax(-1), state_LSBH

    def target_log_probs(
        self, tokens_BT: Tensor, targets_BT: Tensor, state_LSBH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p of each target [B, T] in nats, and the state after; never holds [B, T, V]."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH)
        size = max(1, SLICE // self.config.vocab_size)
        hidden, targets = hidden_BTH.flatten(0, 1), targets_BT.flatten()
        nats_N = torch.cat(
            [
                cross_entropy(self.logits(hidden_NH), targets_N, reduction="none")
                for hidden_NH, targets_N in zip(
                    torch.split(hidden, size), torch.split(targets, size), strict=True
                )
            ]
        )
        return -nats_N.view_as(targets_BT), state_LSBH

    def parameter_count(self) -> int:
        """Parameters, a tied matrix once, redundant second biases left out."""
        total = sum(p.numel() for p in self.parameters())
        for cell in self.recurrent.layers:
            assert isinstance(cell, Cell)
            total += cell.parameter_count() - sum(p.numel() for p in cell.parameters())
        return total
