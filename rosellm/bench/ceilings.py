"""What the machine can do at most, measured by the plainest torch programs there are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROUNDS = 5
BUFFER_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # far larger than any cache
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Ceilings:
    """Best of several rounds, on one device in one type.

    Attributes:
        copy_gb_s: bytes read plus bytes written.
        read_gb_s: bytes read by a sum.
        gflop_s: of a square matrix product, two operations for each multiplication.
    """

    copy_gb_s: float
    read_gb_s: float
    gflop_s: float

    @property
    def bytes_s(self) -> float:
        return max(self.copy_gb_s, self.read_gb_s) * 1e9

    @property
    def flop_s(self) -> float:
        return self.gflop_s * 1e9


def measure(device: str, dtype: str) -> Ceilings:
    """Measure memory bandwidth and matrix products; takes a few seconds."""
    import torch

    where, kind = torch.device(device), getattr(torch, dtype)
    size = BUFFER_BYTES[where.type]
    source = torch.ones(size // 4, device=where)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), where)
    read = _best(lambda: source.sum(), where)
    n = MATMUL_SIZE[where.type]
    left = torch.ones(n, n, device=where, dtype=kind)
    right, out = left.clone(), torch.empty_like(left)
    product = _best(lambda: torch.mm(left, right, out=out), where)
    return Ceilings(
        copy_gb_s=round(2 * size / copy / 1e9, 2),
        read_gb_s=round(size / read / 1e9, 2),
        gflop_s=round(2 * n**3 / product / 1e9, 1),
    )


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest round, after one to warm up."""
    import torch

    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
