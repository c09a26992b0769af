"""Cached kernels: damaged or foreign cache contents, failing compilers, signals."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gru_lm import caches
from gru_lm.errors import Stopped
from gru_lm.model.native import build
from gru_lm.signals import never
from tests.conftest import wait_for

pytestmark = pytest.mark.skipif(not build.available(), reason=f"no kernels: {build.problem()}")
ROOT = Path(__file__).parents[2]


class Compiler:
    """A fake `cc`, alone in PATH, that copies the tests' shared kernels and counts its calls."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.log = folder / "compiled"
        self.path = folder / "bin" / "cc"
        self.copies = f"echo >> {self.log}; cp {shared} $out"
        self.does(self.copies)

    def does(self, action: str) -> None:
        """Write the script; `action` creates the file $out, unless the version is requested."""
        self.path.parent.mkdir(exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.path.write_text(
            f'#!/bin/sh\nPATH={shlex.quote(os.defpath)}\nfor out; do :; done\n'
            f'if [ "$out" = --version ]; then echo 1; else {action}; fi\n'
        )  # fmt: skip
        self.path.chmod(0o755)

    def runs(self) -> int:
        return len(self.log.read_text()) if self.log.exists() else 0


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(caches, "listener", heard.append)
    return heard


@pytest.fixture
def compiler(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Compiler:
    build.library()
    shared = next(caches.folder("kernels").glob("*.so"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    made = Compiler(tmp_path, shared)
    monkeypatch.setenv("PATH", str(made.path.parent))
    monkeypatch.delenv("CC", raising=False)
    return made


def usable(library: ctypes.CDLL) -> bool:
    return bool(library.recurrence_units() > 0)


def only_kernel() -> Path:
    (path,) = caches.folder("kernels").iterdir()
    assert path.suffix == ".so"
    return path


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def renamed_by_content(path: Path, data: bytes) -> None:
    """Store bytes that are not a library under a name with their hash."""
    digest = hashlib.sha256(data).hexdigest()[:32]
    path.unlink()
    (path.parent / f"{path.name.partition('-')[0]}-{digest}.so").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut(0), "it is damaged"),
        (cut(5_000), "it is damaged"),
        (cut(30_000), "it is damaged"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "it is damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "it is damaged"),
        (lambda path: path.rename(path.with_stem(path.stem[:-1] + "x")), "it is damaged"),
        (lambda path: renamed_by_content(path, b"not ELF" * 99), "invalid ELF header"),
        (lambda path: renamed_by_content(path, b""), "file too short"),
        (lambda path: replaced(path, Path.mkdir), "not a regular file"),
        (lambda path: replaced(path, os.mkfifo), "not a regular file"),
        (lambda path: replaced(path, lambda p: p.symlink_to("x")), "symbolic links"),
        (lambda path: path.chmod(0o777), "others may write to it"),
        (lambda path: os.chown(path, 12345, -1), "it belongs to another user"),
    ],
    ids=[
        "empty", "cut", "cut late", "zeroed", "longer", "renamed", "no library", "an empty one",
        "directory", "fifo", "link", "open to all", "another's",
    ],
)  # fmt: skip
def test_what_is_damaged_or_not_ours_is_compiled_again(
    compiler: Compiler, said: list[str], damage: Callable[[Path], None], why: str
) -> None:
    assert usable(build._ready(never))
    path = only_kernel()
    try:
        damage(path)
    except PermissionError:
        pytest.skip("only root makes files of other users")
    assert usable(build._ready(never))
    assert compiler.runs() == 2
    assert only_kernel() == path
    (note,) = said
    assert why in note
    assert note.endswith("; compiling the kernels again")
    assert usable(build._ready(never))
    assert compiler.runs() == 2, "once is enough"


def test_a_folder_that_others_may_write_is_left_alone(
    compiler: Compiler, said: list[str], tmp_path: Path
) -> None:
    folder = caches.folder("kernels")
    folder.chmod(0o777)
    planted = folder / "planted.so"
    planted.touch()
    assert usable(build._ready(never))
    assert list(folder.iterdir()) == [planted]
    assert "others may write to it" in said[0]
    assert caches.folder("kernels").is_relative_to(tmp_path / "tmp")
    build._ready(never)
    assert compiler.runs() == 1, "the other place keeps it"


def test_where_the_cache_is_full_the_kernels_are_compiled_in_a_temporary_place(
    compiler: Compiler, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ROOM", 10**18)
    assert usable(build._ready(never))
    assert usable(build._ready(never))
    assert compiler.runs() == 1, "the temporary place keeps it"
    assert not list(caches.folder("kernels").iterdir())
    assert list((tmp_path / "tmp").rglob("*.so"))
    assert "a write failed; using" in said[0]


def test_a_library_is_not_hurt_by_what_becomes_of_its_file(compiler: Compiler) -> None:
    loaded = build._ready(never)
    os.truncate(only_kernel(), 0)
    assert usable(loaded)
    assert usable(build._ready(never))


def test_old_kernels_go(compiler: Compiler) -> None:
    folder = caches.folder("kernels")
    for days, name in ((caches.UNUSED_DAYS + 1, "old.so"), (1, "new.so")):
        used = time.time() - days * 24 * 3600
        (folder / name).touch()
        os.utime(folder / name, (used, used))
    build._ready(never)
    assert {path.name for path in folder.iterdir()} >= {"new.so"}
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "cc", ["", "false", "/nowhere/cc", "cc 'unbalanced", "cc -DX", "hangs", "prints", "not32"]
)
def test_whatever_cc_names_a_compiler_that_works_is_found(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, cc: str
) -> None:
    folder = compiler.path.parent
    (folder / "false").symlink_to(shutil.which("false", path=os.defpath) or "")
    for name, action in (
        ("hangs", "exec sleep 60"),
        ("prints", "while :; do echo much; done"),
        ("not32", "for out; do :; done; echo > $out"),
    ):
        (folder / name).write_text(
            f'#!/bin/sh\nPATH={shlex.quote(os.defpath)}\n[ "$1" = --version ] || {{ {action}; }}\n'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setattr(build, "SECONDS", 0.5)
    monkeypatch.setenv("CC", cc)
    if cc in ("hangs", "prints"):  # the time limit is used up
        with pytest.raises(build.BuildError, match=f"{cc}: not done after 0.5 s"):
            build._ready(never)
        assert list(caches.folder("kernels").iterdir()) == []
        return
    assert usable(build._ready(never))
    assert compiler.runs() == 1
    only_kernel()


def test_a_compiler_that_fails_says_why(compiler: Compiler) -> None:
    compiler.does("echo out of luck >&2; exit 1")
    with pytest.raises(build.BuildError, match="cc: failed: out of luck"):
        build._ready(never)
    assert list(caches.folder("kernels").iterdir()) == []


def test_a_cache_that_fills_up_costs_nothing(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", full)
    assert usable(build._ready(never))
    assert list(caches.folder("kernels").iterdir()) == []


def test_a_signal_while_compiling_ends_the_compiler_too(compiler: Compiler, tmp_path: Path) -> None:
    compiler.does(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    child = tmp_path / "child"

    def stop() -> None:
        if child.exists() and child.read_text().strip():
            raise Stopped(signal.SIGTERM)

    began = time.monotonic()
    with pytest.raises(Stopped):
        build._ready(stop)
    assert time.monotonic() - began < 2
    pid = int(child.read_text())
    state = Path(f"/proc/{pid}/stat")
    wait_for(lambda: not state.exists() or ") Z " in state.read_text())
    assert list(caches.folder("kernels").iterdir()) == []


def test_a_kill_while_compiling_leaves_nothing_for_ever(compiler: Compiler, tmp_path: Path) -> None:
    compiler.does(f"touch {tmp_path}/begun $out; exec sleep 60")
    code = "from gru_lm.model.native.build import library; library()"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for((tmp_path / "begun").exists)
    kernels = tmp_path / "cache" / "gru-lm" / "kernels"
    (left,) = kernels.iterdir()
    assert [path.name for path in caches.folder("kernels").iterdir()] == [left.name], "it lives"
    child.kill()
    child.wait()
    compiler.does(compiler.copies)
    assert usable(build._ready(never))
    only_kernel()


@pytest.mark.parametrize("command", [pytest.param("train", marks=pytest.mark.slow), "sample"])
def test_commands_heed_a_signal_while_compiling(
    command: str, compiler: Compiler, tmp_path: Path, trained: Path, text: Path
) -> None:
    compiler.does(f"touch {tmp_path}/begun; exec sleep 60")
    options = {
        "train": ["train", text, "--out", tmp_path / "run"],
        "sample": ["sample", trained, "--prompt", "a"],
    }[command]
    process = subprocess.Popen(
        [sys.executable, "-m", "gru_lm", *map(str, options)], cwd=ROOT, stdin=subprocess.DEVNULL
    )
    wait_for((tmp_path / "begun").exists)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert time.monotonic() - began < 2
    assert list(caches.folder("kernels").iterdir()) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_collecting_the_tests_leaves_the_users_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-n", "0", "tests/unit/test_native.py"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
