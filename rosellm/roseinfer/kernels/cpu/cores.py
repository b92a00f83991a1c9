"""How many cores this process may use: its affinity mask, and its control group's quota."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that threads of this process can keep busy, at least one.

    Two hyperthreads of a core count once: a kernel that is limited by memory or by the vector
    units gains nothing from the second.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    cores = _cores_in_mask(root)
    quota = min(_quotas(root), default=cores)
    return max(1, min(cores, int(quota)))


def _cores_in_mask(root: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(root, cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(root: Path, cpu: int) -> str:
    """The hyperthreads of a core, the same text for each of them."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(path) or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that the process's control group, and each one above it, may take."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(root / "sys/fs/cgroup", path, "cpu.max")
        elif "cpu" in controllers.split(","):
            mounted = root / "sys/fs/cgroup" / controllers
            yield from _limits(mounted, path, "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _limits(mounted: Path, path: str, *files: str) -> Iterator[float]:
    """Quota over period for a group and those above it; a group without a limit says nothing.

    A container may be told its path on the host but see only its own group, at the mount point:
    so a folder that is not there is passed over.
    """
    group = mounted / path.strip("/")
    for folder in [group, *group.parents]:
        if folder.is_relative_to(mounted):
            words = " ".join(_read(folder / name) for name in files).split()
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
                yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
