"""Damaged checkpoints are always detected, and malicious ones are rejected without side effects."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from gru_lm.commands.load import load_model
from gru_lm.errors import InputError
from gru_lm.training.checkpoint import encode, read
from gru_lm.training.state import restore
from tests.conftest import Program
from tests.faults.hostile import changed, mutated, poked, signed, taken_apart
from tests.inside import error, inside

LAST = "step-00000030.safetensors"


@pytest.fixture(scope="module")
def data(trained: Path) -> bytes:
    return (trained / LAST).read_bytes()


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, for a test to damage. `best` is a separate file."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


# --- damage: changed bytes and truncation


def refused(path: Path, content: bytes) -> InputError:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in caught.value.message
    return caught.value


def flipped(data: bytes, bit: int) -> bytes:
    at = bit // 8
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]


def header_bits(data: bytes) -> int:
    return 8 * (8 + int.from_bytes(data[:8], "little"))


def test_flips_and_truncations_are_detected(data: bytes, tmp_path: Path) -> None:
    path, chosen = tmp_path / "x.safetensors", random.Random(0)
    header = header_bits(data)
    bits = [*range(64), *chosen.sample(range(64, header), 100)]
    bits += chosen.sample(range(header, 8 * len(data)), 100)
    for bit in bits:
        refused(path, flipped(data, bit))
    for length in (*range(20), *chosen.sample(range(len(data)), 100), len(data) - 1):
        refused(path, data[:length])
    refused(path, data + b"\0")
    path.write_bytes(data)
    assert read(path).meta["step"] == 30


@pytest.mark.slow
def test_every_truncation_and_header_bit_and_2000_flips(data: bytes, tmp_path: Path) -> None:
    path, header = tmp_path / "x.safetensors", header_bits(data)
    for length in range(len(data)):
        refused(path, data[:length])
    for bit in (*range(header), *random.Random(1).sample(range(header, 8 * len(data)), 2000)):
        refused(path, flipped(data, bit))


def test_resume_falls_back_to_an_older_checkpoint_and_says_so(run: Path, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    older = read(sorted(run.glob("step-*"))[0]).meta["step"]
    content = (run / LAST).read_bytes()
    (run / LAST).write_bytes(flipped(content, 8 * (len(content) - 5)))
    done = inside(tmp_path, "train", "--resume", run)
    assert f"warning: skipped: {run / LAST} is damaged" in done.err
    assert "its checksum does not match" in done.err
    assert f"after step {older}\n" in done.err
    assert {path.name: path.read_bytes() for path in run.glob("*.safetensors")} == whole


def test_a_damaged_best_falls_back_to_the_newest_and_says_so(run: Path, tmp_path: Path) -> None:
    best = run / "best.safetensors"
    content = best.read_bytes()
    best.unlink()  # it may be a hard link to the newest checkpoint
    best.write_bytes(content[:-1])
    done = inside(tmp_path, "info", run, "--json")
    assert f"skipped: {best} is damaged" in done.err
    assert done.json()["checkpoint"] == str(run / LAST)


def test_a_run_without_a_whole_checkpoint(run: Path, tmp_path: Path) -> None:
    for path in run.glob("*.safetensors"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
    for command in (("info", run), ("eval", run), ("sample", run), ("train", "--resume", run)):
        assert "all of its checkpoints are damaged" in error(tmp_path, *command, code=3)


def test_a_damaged_checkpoint_is_not_counted_among_those_kept(run: Path, tmp_path: Path) -> None:
    """Retention never leaves fewer than --keep valid checkpoints."""
    first, last = sorted(run.glob("step-*"))
    older = read(first).meta["step"]
    content = last.read_bytes()
    last.unlink()
    last.write_bytes(content[:-1])
    inside(tmp_path, "train", "--resume", run)
    steps = [read(path).meta["step"] for path in sorted(run.glob("step-*"))]
    assert older < 30
    assert len(steps) == 2
    assert steps[-1] == 30


# --- files that are not checkpoints


class Bomb:
    """Creates a folder when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


FOREIGN: dict[str, Callable[[Path, Path], Any]] = {
    "pickle": lambda path, mark: path.write_bytes(pickle.dumps(Bomb(mark))),
    "pickle 0": lambda path, mark: path.write_bytes(pickle.dumps(Bomb(mark), protocol=0)),
    "torch": lambda path, mark: torch.save({"a": Bomb(mark)}, path),
    "zip": lambda path, mark: path.write_bytes(zipped(pickle.dumps(Bomb(mark)))),
    "gzip": lambda path, mark: path.write_bytes(gzip.compress(b"x" * 1000)),
    "bzip2": lambda path, mark: path.write_bytes(bz2.compress(b"x" * 1000)),
    "empty": lambda path, mark: path.touch(),
    "text": lambda path, mark: path.write_text("the cat sat on the mat\n" * 100),
    "zeros": lambda path, mark: path.write_bytes(bytes(1000)),
    "huge header": lambda path, mark: path.write_bytes(struct.pack("<Q", 2**63) + b"{" * 100),
    "sparse": lambda path, mark: (path.touch(), os.truncate(path, 1 << 40)),
    "fifo": lambda path, mark: os.mkfifo(path),
    "directory": lambda path, mark: path.mkdir(),
    "link": lambda path, mark: path.symlink_to("/etc/hostname"),
    "dangling": lambda path, mark: path.symlink_to("nowhere"),
    "loop": lambda path, mark: path.symlink_to(path.name),
    "device": lambda path, mark: path.symlink_to("/dev/zero"),
    "foreign": lambda path, mark: path.write_bytes(foreign_safetensors()),
}


def foreign_safetensors() -> bytes:
    from safetensors.torch import save

    return save({"a": torch.zeros(3)}, {"format": "pt"})


REFUSE = """
import json, sys, time
from pathlib import Path
import gru_lm.training.checkpoint
from gru_lm.errors import InputError
told = {}
for path in [*sorted(Path(sys.argv[1]).iterdir()), Path("/dev/zero"), Path("/dev/tty"), Path("/")]:
    started = time.monotonic()
    try:
        gru_lm.training.checkpoint.read(path)
        told[path.name] = "read it"
    except InputError as error:
        told[path.name] = [error.message, time.monotonic() - started]
print(json.dumps([told, "torch" in sys.modules]))
"""


def test_nothing_foreign_runs_and_torch_is_not_needed_to_refuse_it(tmp_path: Path) -> None:
    folder, mark = tmp_path / "files", tmp_path / "mark"
    folder.mkdir()
    for name, make in FOREIGN.items():
        make(folder / name, mark)
    os.link(folder / "text", folder / "text again")
    done = subprocess.run(
        [sys.executable, "-c", REFUSE, folder], capture_output=True, timeout=60, check=True
    )
    told, torch_loaded = json.loads(done.stdout)
    assert torch_loaded is False
    assert "zip archive" in told["torch"][0]
    assert len(told) == len(FOREIGN) + 4
    for name, answer in told.items():
        message, seconds = answer
        assert seconds < 1, name
        assert name in message or name == "", name
    assert "Python pickle" in told["pickle"][0]
    assert not mark.exists()


@pytest.mark.parametrize("name", FOREIGN)
def test_the_commands_leave_with_3(name: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "file", tmp_path / "mark"
    FOREIGN[name](path, mark)
    for command in (("info", path), ("sample", path), ("eval", path, "x.txt")):
        started = time.monotonic()
        error(tmp_path, *command, code=3)
        assert time.monotonic() - started < 1
    assert not mark.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# --- malicious checkpoints with a valid checksum


def setting(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change that sets metadata at a dotted path, or removes it if `value` is an ellipsis."""

    def change(header: dict[str, Any], meta: dict[str, Any]) -> None:
        *inner, last = path.split(".")
        for name in inner:
            meta = meta[name]
        if value is ...:
            del meta[last]
        else:
            meta[last] = value

    return change


def tensor(name: str, **values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change of the description of a tensor."""

    def change(header: dict[str, Any], meta: dict[str, Any]) -> None:
        header[name].update(values)

    return change


def without(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, meta: header.pop(name)


WEIGHT = "model.recurrent.layers.0.weight_hh_l0"
KEYS = (
    "step", "tokens", "leg_step", "validated_step", "validated_tenths", "best_step", "since_best",
    "best_nats", "best_unknown_nats", "seconds", "scaler", "model", "tokenizer", "config", "data",
    "environment", "format", "model.cell", "model.width", "model.tied", "regularization",
    "regularization.dropout", "regularization.locked", "validations", "average_start",
    "data.valid", "environment.backend",
)  # fmt: skip
HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    **{f"no {key}": setting(key, ...) for key in KEYS},
    **{f"{key} a list": setting(key, [1]) for key in KEYS},
    "width of 60,000": setting("model.width", 60_000),
    "width of 2**62": setting("model.width", 2**62),
    "width of 10**30": setting("model.width", 10**30),
    "width below zero": setting("model.width", -8),
    "width as text": setting("model.width", "8"),
    "width as a float": setting("model.width", 8.0),
    "layers of 100": setting("model.layers", 100),
    "vocabulary of 2**24": setting("model.vocab_size", 1 << 24),
    "tied, and is not": setting("model.tied", True),
    "tied as a number": setting("model.tied", 0),
    "unknown cell": setting("model.cell", "__import__"),
    "another cell": setting("model.cell", "lstm"),
    "dropout of NaN": setting("regularization.dropout", float("nan")),
    "dropout of 2": setting("regularization.dropout", 2.0),
    "a validation as text": setting("validations", ["1.0"]),
    "spacing as a list": setting("spacing", [1]),
    "spacing without places": setting("spacing", {"between": 3}),
    "spacing of no counts": setting("spacing", {"between": {"  ": 0}}),
    "spacing of text": setting("spacing", {"between": {"  ": "3"}}),
    "spacing that cannot be read": setting("spacing", {"between": {"\\x": 3}}),
    "an unknown part of the model": setting("model.hook", "os.system"),
    "step below zero": setting("step", -1),
    "step of infinity": setting("step", float("inf")),
    "step true": setting("step", True),
    "best of NaN": setting("best_nats", float("nan")),
    "best of none": setting("best_nats", None),
    "another tokenizer": setting("tokenizer", "bpe"),
    "an unknown tokenizer": setting("tokenizer", "../../etc/passwd"),
    "another format": setting("format", 2),
    "format true": setting("format", True),
    "escape codes": setting("config.cell", "\x1b]0;owned\x07"),
    "a lone surrogate": setting("config.cell", "\ud800"),
    "deep config": setting("config.cell", [[[[[[[[[[]]]]]]]]]]),
    "no weight": without(WEIGHT),
    "no tokenizer": without("tokenizer"),
    "half a float": tensor(WEIGHT, dtype="F16", shape=[48, 8]),
    "whole numbers": tensor(WEIGHT, dtype="I32"),
    "another shape": tensor(WEIGHT, shape=[8, 24]),
    "an unknown type": tensor(WEIGHT, dtype="Q7"),
    "a shape of 2**62": tensor(WEIGHT, shape=[2**62, 4]),
    "offsets beyond the end": tensor(WEIGHT, data_offsets=[0, 2**40]),
    "offsets backwards": tensor(WEIGHT, data_offsets=[100, 0]),
}


def use(path: Path) -> None:
    """Load a checkpoint both for evaluation and for training."""
    checkpoint = read(path)
    load_model(checkpoint, device="cpu")
    restore(checkpoint, device=torch.device("cpu"), backend="fused")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(changed(data, HOSTILE[name]))
    with pytest.raises(InputError) as caught:
        use(path)
    assert "checksum" not in str(caught.value.why), "the test signs wrongly"


def test_the_signing_is_right(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(changed(data, lambda header, meta: meta.update(extra="harmless")))
    use(path)
    assert read(path).meta["extra"] == "harmless"


NAN, INFINITY = struct.pack("<f", float("nan")), struct.pack("<f", float("inf"))


@pytest.mark.parametrize("value", [NAN, INFINITY, b"\0\0\x80\xff"])
def test_numbers_that_are_not_finite_are_refused(value: bytes, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(poked(data, WEIGHT, b"\0" * 40 + value))
    with pytest.raises(InputError, match="damaged or not a checkpoint") as caught:
        load_model(read(path))
    assert "not finite" in str(caught.value.why)
    for command in (("sample", path), ("eval", path, "x.txt")):
        (tmp_path / "x.txt").write_text("some text\n")
        assert "not finite" in error(tmp_path, *command, code=3)


def test_a_hidden_state_or_an_optimizer_that_does_not_fit(data: bytes, tmp_path: Path) -> None:
    # optimizer.0 is Muon, optimizer.1 AdamW.
    names = [
        name for name in taken_apart(data)[0] if name.startswith(("optimizer.0.", "optimizer.1."))
    ]
    assert len(names) == 4
    for change in (
        tensor("hidden", shape=[1, 1, 1, 16]),
        tensor("hidden", dtype="I32"),
        without("hidden"),
        setting("config.optimizer", "sgd"),
        setting("config.optimizer", "adam"),
        setting("config.batch", 2**40),
        *(without(name) for name in names),
    ):
        path = resigned_to(tmp_path / "x.safetensors", changed(data, change))
        with pytest.raises(InputError, match="damaged or not a checkpoint"):
            restore(read(path), device=torch.device("cpu"), backend="fused")


def resigned_to(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "1", '"x"', "[" * 100_000, '{"a":' * 100_000, '{"format":1e999}',
        '{"format":NaN}', '{"format":' + "9" * 5000 + "}", '{"format":1,"format":2}', "{",
    ],
)  # fmt: skip
def test_json_of_all_kinds(text: str, data: bytes, tmp_path: Path) -> None:
    header, _, body = taken_apart(data)
    path = tmp_path / "x.safetensors"
    # The metadata must contain the zeros that the checksum replaces.
    for whole in (
        text,
        f'[{{"sha256":"{"0" * 64}"}},{text}]',
        f'{{"sha256":"{"0" * 64}","x":{text}',
    ):
        path.write_bytes(signed(header, None, body, text=whole))
        with pytest.raises(InputError):
            read(path)


def test_the_command_line_survives_hostile_runs(run: Path, tmp_path: Path) -> None:
    """Every command exits with code 3 and at most three lines."""
    original = (run / LAST).read_bytes()
    for path in run.glob("*.safetensors"):
        path.unlink()
    for change in (
        setting("config", {}),
        setting("data", {"train": "", "valid": "", "test": ""}),
        setting("environment.threads", "many"),
        setting("model.width", 1 << 16),
        setting("validated_step", "x"),
    ):
        (run / LAST).write_bytes(changed(original, change))
        code = 2 if not taken_apart((run / LAST).read_bytes())[1]["config"] else 3
        error(tmp_path, "train", "--resume", run, code=code)
        assert sorted(path.name for path in run.glob("*.safetensors")) == [LAST]


def test_two_checkpoints_of_one_content_are_the_same_bytes() -> None:
    tensors = {"b": torch.ones(2, 2).t(), "a": torch.zeros(3)}
    assert encode(tensors, {"x": 1, "y": 2}) == encode(
        dict(reversed(tensors.items())), {"y": 2, "x": 1}
    )


def attacked(data: bytes, path: Path, seed: int) -> None:
    path.write_bytes(mutated(data, random.Random(seed)))
    started = time.monotonic()
    with suppress(InputError):
        use(path)
    assert time.monotonic() - started < 5, f"seed {seed}"


def test_300_random_mutations(data: bytes, tmp_path: Path) -> None:
    for seed in range(300):
        attacked(data, tmp_path / "x.safetensors", seed)


ATTACK = """
import resource, sys
from pathlib import Path
import torch
from tests.faults.test_checkpoint import attacked
data = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + (1 << 30)  # in addition to the mappings of torch, which are several times larger
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for seed in range(1000, 11_000):
    attacked(data, Path(sys.argv[2]), seed)
"""


@pytest.mark.torture
def test_10_000_random_mutations_in_a_gibibyte(trained: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, trained / LAST, tmp_path / "x.safetensors"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_a_finished_run_survives_its_checkpoints_being_read(
    trained: Path, program: Program
) -> None:
    """In a real process, for its messages."""
    link = program.cwd / "link.safetensors"
    link.symlink_to(trained / LAST)
    message = program.error("info", link, code=3)
    assert "symbolic link" in message
