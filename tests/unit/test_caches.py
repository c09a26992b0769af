"""Location of the caches: permissions, fallbacks for unusable folders, trimming and clearing."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import pytest

from gru_lm import atomic, caches
from gru_lm.errors import EnvironmentProblem, UsageError
from gru_lm.model.native import build
from tests.conftest import TINY, Program
from tests.inside import error, inside, listing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kernels() -> Path:
    """Folder of the compiled kernels shared by all tests."""
    build.library()
    return caches.folder("kernels")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes sent to the listener; caches are in tmp_path/cache, temporary files in tmp_path/tmp."""
    heard: list[str] = []
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))  # for child processes
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(caches, "listener", heard.append)
    caches._passing_root.cache_clear()
    return heard


def instead(tmp_path: Path) -> Path:
    return tmp_path / "tmp" / f"gru-lm-{os.geteuid()}"


def test_a_cache_is_a_folder_of_ours_alone(tmp_path: Path, said: list[str]) -> None:
    before = os.umask(0)
    try:
        path = caches.folder("tokens")
    finally:
        os.umask(before)
    assert path == tmp_path / "cache" / "gru-lm" / "tokens"
    for each in (path, path.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert list(path.iterdir()) == []
    assert said == []


@pytest.mark.parametrize(
    ("place", "obstacle", "why"),
    [
        ("cache", "file", "Not a directory"),
        ("cache/gru-lm", "file", "it is not a directory"),
        ("cache/gru-lm/tokens", "file", "it is not a directory"),
        ("cache/gru-lm/tokens", "link to nothing", "it is not a directory"),
        ("cache/gru-lm/tokens", "link to itself", "it is not a directory"),
        ("cache/gru-lm", "open to all", "others may write to it (chmod go-w "),
        ("cache/gru-lm/tokens", "open to all", "others may write to it (chmod go-w "),
    ],
)
def test_another_place_is_taken_and_said_once(
    tmp_path: Path, said: list[str], place: str, obstacle: str, why: str
) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if obstacle == "file":
        path.write_text("in the way")
    elif obstacle == "open to all":
        path.mkdir()
        path.chmod(0o777)
    else:
        path.symlink_to(path if obstacle == "link to itself" else tmp_path / "nowhere")
    for _ in range(2):
        assert caches.folder("tokens") == instead(tmp_path) / "tokens"
    assert stat.S_IMODE(instead(tmp_path).stat().st_mode) == 0o700
    (note,) = said
    assert why in note
    assert str(tmp_path / "cache" / "gru-lm") in note
    assert f"using {instead(tmp_path)} (XDG_CACHE_HOME=DIRECTORY moves the caches)" in note
    assert not (tmp_path / "nowhere").exists()


def test_one_note_does_for_all_folders(tmp_path: Path, said: list[str]) -> None:
    for name in caches.NAMES:
        path = tmp_path / "cache" / "gru-lm" / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch()
        assert caches.folder(name) == instead(tmp_path) / name
    assert len(said) == 1


def test_a_link_of_ours_is_followed(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "gru-lm").symlink_to(tmp_path / "large disk")
    assert (caches.folder("tokens") / "x").parent.samefile(tmp_path / "large disk" / "tokens")
    assert said == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of other users")
@pytest.mark.parametrize("place", ["cache/gru-lm", "cache/gru-lm/kernels"])
def test_what_belongs_to_another_user_is_not_used(
    tmp_path: Path, said: list[str], place: str
) -> None:
    caches.folder("kernels")
    os.chown(tmp_path / place, 12345, -1)
    assert caches.folder("kernels") == instead(tmp_path) / "kernels"
    os.chown(instead(tmp_path), 12345, -1)  # created by another user first
    path = caches.folder("kernels")
    assert path.parents[1] == tmp_path / "tmp"
    assert path.parent != instead(tmp_path)
    assert all("it belongs to another user" in note for note in said)
    (file := tmp_path / "file").touch()
    os.chown(file, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        caches.opened(file)


def test_no_place_at_all(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "cache").touch()
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").touch()
    with pytest.raises(EnvironmentProblem, match="no cache in") as caught:
        caches.folder("tokens")
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


def test_no_directory_for_temporary_files(
    tmp_path: Path, said: list[str], trained: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    message = error(tmp_path, "eval", trained, text, code=5)
    assert "hint: set TMPDIR" in message
    assert caches.folder("tokens").is_relative_to(tmp_path / "cache"), "there it still works"


def test_a_disk_that_fills_up_on_the_way(
    tmp_path: Path, said: list[str], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(f"{tmp_path}/cache/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = inside(tmp_path, "train", text, "--out", "run", "--steps", 2, *TINY)
    assert done.err.count("XDG_CACHE_HOME") == 1
    assert "tokens: a write failed; using" in done.err
    assert list((tmp_path / "cache" / "gru-lm" / "tokens").iterdir()) == []
    assert len(list((instead(tmp_path) / "tokens").glob("*.tokens"))) == 2


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry for this user in the password database."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


# Simulates a user without an entry: a real one might not be allowed to read the interpreter's files.
NOBODY = """
import pwd, sys
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
from gru_lm.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        ["corpus", "list"],
        ["sample", "RUN", "--length", "3", "--seed", "1"],
        pytest.param(
            ["train", "TEXT", "--out", "run", "--steps", "2", *TINY], marks=pytest.mark.slow
        ),
    ],
    ids=["corpus", "sample", "train"],
)
def test_without_a_home_everything_works(
    tmp_path: Path,
    kernels: Path,
    said: list[str],
    nobody: None,
    trained: Path,
    text: Path,
    command: list[str],
) -> None:
    instead(tmp_path).mkdir(mode=0o700)
    (instead(tmp_path) / "kernels").symlink_to(kernels)  # avoids compiling again
    names = {"RUN": str(trained), "TEXT": str(text)}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *(names.get(word, word) for word in command)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("XDG_CACHE_HOME") == 1
    assert "no home directory for the caches; using" in done.stderr
    assert "atplotlib" not in done.stderr
    assert not (tmp_path / "~").exists()


def test_matplotlib_has_a_place_of_its_own(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    code = "import gru_lm.reporting.plots, matplotlib as m; print(m.get_cachedir())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    place = tmp_path / "cache" / "gru-lm" / "matplotlib"
    assert (done.stdout, done.stderr) == (f"{place}\n", "")


def aged(path: Path, days: float, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    used = time.time() - days * 24 * 3600
    os.utime(path, (used, used))
    return path


def test_the_least_recently_used_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = aged(tmp_path / "unused.tokens", caches.UNUSED_DAYS + 1)
    kept = aged(tmp_path / "kept.tokens", caches.UNUSED_DAYS + 2)
    files = [aged(tmp_path / f"{days}.tokens", days) for days in (4, 3, 2, 1)]
    other = aged(tmp_path / "other", 100)
    caches.trim(tmp_path, "*.tokens", keep=[kept])
    assert [path.exists() for path in (unused, kept, *files)] == [False, True, *[True] * 4]
    monkeypatch.setattr(caches, "MOST_BYTES", 35)
    caches.mark_used(files[0])
    caches.trim(tmp_path, "*.tokens", keep=[kept])
    assert [path.exists() for path in files] == [True, False, False, True]
    assert kept.exists()
    assert other.exists()


def test_the_bound_is_a_share_of_a_small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    for total, most in ((10**9, 10**8), (10**13, 10 * 10**9)):
        monkeypatch.setattr(caches.shutil, "disk_usage", lambda _, t=total: usage(t, 0, t))
        assert caches.bound(tmp_path) == most


def test_tokens_beyond_the_bound_go_after_a_run_and_never_its_own(
    tmp_path: Path, said: list[str], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = aged(caches.folder("tokens") / "old.tokens", 1)
    options = ("train", text, "--steps", 1, *TINY)
    inside(tmp_path, *options, "--out", "a")
    assert old.exists()
    monkeypatch.setattr(caches, "MOST_BYTES", 1)
    inside(tmp_path, *options, "--out", "b")
    assert not old.exists()
    assert len(list(old.parent.iterdir())) == 2


def test_show_and_clear(tmp_path: Path, said: list[str]) -> None:
    empty = inside(tmp_path, "cache", "--json").json()
    assert (empty["caches"], empty["bytes"]) == ([], 0)
    tokens, kernels = caches.folder("tokens"), caches.folder("kernels")
    aged(tokens / "a.tokens", 0, 1000)
    aged(tokens / ".lock", 0, 0)
    aged(kernels / ".build-old" / "kernel.so", 0, 24)
    outside = aged(tmp_path / "outside" / "file", 0)
    (kernels / "link").symlink_to(outside.parent)
    aged(instead(tmp_path) / "corpora" / "kjv" / "0001.txt", 0, 500)
    done = inside(tmp_path, "cache", "--json").json()
    assert [(each["name"], each["bytes"]) for each in done["caches"]] == [
        ("kernels", 24 + len(str(outside.parent))), ("tokens", 1000), ("corpora", 500)
    ]  # fmt: skip
    assert done["caches"][1]["path"] == str(tokens)
    shown = inside(tmp_path, "cache").out.splitlines()
    assert shown[0].split("\t") == ["cache", "files", "bytes", "path"]
    assert shown[2].split("\t") == ["tokens", "2", "1,000", str(tokens)]
    cleared = inside(tmp_path, "cache", "clear", "corpora", "--json").json()
    assert (cleared["files"], cleared["bytes"]) == (1, 500)
    with atomic.replacing(tokens / "b.tokens") as file:
        file.write(b"new")
        assert "removed: 3 files, " in inside(tmp_path, "cache", "clear").out
    assert listing(tokens) == {".lock": b"", "b.tokens": b"new"}
    assert list(kernels.iterdir()) == []
    assert outside.exists()


def test_a_cache_that_is_not_known(tmp_path: Path, said: list[str], program: Program) -> None:
    with pytest.raises(UsageError, match="unknown cache 'token'"):
        caches.clear(["token"])
    assert "did you mean tokens?" in program.error("cache", "clear", "token", code=2)
