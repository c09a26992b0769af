"""Named corpora: recipes, extraction from wheels, the cache, errors; without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gru_lm import caches
from gru_lm.errors import EnvironmentProblem, InputError, Stopped
from gru_lm.text import corpora

FILES = corpora.Recipe(
    name="tiny", description="", source="", licence="", kind="files", recipe=1, documents=2,
    bytes=11, words=2, splits=(0.9, 0.1), package="tiny-text", version="1.0", sha256="0",
    members="tiny/**/*.txt",
)  # fmt: skip
VERSES = dataclasses.replace(
    FILES, kind="sqlite", members="tiny/v.sqlite", bytes=10,
    query="SELECT book, text FROM verses ORDER BY number",
)  # fmt: skip
TEXTS = {"tiny/b/second.txt": b"second", "tiny/a/first.txt": b"one\r\n", "tiny/code.py": b"1/0"}


def make_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def extracted(recipe: corpora.Recipe, wheel: Path, folder: Path) -> dict[str, bytes]:
    target = folder / "target"
    target.mkdir()
    corpora.extract(recipe, wheel, target)
    return {path.name: path.read_bytes() for path in sorted(target.iterdir())}


def tree(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the cache, in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gru-lm" / "corpora"


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "gru_lm", "corpus", *arguments],
        env={**os.environ, **environment}, capture_output=True, check=False,
    )  # fmt: skip


def test_every_recipe_is_whole() -> None:
    assert corpora.names() == ["docstrings", "kjv", "shakespeare", "sotu"]
    for name in corpora.names():
        recipe = corpora.read_recipe(name)
        assert recipe.name == name
        assert recipe.kind in ("docstrings", "files", "sqlite")
        assert sum(recipe.splits) == pytest.approx(1)
        assert min(recipe.documents, recipe.bytes, recipe.words, recipe.recipe) > 0
        assert all([recipe.description, recipe.source, recipe.licence])
        assert recipe.pinned == (recipe.kind != "docstrings")
        assert not recipe.pinned or len(recipe.sha256) == 64
        assert bool(recipe.query) == (recipe.kind == "sqlite")


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no corpus @docstring$") as caught:
        corpora.corpus_paths("docstring")
    assert str(caught.value.hint).startswith("did you mean @docstrings? known: @docstrings, @kjv")
    for name in ("", "../pyproject", "/etc/passwd"):
        with pytest.raises(InputError, match="no corpus"):
            corpora.corpus_paths(name)


def test_files_of_a_wheel_become_numbered_documents(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "tiny.whl", TEXTS)
    assert extracted(FILES, wheel, tmp_path) == {
        "0001-first.txt": b"one\r\n",
        "0002-second.txt": b"second",
    }


def test_names_in_a_wheel_never_become_paths(tmp_path: Path) -> None:
    hostile = {"tiny/../../../escape.txt": b"12345", "tiny/a/-rf *;\n.txt": b"123456"}
    wheel = make_wheel(tmp_path / "tiny.whl", hostile)
    before = tree(tmp_path)
    found = extracted(FILES, wheel, tmp_path)
    assert sorted(found) == ["0001-escape.txt", "0002--rf____.txt"]
    assert tree(tmp_path) == sorted([*before, *(f"target/{name}" for name in found)])


def test_verses_come_out_of_a_database(tmp_path: Path) -> None:
    database = tmp_path / "v.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE verses (number, book, text)")
        rows = [(3, "b/c", "x y"), (1, "a", "é"), (2, "a", "z")]
        connection.executemany("INSERT INTO verses VALUES (?, ?, ?)", rows)
    connection.close()
    wheel = make_wheel(tmp_path / "tiny.whl", {"tiny/v.sqlite": database.read_bytes()})
    recipe = dataclasses.replace(VERSES, bytes=9)
    assert extracted(recipe, wheel, tmp_path) == {
        "0001-a.txt": "é\nz\n".encode(),
        "0002-c.txt": b"x y\n",
    }


@pytest.mark.parametrize(
    ("recipe", "members", "message"),
    [
        (FILES, {}, "0 documents"),
        (FILES, {**TEXTS, "tiny/c/more.txt": b"!"}, "3 documents with 12 bytes"),
        (FILES, {**TEXTS, "tiny/a/first.txt": b"\xff"}, "damaged"),
        (VERSES, {"tiny/v.sqlite": b"no database at all" * 99}, "damaged"),
    ],
    ids=["nothing", "too much", "not utf-8", "no database"],
)
def test_a_wheel_that_is_not_as_the_recipe_says(
    tmp_path: Path, recipe: corpora.Recipe, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        extracted(recipe, make_wheel(tmp_path / "tiny.whl", members), tmp_path)


def test_damaged_and_absurd_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "tiny.whl", TEXTS)
    whole = wheel.read_bytes()
    target = tmp_path / "target"
    target.mkdir()
    for damaged in (b"", whole[:40], whole.replace(b"one\r\n", b"two\r\n"), b"\0" + whole[1:]):
        if damaged != whole:
            wheel.write_bytes(damaged)
            with pytest.raises(InputError):
                corpora.extract(dataclasses.replace(FILES, bytes=12), wheel, target)
    wheel.write_bytes(whole)
    monkeypatch.setattr(corpora, "MAX_TEXT_BYTES", 10)
    with pytest.raises(InputError, match="too large for a corpus"):
        corpora.extract(FILES, wheel, target)


def test_a_bomb_that_hides_its_size_is_not_inflated(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "tiny.whl", {"tiny/a/bomb.txt": bytes(20_000_000)})
    true, false = (20_000_000).to_bytes(4, "little"), (11).to_bytes(4, "little")
    wheel.write_bytes(wheel.read_bytes().replace(true, false))
    with pytest.raises(InputError, match="damaged"):
        extracted(FILES, wheel, tmp_path)


def write_library(folder: Path) -> Path:
    sources = {
        "b.py": '"""Module."""\ndef f():\n    """Same."""\nclass C:\n    """Class.\n\n    More."""\n',
        "a/__init__.py": 'def g():\n    """Same."""\n    def inner():\n        """Inner."""\n',
        "a/odd.py": '"""\\ud800"""\ndef f():\n    "\\d"\nasync def h():\n    """\\d wrong."""\n',
        "a/broken.py": "def (:",
        "a/nul.py": "\0",
        "a/bytes.py": "# coding: nonsense\n",
        "test/t.py": '"""Tests."""',
        "site-packages/s.py": '"""Other."""',
        "a/__pycache__/c.py": '"""Cached."""',
        "a/text.txt": "no Python",
    }
    for name, text in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_docstrings_once_each_in_order_and_silently(tmp_path: Path) -> None:
    library = write_library(tmp_path / "library")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpora.write_docstrings(library, tmp_path)
    text = (tmp_path / "0001-docstrings.txt").read_text()
    order = ["Module.", "Same.", "Class.\n\nMore."]  # top-level files come first
    assert text == "\n\n".join([*order, "Inner.", "\\d", "\\d wrong."]) + "\n"


def test_a_library_without_source(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no Python source"):
        corpora.write_docstrings(tmp_path / "nothing", tmp_path)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library, to build @docstrings quickly."""
    folder = write_library(tmp_path / "library")
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_docstrings_are_built_once_and_mended(library: Path, cache: Path) -> None:
    told: list[str] = []
    paths = corpora.corpus_paths("docstrings", note=told.append)
    assert [path.name for path in paths] == ["0001-docstrings.txt"]
    text = paths[0].read_bytes()
    assert paths == corpora.corpus_paths("docstrings", note=told.append)
    assert len(told) == 1
    for damage in (lambda: paths[0].write_bytes(b""), paths[0].unlink):
        damage()
        assert corpora.cached_paths(corpora.read_recipe("docstrings")) is None
        assert corpora.corpus_paths("docstrings") == paths
        assert paths[0].read_bytes() == text
    assert sorted(path.name for path in cache.iterdir()) == [".lock", paths[0].parent.name]


def test_what_killed_builders_left_is_cleared(library: Path, cache: Path) -> None:
    left = cache / ".abc.tmp" / "docstrings"
    left.mkdir(parents=True)
    corpora.corpus_paths("docstrings")
    assert not left.exists()


def test_several_at_once_build_once(library: Path, cache: Path) -> None:
    told: list[str] = []
    found: list[list[Path]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(corpora.corpus_paths("docstrings", note=told.append))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert found == [found[0]] * 8


def test_a_stop_leaves_nothing_behind(library: Path, cache: Path) -> None:
    def stop() -> None:
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        corpora.corpus_paths("docstrings", stop=stop)
    assert tree(cache) == [".lock"]


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setattr(caches, "listener", lambda text: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (path,) = corpora.corpus_paths("docstrings")
    assert path.is_relative_to(tmp_path / f"gru-lm-{os.geteuid()}" / "corpora")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.with_name(corpora.SUMS).write_text("{"),
        lambda path: path.rename(path.with_name("0002-other.txt")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (shutil.rmtree(path.parent), path.parent.touch()),
        lambda path: (shutil.rmtree(path.parent), path.parent.symlink_to("nowhere")),
    ],
    ids=["cut", "zeroed", "sums", "renamed", "a folder", "a file", "a link to nothing"],
)
def test_damage_of_any_kind_is_mended(
    library: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    (path,) = corpora.corpus_paths("docstrings")
    text = path.read_bytes()
    damage(path)
    assert corpora.corpus_paths("docstrings") == [path]
    assert path.read_bytes() == text
    assert sorted(each.name for each in cache.iterdir()) == [".lock", path.parent.name]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> corpora.Recipe:
    """A recipe whose wheel pip finds in a local folder instead of an index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    about = {
        "tiny_text-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0",
        "tiny_text-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    wheel = make_wheel(shelf / "tiny_text-1.0-py3-none-any.whl", {**TEXTS, **about})
    recipe = dataclasses.replace(FILES, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(corpora, "read_recipe", lambda name: recipe)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return recipe


def test_fetched_by_the_real_pip(tiny: corpora.Recipe, cache: Path) -> None:
    told: list[str] = []
    paths = corpora.corpus_paths("tiny", note=told.append)
    names = (corpora.SUMS, "0001-first.txt", "0002-second.txt")
    assert tree(cache) == [".lock", *(f"tiny-1.0-r1/{name}" for name in names)]
    assert [path.read_bytes() for path in paths] == [b"one\r\n", b"second"]
    assert told == ["@tiny: fetching tiny-text 1.0 with pip"]


def test_another_wheel_of_that_name_is_refused(
    tiny: corpora.Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = dataclasses.replace(tiny, sha256="0" * 64)
    monkeypatch.setattr(corpora, "read_recipe", lambda name: forged)
    with pytest.raises(EnvironmentProblem, match="cannot use the downloaded") as caught:
        corpora.corpus_paths("tiny")
    assert tiny.sha256 in str(caught.value.why)
    assert tree(cache) == [".lock"]


def test_pip_that_cannot_reach_an_index(
    tiny: corpora.Recipe, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "library"))
    with pytest.raises(EnvironmentProblem, match="pip could not download") as caught:
        corpora.corpus_paths("tiny")
    assert "No matching distribution" in str(caught.value.why)
    assert "gru-lm corpus get tiny" in str(caught.value.hint)
    assert tree(cache) == [".lock"]


def test_a_python_without_pip(
    tiny: corpora.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(corpora.sys, "executable", str(bare))
    with pytest.raises(EnvironmentProblem, match="has no pip") as caught:
        corpora.corpus_paths("tiny")
    assert caught.value.hint == f"{bare} -m ensurepip"


def test_a_stop_while_pip_works(
    tiny: corpora.Recipe, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(corpora.sys, "executable", str(slow))
    calls: list[None] = []

    def stop() -> None:
        calls.append(None)
        if len(calls) > 2:
            raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        corpora.corpus_paths("tiny", stop=stop)
    assert tree(cache) == [".lock"]


def test_list_for_people_and_programs(cache: Path) -> None:
    done = run_cli("list")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [
        "name", *(f"@{name}" for name in corpora.names())
    ]  # fmt: skip
    rows = json.loads(run_cli("list", "--json").stdout)["corpora"]
    assert [row["name"] for row in rows] == corpora.names()
    assert not any(row["cached"] for row in rows)
    assert {row["licence"] for row in rows if row["name"] == "docstrings"} == {"PSF-2.0"}


def test_get_and_show(cache: Path) -> None:
    recipe = corpora.read_recipe("docstrings")
    folder = corpora.cache_folder(recipe)
    folder.mkdir(parents=True)
    (folder / "0001-docstrings.txt").write_bytes("é\r\nno end".encode())
    assert run_cli("get", "@docstrings").stdout.decode() == f"{folder}\n"
    got = json.loads(run_cli("get", "docstrings", "--json").stdout)
    assert (got["path"], got["bytes"], got["documents"]) == (str(folder), 10, 1)
    shown = run_cli("show", "docstrings", PYTHONIOENCODING="ascii")
    assert (shown.stdout.decode(), shown.stderr) == ("é\r\nno end\n", b"")
    row = json.loads(run_cli("show", "docstrings", "--json").stdout)
    assert row == {"document": "0001-docstrings.txt", "text": "é\r\nno end"}
    (listed,) = (
        each
        for each in json.loads(run_cli("list", "--json").stdout)["corpora"]
        if each["name"] == "docstrings"
    )
    assert listed["cached"]
    assert listed["bytes"] == 10


def test_errors_and_a_closed_pipe(cache: Path) -> None:
    done = run_cli("get", "docstring")
    assert done.returncode == 3
    assert b"no corpus @docstring\nhint: did you mean @docstrings?" in done.stderr
    done = run_cli("get", "kjv", PIP_NO_INDEX="1")
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"hint: go online and run: gru-lm corpus get kjv" in done.stderr
    folder = corpora.cache_folder(corpora.read_recipe("docstrings"))
    folder.mkdir(parents=True)
    (folder / "0001-docstrings.txt").write_bytes(b"line\n" * 1_000_000)
    done = subprocess.run(
        f'"{sys.executable}" -m gru_lm corpus show docstrings | head -1',
        shell=True, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"line\n", b"")
