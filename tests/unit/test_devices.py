"""Number of threads: the minimum of cores, affinity and cgroup quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gru_lm.model import devices

ENOUGH = 1000


def quota(root: Path, groups: str, files: dict[str, str]) -> int:
    """The smallest quota for /proc/self/cgroup `groups` and these files in /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return min(devices._quotas(root), default=ENOUGH)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/b/cpu.max": "200000 100000\n"}, 2),
        ({"a/b/cpu.max": "150000 100000\n"}, 2),
        ({"a/b/cpu.max": "1000 100000\n"}, 1),
        ({"a/b/cpu.max": "max 100000\n"}, ENOUGH),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "90000 50000\n"}, 2),
        ({"cpu.max": "500000 100000\n"}, 5),
        ({"unified/a/b/cpu.max": "700000 100000\n"}, 7),
        ({"a/c/cpu.max": "100000 100000\n"}, ENOUGH),
        ({"a/b/cpu.max": "\n"}, ENOUGH),
        ({"a/b/cpu.max": "0 0\n"}, ENOUGH),
        ({"a/b/cpu.max": "many 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ({}, ENOUGH),
    ],
)
def test_quotas_of_version_2(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert quota(tmp_path, "0::/a/b\n", files) == expected


def version_1(quota: str, group: str = "cpu,cpuacct/a/b", period: str = "100000") -> dict[str, str]:
    return {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (version_1("250000\n"), 3),
        (version_1("-1\n"), ENOUGH),
        (version_1("50000\n", "cpu/a/b"), 1),
        (version_1("-1\n") | version_1("200000\n", "cpu,cpuacct/a"), 2),
        (version_1("400000\n", "cpu,cpuacct"), 4),  # a container: its own group is the root
        (version_1("400000\n", "memory/a/b"), ENOUGH),
        (version_1("many\n"), ENOUGH),
        (version_1("200000\n", period="0\n"), ENOUGH),
        ({"cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000\n"}, ENOUGH),
    ],
)
def test_quotas_of_version_1(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    groups = "9:memory:/a/b\n4:cpu,cpuacct:/a/b\n1:name=systemd:/a/b\n0::/a/b\n"
    assert quota(tmp_path, groups, files) == expected


@pytest.mark.parametrize("groups", ["", "nonsense\n", "0::\n", "0::/../..\n", "\udcff"])
def test_strange_groups_are_no_quota(tmp_path: Path, groups: str) -> None:
    found = quota(tmp_path, groups.encode(errors="replace").decode(), {})
    assert found == ENOUGH
    assert list(devices._quotas(tmp_path / "nothing")) == []


def test_the_least_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert devices.processors(tmp_path) == 8
    quota(tmp_path, "0::/a\n", {"a/cpu.max": "250000 100000\n"})
    assert devices.processors(tmp_path) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert devices.processors(tmp_path) == 2


def test_threads_are_as_given_or_at_most_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        for given, allowed, expected in ((3, 2, 3), (None, 2, 2), (None, 8, 2)):
            monkeypatch.setattr(devices, "processors", lambda n=allowed: n)
            devices.set_up("cpu", threads=given)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
