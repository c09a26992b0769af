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

from gru_lm.errors import UsageError, unknown_name
from gru_lm.model.cells import CELLS, Cell
from gru_lm.model.heads import AdaptiveSoftmax, FullSoftmax
from gru_lm.model.recurrent import Recurrent, dropout

# Far beyond use: what a checkpoint may claim before memory is asked for.
LIMITS = {"vocab_size": 1 << 24, "layers": 128, "width": 1 << 16, "embed": 1 << 16}
MOST_CUTOFFS = 8
# A vocabulary up to this is read from a table of the first layer's products, a row a token, which
# leaves no room for dropout on a token's own copy of its embedding; nor did that help any.
SMALL = 1024


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
    cutoffs: tuple[
        int, ...
    ] = ()  # of an adaptive softmax: where its clusters of rarer tokens begin

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutoffs", tuple(self.cutoffs))  # a list, in JSON
        if self.cell not in CELLS:
            raise unknown_name("cell", self.cell, CELLS)
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise UsageError(f"{name} must be 1 to {limit:,}, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be in [0, 1), not {self.dropout}")
        borders = (0, *self.cutoffs, self.vocab_size)
        whole = all(type(cutoff) is int for cutoff in self.cutoffs)
        if not whole or len(self.cutoffs) > MOST_CUTOFFS or sorted({*borders}) != list(borders):
            raise UsageError("cutoffs must be whole numbers that rise within the vocabulary")
        if self.cutoffs and not self.tied:
            raise UsageError(
                "an adaptive softmax shares its matrices with the embedding: it is tied",
                hint="--softmax full, or leave --no-tied out",
            )


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
        self.head: FullSoftmax | AdaptiveSoftmax = (
            AdaptiveSoftmax(V, embed=E, cutoffs=config.cutoffs)
            if config.cutoffs
            else FullSoftmax(V, embed=E, width=H, tied=config.tied)
        )
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

    def set_unigram(self, counts_V: Tensor) -> None:
        """Start from the unigram distribution of these counts in the training text."""
        self.head.set_unigram(counts_V)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state of `batch` streams: [L, S, B, H]."""
        shape = (self.config.layers, self.recurrent.states, batch, self.config.width)
        return next(self.parameters()).new_zeros(shape)

    def hidden(
        self, tokens_BT: Tensor, state_LSBH: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the softmax reads, [B, T, H] (E if tied), and the state after the last token."""
        p, V = self.config.dropout, self.config.vocab_size
        if V <= SMALL and tokens_BT.numel() > V:
            table_VE = self.head.embedding_VE()
            h_TBH, state_LSBH = self.recurrent(table_VE, state_LSBH, noise, tokens_BT.t())
        else:
            x_TBE = self.head.embed(tokens_BT.t())
            if V > SMALL:
                x_TBE = dropout(x_TBE, p, noise)
            h_TBH, state_LSBH = self.recurrent(x_TBE, state_LSBH, noise)
        h_TBH = dropout(h_TBH, p, noise)
        if self.to_embedding is not None:
            h_TBH = self.to_embedding(h_TBH)
        return h_TBH.transpose(0, 1), state_LSBH

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        state_LSBH: Tensor,
        noise: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean nats a token (a scalar to differentiate), and the state after the last token."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH, noise)
        return self.head.loss(hidden_BTH.flatten(0, 1), targets_BT.flatten()), state_LSBH

    def log_probs(self, tokens_BT: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """The whole distribution after every token, [B, T, V] in nats, and the state after."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH)
        return self.head.log_probs(hidden_BTH), state_LSBH

    def target_log_probs(
        self, tokens_BT: Tensor, targets_BT: Tensor, state_LSBH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p of each target [B, T] in nats, and the state after; not to be differentiated."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH)
        log_probs_N = self.head.target_log_probs(hidden_BTH.flatten(0, 1), targets_BT.flatten())
        return log_probs_N.view_as(targets_BT), state_LSBH

    def parameter_count(self) -> int:
        """Parameters, a tied matrix once, redundant second biases left out."""
        total = sum(p.numel() for p in self.parameters())
        for cell in self.recurrent.layers:
            assert isinstance(cell, Cell)
            total += cell.parameter_count() - sum(p.numel() for p in cell.parameters())
        return total
