"""Paired comparison of models on one text or list: data collected while scoring, and the result.

Depends on the bytes and surprisal of tokens and records, not on models or files. The statistics are
computed by statistics.py and converted to plain data here.

Shapes: N tokens, R records, K blocks of text or groups of records, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gru_lm.evaluation.record_texts import ScoredRecords
from gru_lm.evaluation.scoring import Portion
from gru_lm.evaluation.statistics import (
    MAX_BLOCKS,
    MAX_GROUPS,
    SINGLE,
    Estimate,
    common_blocks,
    direction,
    paired_difference,
    scattered,
    seeds_difference,
    verdict,
)
from gru_lm.evaluation.texts import Covered
from gru_lm.text.record_keys import keys_of


class Ends:
    """Byte offsets of token ends and token surprisals per document; works for any tokenizer."""

    def __init__(self, documents: int) -> None:
        self._parts = [[np.empty((2, 0))] for _ in range(documents)]

    def __call__(self, portion: Portion, covered: Covered) -> None:
        nats_N = covered.spelling_N.copy()
        nats_N[: len(portion.tokens_N)] -= portion.log_probs_N
        self._parts[portion.document].append(np.stack((covered.sizes_N2[:, 0], nats_N)))

    def by_document(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per document: end offsets of tokens in bytes [N], and nats including charges [N]."""
        whole = (np.concatenate(parts, 1) for parts in self._parts)
        return [(bytes_N.cumsum(), nats_N) for bytes_N, nats_N in whole]


class Groups:
    """Nats including charges (spelling.py) and bytes of random groups of records."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def __call__(self, records: ScoredRecords) -> None:
        self._keys.append(keys_of(records.block.texts))
        nats_R = records.nats_R + records.spelling_R
        self._values.append(np.stack((nats_R, records.bytes_R), 1))

    def sums(self) -> np.ndarray:
        """Nats and bytes of at most MAX_GROUPS groups of equal numbers of records, [K, 2].

        The groups do not depend on the order of the records or on the models.
        """
        values_R2 = np.concatenate(self._values)[scattered(np.concatenate(self._keys))]
        K = min(len(values_R2), MAX_GROUPS)
        sums_K2: np.ndarray = np.add.reduceat(values_R2, np.arange(K) * len(values_R2) // K, axis=0)
        return sums_K2


def models_difference(a: tuple[str, Ends | Groups], b: tuple[str, Ends | Groups]) -> dict[str, Any]:
    """Difference of two named models that have scored the same documents or records."""
    if isinstance(a[1], Groups) and isinstance(b[1], Groups):
        (nats_a_K, bytes_K), (nats_b_K, _) = a[1].sums().T, b[1].sums().T
        estimate = paired_difference(nats_a_K, nats_b_K, bytes_K, most=MAX_GROUPS)
        return _outcome(a[0], b[0], estimate, of_records=True)
    assert isinstance(a[1], Ends)
    assert isinstance(b[1], Ends)
    blocks = [
        common_blocks(*of_a, *of_b)
        for of_a, of_b in zip(a[1].by_document(), b[1].by_document(), strict=True)
    ]
    nats_a_K, nats_b_K, bytes_K = (np.concatenate(each) for each in zip(*blocks, strict=True))
    return _outcome(a[0], b[0], paired_difference(nats_a_K, nats_b_K, bytes_K))


def charges(sides: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on charges (spelling.py), if they apply to one of the models but not to the other."""
    if all(side["spelling_share"] for side in sides):
        return []
    return [
        f"{side['spelling_share']:.1%} of the bits of {side['name']} are spent on white space, unknown "
        "words and characters that its tokenizer drops"
        for side in sides
        if side["spelling_share"]
    ]


def cells_differences(
    sums: Mapping[str, Sequence[dict[str, list[float]]]],
    *,
    at: str,
    by: str,
    of_records: bool = False,
) -> list[dict[str, Any]]:
    """Differences between all pairs of cells.

    `sums`: per cell and seed, the `nats` and `bytes` of the same blocks of text; with `of_records`, of
    the same groups of records. `at` names the controlled quantity, as in "at equal parameters". `by`
    describes the training and is appended to every verdict.
    """
    bytes_K = np.array(next(iter(sums.values()))[0]["bytes"])
    assert all(run["bytes"] == bytes_K.tolist() for runs in sums.values() for run in runs)
    nats_SK = {cell: np.array([run["nats"] for run in runs]) for cell, runs in sums.items()}
    pairs = [*combinations(sums, 2)]
    most = MAX_GROUPS if of_records else MAX_BLOCKS
    return [
        _outcome(
            a,
            b,
            seeds_difference(nats_SK[a], nats_SK[b], bytes_K, comparisons=len(pairs), most=most),
            at=at,
            by=by,
            of_records=of_records,
        )
        for a, b in pairs
    ]


def _outcome(
    a: str,
    b: str,
    estimate: Estimate,
    *,
    at: str = "",
    by: str = "",
    of_records: bool = False,
) -> dict[str, Any]:
    """A difference as plain data; `ci95` is present only if the level is 95 % (a single comparison)."""
    interval = estimate.interval and list(estimate.interval)
    sentence = verdict(a, b, estimate, at=at, of_records=of_records)
    return {
        "a": a,
        "b": b,
        "bits_per_byte": estimate.value if math.isfinite(estimate.value) else None,
        "interval": interval,
        "level": estimate.level,
        **({"ci95": interval} if estimate.level == SINGLE else {}),
        "better": {1: b, -1: a, 0: None}[direction(estimate)],
        "verdict": f"{sentence}; {by}" if by else sentence,
    }
