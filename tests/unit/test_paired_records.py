"""Differences over records: groups that do not depend on the order, verdicts, and their error rate."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from gru_lm.evaluation.paired import Groups, cells_differences, models_difference
from gru_lm.evaluation.record_texts import ScoredRecords
from gru_lm.evaluation.statistics import MAX_GROUPS, Estimate, paired_difference, verdict
from gru_lm.text.records import Block


def scored(texts: list[str], nats: list[float]) -> ScoredRecords:
    """Records with these sums; half a nat of each is a charge."""
    sizes = np.array([len(text.encode()) + 1 for text in texts])
    nats_R, lines = np.array(nats), list(range(1, len(texts) + 1))
    block = Block(texts, lines, {}, 0)
    return ScoredRecords(0, block, sizes, nats_R - 0.5, np.full(len(texts), 0.5), sizes)


def grouped(texts: list[str], *, portions: int = 3, factor: float = 1.0) -> Groups:
    """Records whose nats are a function of their texts, given in portions."""
    groups = Groups()
    for part in np.array_split(np.arange(len(texts)), portions):
        some = [texts[i] for i in part]
        groups(scored(some, [factor * (len(text) + sum(map(ord, text)) % 7) for text in some]))
    return groups


@pytest.mark.parametrize("count", [30, 1000, 1001, 4321])
def test_groups_do_not_depend_on_the_order(count: int) -> None:
    rng = random.Random(0)
    texts = [f"record {rng.randrange(count)}" for _ in range(count)]
    sums_K2 = grouped(texts).sums()
    assert len(sums_K2) == min(count, MAX_GROUPS)
    assert sums_K2[:, 1].sum() == sum(len(text) + 1 for text in texts)
    for order in (sorted(texts), texts[::-1], random.Random(1).sample(texts, count)):
        assert grouped(order, portions=5).sums() == pytest.approx(sums_K2, rel=1e-12)


def test_each_record_is_a_group_where_there_are_few() -> None:
    a, b = grouped(["x", "yy", "zzz"] * 5), grouped(["x", "yy", "zzz"] * 5, factor=2.0)
    difference = models_difference(("a", a), ("b", b))
    total = a.sums()[:, 0].sum() / math.log(2) / a.sums()[:, 1].sum()
    assert difference["bits_per_byte"] == pytest.approx(-total)
    assert difference["better"] == "a"
    assert difference["verdict"].startswith("a predicts this list better than b: ")
    assert difference["verdict"].endswith("over the records alone: other seeds may differ)")


def test_cells_on_a_list() -> None:
    texts = [f"record {number}" for number in range(600)]
    blocks = [
        dict(zip(("nats", "bytes"), grouped(texts, factor=factor).sums().T.tolist(), strict=True))
        for factor in (1.0, 1.01, 0.99, 1.2, 1.22, 1.19)
    ]
    sums = {"gru": blocks[:3], "lstm": blocks[3:]}
    (difference,) = cells_differences(sums, at="at equal width", by="tuned", of_records=True)
    assert difference["better"] == "gru"
    assert "gru predicts this list better than lstm at equal width: " in difference["verdict"]
    (text,) = cells_differences(sums, at="at equal width", by="tuned")
    assert text["bits_per_byte"] == difference["bits_per_byte"]
    assert text["interval"] != difference["interval"], "running text is merged into long blocks"


def test_verdicts_name_the_list() -> None:
    few = Estimate(0.1, None, math.nan, 0.95, 9)
    assert verdict("a", "b", few, of_records=True) == (
        "not enough records to tell: 9 records, 10 are needed"
    )
    none = Estimate(math.nan, None, math.nan, 0.95, 0)
    assert verdict("a", "b", none, of_records=True).startswith("no verdict: the list is empty")
    unsure = Estimate(0.0, (-0.01, 0.012), 1e-5, 0.95, 100, 3)
    said = verdict("a", "b", unsure, of_records=True)
    assert said.startswith("no difference found between a and b on this list; ")


@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_a_difference_that_is_not_there_is_seldom_found(count: int) -> None:
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(300):
        sizes = rng.integers(3, 12, count)
        nats = sizes * rng.gamma(4, 0.5, count)
        noise_a, noise_b = rng.normal(0, 1, (2, count)) * np.sqrt(sizes)
        found = paired_difference(nats + noise_a, nats + noise_b, sizes, most=MAX_GROUPS)
        assert found.interval is not None
        outside += not found.interval[0] <= 0 <= found.interval[1]
    # Expected are 15; 26 has a probability of 0.5 % at a true rate of 5 %.
    assert 4 <= outside <= 26
