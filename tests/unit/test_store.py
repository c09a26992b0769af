"""Token store: contents, caching, and rebuilding of a damaged cache."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gru_lm.errors import EnvironmentProblem, InputError, Stopped
from gru_lm.text.documents import Slice
from gru_lm.text.sources import open_documents
from gru_lm.text.store import TokenStore, build_store, unigram_counts
from gru_lm.text.tokenizer import Tokenizer, train_tokenizer

KEY = "ab" * 32


@dataclass(frozen=True)
class Text:
    """An in-memory document that counts how often it is read."""

    text: str
    reads: list[int]
    name: str = "text"

    def pieces(self) -> Iterator[str]:
        self.reads.append(1)
        for start in range(0, len(self.text), 7):
            yield self.text[start : start + 7]


def document(text: str) -> Text:
    return Text(text, [])


@pytest.fixture(scope="module")
def byte() -> Tokenizer:
    return train_tokenizer("byte", lambda: [])


def build(texts: list[Text], tokenizer: Tokenizer, directory: Path, key: str = KEY) -> TokenStore:
    return build_store(texts, tokenizer, directory=directory, key=key)


def test_documents_are_separated_and_counted(tmp_path: Path, byte: Tokenizer) -> None:
    done: list[int] = []
    store = build_store(
        [document("h\u00e9llo\n"), document("you")],
        byte,
        directory=tmp_path / "deep" / "er",
        key=KEY,
        progress=done.append,
    )
    assert store.tokens.tolist() == [*"h\u00e9llo\n".encode(), 256, *b"you"]
    assert (store.characters, store.bytes, store.unknown) == (9, 10, 0)
    assert sum(done) == 9
    assert store.tokens.dtype == np.uint16
    assert not store.tokens.flags.writeable


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_smallest_type(tmp_path: Path, byte: Tokenizer, size: int, dtype: type) -> None:
    byte = train_tokenizer("byte", lambda: [])
    byte.vocab_size = size
    assert build([document("a")], byte, tmp_path).tokens.dtype == dtype


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    word = train_tokenizer("word", lambda: ["a a b <unk>"])
    assert build([document("a x b y <unk>\n")], word, tmp_path).unknown == 3


def test_no_text_at_all(tmp_path: Path, byte: Tokenizer) -> None:
    store = build([], byte, tmp_path)
    assert len(store.tokens) == 0
    assert unigram_counts(store, 257).sum() == 0


def test_unigram_counts(tmp_path: Path, byte: Tokenizer) -> None:
    counts = unigram_counts(build([document("abca")], byte, tmp_path), 257)
    assert counts.dtype == np.int64
    assert counts.shape == (257,)
    assert (counts[ord("a")], counts[ord("b")], counts.sum()) == (2, 1, 4)


def test_a_second_build_reads_no_text(tmp_path: Path, byte: Tokenizer) -> None:
    text = document("hello")
    first = build([text], byte, tmp_path)
    old = time.time() - 5 * 24 * 3600
    os.utime(first.path, (old, old))
    done: list[int] = []
    second = build_store([text], byte, directory=tmp_path, key=KEY, progress=done.append)
    assert second.tokens.tolist() == first.tokens.tolist()
    assert (second.characters, second.bytes) == (5, 5)
    assert len(text.reads) == 1
    assert sum(done) == 5
    assert first.path.stat().st_mtime > old + 24 * 3600


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:500],
        lambda data: data[:1024],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes(len(data)),
        lambda data: b"[1, 2]".ljust(1024) + data[1024:],
        lambda data: data.replace(b'"<u2"', b'"|O8"'),
        *map(flip, [0, 3, 20, 60, 100, 1000, 1024, 1030]),
    ],
)
def test_a_damaged_cache_is_built_anew(
    tmp_path: Path, byte: Tokenizer, damage: Callable[[bytes], bytes]
) -> None:
    text = document("hello you")
    store = build([text], byte, tmp_path)
    whole = store.path.read_bytes()
    store.path.write_bytes(damage(whole))
    assert build([text], byte, tmp_path).tokens.tolist() == list(b"hello you")
    assert len(text.reads) == 2
    assert store.path.read_bytes() == whole


def test_a_file_of_another_key_is_not_used(tmp_path: Path, byte: Tokenizer) -> None:
    other = build([document("other")], byte, tmp_path, key="cd" * 32)
    other.path.rename(tmp_path / f"{KEY}.tokens")
    assert build([document("this")], byte, tmp_path).tokens.tolist() == list(b"this")


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "link to nothing", "open to all"])
def test_what_is_no_store_of_ours_is_replaced(tmp_path: Path, byte: Tokenizer, kind: str) -> None:
    text = document("hello you")
    path = build([text], byte, tmp_path).path
    whole = path.read_bytes()
    outside = tmp_path / "outside"
    if kind == "open to all":
        path.chmod(0o666)
    else:
        path.unlink()
    if kind == "directory":
        path.mkdir()
        (path / "file").touch()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        outside.write_bytes(whole)
        path.symlink_to(outside)
    elif kind == "link to nothing":
        path.symlink_to(outside)
    assert build([text], byte, tmp_path).tokens.tolist() == list(b"hello you")
    assert len(text.reads) == 2
    assert path.read_bytes() == whole
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert outside.exists() == (kind == "link")


@pytest.mark.parametrize("change", ["rewritten", "lengthened", "replaced"])
def test_a_text_that_changes_while_its_first_part_is_tokenized_leaves_no_store(
    tmp_path: Path, byte: Tokenizer, change: str
) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text("one line of text\n" * 20_000)
    (whole,) = open_documents([str(path)])
    parts = [Slice(whole, 0, 100_000), Slice(whole, 150_000, 250_000)]
    seen: list[int] = []

    def alter(amount: int) -> None:
        seen.append(amount)
        if len(seen) != 3:
            return
        if change == "rewritten":
            with path.open("r+b") as file:
                file.seek(60_000)
                file.write(b"other text")
        elif change == "lengthened":
            with path.open("ab") as file:
                file.write(b"other text")
        else:
            (tmp_path / "new").write_text("two lines of text\n" * 20_000)
            (tmp_path / "new").rename(path)

    with pytest.raises(InputError, match=r"text\.txt changed while it was read"):
        build_store(parts, byte, directory=cache, key=KEY, progress=alter)
    assert len(seen) > 3
    assert list(cache.iterdir()) == []


def test_stop_leaves_nothing(tmp_path: Path, byte: Tokenizer) -> None:
    polls = iter(range(100))

    def stop() -> None:
        if next(polls) == 3:
            raise Stopped(2)

    with pytest.raises(Stopped):
        build_store([document("x" * 100)], byte, directory=tmp_path, key=KEY, stop=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be(tmp_path: Path, byte: Tokenizer) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="file"):
        build([document("x")], byte, tmp_path / "file" / "below")


def test_memory_does_not_grow_with_the_text(tmp_path: Path, byte: Tokenizer) -> None:
    @dataclass(frozen=True)
    class Long:
        name: str = "long"

        def pieces(self) -> Iterator[str]:
            for _ in range(300):
                yield "a line of text\n" * 2000

    build([document("x")], byte, tmp_path, key="warm-up")
    tracemalloc.start()
    store = build_store([Long()], byte, directory=tmp_path, key=KEY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store.tokens) == 300 * 2000 * 15
    assert peak < store.tokens.nbytes / 2


def test_two_processes_build_the_same_store(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from gru_lm.text.store import build_store
from gru_lm.text.tokenizer import load_tokenizer

class Text:
    name = "text"
    def pieces(self):
        for number in range(300):
            yield f"line {number}\\n" * 100

byte = load_tokenizer("byte", b"")
print(len(build_store([Text()], byte, directory=Path(sys.argv[1]), key="k").tokens))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["k.tokens"]
