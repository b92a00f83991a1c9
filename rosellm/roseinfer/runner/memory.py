"""How much memory a device has left, in bytes."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from rosellm.roseinfer import host_memory


def available(device: torch.device) -> int:
    """Bytes that could be allocated now: free on the GPU, or available to this process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return host_memory.available()


def give_back() -> None:
    """Return what the C heap holds of freed buffers, as loading leaves many, to the system."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
