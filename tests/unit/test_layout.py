"""Generated files are recognised in any place; similar files are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gru_lm import layout
from gru_lm.text.sources import open_documents
from tests.conftest import TINY, words
from tests.inside import error, inside, listing

OPTIONS = [*TINY, "--steps", 2]


def found(folder: Path, *specs: str | Path) -> list[str]:
    """The names of the documents found in a folder."""
    documents = open_documents([str(spec) for spec in specs or (folder,)])
    return [os.path.relpath(document.name, folder) for document in documents]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A folder with one text and the output of every command."""
    folder = tmp_path_factory.mktemp("written")
    text = folder / "a.txt"
    text.write_text(words(1400), encoding="utf-8")

    def kept(name: str, *args: object) -> None:
        (folder / name).write_text(inside(folder, *args).out, encoding="utf-8")

    compared = ["compare", ".", "--cells", "gru,rnn", "--seeds", 1, *OPTIONS]
    kept("compare.jsonl", *compared, "--json")
    inside(folder, "compare", trained, trained, "--on", text, "--out", "models")
    logged = inside(folder, "train", ".", *OPTIONS).err
    (folder / "train.log").write_text(logged, encoding="utf-8")
    logged = inside(folder, "train", "--resume", "runs/gru-1").err
    (folder / "resume.log").write_text(logged, encoding="utf-8")
    kept("train.json", "train", "a.txt", *OPTIONS, "--out", "runs/again", "--json")
    kept("plan.toml", "train", "a.txt", *OPTIONS, "--dry-run")
    kept("config.json", "train", *OPTIONS, "--print-config", "--json")
    kept("sample.jsonl", "sample", trained, "--length", 5, "--json")
    kept("info.json", "info", trained, "--json")
    kept("corpora.json", "corpus", "list", "--json")
    figures = ["--per-token", "token.tsv", "--per-word", "word.tsv", "--per-line", "line.tsv"]
    figures += ["--html", "page.html", "--context-curve", "curve.png", "--json"]
    kept("info.txt", "info", trained)
    kept("corpora.txt", "corpus", "list")
    kept("cache.txt", "cache")
    kept("eval.txt", "eval", trained, "a.txt")
    kept("models.txt", "compare", trained, trained, "--on", text)
    kept("eval.json", "eval", trained, "a.txt", *figures)
    shutil.copytree(folder / "runs/again", folder / "copied", ignore=lambda *_: [".lock"])
    for name in ("metrics.jsonl", "samples.txt", "config.toml"):
        shutil.copy(folder / "runs/again" / name, folder / f"own-{name}")
    return folder


def test_nothing_that_a_command_wrote_is_read_as_text(written: Path) -> None:
    assert found(written) == ["a.txt"]
    assert found(written, written / "**/*") == ["a.txt"]
    assert found(written, written / "**/*.*") == ["a.txt"]
    (written / "compare-1" / "notes.md").write_text("mine")
    (written / "models" / "notes.md").write_text("mine")
    # A comparison of finished models is searched for texts, other output directories are not.
    assert found(written) == ["a.txt", "models/notes.md"]
    assert found(written, written / "compare-1") == ["compare-1/notes.md"]
    assert found(written, written / "compare-1/*") == ["compare-1/notes.md"]
    (written / "compare-1" / "notes.md").unlink()
    (written / "models" / "notes.md").unlink()
    # A file given by name is always read.
    table = written / "token.tsv"
    assert found(written, table) == ["token.tsv"]


def test_what_older_versions_wrote_is_recognised(written: Path, tmp_path: Path) -> None:
    """Without marks, by name within a run or comparison."""
    shutil.copytree(written / "compare-1", tmp_path / "compare-1")
    (tmp_path / "compare-1" / ".lock").unlink()
    shutil.copytree(written / "runs/again", tmp_path / "run")
    (tmp_path / "a.txt").write_text("text")
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".toml", ".html"):
            content = path.read_text(encoding="utf-8")
            for mark in (layout.TOML_MARK, layout.HTML_MARK, '"gru_lm": "0.1.0",'):
                content = content.replace(mark, "")
            path.write_text(content, encoding="utf-8")
    assert found(tmp_path) == ["a.txt"]
    assert found(tmp_path, tmp_path / "**/*") == ["a.txt"]


def test_results_of_the_benchmarks_are_recognised() -> None:
    for path in Path(__file__).parents[2].glob("benchmarks/results/*.json"):
        assert layout.begins_as_ours(path.read_bytes()[:8192]), path


@pytest.mark.parametrize(
    "head",
    [
        "cell\truns\tparameters\twidth\ttokens/s\tbits per byte\tperplexity\n",
        "cell\twidth\ttrain tokens/s\teval tokens/s\t±\n",
    ],
)
def test_printed_tables_are_recognised(head: str) -> None:
    assert layout.begins_as_ours(head.encode())
    assert not layout.begins_as_ours(b"cell\truns\nlike mad\n")
    assert not layout.begins_as_ours(b"figure of speech\nrun\tbits\n")


def test_a_comparison_goes_on_beside_its_text(written: Path) -> None:
    compared = ["compare", ".", "--cells", "gru,rnn", "--seeds", 1, *OPTIONS]
    before = listing(written / "compare-1")
    (written / "compare-1/result.json").unlink()
    (written / "compare-1/results/rnn-0.json").write_text("12")
    assert "run 2 of 2: rnn" in inside(written, *compared).err
    assert listing(written / "compare-1").keys() == before.keys()
    (written / "compare-1/result.json").unlink()
    (written / "compare-1/results").rename(written / "compare-1/moved")
    (written / "compare-1/results").symlink_to("moved")
    (written / "compare-1/moved/rnn-0.json").unlink()
    said = error(written, *compared, code=5)
    assert "compare-1/results is a symbolic link" in said
    assert not (written / "compare-1/moved/rnn-0.json").exists()
    (written / "compare-1/results").unlink()
    (written / "compare-1/moved").rename(written / "compare-1/results")
    # A run killed before its first checkpoint is repeated in a new directory.
    shutil.rmtree(written / "compare-1/rnn-0")
    (written / "compare-1/rnn-0").mkdir()
    for name in (".lock", "config.toml"):
        (written / "compare-1/rnn-0" / name).touch()
    result = inside(written, *compared, "--json").json()
    assert result["runs"][1]["checkpoint"] == "compare-1/rnn-0-2/best.safetensors"
    for junk in ("[]", "{}", '{"cell": "rnn", "seed": 0, "blocks": {"nats": [NaN], "bytes": [1]}}'):
        (written / "compare-1/results/rnn-0.json").write_text(junk)
        assert "run 2 of 2: rnn" in inside(written, *compared, "--out", "compare-1").err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("step-by-step.txt", "--- steps to take\n"),
        ("data.jsonl", '{"text": "a gru_lm", "gru_lm": 1}\n'),
        ("data.json", '{"step": "one"}'),
        ("line.tsv", "line\ttokens\twords\n"),
        ("index.csv", "index,id,name\n"),
        ("page.html", "<!doctype html>\n<title>gru-lm</title>"),
        ("results/gru-0.json", "text"),
        ("compare.json", "text"),
        ("report.html", "text"),
        ("result.json", "text"),
        ("piped.txt", "text"),
        ("config.toml", "x = 1"),
        ("metrics.jsonl", "text"),
    ],
)
def test_what_is_only_like_it_is_text(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert found(tmp_path) == [name]


@pytest.mark.parametrize("table", layout.TABLES)
@pytest.mark.parametrize("form", ["tsv", "csv", "quoted", "jsonl"])
def test_tables_of_every_form_are_recognised(table: tuple[str, ...], form: str) -> None:
    names = [*table, "more"]
    head = {
        "tsv": "\t".join(names),
        "csv": "\ufeff" + ",".join(names) + "\r",
        "quoted": ",".join(f'"{name}"' for name in names),
        "jsonl": "{" + ", ".join(f'"{name}": "a, b"' for name in names) + "}",
    }[form]
    assert layout.begins_as_ours((head + "\nrows").encode())


def test_a_picture_and_a_cache_are_no_text_in_any_encoding(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = tmp_path / "cache" / "gru-lm" / "corpora" / "own"
    corpus.mkdir(parents=True)
    (corpus / "1.txt").write_text("a corpus")
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    shutil.copy(written / "curve.png", tmp_path)
    documents = open_documents([str(tmp_path)], encoding="utf-16")
    assert [Path(document.name).name for document in documents] == ["a.txt"]
    assert (
        found(tmp_path, corpus)
        == found(tmp_path, corpus / "*")
        == ["cache/gru-lm/corpora/own/1.txt"]
    )


def test_where_our_own_output_goes_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    program = (
        "import sys; from gru_lm.text.sources import open_documents; print('begun', flush=True);"
        "print([each.name for each in open_documents(['.'])])"
    )
    with (tmp_path / "log.txt").open("wb") as log:
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=log, check=True)
    assert (tmp_path / "log.txt").read_text() == "begun\n['a.txt']\n"
