"""Run directories with copied, linked, edited or moved files: the user's files are left alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from gru_lm.errors import EnvironmentProblem
from gru_lm.layout import step_paths
from gru_lm.training import folder, reports
from gru_lm.training.checkpoint import encode, read
from gru_lm.training.directory import Run, newest_whole
from tests.conftest import TINY, Program, words
from tests.inside import error, inside, listing

MORE = ["--steps", 2, "--threads", 1]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run of 30 steps; its text is in the original place."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def new(folder: Path, *options: object, code: int = 0) -> str:
    """Train for two steps in `folder`; returns stderr."""
    return inside(folder, "train", *TINY, "--steps", 2, *options, code=code).err


@pytest.mark.parametrize(
    "name",
    [
        "step-3-good.safetensors",
        "step-00000099 (copy).safetensors",
        "step-00000099.safetensors.bak.safetensors",
        "step-99.safetensors",
        "step-000000099.safetensors",
        "step-٠٠٠٠٠٠٩٩.safetensors",
        "step-latest.safetensors",
        "old-step-00000099.safetensors",
    ],
)
def test_a_copy_of_a_checkpoint_is_the_users(name: str, run: Path) -> None:
    shutil.copy(run / "step-00000030.safetensors", run / name)
    copy = (run / name).read_bytes()
    done = inside(run.parent, "train", "--resume", run, *MORE, "--json")
    assert done.json()["steps"] == 32
    assert "skipped" not in done.err
    assert (run / name).read_bytes() == copy
    kept = [path.name for path in step_paths(run)]
    assert kept == ["step-00000032.safetensors", "step-00000031.safetensors"]


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5, 1_000_000_000):
        (tmp_path / f"step-{step:08d}.safetensors").touch()
    found = [int(path.name[5:-12]) for path in step_paths(tmp_path)]
    assert found == [1_000_000_000, 100_000_000, 99_999_999, 5]


def test_a_checkpoint_under_the_name_of_another_step_is_not_taken(run: Path) -> None:
    shutil.copy(run / "step-00000030.safetensors", run / "step-00000099.safetensors")
    said: list[str] = []
    assert newest_whole(run, said.append).meta["step"] == 30
    assert "step-00000099.safetensors was renamed: it is from step 30" in said[0]


def test_what_is_no_file_is_neither_counted_nor_removed(run: Path) -> None:
    (run / "step-00000007.safetensors").mkdir()
    (run / "step-00000008.safetensors").symlink_to("step-00000030.safetensors")
    for _ in range(2):
        inside(run.parent, "train", "--resume", run, *MORE)
    names = {path.name for path in run.glob("step-*")}
    assert names == {f"step-{step:08d}.safetensors" for step in (7, 8, 33, 34)}


@pytest.mark.parametrize("option", ["--split", "--encoding", "--set", "--config"])
def test_settings_are_stored_in_one_spelling_and_read_back(
    option: str, tmp_path: Path, text: Path
) -> None:
    (tmp_path / "own.toml").write_text('split = " 0.90, 1/10"\nencoding = "UTF8\\t"\n')
    value = {
        "--split": "0.9,\t0.1",
        "--encoding": "utf-8\t",
        "--set": "split=0.9,\t.1",
        "--config": "own.toml",
    }[option]
    new(tmp_path, text, "--out", "run", option, value)
    config = read(tmp_path / "run/best.safetensors").meta["config"]
    assert (config["split"], config["encoding"]) == ("0.9,0.1", "utf-8")
    inside(tmp_path, "train", "--resume", "run", *MORE)


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "cpu\x07"],
        ["--set", "device=cpu\u200b"],
        ["--encoding", "utf-9\t"],
        ["--tokenizer", "char\n"],
        ["--split", "1e999999999,0"],
        ["--split", "0.9,0.1,"],
        ["--set", "lr=1" + 400 * "0"],
    ],
)
def test_what_could_not_be_read_back_is_refused_at_once(
    options: list[object], tmp_path: Path, text: Path
) -> None:
    new(tmp_path, text, "--out", "run", *options, code=2)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_could_not_be_read_is_not_written(run: Path) -> None:
    newest = run / "step-00000030.safetensors"
    checkpoint = read(newest)
    meta = checkpoint.meta | {"config": checkpoint.meta["config"] | {"split": "0.9,\t0.1"}}
    before = listing(run)
    opened = Run.reopen(run)
    for data in (encode(checkpoint.tensors(), meta), newest.read_bytes()):
        with pytest.raises((ValueError, AssertionError)):
            opened.save(data, 31, best=True)
    opened.close()
    assert listing(run) == before


def test_what_a_user_put_into_a_folder_stays(tmp_path: Path) -> None:
    own = tmp_path / "d"
    own.mkdir()
    for name in (".lock", "text.txt"):
        (own / name).write_text("short")
    before = listing(own)
    for lock in (True, False):
        if not lock:
            (own / ".lock").unlink()
            del before[".lock"]
        said = new(tmp_path, own / "text.txt", "--out", own, code=2)
        assert "contains a file text.txt" in said
        assert listing(own) == before
    (own / "text.txt").rename(own / "other.txt")
    (own / ".lock").write_text("mine")
    before = listing(own)
    for out in (own, own / "a" / "b"):  # fails after reading the text
        assert "too short" in new(tmp_path, own / "other.txt", "--out", out, code=3)
        assert listing(own) == before
    (tmp_path / "runs").mkdir()
    new(tmp_path, own / "other.txt", code=3)
    assert (tmp_path / "runs").is_dir(), "created by the user"
    error(tmp_path, "compare", own / "other.txt", *TINY, "--steps", 1, "--out", own, code=2)
    (own / "other.txt").rename(tmp_path / "other.txt")
    before = listing(own)
    error(tmp_path, "compare", "other.txt", *TINY, "--steps", 1, "--out", own, code=3)
    assert listing(own) == before
    (own / "piped.txt").write_text("mine")
    error(tmp_path, "compare", "other.txt", *TINY, "--steps", 1, "--out", own, code=2)
    assert (own / "piped.txt").read_text() == "mine"


def test_a_lock_alone_is_of_no_ones_run(tmp_path: Path, text: Path) -> None:
    """Left by a kill during tokenization: the same command starts again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    new(tmp_path, text, "--out", "run")


NAMES = ["samples.txt", "metrics.jsonl", "config.toml", "loss.png", ".lock"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
def test_no_link_is_followed_when_a_run_is_written(name: str, kind: str, run: Path) -> None:
    target = run.parent / "target"
    path = run / name
    path.rename(target)
    if kind == "dangling":
        target.rename(run.parent / "gone")
    if kind in ("link", "dangling"):
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = target.read_bytes() if target.exists() else None
    said = error(run.parent, "train", "--resume", run, *MORE, code=5)
    assert f"{name} is {'a symbolic link' if path.is_symlink() else 'not a regular file'}" in said
    assert "hint: mv" in said
    assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.parametrize("name", [*NAMES, "text.txt", "best.safetensors"])
def test_no_link_is_followed_by_a_new_run(name: str, tmp_path: Path, text: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "target")
    new(tmp_path, text, "--out", "run", code=5 if name == ".lock" else 2)
    assert not (tmp_path / "target").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_best_that_is_a_link_or_a_folder(run: Path) -> None:
    best = run / "best.safetensors"
    (run.parent / "target").write_bytes(best.read_bytes())
    best.unlink()
    best.symlink_to(run.parent / "target")
    inside(run.parent, "train", "--resume", run, *MORE)
    assert not best.is_symlink()
    best.unlink()
    best.mkdir()
    assert "best.safetensors" in error(run.parent, "train", "--resume", run, *MORE, code=5)
    with pytest.raises(EnvironmentProblem):
        folder.append(run / "best.safetensors", "x")


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def test_a_text_whose_name_is_not_utf8(tmp_path: Path, program: Program) -> None:
    """Rejected early if it would be recorded; accepted within a folder, a glob or `eval`."""
    odd = tmp_path / "folder" / f"{NOT_UTF8}.txt"
    odd.parent.mkdir()
    odd.write_text(words(400), encoding="utf-8")
    (tmp_path / "good.txt").write_text(words(400), encoding="utf-8")
    for options in ([odd], ["good.txt", "--valid", odd], ["good.txt", "--test", odd]):
        said = new(tmp_path, *options, code=2)
        assert "is not UTF-8" in said
        assert "hint: " in said
        assert not (tmp_path / "runs").exists()
    here = tmp_path / NOT_UTF8
    here.mkdir()
    shutil.copy(tmp_path / "good.txt", here)
    assert "is not UTF-8" in new(here, "good.txt", code=2), "recorded paths are absolute"
    new(tmp_path, "folder", "--out", "named")
    new(tmp_path, "folder/c*.txt", "--out", "matched")
    table = tmp_path / "table.tsv"
    figures = inside(tmp_path, "eval", "named", odd, "--per-token", table, "--json").json()
    assert figures["tokens"] == len(words(400))
    assert "caf\\\\xe9.txt" in table.read_text(encoding="utf-8")
    # A run directory may have such a name; it is escaped on a strict stdout.
    out = tmp_path / f"{NOT_UTF8}-run"
    done = program("train", "good.txt", *TINY, "--steps", 2, "--out", out, "--json")
    assert os.fsencode(json.loads(done.stdout)["run"]) == os.fsencode(out)
    assert "caf\\udce9-run" in program("train", "--resume", out).stdout
    (tmp_path / "link").symlink_to(out)
    inside(tmp_path, "train", "good.txt", "--from", "link", *MORE, "--out", "next")


JUNK = [
    b"\xff\xfe\n",
    b"12\n",
    b"[1, 2]\n",
    b'{"tokens": 5, "seconds": 1, "loss": 1}\n',
    b'{"step": 1e99, "tokens": 5, "loss": 1.0}\n',
    b'{"step": 1, "tokens": 5, "loss": NaN}\n',
    b'{"step": 1, "tokens": 5, "loss": null}\n',
    b'{"step": 1, "tokens": 5, "loss": "low"}\n',
    b'{"step": true, "tokens": 5, "loss": 1}\n',
    b'{"step": 1, "tokens": 1' + 400 * b"0" + b', "loss": 1}\n',
    100_000 * b"[" + b"\n",
    b"\0\0\0\0\n",
    b'{"step": 1, "tokens": 5, "loss": 1.0}{}\n',
]


def test_lines_that_no_run_wrote_are_dropped_from_metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    cut = b'{"step": 1, "tok'
    for place, junk in ((len(whole), JUNK[:1]), (0, JUNK[1:2]), (len(whole), JUNK)):
        path.write_bytes(whole[:place] + b"".join(junk) + whole[place:] + cut)
        assert len(reports.metrics(run)) == whole.count(b"\n")
        done = inside(run.parent, "train", "--resume", run)
        assert f"metrics.jsonl: {len(junk)} invalid lines dropped" in done.err
        assert path.read_bytes() == whole
        assert "dropped" not in inside(run.parent, "train", "--resume", run).err
    (run / "samples.txt").write_bytes(b"\xff\xfe\n" + (run / "samples.txt").read_bytes())
    inside(run.parent, "train", "--resume", run, *MORE)


def test_a_text_that_was_moved_is_named_again(tmp_path: Path, text: Path) -> None:
    (tmp_path / "valid.txt").write_text(words(100, seed=1), encoding="utf-8")
    new(tmp_path, text.name, "--valid", "valid.txt", "--out", "run")
    (tmp_path / "elsewhere").mkdir()
    for name in (text.name, "valid.txt"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    before = listing(tmp_path / "run")
    said = error(tmp_path, "train", "--resume", "run/", code=3)
    assert "no such file" in said
    assert "hint: if the text was moved: gru-lm train --resume run TEXT --valid FILE" in said
    places = ["elsewhere/text.txt", "--valid", "elsewhere/valid.txt"]
    wrong = ["elsewhere/valid.txt", "--valid", "elsewhere/valid.txt"]
    said = error(tmp_path, "train", "--resume", "run", *wrong, code=3)
    assert "the text of run has changed since the run started" in said
    swapped = ["elsewhere/text.txt", "--valid", "elsewhere/text.txt"]
    said = error(tmp_path, "train", "--resume", "run", *swapped, code=3)
    assert "the --valid text of run has changed since the run started" in said
    assert listing(tmp_path / "run") == before
    inside(tmp_path, "train", "--resume", "run", *places)
    inside(tmp_path / "elsewhere", "train", "--resume", "../run", *MORE)
    inside(tmp_path, "eval", "run")


@pytest.mark.slow
def test_a_piped_text_that_was_lost_is_piped_in_again(
    run: Path, trained: Path, program: Program
) -> None:
    content = (trained.parent / "text.txt").read_text(encoding="utf-8")
    config, kept = run / "config.toml", run / "text.txt"
    config.write_text(config.read_text().replace(f"{trained.parent}/text.txt", "-"))
    kept.write_text(content, encoding="utf-8")
    again = ["train", "--resume", run, *MORE, "-"]
    assert "already contains the piped-in text" in error(run.parent, *again, code=2)
    kept.unlink()
    said = error(run.parent, *again[:-1], code=3)
    assert f"hint: ... | gru-lm train --resume {run} -" in said
    assert "has changed" in program.error(*again, code=3, stdin=content + "more")
    assert not kept.exists()
    program(*again, stdin=content)
    assert kept.read_text(encoding="utf-8") == content


def test_where_all_checkpoints_are_damaged_the_hint_names_the_run(run: Path) -> None:
    for path in (*step_paths(run), run / "best.safetensors"):
        path.write_bytes(b"damaged")
    for command in (["train", "--resume", run], ["eval", f"{run}/"], ["sample", run]):
        said = error(run.parent, *command, code=3)
        assert "all of its checkpoints are damaged" in said
        assert f"ls {run}/*.safetensors" in said


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("keep", 1, True),
        ("save_every", 1, True),
        ("threads", 1, True),
        ("split", '"0.90, 1/10"', True),
        ("patience", 1, False),
        ("seed", 7, False),
        ("colour", 7, False),
    ],
)
def test_only_what_changes_no_result_may_be_edited(
    name: str, value: object, good: bool, run: Path
) -> None:
    path = run / "config.toml"
    kept = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if not line.startswith(f"{name} =")
    ]
    path.write_text("".join(kept) + f"{name} = {value}\n")
    if not good:
        code = 2 if name != "colour" else 3
        said = error(run.parent, "train", "--resume", run, *MORE, code=code)
        assert name in said
        assert f"--from {run}" in said
        return
    done = inside(run.parent, "train", "--resume", run, *MORE)
    assert "warning" not in done.err
    if name == "keep":
        assert [path.name for path in step_paths(run)] == ["step-00000032.safetensors"]


def test_a_run_that_was_moved_and_is_reached_by_a_link(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "a folder" / "moved run"
    moved.parent.mkdir()
    run.rename(moved)
    (tmp_path / "link").symlink_to(moved)
    os.utime(moved / "metrics.jsonl", (0, 0))  # a timestamp far in the past
    inside(tmp_path, "train", "--resume", "link/", *MORE)
    assert read(moved / "step-00000032.safetensors").meta["step"] == 32


def test_a_run_is_never_named_by_the_file_that_a_directory_takes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem):
        Run.create(tmp_path / "file" / "run", "gru")
