"""The language model: embedding -> recurrent stack -> softmax, in PyTorch only.

Predicts the next token at every position of B parallel streams. Knows token ids, but no text, no files
and no command line. Randomness is an argument (`noise`): without it there is no dropout, and evaluation
is deterministic.

Shapes: B batch, T time, N tokens, V vocabulary, E embedding, H hidden, L layers, S cell states.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gru_lm.errors import UsageError, unknown_name
from gru_lm.model.cells import CELLS, Cell
from gru_lm.model.heads import AdaptiveSoftmax, FullSoftmax
from gru_lm.model.options import Shape
from gru_lm.model.recurrent import Recurrent
from gru_lm.model.regularize import Regularization, activation_penalty, dropout

# Upper limits on a checkpoint's claims, far beyond practical sizes, checked before memory is allocated.
LIMITS = {"vocab_size": 1 << 24, "layers": 128, "width": 1 << 16, "embed": 1 << 16}
MOST_CUTOFFS = 8
# Up to this vocabulary size, the first layer's input product is computed once per vocabulary entry and
# looked up, unless input dropout (which helped no model we tried) needs a mask per position.
SMALL = 1024


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Shape):
    """The shape of a model. Raises UsageError if a value is out of range."""

    vocab_size: int
    # Rows of a full softmax, the last one shared by all tokens absent from the training text; 0: one
    # per token.
    rows: int = 0
    # First ranks of the clusters of an adaptive softmax; empty: a full softmax.
    cutoffs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutoffs", tuple(self.cutoffs))  # a list if read from JSON
        if self.cell not in CELLS:
            raise unknown_name("cell", self.cell, CELLS)
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise UsageError(f"{name} must be 1 to {limit:,}, not {getattr(self, name)}")
        if not 0 <= self.rows <= self.vocab_size or (self.rows and self.cutoffs):
            raise UsageError(f"rows must be 0 to {self.vocab_size:,}, not {self.rows}")
        borders = (0, *self.cutoffs, self.vocab_size)
        whole = all(type(cutoff) is int for cutoff in self.cutoffs)
        if not whole or len(self.cutoffs) > MOST_CUTOFFS or sorted({*borders}) != list(borders):
            raise UsageError("cutoffs must be increasing whole numbers below the vocabulary size")
        if self.cutoffs and not self.tied:
            raise UsageError(
                "an adaptive softmax cannot be untied",
                why="it shares its matrices with the embedding",
                hint="use --softmax full, or leave out --no-tied",
            )


class LanguageModel(nn.Module):
    """P(next token | tokens so far); the caller carries the recurrent state.

    >>> config = ModelConfig(cell="gru", vocab_size=5, layers=1, width=8, embed=4)
    >>> model = LanguageModel(config)
    >>> tokens_BT = torch.zeros(2, 3, dtype=torch.long)
    >>> log_probs_BTV, state_LSBH = model.log_probs(tokens_BT, model.initial_state(2))
    >>> tuple(log_probs_BTV.shape), tuple(state_LSBH.shape)
    ((2, 3, 5), (1, 1, 2, 8))
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        regularization: Regularization | None = None,
        backend: str = "fused",
    ) -> None:
        super().__init__()
        self.config = config
        self.regularization = regularization or Regularization()
        E, H, V = config.embed, config.width, config.vocab_size
        self.head: FullSoftmax | AdaptiveSoftmax = (
            AdaptiveSoftmax(V, embed=E, cutoffs=config.cutoffs)
            if config.cutoffs
            else FullSoftmax(V, embed=E, width=H, tied=config.tied, rows=config.rows)
        )
        self.recurrent = Recurrent(
            config.cell,
            inputs=E,
            width=H,
            layers=config.layers,
            backend=backend,
            residual=config.residual,
            regularization=self.regularization,
        )
        # A tied softmax reads vectors of size E, so the hidden state is projected first.
        self.to_embedding = nn.Linear(H, E, bias=False) if config.tied and E != H else None

    def set_unigram(self, counts_V: Tensor) -> None:
        """Initialize the softmax to the unigram distribution of the training text's token counts."""
        self.head.set_unigram(counts_V)

    def make_room_for(self, counts_V: Tensor) -> None:
        """Give every token its own row if tokens with non-zero counts share one.

        The model's probabilities stay the same.
        """
        if isinstance(self.head, FullSoftmax) and self.head.confuses(counts_V):
            self.head.unshare()
            self.config = dataclasses.replace(self.config, rows=0)

    def initial_state(self, batch: int) -> Tensor:
        """The zero state [L, S, B, H] of `batch` streams."""
        shape = (self.config.layers, self.recurrent.states, batch, self.config.width)
        return next(self.parameters()).new_zeros(shape)

    def hidden(
        self, tokens_BT: Tensor, state_LSBH: Tensor, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The input of the softmax, [B, T, H] (E if tied), and the state after the last token.

        `starts_BT` as in `loss`.
        """
        h_TBH, state_LSBH = self._outputs(tokens_BT, state_LSBH, None, starts_BT)
        return self._for_head(h_TBH), state_LSBH

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        state_LSBH: Tensor,
        noise: torch.Generator | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss in nats per token, activation penalty, and state after the last token.

        The first two are differentiable scalars; training minimizes their sum.

        `starts_BT` (bool, preferably on the CPU) marks the tokens at which a sequence starts: the
        recurrent state before them is zero. With it, targets of -1 are padding, which is left out of
        both means; its inputs are arbitrary tokens.
        """
        reg = self.regularization
        assert reg.output_dropout is not None
        at_n = counted_TB = starts_TB = None
        if starts_BT is not None:
            at_n, counted_TB, starts_TB = _counted(targets_BT), targets_BT.t() >= 0, starts_BT.t()
            assert at_n is None or len(at_n), "a batch without targets"
        h_TBH, state_LSBH = self._outputs(tokens_BT, state_LSBH, noise, starts_BT)
        dropped_TBH = dropout(h_TBH, reg.output_dropout, noise, locked=reg.locked)
        penalty = activation_penalty(
            h_TBH,
            dropped_TBH,
            alpha=reg.ar,
            beta=reg.tar,
            counted_TB=counted_TB,
            starts_TB=starts_TB,
        )
        hidden_NH, targets_N = self._for_head(dropped_TBH).flatten(0, 1), targets_BT.flatten()
        if at_n is not None:
            hidden_NH, targets_N = hidden_NH.index_select(0, at_n), targets_N[at_n]
        return self.head.loss(hidden_NH, targets_N), penalty, state_LSBH

    def log_probs(self, tokens_BT: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every next token, [B, T, V] in nats, and the final state."""
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH)
        return self.head.log_probs(hidden_BTH), state_LSBH

    def target_log_probs(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        state_LSBH: Tensor,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets, [B, T] in nats, and the final state; not differentiable.

        `starts_BT` as in `loss`; the log-probability of padding is 0.
        """
        at_n = None if starts_BT is None else _counted(targets_BT)
        hidden_BTH, state_LSBH = self.hidden(tokens_BT, state_LSBH, starts_BT)
        hidden_NH, targets_N = hidden_BTH.flatten(0, 1), targets_BT.flatten()
        if at_n is None:
            log_probs_N = self.head.target_log_probs(hidden_NH, targets_N)
        else:
            hidden_nH, targets_n = hidden_NH.index_select(0, at_n), targets_N[at_n]
            log_probs_n = self.head.target_log_probs(hidden_nH, targets_n)
            log_probs_N = log_probs_n.new_zeros(len(targets_N)).index_copy(0, at_n, log_probs_n)
        return log_probs_N.view_as(targets_BT), state_LSBH

    def _outputs(
        self,
        tokens_BT: Tensor,
        state_LSBH: Tensor,
        noise: torch.Generator | None,
        starts_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The last layer's outputs [T, B, H], before output dropout, and the final state."""
        reg, rows_TB = self.regularization, tokens_BT.t()
        R = self.config.rows or self.config.vocab_size
        input_dropout = noise is not None and reg.input_dropout > 0
        table = R <= SMALL and rows_TB.numel() > R and not input_dropout
        if table:
            x, rows_TB = self.head.table(rows_TB)
        else:
            x = self.head.embed(rows_TB)
        if noise is not None and reg.embedding_dropout > 0:
            V = len(x) if table else self.config.vocab_size
            mask_V1 = dropout(x.new_ones(V, 1), reg.embedding_dropout, noise)
            x = x * (mask_V1 if table else mask_V1[rows_TB])
        if not table:
            x = dropout(x, reg.input_dropout, noise, locked=reg.locked)
        starts_TB = None if starts_BT is None else starts_BT.t()
        outputs: tuple[Tensor, Tensor] = self.recurrent(
            x, state_LSBH, noise, rows_TB if table else None, starts_TB
        )
        return outputs

    def _for_head(self, h_TBH: Tensor) -> Tensor:
        """The stack's outputs as input of the softmax, [B, T, H] (E if tied)."""
        if self.to_embedding is not None:
            h_TBH = self.to_embedding(h_TBH)
        return h_TBH.transpose(0, 1)

    def parameter_count(self) -> int:
        """Number of parameters, counting tied matrices once and no redundant second biases."""
        total = sum(p.numel() for p in self.parameters())
        for cell in self.recurrent.layers:
            assert isinstance(cell, Cell)
            total += cell.parameter_count() - sum(p.numel() for p in cell.parameters())
        return total


def _counted(targets_BT: Tensor) -> Tensor | None:
    """The positions in [B T] whose targets are not padding; None if there is no padding.

    Called before the recurrence, where waiting for a CUDA device costs little.
    """
    at_n = (targets_BT.flatten() >= 0).nonzero()[:, 0]
    return None if len(at_n) == targets_BT.numel() else at_n
