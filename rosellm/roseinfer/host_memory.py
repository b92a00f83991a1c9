"""How much memory this machine, its control group and a process have, in bytes. No torch here.

Knows Linux; elsewhere a few GiB are taken to be free, and nothing is known of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GUESS = 4 << 30
_NO_LIMIT = 1 << 60  # cgroup v1 says a number near 2**63


@dataclass(frozen=True)
class Resident:
    """A process's pages that are in memory.

    Attributes:
        anonymous: its own: heap, stacks, weights and KV cache on a CPU; shared memory too.
        mapped: of files, which the kernel may drop and read again: libraries, mapped weights.
        peak: most of both together since the process began.
    """

    anonymous: int
    mapped: int
    peak: int

    @property
    def total(self) -> int:
        """What tools call RSS."""
        return self.anonymous + self.mapped


def resident(pid: int | None = None, root: Path = Path("/")) -> Resident | None:
    """Of this process, or of that one; None where the system does not say."""
    values = {
        name: int(value.split()[0]) * 1024
        for name, value in _lines(root / "proc" / str(pid or "self") / "status", ":")
        if value.endswith("kB")
    }
    if "RssAnon" not in values:
        return None
    anonymous = values["RssAnon"] + values.get("RssShmem", 0)
    return Resident(anonymous, values.get("RssFile", 0), values.get("VmHWM", 0))


def total(root: Path = Path("/")) -> int | None:
    """Memory of the machine."""
    return _meminfo(root, "MemTotal")


def available(root: Path = Path("/")) -> int:
    """What this process could still allocate without swapping or being killed."""
    machine = _meminfo(root, "MemAvailable")
    free = [_GUESS if machine is None else machine]
    free += [max(group.limit - group.used, 0) for group in groups(root)]
    return min(free)


@dataclass(frozen=True)
class Group:
    """A control group with a limit.

    Attributes:
        used: without page cache that would be dropped when memory is needed.
    """

    limit: int
    used: int


def groups(root: Path = Path("/")) -> Iterator[Group]:
    """The process's control groups that have a memory limit: its own, and those above it.

    A container may be told its path on the host but see only its own group, at the mount point:
    so a folder that is not there is passed over.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounted /= controllers
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = mounted / path.strip("/")
        for folder in [inner, *inner.parents]:
            if folder.is_relative_to(mounted):
                yield from _group(folder, *names)


def _group(folder: Path, limit: str, used: str, reclaimable: str) -> Iterator[Group]:
    most, now = _read(folder / limit), _read(folder / used)
    if most.isdigit() and now.isdigit() and int(most) < _NO_LIMIT:
        cached = dict(_lines(folder / "memory.stat", " ")).get(reclaimable, "0")
        yield Group(int(most), max(int(now) - int(cached), 0))


def _meminfo(root: Path, name: str) -> int | None:
    found = dict(_lines(root / "proc/meminfo", ":")).get(name)
    return None if found is None else int(found.split()[0]) * 1024


def _lines(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    for line in _read(path).splitlines():
        name, _, value = line.partition(separator)
        yield name, value.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
