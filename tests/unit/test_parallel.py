"""Encoding by worker processes: the same ids in order even if workers die; bounded memory; no leaks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gru_lm.errors import InputError, Stopped
from gru_lm.text import parallel
from gru_lm.text.parallel import encode_all, encode_texts
from gru_lm.text.store import build_store
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer
from tests.conftest import wait_for
from tests.unit.test_store import KEY, document

BLOCKS = [["a b\n" * 50, "", "c"], ["\n a x \udce9"], [""], ["a", "b"], ["b c a\n" * 9000]] * 3


@pytest.fixture(scope="module")
def word() -> Tokenizer:
    return train_tokenizer("word", lambda: ["a b c <unk>\n"])


def never() -> None:
    """A `stop` without signals."""


def encoded(tokenizer: Tokenizer, workers: int) -> list[list[int]]:
    found = encode_all(tokenizer, BLOCKS, workers=workers, stop=never)
    return [ids.tolist() for ids in found]


def child(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Make workers run `code` instead."""
    path = folder / "child.py"
    path.write_text(code)
    monkeypatch.setattr(parallel, "_CHILD", path)


def test_texts_have_the_end_of_a_document_between_them(word: Tokenizer) -> None:
    assert encode_texts(word, ["a", "", "b"]).tolist() == [3, 1, 1, 4]
    assert encode_texts(word, [""]).tolist() == []


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_processes_give_the_ids_of_this_one(kind: str) -> None:
    tokenizer = train_tokenizer(kind, lambda: ["a b c the cat sat on the mat\n" * 50])
    expected = [encode_texts(tokenizer, block).tolist() for block in BLOCKS]
    assert encoded(tokenizer, 2) == encoded(tokenizer, 1) == expected


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("raise SystemExit(1)", id="at once"),
        pytest.param("import time; time.sleep(0.1)", id="without reading"),
        pytest.param("import os; os.read(0, 99); os.write(0, bytes([9] + [0] * 9))", id="half"),
    ],
)
def test_a_worker_that_dies_is_replaced_by_this_process(
    code: str, word: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = encoded(word, 1)
    child(monkeypatch, tmp_path, code)
    assert encoded(word, 2) == expected


def test_a_worker_killed_on_the_way(word: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[parallel._Worker] = []
    begin = parallel._Worker.__init__

    def kept(self: parallel._Worker, tokenizer: Tokenizer) -> None:
        begin(self, tokenizer)
        workers.append(self)

    def blocks() -> Iterator[list[str]]:
        for number, block in enumerate(BLOCKS):
            if number == len(BLOCKS) // 2:
                process = workers[0]._process
                assert process
                process.kill()
            yield block

    monkeypatch.setattr(parallel._Worker, "__init__", kept)
    found = encode_all(word, blocks(), workers=2, stop=never)
    assert [ids.tolist() for ids in found] == encoded(word, 1)


def test_where_no_process_can_be_started(word: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encoded(word, 1)
    monkeypatch.setattr(parallel.sys, "executable", "/nowhere/python")
    assert encoded(word, 3) == expected


ENDLESS = """
import os, sys, time
open(os.path.join(os.path.dirname(__file__), str(os.getpid())), "w").close()
time.sleep(60)
"""


def processes(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def test_stop_ends_workers_that_hang(
    word: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child(monkeypatch, tmp_path, ENDLESS)

    def stop() -> None:
        if len(processes(tmp_path)) == 2:
            raise Stopped(2)

    began = time.monotonic()
    with pytest.raises(Stopped):
        list(encode_all(word, iter(BLOCKS), workers=2, stop=stop))
    assert time.monotonic() - began < 20
    for pid in processes(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_error_of_the_text_ends_the_workers(
    word: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child(monkeypatch, tmp_path, ENDLESS)

    def blocks() -> Iterator[list[str]]:
        yield ["a"]
        wait_for(lambda: len(processes(tmp_path)) == 2)
        raise InputError("it changed")

    with pytest.raises(InputError, match="it changed"):
        list(encode_all(word, blocks(), workers=2, stop=never))
    for pid in processes(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_few_blocks_are_under_way(word: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.sys, "executable", "/nowhere/python")
    taken = 0

    def endless() -> Iterator[list[str]]:
        nonlocal taken
        while True:
            taken += 1
            yield ["a b\n"]

    with closing(encode_all(word, endless(), workers=3, stop=never)) as found:
        for number in range(1, 50):
            assert next(found).tolist() == [3, 4, 2]
            assert taken - number <= 3 * 2


def test_a_store_built_by_workers(
    word: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [document("a b x\nc " * 300), document("c"), document("\n" * 40 + "a " * 900)]
    alone = build_store(texts, word, directory=tmp_path / "alone", key=KEY)
    monkeypatch.setattr("gru_lm.text.store.BLOCK", 100)
    done: list[int] = []
    shared = build_store(
        texts, word, directory=tmp_path / "shared", key=KEY, workers=2, progress=done.append
    )
    assert np.array_equal(shared.tokens, alone.tokens)
    assert shared.path.read_bytes() == alone.path.read_bytes()
    assert (shared.characters, shared.bytes, shared.unknown) == (4241, 4241, 300)
    assert sum(done) == shared.characters
