"""One file on disk: opened safely, decompressed on the way, and judged to be text or not.

Only regular files are opened, and never so that a FIFO could block. Knows nothing of documents or of
command-line names. Invariant: whatever is wrong with a file is an InputError that names it.
"""

from __future__ import annotations

import bz2
import codecs
import difflib
import errno
import gzip
import lzma
import os
import shlex
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gru_lm.errors import InputError, UsageError

PACKED = (".gz", ".bz2", ".xz")
# First bytes, what they mean, and what to do about it with a file of that name.
MAGIC = (
    (b"\x1f\x8b\x08", "gzip, compressed under another name", "mv {0} {0}.gz"),
    (b"BZh", "bzip2, compressed under another name", "mv {0} {0}.bz2"),
    (b"\xfd7zXZ\x00", "xz, compressed under another name", "mv {0} {0}.xz"),
    (b"(\xb5/\xfd", "zstd, which is not unpacked on the way", "zstd -dc {0} > text.txt"),
    (b"PK\x03\x04", "a zip archive", "unzip -p {0} > text.txt"),
    (b"PK\x05\x06", "an empty zip archive", "name a text file"),
    (b"%PDF-", "a PDF document", "pdftotext {0} text.txt"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", "name a text file"),
)
BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # follow "BZh" and a digit
MARKS = (  # the longer first: the mark of UTF-32-LE begins with that of UTF-16-LE
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Codecs of Python's own for other things than text files; some yield characters outside Unicode.
NOT_FOR_FILES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


class NotTextError(InputError):
    """What a folder may hold beside its text: skipped there, refused by name."""


def shown(path: str | Path) -> str:
    """A path as printable text: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def spoken(name: str) -> str:
    """A document's name inside a message."""
    return "standard input" if name == "-" else name


@contextmanager
def reading(name: str, path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file at `path` itself, and its content decompressed; errors call it `name`."""
    try:
        # A FIFO would block open(): look first, and do not block if it came in between.
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotTextError(
                f"{name} is not a regular file",
                hint="pipe it in and name it as -, as in: ... | gru-lm ... -",
            )
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            raw = cast(BinaryIO, stack.enter_context(os.fdopen(descriptor, "rb")))
            yield raw, stack.enter_context(_unpacked(raw, path.suffix.lower()))
    except (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _damaged(name, path, error) from error
    except OSError as error:
        if error.errno is None:  # bz2 says so of damage
            raise _damaged(name, path, error) from error
        raise unreadable(name, path, error) from error


def _unpacked(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    return raw


def _damaged(name: str, path: Path, error: Exception) -> InputError:
    return InputError(
        f"{name}: damaged, or not {path.suffix.lower().removeprefix('.')} data at all",
        why=str(error),
        hint="fetch or make it again; a plain text must not have such a name",
    )


def unreadable(name: str, path: Path, error: OSError) -> InputError:
    """The InputError for an OSError at `path`, with what the user may have meant."""
    if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
        return NotTextError(f"{name} is a link that leads nowhere", hint=f"ls -l {_quoted(path)}")
    if error.errno == errno.ENOENT:
        return InputError(f"{name}: no such file", hint=near_hint(path))
    return InputError(f"{name}: cannot be read: {error.strerror}")


def near_hint(path: Path) -> str | None:
    """What the user may have meant by a path that is not there."""
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
    """Raise InputError unless `head`, the first bytes, may be those of a text."""
    what = spoken(name)
    if head in (b"", codecs.BOM_UTF8):
        raise NotTextError(f"{what} is empty", hint="name a file with text in it")
    for magic, kind, remedy in MAGIC:
        if head.startswith(magic) and (magic != b"BZh" or head[4:10] in BZIP2_BLOCKS):
            hint = remedy.format(_quoted(path))
            if name == "-" or path.suffix.lower() in PACKED:
                hint = "unpack it until it is text, for example with zcat, unzip -p or zstd -dc"
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
    # A text may hold a few NULs; of random bytes, a tenth are control characters.
    if controls == len(characters) or controls > max(8, len(characters) // 20):
        hint = _sixteen_bits(head) or "name a text file"
        raise NotTextError(f"{what} is binary, not text", hint=hint)


def _sixteen_bits(head: bytes) -> str | None:
    """A hint, where every other byte is NUL as in UTF-16 text of Latin letters."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    few, many = len(head) // 20, len(head) * 2 // 5
    if even <= few and odd >= many:
        return "if it is text in UTF-16: --encoding utf-16-le"
    if odd <= few and even >= many:
        return "if it is text in UTF-16: --encoding utf-16-be"
    return None


def newline_is_a_byte(encoding: str) -> bool:
    """Whether a byte 10 ends a line, and is nothing else, as in all but UTF-16 and UTF-32."""
    return "a\n".encode(encoding).endswith(b"a\n")


def known_encoding(encoding: str) -> str:
    """The codec's own name. Raises UsageError for what is not an encoding of text files."""
    try:
        name = codecs.lookup(encoding).name
        codecs.getincrementaldecoder(name)
        b"a".decode(name)  # LookupError where it turns bytes into bytes, as "hex" does
    except UnicodeError:
        pass  # one byte is no text in UTF-16
    except (LookupError, ValueError):
        name = "undefined"
    if name.replace("_", "-") in NOT_FOR_FILES:
        raise UsageError(
            f"unknown encoding {encoding!r}",
            hint="for example --encoding utf-8, utf-16, latin-1, cp1252, shift_jis or gb18030",
        )
    return "utf-8" if name == "utf-8-sig" else name
