"""Stand-ins for what only a card has, so that the logic around it runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.reference import read_kv, tree_sum
from rosellm.roseinfer.kernels.upload import Upload, at_once
from rosellm.roseinfer.runner.cuda_graph import Recorded

CPU = torch.device("cpu")


class FakeEvent:
    """Notes what it was asked for."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log

    def record(self) -> None:
        self.log.append("record")

    def synchronize(self) -> None:
        self.log.append("wait")


@dataclass
class FakeGraph:
    """Runs what was recorded again, into the same output."""

    run: Callable[[], Tensor]
    output: Tensor
    num_bytes: int
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        self.output.copy_(self.run())


@dataclass
class FakeRecorder:
    """Records by remembering. ``error`` is raised instead, if there is one."""

    num_bytes: int = 10
    error: Exception | None = None
    graphs: list[FakeGraph] = field(default_factory=list)

    def record(self, run: Callable[[], Tensor]) -> Recorded:
        if self.error is not None:
            raise self.error
        output = torch.full_like(run(), torch.nan)  # recording computes nothing
        self.graphs.append(FakeGraph(run, output, self.num_bytes))
        return self.graphs[-1]


@dataclass(frozen=True)
class FlatStep:
    """Sequences of one token each, or of several; all of it uploads."""

    slots: Tensor
    rows: Tensor
    positions: Tensor
    window: int | None


class FlatAttention:
    """Attention over a table's whole width, position by position: as slow as it is simple. Shapes
    depend on the number of sequences and on ``blocks`` alone, so it can be recorded."""

    name = "flat"
    invariant = True
    capturable = True

    def __init__(self, block_size: int, device: torch.device = CPU) -> None:
        self._block_size = block_size

    def prepare(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        null_block: int,
        window: int | None = None,
        causal: bool = True,
        upload: Upload | None = None,
        blocks: int | None = None,
    ) -> FlatStep:
        put = upload or at_once(CPU)
        width = max(map(len, tables)) if blocks is None else blocks
        padded = np.full((len(tables), width), null_block, np.int64)
        for row, table in zip(padded, tables, strict=True):
            row[: len(table)] = table
        slots = padded[:, :, None] * self._block_size + np.arange(self._block_size)
        slots = slots.reshape(len(tables), -1)
        rows = np.repeat(np.arange(len(tables)), lengths)
        positions = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]
        )
        return FlatStep(put(slots[rows, positions]), put(slots[rows]), put(positions), window)

    def slots(self, meta: FlatStep) -> Tensor:
        return meta.slots

    def run(
        self,
        q: Tensor,
        keys: KVTensor,
        values: KVTensor,
        scale: float,
        meta: FlatStep,
        softcap: float | None = None,
    ) -> Tensor:
        count, heads, dim = q.shape
        kv_heads = keys.data.shape[1]
        where = meta.rows[:, :, None] * kv_heads + torch.arange(kv_heads)
        k, v = (
            read_kv(cache, where.flatten()).view(count, -1, kv_heads, dim)
            for cache in (keys, values)
        )
        k, v = (part.repeat_interleave(heads // kv_heads, dim=2) for part in (k, v))
        scores = tree_sum(q.float()[:, None] * k * scale)[..., 0].transpose(1, 2)  # [T, heads, n]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = torch.arange(scores.shape[-1]) <= meta.positions[:, None]
        if meta.window is not None:
            seen &= torch.arange(scores.shape[-1]) > meta.positions[:, None] - meta.window
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        # one position after the other, so that how many follow changes nothing
        total, out = torch.zeros(count, heads, 1), torch.zeros(count, heads, dim)
        for position in range(scores.shape[-1]):
            weight = weights[:, :, position, None]
            total = total + weight
            out = out + weight * v[:, position]
        return (out / total).to(q.dtype)
