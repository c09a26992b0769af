"""Durable writes: a file holds its old or its new content, and no temporary file remains."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gru_lm import atomic
from gru_lm.errors import EnvironmentProblem
from gru_lm.training.checkpoint import read
from tests.conftest import TINY
from tests.inside import inside, listing

LIMITED = """
import resource, signal, sys, time
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # write() then fails with EFBIG, as on a full disk
from gru_lm import cli
import gru_lm.training.directory as runs
saved, original = 0, runs.Run.save
def save(self, *args, **options):
    global saved
    saved += 1
    if saved == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return original(self, *args, **options)
runs.Run.save = save
sys.exit(cli.run(sys.argv[1:], started=time.monotonic()))
"""


def test_the_name_has_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic.replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        file.seek(0)
        file.write(b"N")
    assert path.read_bytes() == b"New"
    assert list(listing(tmp_path)) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_any_exception_leaves_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fails() -> None:
        with atomic.replacing(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fails()
    assert listing(tmp_path) == {"file": b"old"}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_0666_less_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "file"
    with umask(mask):
        atomic.write_bytes(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_nobody_else_writes_through_our_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / ".file.00000000.tmp").symlink_to(victim)
    with pytest.raises(EnvironmentProblem):
        atomic.write_bytes(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert not path.exists()


def test_link_gives_a_second_name_and_replaces(tmp_path: Path) -> None:
    one, two, best = (tmp_path / name for name in ("one", "two", "best"))
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    for source in (one, two, two):
        atomic.link(source, best)
        assert best.samefile(source)
    two.unlink()
    assert listing(tmp_path) == {"one": b"1", "best": b"2"}


def test_link_copies_where_links_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "one").write_bytes(b"1")
    atomic.link(tmp_path / "one", tmp_path / "best")
    assert listing(tmp_path) == {"one": b"1", "best": b"1"}


WRITES = """
import sys, time
from pathlib import Path
from gru_lm import atomic

with atomic.replacing(Path("file")) as file, atomic.scratch(Path(".")) as folder:
    file.write(b"new")
    (folder / "made").touch()
    print(flush=True)
    sys.stdin.read()
"""


def test_the_temporaries_of_the_dead_are_swept_and_no_others(tmp_path: Path) -> None:
    """A lock tells who lives: in another container, process ids say nothing."""
    other = [".file.tmp", "file.1.tmp", ".hidden", "step-1.safetensors", ".file.x1.tmp"]
    old = [f".file.{pid}.tmp" for pid in (1, os.getpid(), os.getppid())]  # of earlier versions
    for name in (*old, *other):
        (tmp_path / name).touch()
    command = [sys.executable, "-c", WRITES]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        writer.stdout.readline()
        with atomic.replacing(tmp_path / "ours") as file:
            before = set(listing(tmp_path)) - set(old)
            assert len(before) == len(other) + 4  # files of two writers, and a folder with its file
            atomic.sweep(tmp_path)
            assert set(listing(tmp_path)) == before
            file.write(b"ours")
        writer.kill()
        writer.wait()
    atomic.sweep(tmp_path)
    assert set(listing(tmp_path)) == {"ours", *other}


def test_a_sweep_between_making_and_locking_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, swept = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not swept:
            swept.append(True)
            atomic.sweep(tmp_path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    atomic.write_bytes(tmp_path / "file", b"new")
    assert swept
    assert listing(tmp_path) == {"file": b"new"}
    swept.clear()
    with atomic.scratch(tmp_path) as folder:
        assert swept
        assert folder.is_dir()
    assert listing(tmp_path) == {"file": b"new"}


def test_where_there_are_no_locks_all_is_written_and_nothing_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    with atomic.replacing(tmp_path / "file") as file:
        atomic.sweep(tmp_path)
        file.write(b"new")
    assert listing(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "directory")],
)
def test_the_disks_refusals_say_what_mends_them(tmp_path: Path, number: int, hint: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(EnvironmentProblem) as caught, atomic.replacing(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in caught.value.message
    assert hint in str(caught.value.hint)
    assert listing(tmp_path) == {"file": b"old"}


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "file"
    with pytest.raises(EnvironmentProblem) as caught:
        atomic.write_bytes(path, b"abc")
    assert caught.value.message == f"cannot write {path}: No such file or directory (3 bytes)"


def test_a_full_disk_in_mid_run(tmp_path: Path, text: Path) -> None:
    """A failing write: valid previous checkpoint, exit code 5 with path and bytes, resumable."""
    options = ["train", text, "--steps", 6, "--save-every", 1, "--eval-every", 6, *TINY]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "15000", *map(str, options), "--out", "run"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    message = done.stderr.decode()
    assert done.returncode == 5, message
    assert "error: cannot write run/step-00000003.safetensors: File too large (" in message
    assert "bytes)" in message
    assert "hint: " in message
    run = tmp_path / "run"
    assert not list(run.glob(".*.tmp"))
    newest = sorted(run.glob("step-*"))[-1]
    assert read(newest).meta["step"] == 2
    inside(tmp_path, "train", "--resume", "run")
    inside(tmp_path, *options, "--out", "whole")
    for name in ("step-00000006.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
