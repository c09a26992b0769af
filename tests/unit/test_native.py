"""The C kernels against the reference recurrence in float64: outputs and all gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gru_lm.model.cells import CELLS, LSTM
from gru_lm.model.devices import choose_backend
from gru_lm.model.native import build
from gru_lm.model.recurrent import Recurrent
from tests.conftest import Program

kernels = pytest.mark.skipif(not build.available(), reason=f"no kernels: {build.problem()}")
CELL_NAMES = tuple(CELLS)


def results(stack: Recurrent, x: Tensor, state: Tensor, weight: Tensor) -> list[Tensor]:
    x, state = x.clone().requires_grad_(), state.clone().requires_grad_()
    stack.zero_grad()
    table, rows = x.flatten(0, 1), torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    # Without a table, the LSTM would run in oneDNN.
    read_as_table = isinstance(stack.layers[0], LSTM)
    out, after = stack(table, state, None, rows) if read_as_table else stack(x, state, None)
    ((out * weight).sum() + 2 * after.sum()).backward()
    assert x.grad is not None
    assert state.grad is not None
    return [out.detach(), after.detach(), x.grad, state.grad, *(p.grad for p in stack.parameters())]


def compare(cell: str, T: int, B: int, D: int, H: int, *, backend: str = "native") -> None:
    torch.manual_seed(T * 1000 + H)
    sizes = {"inputs": D, "width": H, "layers": 1}
    exact = Recurrent(cell, **sizes, backend="reference").double()
    for parameter in exact.parameters():
        # No larger: a simple RNN with large weights is chaotic and amplifies rounding errors.
        parameter.data += 0.3 * torch.randn_like(parameter) / H**0.5
    native = Recurrent(cell, **sizes, backend=backend)
    native.load_state_dict(exact.state_dict())
    x = torch.randn(B, T, D, dtype=torch.float64).transpose(0, 1)  # not contiguous
    state = torch.randn(1, exact.states, B, H, dtype=torch.float64)
    weight = torch.randn(T, B, H, dtype=torch.float64)
    expected = results(exact, x, state, weight)
    found = results(native, x.float(), state.float(), weight.float())
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()


@kernels
@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("H", range(1, 71))
def test_every_small_width(cell: str, H: int) -> None:
    compare(cell, T=4, B=5, D=3, H=H)


@kernels
@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 1, 9, 64), (70, 17, 32, 96), (33, 24, 64, 256), (5, 24, 8, 320)]
)
def test_other_shapes(cell: str, shape: tuple[int, int, int, int]) -> None:
    compare(cell, *shape)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 4, 7), (33, 24, 64, 96)])
def test_without_kernels_gru_before_is_hoisted(shape: tuple[int, int, int, int]) -> None:
    compare("gru-before", *shape, backend="fused")


@kernels
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["native", "fused", "reference"])
def test_a_table_and_its_rows_are_the_same_as_the_input(cell: str, backend: str) -> None:
    torch.manual_seed(0)
    stack = Recurrent(cell, inputs=5, width=33, layers=2, backend=backend)
    table_VD, state = torch.randn(7, 5), torch.zeros(2, stack.states, 3, 33)
    rows_TB = torch.randint(7, (6, 3))
    found = []
    for x, rows in ((table_VD[rows_TB], None), (table_VD, rows_TB)):
        stack.zero_grad()
        out, after = stack(x, state, None, rows)
        (out.square().sum() + after.sum()).backward()
        found.append([out.detach(), *(p.grad for p in stack.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@kernels
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_threads_change_nothing(cell: str) -> None:
    torch.manual_seed(0)
    stack = Recurrent(cell, inputs=8, width=96, layers=2, backend="native")
    x, state = torch.randn(9, 7, 8), torch.zeros(2, stack.states, 7, 96)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(stack(x, state, None)[0])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6)


@kernels
def test_extreme_and_undefined_values_pass_through() -> None:
    stack = Recurrent("gru", inputs=2, width=32, layers=1, backend="native")
    x = torch.tensor([[[1e30, -1e30]], [[float("nan"), 0.0]]])
    out, _ = stack(x, torch.zeros(1, 1, 1, 32), None)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@kernels
def test_the_floating_point_mode_is_untouched() -> None:
    tiny = torch.tensor(1e-40)
    stack = Recurrent("gru", inputs=2, width=32, layers=1, backend="native")
    stack(torch.zeros(2, 1, 2), torch.zeros(1, 1, 1, 32), None)[0].sum().backward()
    assert (tiny / 2).item() != 0  # denormals are not flushed to zero
    assert (torch.tensor(1.0) + 2**-24).item() == 1.0  # rounding is still to even


@kernels
@pytest.mark.slow
def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    code = "from gru_lm.model.native.build import library; library()"
    env = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    cwd = Path(__file__).parents[2]
    both = [subprocess.Popen(command, env=env, cwd=cwd) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert [path.suffix for path in (tmp_path / "gru-lm" / "kernels").iterdir()] == [".so"]


@pytest.mark.parametrize("compiler", ["none", pytest.param("false", marks=pytest.mark.slow)])
def test_without_a_compiler_all_works(
    compiler: str, program: Program, text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    if compiler == "false":
        (bin_ / "cc").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    steps = ("--steps", 3, "--width", 8, "--tokenizer", "byte")
    done = program("train", text, "--out", "run", *steps)
    assert "using PyTorch's kernels instead of the native one" in done.stderr
    assert program.json("info", "run")["environment"]["backend"] == "fused"
    bf16 = (text, *steps, "--precision", "bf16", "--device", "cpu")
    assert "AVX512_BF16 and a C compiler" in program.error("train", *bf16, code=2)


@kernels
@pytest.mark.slow
def test_a_resume_without_the_kernel_says_so(
    program: Program, text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program("train", text, "--out", "run", "--steps", 3, "--width", 8, "--tokenizer", "byte")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "backend fused instead of native" in program("train", "--resume", "run").stderr


def test_every_backend_is_named() -> None:
    assert choose_backend(torch.device("cpu")) == ("native" if build.available() else "fused")
    assert choose_backend(torch.device("cuda")) == "fused"
    assert set(CELL_NAMES) <= set(CELLS)
