"""Baselines: each figure is the length of a code, checked by encoding the text token by token."""

from __future__ import annotations

import bz2
import lzma
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_lm.errors import Stopped
from gru_lm.evaluation.baselines import baselines, compressed_sizes, unigram_nats

TEXT = "the cat sat on the mat,\nthé dog ran\n" * 30


def counts_of(tokens: list[int], vocab_size: int) -> np.ndarray:
    return np.bincount(np.array(tokens, np.int64), minlength=vocab_size).astype(np.int64)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 6), max_size=30))
def test_the_unigram_is_what_counting_on_the_way_gives(tokens: list[int]) -> None:
    seen: Counter[int] = Counter()
    nats = 0.0
    for number, token in enumerate(tokens):
        nats -= math.log((seen[token] + 1) / (number + 7))
        seen[token] += 1
    assert unigram_nats(counts_of(tokens, 7)) == pytest.approx(nats, abs=1e-9)


def test_the_unigram_of_a_long_text_nears_its_entropy() -> None:
    counts = np.array([500_000_000, 250_000_000, 250_000_000], np.int64)
    assert unigram_nats(counts) / 1e9 / math.log(2) == pytest.approx(1.5, abs=1e-6)


def test_rows() -> None:
    tokens = list(TEXT.encode())
    rows = {row["name"]: row for row in baselines(counts_of(tokens, 257), [TEXT])}
    assert list(rows) == ["uniform", "unigram", "bz2", "lzma"]
    size = len(tokens)
    assert rows["uniform"]["bits_per_byte"] == pytest.approx(math.log2(257))
    assert rows["uniform"]["nats_per_token"] == pytest.approx(math.log(257))
    nats = unigram_nats(counts_of(tokens, 257))
    assert rows["unigram"]["nats"] == nats
    assert rows["unigram"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert rows["bz2"]["compressed_bytes"] == len(bz2.compress(TEXT.encode(), 9))
    for name in ("bz2", "lzma"):
        length = rows[name]["compressed_bytes"]
        assert isinstance(length, int)
        assert rows[name]["bits_per_byte"] == 8 * length / size


def test_bytes_are_the_texts_not_the_tokens() -> None:
    (uniform, *_) = baselines(np.array([3, 1], np.int64), ["éé"])
    assert uniform["bits_per_byte"] == pytest.approx(4 * 1 / 4)


def test_compression_can_be_undone_and_has_no_container() -> None:
    size, packed = compressed_sizes([TEXT])
    assert size == len(TEXT.encode())
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME}]
    raw = lzma.compress(TEXT.encode(), lzma.FORMAT_RAW, filters=filters)
    assert lzma.decompress(raw, lzma.FORMAT_RAW, filters=filters).decode() == TEXT
    assert packed["lzma"] == len(raw)
    for container in (lzma.FORMAT_ALONE, lzma.FORMAT_XZ):
        whole = lzma.compress(TEXT.encode(), container, preset=9 | lzma.PRESET_EXTREME)
        assert packed["lzma"] < len(whole)


def test_documents_are_one_stream_wherever_it_is_cut() -> None:
    whole = compressed_sizes([TEXT * 2])
    assert compressed_sizes([TEXT, TEXT]) == whole
    assert compressed_sizes(iter(TEXT * 2)) == whole


def test_no_text() -> None:
    rows = baselines(np.zeros(5, np.int64), [])
    assert [row["bits_per_byte"] for row in rows] == [None] * 4
    assert [row.get("nats") for row in rows][:2] == [0, 0]


def test_a_signal_ends_it() -> None:
    def stop() -> None:
        raise Stopped(2)

    def pieces() -> Iterator[str]:
        yield "a"

    with pytest.raises(Stopped):
        baselines(np.zeros(5, np.int64), pieces(), stop=stop)
