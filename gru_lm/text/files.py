"""A single file: opened safely, decompressed transparently, and checked to be text.

Only regular files are opened, without blocking on a FIFO. Knows nothing of documents or command-line
arguments. Invariant: every problem with a file raises an InputError that names it.
"""

from __future__ import annotations

import bz2
import codecs
import difflib
import errno
import gzip
import io
import lzma
import os
import shlex
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gru_lm.errors import InputError, UsageError

PACKED = (".gz", ".bz2", ".xz", ".zst")
PARQUET = b"PAR1\x15"  # the magic number and the first byte of any page or footer
# First bytes of a file, its format, and the hint for a file of that name.
MAGIC = (
    (b"\x1f\x8b\x08", "gzip, compressed under another name", "mv {0} {0}.gz"),
    (b"BZh", "bzip2, compressed under another name", "mv {0} {0}.bz2"),
    (b"\xfd7zXZ\x00", "xz, compressed under another name", "mv {0} {0}.xz"),
    (b"(\xb5/\xfd", "zstd, compressed under another name", "mv {0} {0}.zst"),
    (b"PK\x03\x04", "a zip archive", "unzip -p {0} > text.txt"),
    (b"PK\x05\x06", "an empty zip archive", "use a text file"),
    (PARQUET, "a table in Parquet", "--field NAME, which makes each of its rows a record"),
    (b"%PDF-", "a PDF document", "pdftotext {0} text.txt"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", "name a text file"),
)
ZSTD_INPUT = 1 << 12  # bytes; a few of them can stand for 128 KiB of output
ZSTD_OUTPUT = 1 << 16
ZSTD_WINDOW = 1 << 31  # bytes, as of zstd --long=31, the most that the format's tools write
BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # after "BZh" and a digit
MARKS = (  # longer ones first: the byte order mark of UTF-32-LE starts with that of UTF-16-LE
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Python codecs that are not encodings of text files; some produce characters outside Unicode.
NOT_FOR_FILES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


class NotTextError(InputError):
    """A file that is not text: skipped in a folder, an error if named explicitly."""


def shown(path: str | Path) -> str:
    """A path as printable text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def spoken(name: str) -> str:
    """A document's name as used in messages."""
    return "standard input" if name == "-" else name


@contextmanager
def reading(name: str, path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file at `path`, and a stream of its decompressed content; errors name it `name`."""
    try:
        # open() would block on a FIFO: check first, and open without blocking in case of a race.
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotTextError(
                f"{name} is not a regular file",
                hint="pipe it to standard input: ... | gru-lm ... -",
            )
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            raw = cast(BinaryIO, stack.enter_context(os.fdopen(descriptor, "rb")))
            yield raw, stack.enter_context(_unpacked(raw, path.suffix.lower()))
    except (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error) as error:
        raise damaged(name, path, error) from error
    except OSError as error:
        if error.errno is None:  # how bz2 reports damage
            raise damaged(name, path, error) from error
        raise unreadable(name, path, error) from error


def _unpacked(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Zstandard(raw), ZSTD_OUTPUT))
    return raw


class _Zstandard(io.RawIOBase):
    """The decompressed content of a file with any number of zstd frames.

    The package's own stream ends without an error in the middle of a truncated frame. Raises OSError
    for damage and EOFError for a frame that is not complete.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._packed, self._ready = b"", memoryview(b"")
        self._given = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._given

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(ZSTD_INPUT)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            self._ready = memoryview(self._decompressed())
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        self._given += count
        return count

    def _decompressed(self) -> bytes:
        from zstandard import ZstdDecompressor, ZstdError

        try:
            if self._frame is None:
                self._frame = ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            data: bytes = self._frame.decompress(self._packed)
        except ZstdError as error:
            raise OSError(str(error)) from error
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return data


def damaged(name: str, path: Path, error: Exception) -> InputError:
    """The InputError for a file whose content is not what its suffix says."""
    return InputError(
        f"{name}: damaged, or not {path.suffix.lower().removeprefix('.')} data",
        why=str(error),
        hint="download or create it again; if it is plain text, rename it",
    )


def unreadable(name: str, path: Path, error: OSError) -> InputError:
    """The InputError for an OSError at `path`, with a suggestion if the file is missing."""
    if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
        return NotTextError(f"{name} is a broken symbolic link", hint=f"ls -l {_quoted(path)}")
    if error.errno == errno.ENOENT:
        return InputError(f"{name}: no such file", hint=near_hint(path))
    return InputError(f"{name}: cannot be read: {error.strerror}")


def near_hint(path: Path) -> str | None:
    """A hint for a path that does not exist: a similar name, or the missing folder."""
    if not path.parent.is_dir():
        return f"there is no folder {shown(path.parent)}"
    try:
        known = [each.name for each in path.parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, known, n=1)
    return f"did you mean {shown(path.with_name(near[0]))}?" if near else None


def _quoted(path: Path) -> str:
    return shlex.quote(shown(path))


def judge(name: str, path: Path, head: bytes, encoding: str) -> None:
    """Raise InputError if `head`, the first bytes of a file, cannot be text in `encoding`."""
    what = spoken(name)
    if head in (b"", codecs.BOM_UTF8):
        raise NotTextError(f"{what} is empty", hint="use a file that contains text")
    for magic, kind, remedy in MAGIC:
        if head.startswith(magic) and (magic != b"BZh" or head[4:10] in BZIP2_BLOCKS):
            hint = remedy.format(_quoted(path))
            if name == "-" and magic == PARQUET:
                hint = "save it as a .parquet file, and name that file"
            elif name == "-" or path.suffix.lower() in PACKED:
                hint = "decompress it to plain text first, with zcat, unzip -p or zstd -dc"
            raise NotTextError(f"{what} is {kind}", hint=hint)
    if encoding == "utf-8":
        for mark, family in MARKS:
            if head.startswith(mark):
                raise InputError(f"{what} is {family}, not utf-8", hint=f"--encoding {family}")
        characters = head.decode("latin-1")
    else:
        characters = head.decode(encoding, errors="replace")
    controls = sum(
        character < " " and character not in "\t\n\v\f\r\b\x1b" for character in characters
    )
    # A few NULs may occur in text; a tenth of random bytes are control characters.
    if controls == len(characters) or controls > max(8, len(characters) // 20):
        hint = _utf16_hint(head) or "use a text file"
        raise NotTextError(f"{what} is binary, not text", hint=hint)


def _utf16_hint(head: bytes) -> str | None:
    """A hint if every other byte is NUL, as in Latin text encoded as UTF-16."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    few, many = len(head) // 20, len(head) * 2 // 5
    if even <= few and odd >= many:
        return "if it is text in UTF-16: --encoding utf-16-le"
    if odd <= few and even >= many:
        return "if it is text in UTF-16: --encoding utf-16-be"
    return None


def newline_is_a_byte(encoding: str) -> bool:
    """Whether byte 10 always ends a line, as in all encodings except UTF-16 and UTF-32."""
    return "a\n".encode(encoding).endswith(b"a\n")


def known_encoding(encoding: str) -> str:
    """The codec's canonical name. Raises UsageError if it is not an encoding of text files."""
    try:
        name = codecs.lookup(encoding).name
        codecs.getincrementaldecoder(name)
        b"a".decode(name)  # LookupError for codecs from bytes to bytes, such as "hex"
    except UnicodeError:
        pass  # a single byte is invalid in UTF-16
    except (LookupError, ValueError):
        name = "undefined"
    if name.replace("_", "-") in NOT_FOR_FILES:
        raise UsageError(
            f"unknown encoding {encoding!r}",
            hint="for example --encoding utf-8, utf-16, latin-1, cp1252, shift_jis or gb18030",
        )
    return "utf-8" if name == "utf-8-sig" else name
