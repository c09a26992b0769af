"""Compiles the kernels on first use, caches the library, and loads it.

Any C compiler serves; without one, or where anything fails, there is no library and a reason. Cached by
source, compiler, flags and processor, so that a shared home directory is safe; two processes that start
at once both build, and the later rename wins. Nothing else is written.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.[ch]"))
FLAGS = ("-O3", "-shared", "-fPIC", "-std=gnu11")
# The first that works: this very processor's instructions; OpenMP, for the threads that PyTorch has.
CHOICES = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",))
SECONDS = 60.0  # that a compiler may take


class BuildError(Exception):
    """There can be no library here, and why."""


@cache
def library() -> ctypes.CDLL:
    """The kernels. Raises BuildError, every time again, where there can be none."""
    try:
        compiler = _compiler()
        path = _path(compiler)
        if not path.exists():
            _compile(compiler, path)
        loaded = ctypes.CDLL(str(path))
        loaded.recurrence_units.restype = ctypes.c_size_t
        loaded.outer_product_depth.restype = ctypes.c_size_t
        loaded.product_scratch_bf16.restype = ctypes.c_size_t
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        raise BuildError(str(error)) from error
    return loaded


def available() -> bool:
    """Whether there is a library."""
    return problem() is None


@cache
def problem() -> str | None:
    """Why there is no library, if there is none."""
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError("no C compiler")


def _path(compiler: str) -> Path:
    """Where the library for this source, compiler and processor lies."""
    version = _run([compiler, "--version"])
    parts = (
        *(path.read_bytes() for path in SOURCES),
        version.stdout,
        repr((FLAGS, CHOICES)).encode(),
        _processor(),
    )
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    return platformdirs.user_cache_path("gru-lm") / "kernels" / f"{key}.so"


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False
    )


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = b""
    units = [str(path) for path in SOURCES if path.suffix == ".c"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        made = Path(folder) / "kernel.so"
        for choice in CHOICES:
            command = [compiler, *FLAGS, *choice, *units, "-o", str(made)]
            done = _run(command)
            if done.returncode == 0:
                made.rename(path)
                return
            said = done.stderr
    raise BuildError(f"{compiler} failed: {said.decode(errors='replace').strip()[:200]}")
