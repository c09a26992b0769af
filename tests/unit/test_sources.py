"""Documents from files, folders, globs and pipes: which are read, in which order, and how cut."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from gru_lm.errors import InputError, UsageError
from gru_lm.text import sources


def texts(*specs: str | Path, encoding: str = "utf-8") -> dict[str, str]:
    found = sources.open_documents([str(spec) for spec in specs], encoding=encoding)
    return {each.name: "".join(each.pieces()) for each in found}


def test_nothing_is_translated(tmp_path: Path) -> None:
    text = "a\r\nb\rc\n\n \t x\x0b\x0c\u2028\u2581\ufeffé😀 \x00 end "
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert texts(path) == {str(path): text}


def test_a_document_can_be_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("again")
    (document,) = sources.open_documents([str(path)])
    assert list(document.pieces()) == list(document.pieces()) == ["again"]


def test_the_byte_order_mark_is_dropped_once(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa")
    assert texts(path)[str(path)] == "\ufeffa"
    assert texts(path, encoding="utf-8-sig")[str(path)] == "\ufeffa"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "cp1252", "shift_jis"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    text = "plain text\r\n" + ("吾輩は猫である\n" if encoding != "cp1252" else "naïve café\n")
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    assert texts(path, encoding=encoding)[str(path)] == text


def test_characters_across_chunks_and_bounded_pieces(tmp_path: Path) -> None:
    text = "a" + "猫😀" * 200_000
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    (document,) = sources.open_documents([str(path)])
    pieces = list(document.pieces())
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 1 << 20


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.compress),
    ],
)
def test_decompressed_on_the_way(tmp_path: Path, suffix: str, pack) -> None:
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(pack(b"packed\r\n"))
    assert texts(path) == {str(path): "packed\r\n"}


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    """Also empty frames, frames to be skipped, as in files that can be searched, and wide windows."""
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\0\0\0\0"
    frames = [
        skipped,
        zstandard.compress(b"one\n" * 100_000),
        zstandard.compress(b""),
        skipped,
        stream.compress(b"two\n") + stream.flush(),
        skipped,
    ]
    path = tmp_path / "text.ZST"
    path.write_bytes(b"".join(frames))
    assert texts(path) == {str(path): "one\n" * 100_000 + "two\n"}


def test_a_folder_is_read_in_order_without_what_is_no_text(tmp_path: Path) -> None:
    for name in ("b.txt", "a/2.txt", "a/10.txt", ".hidden", ".git/config", "a.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "archive").write_bytes(gzip.compress(b"text"))
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert list(texts(tmp_path).values()) == ["a/10.txt", "a/2.txt", "a.txt", "b.txt"]


def test_globs(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("z.txt", "a.txt", "deep/er/b.txt", "not.md", "[1].txt", "1"):
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").touch()
    found = texts(tmp_path / "**" / "*.txt").values()
    assert list(found) == ["[1].txt", "a.txt", "deep/er/b.txt", "z.txt"]
    assert list(texts(tmp_path / "[1].txt").values()) == ["[1].txt"]  # a file of this name exists
    assert list(texts(tmp_path / "dee*").values()) == ["deep/er/b.txt"]


def test_what_runs_wrote_is_no_text_to_be_found(tmp_path: Path) -> None:
    for name in (
        "a.txt", "b/config.toml", "b/text.txt", "x.safetensors",
        "runs/1/step-00000000.safetensors", "runs/1/samples.txt", "runs/1/notes.txt",
        "runs/2/best.safetensors", "runs/2/metrics.jsonl",
        "runs/3/.lock", "runs/3/config.toml",
        "runs/4/.lock", "runs/4/text.txt",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = ["a.txt", "b/config.toml", "b/text.txt"]
    assert list(texts(tmp_path).values()) == found
    assert list(texts(tmp_path / "*").values()) == found
    # Named or matched themselves, less what the run wrote; a file by its own name is always read.
    assert list(texts(tmp_path / "runs" / "1").values()) == ["runs/1/notes.txt"]
    assert list(texts(tmp_path / "runs" / "1" / "*.txt").values()) == ["runs/1/notes.txt"]
    path = tmp_path / "runs" / "1" / "samples.txt"
    assert list(texts(path).values()) == ["runs/1/samples.txt"]
    assert list(texts(tmp_path / "**" / "config.toml").values()) == ["b/config.toml"]


def test_a_file_reached_twice_is_read_once_at_its_first_place(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c.txt").symlink_to("a.txt")
    found = texts(tmp_path / "b.txt", tmp_path, tmp_path / "*.txt")
    assert list(found.values()) == ["b.txt", "a.txt"]


def test_standard_input_through_a_real_pipe(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from gru_lm.text.sources import *; path = Path('spool');"
        "spool_stdin(path); document, = open_documents(['-', '-'], stdin=path);"
        "print(document.name, repr(''.join(document.pieces())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, input=b"from a\r\npipe", capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode() == "- 'from a\\r\\npipe'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


def test_spooling_stops_while_it_waits(tmp_path: Path) -> None:
    program = (
        "import time; from pathlib import Path; from gru_lm.text.sources import *\n"
        "def stop():\n"
        "    if time.monotonic() > end: raise KeyboardInterrupt\n"
        "end = time.monotonic() + 0.3\n"
        "try: spool_stdin(Path('spool'), stop=stop)\n"
        "except KeyboardInterrupt: print('left')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.read() == b"left\n"  # its standard input is still open
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shell", "message"), [("<&-", "is closed"), ("0>/dev/null", "cannot be read")]
)
def test_standard_input_that_is_none(tmp_path: Path, shell: str, message: str) -> None:
    program = "from pathlib import Path; from gru_lm.text.sources import *; spool_stdin(Path('s'))"
    done = subprocess.run(
        f'"{sys.executable}" -c "{program}" {shell}',
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "InputError: standard input " + message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "rot13", "unicode_escape", "utf-7", "a\0b"])
def test_what_is_no_encoding_of_text_is_a_usage_error(encoding: str) -> None:
    with pytest.raises(UsageError, match="unknown encoding"):
        sources.open_documents([], encoding=encoding)


def test_named_corpus_is_opened_as_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "0001-a.txt", tmp_path / "0002-b.txt"]
    for path in paths:
        path.write_text(path.name)
    monkeypatch.setattr(sources.corpora, "corpus_paths", lambda name, **_: paths)
    found = texts("@any", encoding="utf-16")  # corpora are always UTF-8
    assert list(found) == ["@any/0001-a.txt", "@any/0002-b.txt"]


def test_an_unknown_corpus_and_a_forgotten_sign() -> None:
    with pytest.raises(InputError, match=r"no corpus @shakespear$") as caught:
        sources.open_documents(["@shakespear"])
    assert "@shakespeare" in str(caught.value.hint)
    with pytest.raises(InputError, match="no such file") as caught:
        sources.open_documents(["kjv"])
    assert "@kjv" in str(caught.value.hint)
