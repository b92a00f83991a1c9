"""A stand-in for the part of FlashInfer that is used: dense, on the CPU, strict about arguments."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class Wrapper:
    """``BatchPrefillWithPagedKVCacheWrapper``: computes from exactly what it was planned with."""

    plans = 0

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert len(float_workspace_buffer) >= 128 << 20
        assert kv_layout == "NHD"

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
        non_blocking: bool = True,
    ) -> None:
        tables = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(t.dtype == torch.int32 and t.dim() == 1 and t.is_contiguous() for t in tables)
        # those that are planned with are read on the host
        assert all(t.device.type == "cpu" for t in (*tables[:2], tables[3]))
        count = len(paged_kv_last_page_len)
        assert len(qo_indptr) == len(paged_kv_indptr) == count + 1
        assert qo_indptr[0] == paged_kv_indptr[0] == 0
        assert paged_kv_indptr[-1] == len(paged_kv_indices)
        assert ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all()
        kv_lens = (paged_kv_indptr.diff() - 1) * page_size + paged_kv_last_page_len
        assert (qo_indptr.diff() >= 1).all()
        assert (qo_indptr.diff() <= kv_lens).all()
        assert num_qo_heads % num_kv_heads == 0
        self._rows, self._pages = qo_indptr.tolist(), paged_kv_indptr.tolist()
        self._indices, self._kv_lens = paged_kv_indices.long(), kv_lens.tolist()
        self._heads = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._types = (q_data_type, kv_data_type)
        self._causal, self._window_left = causal, window_left
        self._scale = head_dim_qk**-0.5 if sm_scale is None else sm_scale
        self._cap = logits_soft_cap or 0.0
        Wrapper.plans += 1

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        heads, kv_heads, dim, page_size = self._heads
        assert q.shape == (self._rows[-1], heads, dim)
        assert q.is_contiguous()
        for pages in paged_kv_cache:
            assert pages.shape[1:] == (page_size, kv_heads, dim)
            assert pages.is_contiguous()
            assert (q.dtype, pages.dtype) == self._types
        return torch.cat(
            [self._one(index, q, *paged_kv_cache) for index in range(len(self._kv_lens))]
        )

    def _one(self, index: int, q: Tensor, *caches: Tensor) -> Tensor:
        rows = q[self._rows[index] : self._rows[index + 1]].float().transpose(0, 1)
        own = self._indices[self._pages[index] : self._pages[index + 1]]
        end = self._kv_lens[index]
        k, v = (c[own].flatten(0, 1)[:end].float().transpose(0, 1) for c in caches)
        k, v = (part.repeat_interleave(len(rows) // len(part), 0) for part in (k, v))
        scores = rows @ k.transpose(1, 2) * self._scale
        if self._cap > 0:
            scores = self._cap * torch.tanh(scores / self._cap)
        position = torch.arange(end - rows.shape[1], end)[:, None]
        column = torch.arange(end)
        if self._causal:
            scores.masked_fill_(column > position, -torch.inf)
        if self._window_left >= 0:
            scores.masked_fill_(column < position - self._window_left, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).to(q.dtype)


def module(version: str = "0.6.0") -> ModuleType:
    made: Any = ModuleType("flashinfer")
    made.__version__ = version
    made.BatchPrefillWithPagedKVCacheWrapper = Wrapper
    return made  # type: ignore[no-any-return]
