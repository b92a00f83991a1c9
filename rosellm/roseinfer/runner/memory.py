"""How much memory there is, in bytes."""

from __future__ import annotations

from pathlib import Path

import torch


def available(device: torch.device) -> int:
    """Bytes that could be allocated now: free on the GPU, or available to this process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    limits = [_meminfo_available(), _cgroup_available()]
    return min(limit for limit in limits if limit is not None)


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return 4 << 30


def _reclaimable(root: Path) -> int:
    """Page cache that the container would drop when it needs the memory: a checkpoint's, say."""
    for line in (root / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _cgroup_available() -> int | None:
    """What the container still allows (cgroup v2), or None without a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text())
        return max(int(limit) - used + _reclaimable(root), 0)
    except (OSError, ValueError):
        return None
