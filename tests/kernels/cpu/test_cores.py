"""How many cores there are to use, told by files of the kernel's that the test writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rosellm.roseinfer.kernels.cpu.cores import usable_cores

GROUPS = "sys/fs/cgroup"
V1 = f"{GROUPS}/cpu,cpuacct"


@pytest.fixture(autouse=True)
def mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def cores(root: Path, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return usable_cores(root)


def test_the_mask_counts_where_nothing_else_is_known(tmp_path):
    assert cores(tmp_path, {}) == 8


def test_hyperthreads_of_one_core_count_once(tmp_path):
    lists = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}"
        for cpu in range(8)
    }
    assert cores(tmp_path, lists) == 4


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 8),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "500000 100000"}, 2),
        ({"a/cpu.max": "500000 100000", "a/b/cpu.max": "max 100000"}, 5),
    ],
)
def test_the_quota_of_a_group_and_of_those_above_it(tmp_path, limits, expected):
    files = {f"{GROUPS}/{name}": text for name, text in limits.items()}
    assert cores(tmp_path, {"proc/self/cgroup": "0::/a/b"} | files) == expected


@pytest.mark.parametrize(
    ("folder", "quota", "expected"),
    [
        ("docker/x/", "400000", 4),
        ("", "400000", 4),  # the path is the host's, the container sees its own group alone
        ("docker/x/", "-1", 8),
    ],
)
def test_the_quota_of_the_first_version_of_groups(tmp_path, folder, quota, expected):
    files = {
        "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/",
        f"{V1}/{folder}cpu.cfs_quota_us": quota,
        f"{V1}/{folder}cpu.cfs_period_us": "100000",
    }
    assert cores(tmp_path, files) == expected


def test_this_machine_has_some(monkeypatch):
    monkeypatch.undo()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
