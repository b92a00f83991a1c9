"""Paged attention by FlashInfer's kernels (arXiv:2501.01005), where it is installed and asked for.

Written for flashinfer-python 0.2 to 0.6: ``BatchPrefillWithPagedKVCacheWrapper``, which takes any
mix of chunks and single tokens. How it divides a long past depends on the whole batch, so a row's
bits do. It reads keys and values where our cache has them. It knows nothing of scales of a cache in
8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVGroup, KVTensor, is_scaled
from rosellm.roseinfer.kernels.upload import Upload, at_once

LEAST_VERSION = (0, 2)
HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)

_WORKSPACE = 384 << 20
"""Bytes for what splits of the past come to; of 128 MiB, which FlashInfer recommends, many heads
in a large batch run out."""


@dataclass(frozen=True, eq=False)
class PagedStep:
    """A step's sequences. What FlashInfer plans with is int32 and stays on the host; it would
    copy it back, and wait, otherwise.

    Attributes:
        rows: [sequences + 1] where each one's query tokens begin.
        pages: [sequences + 1] where each one's blocks begin in ``indices``.
        last: [sequences] positions in the last block.
        indices: blocks of all sequences, on the device.
        slots: [T] int64, on the device.
    """

    rows: Tensor
    pages: Tensor
    last: Tensor
    indices: Tensor
    slots: Tensor
    window: int | None
    causal: bool


class FlashInferAttention:
    """See ``AttentionBackend``.

    A step is planned when its first layer runs, since only then are the heads known, and once for
    all layers of a KV group. It cannot be recorded: a plan decides how many programs there are.

    Raises:
        ImportError: FlashInfer is not installed.
    """

    invariant = False
    capturable = False

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._module: Any = import_module("flashinfer")
        self.name = f"flashinfer {self._module.__version__}"
        self._block_size = block_size
        self._device = device
        self._workspace: Tensor | None = None
        self._plans: dict[int | None, _Plan] = {}

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
    ) -> PagedStep:
        size, upload = self._block_size, upload or at_once(self._device)
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        used = [table[: -(-end // size)] for table, end in zip(tables, ends, strict=True)]
        return PagedStep(
            rows=_offsets(lengths),
            pages=_offsets([len(table) for table in used]),
            last=torch.tensor([(end - 1) % size + 1 for end in ends], dtype=torch.int32),
            indices=upload(np.concatenate([np.asarray(table, np.int32) for table in used])),
            slots=upload(_slots(starts, ends, used, size)),
            window=window,
            causal=causal,
        )

    def slots(self, meta: PagedStep) -> Tensor:
        return meta.slots

    def run(
        self,
        q: Tensor,
        keys: KVTensor,
        values: KVTensor,
        scale: float,
        meta: PagedStep,
        softcap: float | None = None,
    ) -> Tensor:
        _, kv_heads, dim = keys.data.shape
        plan = self._plan_of(meta.window)
        plan.make(
            meta,
            (q.shape[1], kv_heads, dim, self._block_size),
            {
                "sm_scale": scale,
                "logits_soft_cap": softcap or 0.0,
                "q_data_type": q.dtype,
                "kv_data_type": keys.data.dtype,
            },
        )
        attended: Tensor = plan.wrapper.run(
            q.contiguous(), (self._paged(keys), self._paged(values))
        )
        return attended

    def _paged(self, cache: KVTensor) -> Tensor:
        """[blocks, block size, kv heads, D], "NHD": a view, or an error, but never a copy."""
        return cache.data.view(-1, self._block_size, *cache.data.shape[1:])

    def _plan_of(self, window: int | None) -> _Plan:
        """KV groups differ in their windows; a plan for each outlives all its layers."""
        if self._workspace is None:
            self._workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=self._device)
        if window not in self._plans:
            wrapper = self._module.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
            self._plans[window] = _Plan(wrapper)
        return self._plans[window]


class _Plan:
    """What FlashInfer's wrapper was last planned for."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self._step: PagedStep | None = None
        self._call: Any = None
        self._copied: torch.cuda.Event | None = None

    def make(self, step: PagedStep, sizes: tuple[int, ...], options: dict[str, Any]) -> None:
        """Plan, unless that is what it is planned for already."""
        if step is self._step and (sizes, options) == self._call:
            return
        # a plan is copied from one pinned buffer, which the last step's copy may still read
        if self._copied is not None:
            self._copied.synchronize()
        self.wrapper.plan(
            *(step.rows, step.pages, step.indices, step.last, *sizes),
            causal=step.causal,
            window_left=-1 if step.window is None else step.window - 1,
            non_blocking=True,
            **options,
        )
        self._step, self._call = step, (sizes, options)
        if step.indices.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()


def why_not(
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    heads: int,
    groups: Sequence[KVGroup],
    softcap: float | None = None,
) -> str | None:
    """The first reason against it, or None: then it has run once on the device."""
    if device.type != "cuda":
        return f"FlashInfer runs on CUDA, not on {device.type}"
    return (
        _of_model(dtype, kv_dtype, groups)
        or _of_package()
        or _of_trial(device, dtype, heads, groups, softcap)
    )


def _of_model(dtype: torch.dtype, kv_dtype: torch.dtype, groups: Sequence[KVGroup]) -> str | None:
    if not all(group.causal for group in groups):
        return "it is used for decoders only, and the model is an encoder"
    if dtype not in DTYPES:
        return f"FlashInfer computes in bfloat16 and float16, not in {_name(dtype)}"
    if is_scaled(kv_dtype):
        return f"FlashInfer does not know the scales of a KV cache in {_name(kv_dtype)}"
    wrong = [group.head_dim for group in groups if group.head_dim not in HEAD_DIMS]
    if wrong:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"FlashInfer has heads of {known} numbers, and the model's have {wrong[0]}"
    return None


def _of_package() -> str | None:
    try:
        found = str(import_module("flashinfer").__version__)
    except ModuleNotFoundError as error:
        if error.name == "flashinfer":
            return "flashinfer is not installed (pip install flashinfer-python)"
        return f"flashinfer cannot be imported ({error})"
    except Exception as error:  # it loads libraries, which fail in many ways
        return f"flashinfer cannot be imported ({_first_line(error)})"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if numbers < LEAST_VERSION:
        return f"flashinfer {found} is older than {'.'.join(map(str, LEAST_VERSION))}"
    return None


def _of_trial(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: Sequence[KVGroup],
    softcap: float | None,
) -> str | None:
    """FlashInfer compiles kernels when they are first needed, those with a softcap apart. A token
    alone gets its own value."""
    try:
        for group in groups:
            backend = FlashInferAttention(1, device)
            key = torch.ones((1, group.kv_heads, group.head_dim), dtype=dtype, device=device)
            q = torch.ones((1, heads, group.head_dim), dtype=dtype, device=device)
            meta = backend.prepare([0], [1], [[0]], 0, group.window)
            found = backend.run(q, KVTensor(key), KVTensor(key), 1.0, meta, softcap)
            if not torch.allclose(found, q):
                return "FlashInfer's first call computed something wrong"
    except Exception as error:  # whatever it is, there is another way to compute
        return f"FlashInfer cannot run here ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _offsets(counts: Sequence[int]) -> Tensor:
    return torch.tensor(list(accumulate(counts, initial=0)), dtype=torch.int32)


def _slots(
    starts: Sequence[int], ends: Sequence[int], tables: Sequence[Sequence[int]], size: int
) -> np.ndarray:
    parts = []
    for start, end, table in zip(starts, ends, tables, strict=True):
        positions = np.arange(start, end)
        parts.append(np.asarray(table, np.int64)[positions // size] * size + positions % size)
    return np.concatenate(parts)
