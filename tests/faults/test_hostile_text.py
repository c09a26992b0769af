"""Unusable and unusual texts: each has one documented outcome, and none hangs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import resource
import socket
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from gru_lm.errors import InputError
from gru_lm.text import documents, sources


def read(path: Path | str, encoding: str = "utf-8") -> str:
    (document,) = sources.open_documents([str(path)], encoding=encoding)
    return "".join(document.pieces())


def refusal(path: Path | str, encoding: str = "utf-8") -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, encoding)
    error = caught.value
    assert error.exit_code == 3
    assert max(len(line or "") for line in (error.message, error.why, error.hint)) < 300
    return error


def made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "offset", [0, 5, documents.CHUNK - 1, documents.CHUNK, 3 * documents.CHUNK + 7]
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_invalid_utf8_is_named_by_its_byte(tmp_path: Path, offset: int, mark: bytes) -> None:
    content = mark + b"a" * offset + b"\xff" + b"b" * 10
    error = refusal(made(tmp_path / "text.txt", content))
    assert error.message.endswith(f"not utf-8 at byte {offset + len(mark):,}")
    assert "--encoding latin-1" in str(error.hint)


@pytest.mark.parametrize("length", [1, documents.CHUNK - 1])
def test_a_character_cut_off_by_the_end(tmp_path: Path, length: int) -> None:
    error = refusal(made(tmp_path / "text.txt", b"a" * length + "猫".encode()[:2]))
    assert error.message.endswith(f"at byte {length:,}")


def test_offsets_are_those_of_the_decompressed_text(tmp_path: Path) -> None:
    error = refusal(made(tmp_path / "text.gz", gzip.compress(b"a" * 300_000 + b"\xff")))
    assert error.message.endswith("at byte 300,000")


def test_offsets_in_other_encodings(tmp_path: Path) -> None:
    error = refusal(made(tmp_path / "a.txt", b"\xff\xfea\x00\x00\xd8b\x00"), "utf-16")
    assert error.message.endswith("not utf-16 at byte 4")
    error = refusal(made(tmp_path / "b.txt", b"abc \x81 text"), "cp1252")
    assert error.message.endswith("not cp1252 at byte 4")
    assert "--encoding utf-8" in str(error.hint)
    error = refusal(made(tmp_path / "c.txt", b"a" * (documents.CHUNK - 1) + b"\x82 "), "shift_jis")
    assert error.message.endswith(f"at byte {documents.CHUNK - 1:,}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_unicode_by_its_mark(tmp_path: Path, encoding: str) -> None:
    path = made(tmp_path / "text.txt", "hello".encode(encoding))
    assert refusal(path).hint == f"--encoding {encoding}"
    assert read(path, encoding) == "hello"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_other_unicode_without_mark(tmp_path: Path, encoding: str) -> None:
    path = made(tmp_path / "text.txt", ("hello world\n" * 20).encode(encoding))
    assert f"--encoding {encoding}" in str(refusal(path).hint)
    assert read(path, encoding).startswith("hello world")


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        bytes(100_000),
        random.Random(1).randbytes(100_000),
        b"\x7fELF\x02\x01\x01" + bytes(57),
    ],
    ids=["nul", "zeros", "random", "elf"],
)
def test_binary(tmp_path: Path, content: bytes) -> None:
    assert "binary" in refusal(made(tmp_path / "text.txt", content)).message


def test_the_running_program_is_binary() -> None:
    assert "binary" in refusal(Path(sys.executable).resolve()).message


@pytest.mark.parametrize("text", ["a\0b\n", "word\0" * 3 + "text " * 20, "\x1b[1mbold\x1b[0m\b\f"])
def test_a_few_control_characters_are_text(tmp_path: Path, text: str) -> None:
    assert read(made(tmp_path / "text.txt", text.encode())) == text


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (gzip.compress(b"text"), "mv '{0}' '{0}'.gz"),
        (bz2.compress(b"text"), "mv '{0}' '{0}'.bz2"),
        (bz2.compress(b""), "mv '{0}' '{0}'.bz2"),
        (lzma.compress(b"text"), "mv '{0}' '{0}'.xz"),
        (zstandard.compress(b"text"), "mv '{0}' '{0}'.zst"),
    ],
    ids=["gzip", "bzip2", "empty bzip2", "xz", "zstd"],
)
def test_compressed_under_another_name(tmp_path: Path, content: bytes, hint: str) -> None:
    path = made(tmp_path / "my text.txt", content)
    assert refusal(path).hint == hint.format(path)


def test_a_text_may_begin_like_bzip2(tmp_path: Path) -> None:
    assert read(made(tmp_path / "text.txt", b"BZh9 is how bzip2 begins")).startswith("BZh9")


def test_zip(tmp_path: Path) -> None:
    path = tmp_path / "text.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text.txt", "text")
    assert refusal(path).message == f"{path} is a zip archive"


def test_compressed_twice_and_compressed_standard_input(tmp_path: Path) -> None:
    twice = made(tmp_path / "text.gz", gzip.compress(gzip.compress(b"text")))
    assert "decompress it" in str(refusal(twice).hint)
    piped = made(tmp_path / "spool", gzip.compress(b"text"))
    with pytest.raises(InputError, match="standard input is gzip"):
        sources.open_documents(["-"], stdin=piped)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor(write_checksum=True).compress),
    ],
)
def test_damaged_archives(tmp_path: Path, suffix: str, pack) -> None:
    noise = random.Random(2).randbytes(40_000).hex().encode()
    packed = pack(noise)
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes([packed[middle] ^ 0x55]) + packed[middle + 1 :]
    for content in (b"plain text", packed[:middle], packed[:3], flipped):
        error = refusal(made(tmp_path / f"text{suffix}", content))
        assert "damaged" in error.message
        assert f"text{suffix}" in error.message


def test_zstd_that_ends_too_early_or_goes_on_as_something_else(tmp_path: Path) -> None:
    frame = zstandard.compress(b"text\n" * 1000)
    for content in (frame[:-1], frame + frame[:5], frame + b"more", frame + frame[:1]):
        path = made(tmp_path / "text.zst", content)
        with pytest.raises(InputError, match=r"text\.zst: damaged, or not zst data"):
            read(path)


def test_zstd_with_a_bad_byte(tmp_path: Path) -> None:
    content = "é\n".encode() * 100_000 + b"\xff"
    path = made(tmp_path / "text.zst", zstandard.compress(content))
    with pytest.raises(InputError, match=r"zst, line 100,001: not utf-8 at byte 300,000"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_empty(tmp_path: Path, content: bytes) -> None:
    assert refusal(made(tmp_path / "text.txt", content)).message.endswith("is empty")
    assert "is empty" in refusal(made(tmp_path / "text.gz", gzip.compress(content))).message
    with pytest.raises(InputError, match="standard input is empty"):
        sources.open_documents(["-"], stdin=tmp_path / "text.txt")


def test_folders_and_globs_without_text(tmp_path: Path) -> None:
    assert "no files found" in refusal(tmp_path).message
    made(tmp_path / "binary.txt", bytes(100))
    (tmp_path / "empty.txt").touch()
    assert "none of its 2 files is text" in refusal(tmp_path).message
    assert "none of its 2 files is text" in refusal(tmp_path / "*.txt").message
    assert "no files found" in refusal(tmp_path / "*.md").message


def test_a_folder_does_not_lose_text_silently(tmp_path: Path) -> None:
    made(tmp_path / "good.txt", b"good")
    wide = made(tmp_path / "wide.txt", "text".encode("utf-16"))
    assert str(wide) in refusal(tmp_path).message
    wide.unlink()
    damaged = made(tmp_path / "damaged.gz", b"plain")
    assert str(damaged) in refusal(tmp_path).message


def test_missing(tmp_path: Path) -> None:
    made(tmp_path / "shakespeare.txt", b"text")
    error = refusal(tmp_path / "shakespear.txt")
    assert error.hint == f"did you mean {tmp_path / 'shakespeare.txt'}?"
    assert refusal(tmp_path / "nowhere" / "a.txt").hint == f"there is no folder {tmp_path}/nowhere"
    assert refusal(tmp_path / "shakespeare.txt" / "a").exit_code == 3
    assert "not a valid file name" in refusal("").message
    assert "not a valid file name" in refusal("a\0b").message


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("circle", "dangling"):
        assert "broken symbolic link" in refusal(tmp_path / name).message


def test_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in ("pipe", "socket", "/dev/zero", "/dev/null"):
            assert "not a regular file" in refusal(path).message


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A temporary folder and an unprivileged user: root, which can read everything, becomes nobody."""
    with tempfile.TemporaryDirectory() as folder:
        user = os.geteuid()
        if user == 0:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_no_permission(as_nobody: Path) -> None:
    folder = as_nobody / "closed"
    folder.mkdir()
    path = made(folder / "text.txt", b"text")
    path.chmod(0)
    try:
        for spec in (path, folder, as_nobody, folder / "*.txt"):
            assert refusal(spec).message == f"{path}: cannot be read: Permission denied"
        folder.chmod(0)
        assert refusal(path).message == f"{path}: cannot be read: Permission denied"
        for spec in (folder, as_nobody):
            assert refusal(spec).message == f"{folder}: cannot be read: Permission denied"
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("change", ["append", "replace", "truncate", "touch"])
def test_a_file_that_changes(tmp_path: Path, change: str) -> None:
    path = made(tmp_path / "text.txt", b"text")
    (document,) = sources.open_documents([str(path)])
    if change == "replace":
        path.rename(tmp_path / "old.txt")
    path.write_bytes({"append": b"text and more", "truncate": b"t"}.get(change, b"text"))
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match="changed while it was read"):
        list(document.pieces())


def test_a_file_that_changes_in_the_midst_of_reading(tmp_path: Path) -> None:
    path = made(tmp_path / "text.txt", b"a" * documents.CHUNK * 2)
    (document,) = sources.open_documents([str(path)])
    pieces = document.pieces()
    next(pieces)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="changed while it was read"):
        list(pieces)


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    path = made(tmp_path / "text.txt", b"text")
    (document,) = sources.open_documents([str(path)])
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        list(document.pieces())


def test_a_name_that_is_no_unicode_can_be_printed(tmp_path: Path) -> None:
    try:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
        path.write_bytes(b"text")
    except OSError:
        pytest.skip("this file system wants Unicode names")
    (document,) = sources.open_documents([str(tmp_path)])
    assert document.name == f"{tmp_path}/\\xff.txt"
    assert "".join(document.pieces()) == "text"


def test_ten_thousand_small_files(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limit[0]), limit[1]))
    try:
        for number in range(10_000):
            (tmp_path / f"{number:05}").write_text(f"{number}\n")
        found = sources.open_documents([str(tmp_path)])
        assert documents.survey(found).characters == sum(
            len(f"{number}\n") for number in range(10_000)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_one_long_line(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    with path.open("wb") as file:
        for _ in range(50):
            file.write(b"x" * 1_000_000)
    (document,) = sources.open_documents([str(path)])
    sizes = [len(piece) for piece in document.pieces()]
    assert sum(sizes) == 50_000_000
    assert max(sizes) <= 1 << 20
