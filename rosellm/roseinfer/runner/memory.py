"""How much memory a device has left, in bytes."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from rosellm.roseinfer import host_memory

_WANT = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # drivers, cuBLAS, torch's CPU


def available(device: torch.device) -> int:
    """Bytes that could be allocated now: free on the GPU, or available to this process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return host_memory.available()


def ran_out(error: BaseException) -> bool:
    """Whether an operation failed for want of memory: the allocator's own error, or what a library
    beside it says."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in _WANT)


def empty_caches(device: torch.device) -> None:
    """Return what allocators hold of freed buffers to the device, or to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back()


def give_back() -> None:
    """Return what the C heap holds of freed buffers, as loading leaves many, to the system."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
