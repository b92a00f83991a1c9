"""Keeps the C heap of a long run from growing."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 4 << 20


def return_large_buffers() -> None:
    """Have glibc map every large buffer by itself, so that it goes back when it is freed.

    By itself glibc takes them from its heap after the first few, and there sizes that differ
    from step to step leave holes: a run on two cores grew by 10 MB a step, to 9 GB.
    Does nothing where the C library is another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE)
