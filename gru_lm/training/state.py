"""Conversion between training states and checkpoints.

`capture` and `restore` are exact inverses, bit for bit; `restore_model` and `restore_tokenizer` serve
sampling and evaluation. A checkpoint may come from an untrusted source: names, shapes and types are
checked against the model it describes before memory is allocated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gru_lm.errors import DivergedError, GruLmError
from gru_lm.model.language_model import LanguageModel, ModelConfig
from gru_lm.model.regularize import Regularization
from gru_lm.text.overlap import Sketch
from gru_lm.text.pieces import listed
from gru_lm.text.tokenizer import Spacing, Tokenizer, load_tokenizer
from gru_lm.training.checkpoint import Checkpoint, damaged, encode
from gru_lm.training.loop import TrainState
from gru_lm.training.meta import COUNTERS, STEPS
from gru_lm.training.optimizers import make_optimizer, slots


def capture(
    state: TrainState,
    tokenizer: Tokenizer,
    *,
    config: Mapping[str, Any],
    data: Mapping[str, str],
    held: Mapping[str, bool],
    lines: Mapping[str, Sketch],
    environment: Mapping[str, Any],
) -> bytes:
    """The checkpoint of `state`.

    `config` is the settings without paths, `data` the text's fingerprints, `held` what the
    training text held (meta.SEEN), `lines` sketches of the texts, `environment` what bit-equal
    results depend on (PyTorch, threads, device, backend). Raises DivergedError rather than write
    down a number that is not finite.
    """
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    for index, (parameter, _) in enumerate(_parameters(state.optimizer)):
        for slot, value in state.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{slot}"] = value
    tensors |= {f"average.{name}": value for name, value in (state.average or {}).items()}
    tensors["hidden"] = state.hidden_LSBH
    if not _all_finite(tensors.values()):
        raise DivergedError(f"step {state.step}: the training state contains non-finite numbers")
    tensors["tokenizer"] = torch.from_numpy(np.frombuffer(tokenizer.data, dtype=np.uint8).copy())
    for name, each in lines.items():
        tensors[f"lines.{name}"] = torch.from_numpy(each.packed())
    meta: dict[str, Any] = {name: getattr(state, name) for name in (*COUNTERS, *STEPS)}
    meta |= {
        "best_nats": state.best_nats if state.best_step >= 0 else None,
        "best_unknown_nats": state.best_unknown_nats,
        "leg_nats": state.leg_nats if math.isfinite(state.leg_nats) else None,
        "seconds": state.seconds if "minutes" in config else None,
        "began": state.began if "minutes" in config else None,
        "scaler": state.scaler.state_dict(),
        "validations": state.validations,
        "model": dataclasses.asdict(state.model.config),
        "regularization": dataclasses.asdict(state.model.regularization),
        "tokenizer": tokenizer.kind,
        "spacing": tokenizer.spacing and _escaped(tokenizer.spacing),
        "config": config,
        "data": data,
        "seen": held,
        "environment": environment,
    }
    return encode(tensors, meta)


def environment(device: torch.device, backend: str) -> dict[str, Any]:
    """Everything besides the settings that bit-identical results depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "backend": backend,
    }


def restore(
    checkpoint: Checkpoint, *, device: torch.device, backend: str, precision: str | None = None
) -> TrainState:
    """Restore the training state, to resume in `precision` if given, otherwise in the run's own.

    Raises InputError if the checkpoint is inconsistent.
    """
    tensors, meta = checkpoint.tensors(), checkpoint.meta
    model = restore_model(checkpoint, tensors, device=device, backend=backend, averaged=False)
    try:
        config = meta["config"]
        optimizer = make_optimizer(
            model,
            config["optimizer"],
            weight_decay=config["weight_decay"],
            beta2=config["beta2"],
            precision=precision or config["precision"],
        )
        scaler = torch.amp.GradScaler(device.type, enabled=config["precision"] == "fp16")
        if scaler.is_enabled():
            scaler.load_state_dict(meta["scaler"])
        for index, (parameter, group) in enumerate(_parameters(optimizer)):
            saved = _named(tensors, f"optimizer.{index}.")
            scalar = torch.Size()
            if saved and _shapes(saved) != {
                slot: scalar if slot == "step" else parameter.shape
                for slot in slots(config["optimizer"], group)
            }:
                raise ValueError("its optimizer state does not match its model")
            optimizer.state[parameter] = {slot: value.to(device) for slot, value in saved.items()}
        if len({bool(entries) for entries in optimizer.state.values()}) == 2:  # must be all or none
            raise ValueError("its optimizer state is incomplete")
        hidden_LSBH, size = tensors["hidden"], model.config
        shape = (size.layers, model.recurrent.states, config["batch"], size.width)
        if hidden_LSBH.shape != shape:
            raise ValueError("its hidden state does not match its model")
        if not _plain_floats(
            value
            for name, value in tensors.items()
            if name.partition(".")[0] not in ("tokenizer", "lines", "model")  # checked elsewhere
        ):
            raise ValueError("its values are not finite float32 numbers")
        state = TrainState(model, optimizer, scaler, hidden_LSBH.to(device))
        for name in (*COUNTERS, *STEPS):
            setattr(state, name, meta[name])
        if state.best_step >= 0:
            state.best_nats = meta["best_nats"]
            state.best_unknown_nats = meta["best_unknown_nats"]
        leg_nats = meta.get("leg_nats")
        state.leg_nats = math.inf if leg_nats is None else leg_nats
        state.seconds, state.began = meta["seconds"] or 0.0, meta["began"] or 0.0
        state.validations = meta["validations"]
        average = _named(tensors, "average.")
        if not (0 <= state.average_start <= state.step if average else state.average_start == -1):
            raise ValueError("its weight average does not match its step")
        if average:
            state.average = {name: value.to(device) for name, value in average.items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(checkpoint.path, f"invalid training state: {error}") from error
    return state


def restore_model(
    checkpoint: Checkpoint,
    tensors: dict[str, Tensor],
    *,
    device: torch.device,
    backend: str,
    averaged: bool = True,
) -> LanguageModel:
    """Restore only the model, on `device`, with its averaged weights if there are any and `averaged`.

    Raises InputError if the tensors do not match the model's description.
    """
    try:
        config = ModelConfig(**checkpoint.meta["model"])
        with torch.device("meta"):  # shapes only: allocates nothing, whatever the claimed size
            regularization = Regularization(**checkpoint.meta["regularization"])
            model = LanguageModel(config, regularization=regularization, backend=backend)
        weights = _named(tensors, "model.")
        average = _named(tensors, "average.")
        if average and _shapes(average) != _shapes(dict(model.named_parameters())):
            raise ValueError("its averaged weights do not match its description")
        if averaged:
            weights |= average
        if _shapes(weights) != _shapes(model.state_dict()):
            raise ValueError("its weights do not match its description")
        if not _plain_floats(weights[name] for name, _ in model.named_parameters()):
            raise ValueError("its weights are not finite float32 numbers")
        model.load_state_dict(weights, assign=True)
        model.head.check()
    except (KeyError, TypeError, ValueError, GruLmError) as error:
        raise damaged(checkpoint.path, f"invalid model: {error}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.to(device)


def restore_tokenizer(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> Tokenizer:
    """The tokenizer inside. Raises InputError where it is refused or does not fit the model.

    It scores ends of documents only if the training text had any.
    """
    try:
        data = tensors["tokenizer"].numpy().tobytes()
        end_piece = checkpoint.meta["config"].get("end_piece")
        if not isinstance(end_piece, str | None):
            raise TypeError("its end_piece is no text")
        pieces = checkpoint.meta["config"].get("pieces")
        if not isinstance(pieces, str | None):
            raise TypeError("its pieces are no text")
        tokenizer = load_tokenizer(
            str(checkpoint.meta["tokenizer"]),
            data,
            end_piece=end_piece,
            whole=listed(pieces) if pieces else (),
        )
        if tokenizer.vocab_size != checkpoint.meta["model"]["vocab_size"]:
            raise ValueError("its vocabulary is not the model's")
        tokenizer.ends_documents = seen(checkpoint, tensors, tokenizer)["document_ends"]
        spacing = checkpoint.meta.get("spacing")
        return tokenizer.with_spacing(spacing and _unescaped(spacing))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise damaged(checkpoint.path, f"its tokenizer cannot be read: {error}") from error


def _escaped(spacing: Spacing) -> Spacing:
    """White space as it can be printed."""
    return {
        place: {ascii(gap)[1:-1]: count for gap, count in counts.items()}
        for place, counts in spacing.items()
    }


def _unescaped(spacing: Spacing) -> Spacing:
    return {
        place: {gap.encode("ascii").decode("unicode_escape"): n for gap, n in counts.items()}
        for place, counts in spacing.items()
    }


def seen(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], tokenizer: Tokenizer
) -> dict[str, bool]:
    """What the training text held, by the names of meta.SEEN.

    Older checkpoints do not say; there it follows from what the head knows of the token in question,
    and is taken for granted where no token stands for it.
    """
    if "seen" in checkpoint.meta:
        return dict(checkpoint.meta["seen"])
    size = tokenizer.vocab_size
    returns = next((token for token in range(size) if tokenizer.surface(token) == b"\r"), None)
    return {
        "document_ends": _occurred(tensors, tokenizer.end_id),
        "carriage_returns": returns is None or _occurred(tensors, returns),
    }


def lines(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Sketch]:
    """Sketches of the run's "train" and "valid" text; older checkpoints have none.

    Raises InputError where they cannot be read.
    """
    try:
        return {
            name: Sketch.unpacked(tensors[f"lines.{name}"].numpy())
            for name in ("train", "valid")
            if f"lines.{name}" in tensors
        }
    except (TypeError, ValueError) as error:
        raise damaged(checkpoint.path, f"its sketches cannot be read: {error}") from error


def _occurred(tensors: Mapping[str, Tensor], token: int) -> bool:
    """Whether the training text held `token`, as far as the order of the head's tokens tells.

    Where all but one have rows of their own, that one is the token of the smallest bias.
    """
    row_V, rank_V = tensors.get("model.head.row_V"), tensors.get("model.head.rank_V")
    if row_V is not None:  # the last row is that of all tokens that did not occur
        return bool(row_V[token] < row_V.max())
    if rank_V is not None:  # by falling count, then by number: equal counts rise to the very end
        rarer = rank_V.argsort()[int(rank_V[token]) :]
        return not bool((rarer.diff() > 0).all())
    bias_V = tensors["model.head.bias"]
    return bool(bias_V[token] > bias_V.min())


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, keyed by the rest of the name."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _plain_floats(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors are float32, the type in which we save them, and finite."""
    values = list(tensors)
    return all(value.dtype is torch.float32 for value in values) and _all_finite(values)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors)


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    return [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
