"""Malicious checkpoints with a valid checksum, as an attacker who knows the format could make them."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

ZEROS = "0" * 64
Header = dict[str, Any]


def taken_apart(data: bytes) -> tuple[Header, dict[str, Any], bytes]:
    """Split a checkpoint into its header without metadata, our metadata, and the tensor data."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = json.loads(header.pop("__metadata__")["gru_lm"])
    return header, meta, data[8 + length :]


def signed(header: Header, meta: Any, body: bytes, *, text: str | None = None) -> bytes:
    """Assemble a checkpoint with a valid checksum; `text` replaces the JSON of the metadata."""
    if isinstance(meta, dict) and "sha256" in meta:
        meta = {**meta, "sha256": ZEROS}
    if text is None:
        text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    whole = json.dumps({"__metadata__": {"gru_lm": text}, **header}, separators=(",", ":")).encode()
    whole += b" " * (-len(whole) % 8)
    data = struct.pack("<Q", len(whole)) + whole + body
    digest = hashlib.sha256(data).hexdigest().encode()
    return data.replace(rb"\"sha256\":\"" + ZEROS.encode(), rb"\"sha256\":\"" + digest, 1)


def changed(data: bytes, change: Callable[[Header, dict[str, Any]], Any]) -> bytes:
    """`data` after `change(header, meta)`, with a valid checksum."""
    header, meta, body = taken_apart(data)
    change(header, meta)
    return signed(header, meta, body)


def poked(data: bytes, tensor: str, values: bytes) -> bytes:
    """`data` with the first bytes of a tensor replaced, and a valid checksum."""
    header, meta, body = taken_apart(data)
    start, end = header[tensor]["data_offsets"]
    assert len(values) <= end - start
    return signed(header, meta, body[:start] + values + body[start + len(values) :])


ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, -1e300, float("nan"),
    float("inf"), "", "x", "\x1b[2J", "\ud800", "A" * 5000, [], [1], {}, {"a": 1}, [[[[]]]],
]  # fmt: skip


def mutated(data: bytes, chosen: random.Random) -> bytes:
    """A random mutation of metadata, tensor descriptions or tensor bytes."""
    header, meta, body = taken_apart(data)
    for _ in range(chosen.choice((1, 1, 1, 2, 5))):
        if chosen.random() < 0.6:
            _change_somewhere(meta, chosen)
        elif chosen.random() < 0.8:
            _change_tensor(header, chosen)
        else:
            at = chosen.randrange(len(body))
            body = body[:at] + chosen.randbytes(4) + body[at + 4 :]
    return signed(header, meta, body)


def _change_somewhere(meta: dict[str, Any], chosen: random.Random) -> None:
    while True:
        name = chosen.choice([*meta, "new"])
        inner = meta.get(name)
        if not isinstance(inner, dict) or chosen.random() < 0.2:
            break
        meta = inner
    if chosen.random() < 0.2:
        meta.pop(name, None)
    else:
        meta[name] = chosen.choice(ODD)


def _change_tensor(header: Header, chosen: random.Random) -> None:
    name = chosen.choice(list(header))
    match chosen.randrange(6):
        case 0:
            del header[name]
        case 1:
            header[name + chosen.choice(["", "x", "\x1b[2J", "\n"])] = header.pop(name)
        case 2:
            types = ["F64", "F16", "BF16", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "?"]
            header[name]["dtype"] = chosen.choice(types)
        case 3:
            shape = header[name]["shape"]
            header[name]["shape"] = chosen.choice(
                [[], [0], shape[::-1], [*shape, 1], [1, *shape], [2**62, 2], [-1], [2**64], ODD]
            )
        case 4:
            other = chosen.choice(list(header))
            header[name]["data_offsets"] = header[other]["data_offsets"]
        case 5:
            header[name]["data_offsets"] = chosen.choice([[0, 0], [0, 2**63], [5, 1], [-1, 4], "x"])
