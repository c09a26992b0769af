"""Compiles the kernels on first use, caches the library, and loads it.

Any C compiler works; if there is none, or compilation fails, `problem` gives the reason. The cache key
covers source, compiler, flags and processor, so that a home directory can be shared between machines; if
two processes compile at once, either result is used. The file name ends with a hash of the contents.
Invariant: only bytes that match the hash, or were just compiled, are loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gru_lm import atomic, caches
from gru_lm.errors import EnvironmentProblem
from gru_lm.signals import Stop, never

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.[ch]"))
FLAGS = ("-O3", "-shared", "-fPIC", "-std=gnu11")
# Tried in order: instructions of this processor; OpenMP, to share PyTorch's threads.
CHOICES = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",))
ROOM = 2_000_000  # bytes that must be free to compile in the cache
SECONDS = 60.0  # time limit for all compilers together
MOST_SAID = 1 << 16  # maximum bytes kept of a compiler's output


class BuildError(Exception):
    """The library cannot be built; the message is the reason."""


_known: list[ctypes.CDLL | BuildError] = []  # the library or the error, once determined


def library(stop: Stop = never) -> ctypes.CDLL:
    """The kernels. Raises BuildError, on every call, if they cannot be built.

    `stop` is polled during compilation; if it raises, the compiler is killed.
    """
    if not _known:
        try:
            _known.append(_ready(stop))
        except BuildError as error:
            _known.append(error)
    if isinstance(_known[0], BuildError):
        raise _known[0]
    return _known[0]


def available() -> bool:
    """Whether the library can be used."""
    return problem() is None


def problem(stop: Stop = never) -> str | None:
    """The reason why there is no library, or None if there is one."""
    try:
        library(stop)
    except BuildError as error:
        return str(error)
    return None


def _ready(stop: Stop) -> ctypes.CDLL:
    """The library of the first compiler that works, from the cache if possible."""
    run = _Runner(stop)
    reasons = []
    for compiler in _compilers():
        try:
            folder = caches.folder(caches.KERNELS)
            key = _key(run([*compiler, "--version"])[1])
            if loaded := _cached(folder, key):
                return loaded
            if shutil.disk_usage(folder).free < ROOM:
                folder = caches.folder(caches.KERNELS, failed=folder)
            return _cached(folder, key) or _built(compiler, folder, key, run)
        except (OSError, AttributeError, BuildError, EnvironmentProblem) as error:
            reasons.append(f"{shlex.join(compiler)}: {error}")
    raise BuildError(reasons[0] if reasons else "no C compiler")


def _compilers() -> Iterator[list[str]]:
    """Compiler commands to try: CC, with its options, then the usual names."""
    command: list[str] = []
    with suppress(ValueError):  # unbalanced quotes
        command = shlex.split(os.environ.get("CC", ""))
    if command and (found := shutil.which(command[0])):
        yield [found, *command[1:]]
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            yield [found]


def _key(version: bytes) -> str:
    """Cache key of the library for this source, compiler and processor."""
    parts = (
        *(path.read_bytes() for path in SOURCES),
        version,
        repr((FLAGS, CHOICES)).encode(),
        _processor(),
    )
    return _digest(b"\0".join(parts))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _processor() -> bytes:
    """Processor properties that -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()


def _cached(folder: Path, key: str) -> ctypes.CDLL | None:
    """The cached library for this key, if any; unusable files of that name are removed."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        try:
            with caches.opened(path) as file:
                data = file.read()
            if path != _path(folder, key, data):
                raise OSError("it is damaged")
            loaded = _load(data, path)
        except (OSError, AttributeError) as error:
            why = getattr(error, "strerror", None) or error
            caches.say(f"{path} cannot be used: {why}; compiling the kernels again")
            caches.remove(path)
        else:
            caches.mark_used(path)
            return loaded
    return None


def _path(folder: Path, key: str, data: bytes) -> Path:
    return folder / f"{key}-{_digest(data)}.so"


def _built(compiler: Sequence[str], folder: Path, key: str, run: _Runner) -> ctypes.CDLL:
    """Compile, load and, if possible, cache the library."""
    units = [str(path) for path in SOURCES if path.suffix == ".c"]
    with atomic.scratch(folder) as scratch:
        target = scratch / "kernel.so"
        for choice in CHOICES:
            status, output = run([*compiler, *FLAGS, *choice, *units, "-o", str(target)])
            if status == 0:
                break
        else:
            raise BuildError(f"failed: {output.decode(errors='replace').strip()[:200]}")
        data = target.read_bytes()
        loaded = _load(data, target)
    with suppress(EnvironmentProblem):
        path = _path(folder, key, data)
        atomic.write_bytes(path, data, mode=0o600)
        caches.trim(folder, "*.so", keep=[path])
    return loaded


def _load(data: bytes, path: Path) -> ctypes.CDLL:
    """Load `data`, the contents of `path`. Raises OSError, or AttributeError for a foreign library."""
    loaded = ctypes.CDLL(_copied(data) or str(path))
    loaded.recurrence_units.restype = ctypes.c_size_t
    loaded.outer_product_depth.restype = ctypes.c_size_t
    loaded.product_scratch_bf16.restype = ctypes.c_size_t
    return loaded


def _copied(data: bytes) -> str | None:
    """Path of an anonymous in-memory copy, or None if the system does not support it.

    The copy cannot be modified or truncated by others, and loads even from a cache mounted noexec.
    """
    try:
        descriptor = os.memfd_create("gru-lm-kernels")
        with os.fdopen(descriptor, "wb", closefd=False) as file:  # the loader needs the number
            file.write(data)
    except (AttributeError, OSError):  # not Linux
        return None
    path = Path(f"/proc/self/fd/{descriptor}")
    return str(path) if path.exists() else None


class _Runner:
    """Runs compilers, with a total time limit of SECONDS."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._deadline = time.monotonic() + SECONDS

    def __call__(self, command: Sequence[str]) -> tuple[int, bytes]:
        """Run a command; return its exit status and output.

        Raises OSError if it cannot be started, BuildError after the time limit, and exceptions of
        `stop`; the command and its children are then killed.
        """
        output = b""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as child:
            assert child.stdout
            try:
                while child.poll() is None or select.select([child.stdout], [], [], 0)[0]:
                    self._stop()
                    if time.monotonic() > self._deadline:
                        raise BuildError(f"not done after {SECONDS:g} s")
                    if select.select([child.stdout], [], [], 0.05)[0]:
                        block = os.read(child.stdout.fileno(), MOST_SAID)
                        output += block[: MOST_SAID - len(output)]
                        if not block:  # the command closed its output
                            with suppress(subprocess.TimeoutExpired):
                                child.wait(0.05)
                            if child.poll() is not None:
                                break
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise
        return child.returncode, output
