"""Which machine figures were taken on: what makes them comparable, and nothing that names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import rosellm


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, GPU and versions."""
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rosellm": rosellm.__version__,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "unknown"
