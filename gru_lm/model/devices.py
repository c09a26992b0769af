"""Selection and setup of device, backend, threads and precision.

The only module that sets them; independent of texts and settings. Invariant: invalid requests are
rejected before PyTorch allocates any memory.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from gru_lm.errors import EnvironmentProblem, UsageError
from gru_lm.model.native import build
from gru_lm.model.native.kernels import bf16_available
from gru_lm.signals import Stop, never

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Training precisions in addition to float32 and `fastest_precision`.
_PRECISIONS: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": ("bf16", "fp16")}


def set_up(
    device: str,
    *,
    threads: int | None = None,
    precision: str | None = None,
    deterministic: bool = False,
    stop: Stop = never,
) -> torch.device:
    """Set up PyTorch for `device`, and the native kernels if it is a CPU; return the device.

    Without `threads`, PyTorch's default is used, but at most `processors()`. `stop` is polled while the
    kernels are compiled. Raises UsageError for an invalid device name and for a `precision` that the
    device does not support in training, EnvironmentProblem for a device that does not exist.
    """
    selected = choose_device(device)
    if selected.type == "cpu":
        build.problem(stop)
    supported = (None, "float32", fastest_precision(selected), *_PRECISIONS[selected.type])
    if precision not in supported:
        alternative = ", or AVX512_BF16 and a C compiler" if precision == "bf16" else ""
        raise UsageError(
            f"--precision {precision} needs CUDA{alternative}",
            hint=f"--precision float32; a {precision} run can only be resumed on such a machine",
        )
    threads = threads or min(torch.get_num_threads(), processors())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    if deterministic and selected.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return selected


def processors(root: Path = Path("/")) -> int:
    """Processors available to this process: the minimum of cores, affinity and cgroup quotas.

    A fractional quota is rounded up. `root` is the directory in which proc and sys are mounted.
    """
    with suppress(AttributeError, OSError):  # not Linux
        return min(len(os.sched_getaffinity(0)), os.cpu_count() or 1, *_quotas(root))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[int]:
    """CPU quotas of this process's cgroups and their parents, for cgroup v1 and v2."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mounts = (controllers, "cpu") if "cpu" in controllers.split(",") else ()
            for name in mounts if controllers else ("", "unified"):
                # In a container the mount shows only its own cgroup, but the path is the host's.
                group = root / "sys/fs/cgroup" / name / path.lstrip("/")
                while group != root / "sys/fs":
                    yield from _quota(group)
                    group = group.parent


def _quota(group: Path) -> Iterator[int]:
    """The quota set by one cgroup, in processors, if there is one."""
    with suppress(OSError, ValueError):
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()  # "max": not a number
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        if int(quota) > 0 and int(period) > 0:  # -1: no limit
            yield math.ceil(int(quota) / int(period))


def fastest_precision(device: torch.device) -> str:
    """Default training precision on `device`."""
    return "bf16" if device.type == "cpu" and bf16_available() else "float32"


def choose_backend(device: torch.device) -> str:
    """The fastest available backend for `device`; compiles the kernels if necessary."""
    return "native" if device.type == "cpu" and build.available() else "fused"


def choose_device(name: str) -> torch.device:
    """The device named "auto" (CUDA if available), "cpu", "cuda" or "cuda:I".

    Raises UsageError for any other name, EnvironmentProblem for a device that does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise UsageError(f"unknown device {name!r}", hint="--device auto, cpu, cuda or cuda:0")
    torch.backends.cudnn.allow_tf32 = False  # float32 means full float32 on every device
    if kind == "cuda":
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            raise EnvironmentProblem(
                f"no device {name}: PyTorch sees {count} CUDA device(s)", hint="--device cpu"
            )
        return torch.device("cuda", int(index or 0))
    _keep_memory()
    return torch.device("cpu")


def _keep_memory() -> None:
    """Make glibc keep freed memory in the process.

    By default large blocks are returned to the kernel after every step, and the page faults of
    allocating them again take a fifth of the time of a small step.
    """
    with suppress(AttributeError, OSError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        c_library.mallopt(M_TRIM_THRESHOLD, -1)
