"""The next tokens of rows of logits, and how likely tokens are, on the native kernels.

What is kept is what ``kernels/sampling.py`` keeps, but that likelihoods are compared as tempered
logits and added up exactly: a token that stands on a threshold to the last bit may fall on its
other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, byref

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library, address
from rosellm.roseinfer.kernels.upload import Upload
from rosellm.roseinfer.step import LogitRow

_LEAST_TEMPERATURE = float(torch.finfo(torch.float32).tiny)


class NativeSampling:
    """See ``table.Ops``, some of whose signatures these are."""

    def __init__(self, library: Library) -> None:
        self._c = library.c

    def lay_out(
        self, rows: Sequence[LogitRow], _size: int, _upload: Upload
    ) -> Array[structs.Sampling]:
        return _wanted(rows)

    def draw(
        self,
        logits: Tensor,
        rows: Sequence[LogitRow],
        allowed: Tensor | None,
        drawing: Array[structs.Sampling] | None = None,
        tops: Tensor | None = None,
    ) -> Tensor:
        logits = _rows(logits)
        tokens = torch.empty(len(rows), dtype=torch.int64)
        wanted = drawing or _wanted(rows)
        words = None if allowed is None else allowed.contiguous()
        bits = structs.Allowed(address(words), 0 if words is None else words.stride(0))
        rows_of = structs.Activations.of(logits)
        self._c.rose_draw(byref(rows_of), address(tops), byref(bits), wanted, tokens.data_ptr())
        return tokens

    def logprobs_of(self, raw: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        raw, tokens = _rows(raw), tokens.contiguous()
        count, width = len(raw), min(width, raw.shape[1])
        chosen = torch.empty(count)
        ids, values = torch.empty((count, width), dtype=torch.int64), torch.empty(count, width)
        likeliest = structs.Likeliest(width, ids.data_ptr(), values.data_ptr())
        self._c.rose_logprobs(
            byref(structs.Activations.of(raw)),
            tokens.data_ptr(),
            chosen.data_ptr(),
            byref(likeliest),
        )
        return chosen, ids, values


def _rows(logits: Tensor) -> Tensor:
    assert logits.dtype == torch.float32, "logits are fp32"
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _wanted(rows: Sequence[LogitRow]) -> Array[structs.Sampling]:
    return (structs.Sampling * len(rows))(*map(_wanted_of, rows))


def _wanted_of(row: LogitRow) -> structs.Sampling:
    """However small, a temperature is not 0 by rounding."""
    params = row.params
    temperature = params.temperature and max(params.temperature, _LEAST_TEMPERATURE)
    return structs.Sampling(
        temperature,
        params.top_p,
        params.min_p,
        0,
        params.top_k,
        params.seed,
        row.choice,
        row.position,
    )
