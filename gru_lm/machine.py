"""What this machine computes with: device, threads, precision. Refuses what does not go together.

Knows settings and PyTorch, and no text.
"""

from __future__ import annotations

import os

import torch

from gru_lm.config import Settings
from gru_lm.errors import UsageError
from gru_lm.model.language_model import ModelConfig
from gru_lm.model.native.kernels import bf16_available
from gru_lm.model.recurrent import choose_device
from gru_lm.training.planner import DEFAULT_CELL

# Of training, beside the fastest and float32.
_PRECISIONS: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": ("bf16", "fp16")}


def fastest_precision(device: torch.device) -> str:
    """What a run is trained in unless told otherwise."""
    return "bf16" if device.type == "cpu" and bf16_available() else "float32"


def set_up(
    chosen: Settings, *, threads: int | None = None, device: str | None = None
) -> torch.device:
    """Prepare PyTorch as the settings say; returns the device. Raises what does not go together."""
    where = choose_device(device or chosen.device)
    if chosen.precision not in (
        None,
        "float32",
        fastest_precision(where),
        *_PRECISIONS[where.type],
    ):
        or_else = ", or AVX512_BF16 and a C compiler" if chosen.precision == "bf16" else ""
        raise UsageError(
            f"--precision {chosen.precision} needs CUDA{or_else}",
            hint="--precision float32; a run that has begun so goes on only where that is",
        )
    # The names and limits that need no text, before any is read.
    ModelConfig(
        cell=chosen.cell or DEFAULT_CELL,
        vocab_size=2,
        layers=chosen.layers or 1,
        width=chosen.width or 1,
        embed=chosen.embed or 1,
        tied=chosen.tied is not False,
        cutoffs=(1,) if chosen.softmax == "adaptive" else (),
    )
    if threads or chosen.threads:
        torch.set_num_threads(threads or chosen.threads or 1)
    if chosen.deterministic and where.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return where
