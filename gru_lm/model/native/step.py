"""Step-by-step inference and sampling by the C kernel, for `gru` and `gru-before` models.

Weights are packed once, at construction, so later weight updates have no effect. The state is updated
in place. Supports float32 on a CPU with a full softmax (see `suits`). Knows tokens and distributions,
but no text; the repetition penalty and the filters are defined in generation/choice.py and implemented
by the kernel. Invariant: a stream's results do not depend on the number of parallel streams.

Shapes: N streams, T steps, V vocabulary, E embedding, L layers, S states (1), H hidden, K inputs of a
product, R rows of a matrix; as in step.c, P is H padded and Q is V padded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_size_t, c_void_p

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from gru_lm.model.cells import GRU, GRUBefore
from gru_lm.model.heads import FullSoftmax
from gru_lm.model.language_model import LanguageModel
from gru_lm.model.native.build import available, library

TABLE = 1 << 23  # maximum size, in floats, of a table of the first layer's input products
GRAIN = 1 << 15  # multiply-adds that justify another thread
BLOCK = 1 << 29  # multiply-adds per call of `sample`, about 5 ms
MOST_STEPS = 64
COLDEST, HOTTEST = 1e-30, 1e30  # temperatures are clamped: greedy and uniform, in float32


class _Choice(ctypes.Structure):
    _fields_ = [
        *((name, c_float) for name in ("per_temperature", "top_p", "min_p", "typical", "penalty")),
        ("top_k", c_size_t),
        ("nevers", c_size_t),
        ("never", c_void_p),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [("inputs", c_size_t)] + [
        (name, c_void_p) for name in ("W", "W_bias", "U", "U_bias", "C", "C_bias", "h", "h_after")
    ]


class _Model(ctypes.Structure):
    _sizes = ("layers", "before", "E", "H", "V", "P", "Q", "R", "outputs", "bytes", "turn")
    _weights = ("table", "project", "project_bias", "head", "head_bias")
    _scratch = ("inputs", "x", "u", "reset", "candidate", "projected", "logits", "weights")
    _fields_ = [
        *((name, c_size_t) for name in _sizes),
        ("layer", POINTER(_Layer)),
        *((name, c_void_p) for name in (*_weights, *_scratch, "sum", "keys")),
    ]


def suits(model: LanguageModel) -> bool:
    """Whether the kernel is selected, available and able to run this model."""
    return (
        model.recurrent.backend == "native"
        and isinstance(model.head, FullSoftmax)
        and isinstance(model.recurrent.layers[0], GRU | GRUBefore)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
        and available()
    )


class NativeStepper:
    """Stepper for a model that `suits`, starting from state [L, S, N, H]."""

    @torch.no_grad()
    def __init__(self, model: LanguageModel, state_LSNH: Tensor) -> None:
        head = model.head
        assert isinstance(head, FullSoftmax)
        embedding_VE, weight_VH, bias_V = head.whole()
        N, H, E = state_LSNH.shape[2], model.config.width, model.config.embed
        V = model.config.vocab_size
        units = library().recurrence_units()
        outputs = H if model.to_embedding is None else E
        P, Q, R = (size + -size % units for size in (H, V, outputs))
        self._streams, self._vocabulary = N, V
        self._kept: list[Tensor] = []  # keeps tensors alive whose addresses the kernel holds

        def keep(tensor: Tensor) -> int:
            self._kept.append(tensor)
            return tensor.data_ptr()

        def packed(rows: Tensor, gates: int = 1, fill: float = 0.0) -> int:
            return keep(_packed(rows, gates, units, fill))

        cells = [cell for cell in model.recurrent.layers if isinstance(cell, GRU | GRUBefore)]
        first, before = cells[0], isinstance(cells[0], GRUBefore)
        has_table = 3 * P * V <= TABLE
        if has_table:
            table = linear(embedding_VE * head.scale, first.weight_ih_l0, first.bias_ih_l0)
            table = table.view(V, 3, H) if P == H else pad(table.view(V, 3, H), (0, P - H))
            table = table.view(V, 3, -1, units // 2).transpose(1, 2).contiguous()
        else:
            table = embedding_VE.detach().contiguous()
        layers = (_Layer * len(cells))()
        self._states_L2NP = torch.zeros(len(cells), 2, N, P)
        self._states_L2NP[:, 0, :, :H] = state_LSNH[:, 0]
        for number, (layer, cell) in enumerate(zip(layers, cells, strict=True)):
            if number or not has_table:
                layer.inputs = H if number else E
                W = cell.weight_ih_l0 * (1.0 if number else head.scale)
                layer.W, layer.W_bias = packed(W, 3), packed(cell.bias_ih_l0, 3)
            U = cell.weight_hh_l0
            if isinstance(cell, GRU):
                layer.U, layer.U_bias = packed(U, 3), packed(cell.bias_hh_l0, 3)
            else:
                zeros = U.new_zeros(2 * H)
                layer.U, layer.U_bias = packed(U[: 2 * H], 2), packed(zeros, 2)
                layer.C, layer.C_bias = packed(U[2 * H :]), packed(zeros[:H])
            layer.h, layer.h_after = (state.data_ptr() for state in self._states_L2NP[number])
        self._model = _Model(
            *(len(cells), before, E, H, V, P, Q, R, outputs, 0, 0),
            layer=layers,
            table=keep(table),
            head=packed(weight_VH),
            head_bias=packed(bias_V, fill=-torch.inf),
        )
        if model.to_embedding is not None:
            self._model.project = packed(model.to_embedding.weight)
            self._model.project_bias = packed(bias_V.new_zeros(E))
        self._logits_NQ = torch.empty(N, Q)
        self._model.logits = keep(self._logits_NQ)
        sizes = {"inputs": E, "x": 3 * P, "u": 3 * P, "reset": P, "candidate": P}
        if model.config.residual:
            sizes["sum"] = P
        for name, size in (sizes | {"projected": R, "weights": Q, "keys": Q}).items():
            setattr(self._model, name, keep(torch.empty(N, size)))
        products = [3 * H * (layer.inputs + H) for layer in layers]
        products += [outputs * V, 0 if model.to_embedding is None else H * E]
        self._work: int = sum(products)
        self._model.bytes = 4 * self._work

    @property
    def steps_at_once(self) -> int:
        """Recommended number of steps per call of `sample`: about 5 ms, to print text promptly."""
        return max(1, min(MOST_STEPS, BLOCK // (self._work * self._streams)))

    def log_probs(self, tokens_N: np.ndarray) -> np.ndarray:
        """Feed one token per stream; return next-token log-probabilities [N, V] in nats, float64."""
        self._run(1, tokens_N)
        return self._logits_NQ[: self._streams, : self._vocabulary].double().numpy()

    def sample(
        self,
        tokens_N: np.ndarray,
        uniform_NT: np.ndarray,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical: float = 1.0,
        repetition_penalty: float = 1.0,
        seen_NV: np.ndarray | None = None,
        never: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Feed one token per stream and sample T tokens; return them [N, T] and their log-probabilities.

        A token is drawn by inverting the cumulative distribution at its number of `uniform_NT`, in
        [0, 1), after the penalty, temperature and filters of generation/choice.py; the tokens `never`
        are excluded. The penalty applies to the tokens marked in `seen_NV` (bool), where sampled tokens
        are marked too. Log-probabilities [N, T] are those of the unmodified distribution, in nats. The
        last tokens have not been fed yet.
        """
        if temperature == 0:  # greedy: the first of the most probable tokens, without filters
            uniform_NT, top_k, top_p, min_p, typical = np.zeros_like(uniform_NT), 0, 1.0, 0.0, 1.0
        never_M = np.array(never, np.int64)
        assert not len(never) or 0 <= never_M.min() <= never_M.max() < self._vocabulary
        choice = _Choice(
            per_temperature=1 / min(max(temperature, COLDEST), HOTTEST),
            top_p=top_p,
            min_p=min_p,
            typical=typical,
            penalty=repetition_penalty,
            top_k=top_k,
            nevers=len(never),
            never=never_M.ctypes.data,
        )
        assert len(uniform_NT) == self._streams, "one row per stream"
        if repetition_penalty == 1:
            seen_NV = None
        else:
            assert seen_NV is not None
            assert seen_NV.shape == (self._streams, self._vocabulary)
            assert seen_NV.flags.c_contiguous
        drawn_NT, log_probs_NT = (
            np.empty(uniform_NT.shape, kind) for kind in (np.int64, np.float32)
        )
        uniform_NT = np.ascontiguousarray(uniform_NT, np.float64)
        T = uniform_NT.shape[1]
        self._run(T, tokens_N, choice, (uniform_NT, seen_NV, drawn_NT, log_probs_NT))
        return drawn_NT, log_probs_NT

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these streams, in this order."""
        states_LNP = self._states()
        states_LNP[:, : len(rows)] = states_LNP[:, np.array(rows, np.int64)]
        self._streams = len(rows)

    def start(self, rows_M: np.ndarray, state_LSMH: Tensor) -> None:
        """Set the states of streams, of earlier ones or new ones after the last; M may be 1 there.

        The stepper has room for as many streams as it was made with.
        """
        self._streams = max(self._streams, int(rows_M.max()) + 1)
        assert self._streams <= self._states_L2NP.shape[2], "room for the streams"
        self._states()[:, rows_M, : state_LSMH.shape[3]] = state_LSMH[:, 0].numpy()

    def _states(self) -> np.ndarray:
        """The current states [L, N, P], for NumPy, which copies rows without waking other threads."""
        states_LNP: np.ndarray = self._states_L2NP[:, self._model.turn].numpy()
        return states_LNP

    def _run(
        self,
        steps: int,
        tokens_N: np.ndarray,
        choice: _Choice | None = None,
        arrays: Sequence[np.ndarray | None] = (None,) * 4,
    ) -> None:
        last_N = np.array(tokens_N, np.int64)
        assert len(last_N) == self._streams, "one token per stream"
        assert 0 <= last_N.min() <= last_N.max() < self._vocabulary, "tokens out of range"
        threads = min(torch.get_num_threads(), self._work * self._streams // GRAIN + 1)
        library().step_run(
            byref(self._model),
            choice and byref(choice),
            c_size_t(steps),
            c_size_t(self._streams),
            *(c_void_p(None if each is None else each.ctypes.data) for each in (last_N, *arrays)),
            c_int(threads),
        )


def _packed(rows: Tensor, gates: int, units: int, fill: float) -> Tensor:
    """Pack [gates * R, K] or [gates * R] into the layout of step.c, [groups][K][rows of a group]."""
    R, K = len(rows) // gates, rows[0].numel()
    blocks = rows.reshape(gates, R, K)
    if R % units:
        blocks = pad(blocks, (0, 0, 0, -R % units), value=fill)
    lanes = units if gates == 1 else units // 2
    groups = blocks.view(gates, -1, lanes, K).transpose(0, 1).reshape(-1, gates * lanes, K)
    return groups.transpose(1, 2).contiguous()
