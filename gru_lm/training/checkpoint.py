"""The checkpoint file: a single self-contained safetensors file with a SHA-256 over all its bytes.

`encode` serializes, `read` verifies and parses, `Checkpoint.tensors` builds tensors from the verified
bytes. Reading needs no torch, executes nothing and follows no links: a malicious file is rejected before
torch is imported. The JSON is validated by meta.py; the tensors are interpreted by state.py.

    safetensors header, one metadata key "gru_lm": canonical JSON {"format": 1, "sha256": ..., ...}
    tensors: "model.*", "average.*", "optimizer.*", "hidden", "tokenizer" (the tokenizer's bytes)

The hash is computed with its own 64 digits set to zero. Invariant: a file's content does not depend on
clock, host, process or path; identical runs write identical files.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_lm.errors import InputError
from gru_lm.layout import SUFFIX
from gru_lm.training.meta import FORMAT, FormatError, parsed

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE = 64 << 30  # bytes; larger files are rejected unread
MAX_HEADER = 16 << 20
ZEROS = b"0" * 64

# Magic bytes of common file types that are not checkpoints.
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a PyTorch pickle)",
    b"\x80": "a Python pickle",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"(\xb5/\xfd": "a zstd archive",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    path: Path
    meta: dict[str, Any]
    data: bytes

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU, from the verified bytes. Raises InputError if they are malformed."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.data)
        except (SafetensorError, ValueError, KeyError, OverflowError) as error:
            raise damaged(self.path, f"invalid tensors: {error}") from error


def encode(tensors: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """Serialize a checkpoint. `meta` must be JSON-serializable; tensors may be on any device."""
    from safetensors.torch import save

    text = json.dumps(
        {**meta, "format": FORMAT, "sha256": ZEROS.decode()},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = bytearray(save(plain, {"gru_lm": text}))
    at = _digits(data)
    assert at is not None
    data[at : at + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises InputError if `path` is not an intact checkpoint."""
    data = _read_regular(path)
    for magic, what in FOREIGN.items():
        if data.startswith(magic) and data[8:9] != b"{":
            raise InputError(
                f"{path} is {what}, not a gru-lm checkpoint",
                hint="give a run directory, or a step-*.safetensors file in one",
            )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or data[8:9] != b"{" or not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise damaged(path, "it does not start with a safetensors header")
    at = _digits(data)
    if at is None:
        raise damaged(path, "its header contains no gru-lm checksum")
    digest = hashlib.sha256(data[:at])
    digest.update(ZEROS)
    digest.update(memoryview(data)[at + 64 :])
    if digest.hexdigest().encode() != data[at : at + 64]:
        raise damaged(path, "its checksum does not match")
    try:
        meta = header(data)
    except FormatError as error:
        raise InputError(
            f"{path} has format version {error.version}; this gru-lm reads version {FORMAT}",
            hint="pip install --upgrade gru-lm",
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, "its header is malformed") from error
    return Checkpoint(path, meta, data)


def header(data: bytes) -> dict[str, Any]:
    """What the JSON of a checkpoint's bytes says. Raises ValueError, KeyError or TypeError."""
    length = int.from_bytes(data[:8], "little")
    return parsed(json.loads(data[8 : 8 + length])["__metadata__"]["gru_lm"])


def damaged(path: Path, why: str) -> InputError:
    """The InputError for an unusable checkpoint."""
    return InputError(
        f"{path} is damaged or not a checkpoint",
        why=why,
        hint=f"try another checkpoint of the same run: ls {path.parent}/*{SUFFIX}",
    )


def _digits(data: bytes | bytearray) -> int | None:
    """Offset of the checksum's 64 digits. The metadata is JSON within JSON, so quotes are escaped."""
    key = rb"\"sha256\":\""
    end = 8 + int.from_bytes(data[:8], "little")
    at = data.find(key, 8, end)
    if at < 0 or data.find(key, at + 1, end) >= 0 or at + len(key) + 64 > end:
        return None
    return at + len(key)


def _read_regular(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO must not block before it is recognized as one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}") from error
    except OSError as error:
        why = "symbolic links are not followed" if path.is_symlink() else error.strerror
        raise InputError(f"cannot open {path}", why=why) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > MAX_FILE:
            raise InputError(f"{path} is too large for a checkpoint ({status.st_size:,} bytes)")
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"cannot read {path}", why=error.strerror) from error
