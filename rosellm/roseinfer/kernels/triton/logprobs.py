"""Log-probabilities of rows of logits: each row's sum in pieces of one size, in one order.

The likeliest tokens come from torch's ``topk`` over whole numbers that order as the logits do and,
where these are equal, by id: no two are equal, so its algorithm cannot show.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rosellm.roseinfer.kernels.triton.launch import EXACT, launch

_PIECE = 4096
_LOW = 0xFFFFFFFF


@triton.jit
def piece_kernel(logits, tops, sums, stride, vocab, PIECE: tl.constexpr):
    """Grid: rows, pieces. The largest logit of a piece, and the sum of exp(logit - largest)."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    x = tl.load(logits + row * stride + token, mask=token < vocab, other=float("-inf"))
    top = tl.max(x, 0)
    safe = tl.maximum(top, -3.0e38)
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops + at, top)
    tl.store(sums + at, tl.sum(tl.exp(x - safe), 0))


@triton.jit
def total_kernel(tops, sums, totals, pieces, PIECES_PADDED: tl.constexpr):
    """Grid: rows. log(sum(exp(logits))) of all pieces."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES_PADDED)
    real = piece < pieces
    top = tl.load(tops + row * pieces + piece, mask=real, other=float("-inf"))
    largest = tl.max(top, 0)
    part = tl.load(sums + row * pieces + piece, mask=real, other=0.0) * tl.exp(top - largest)
    tl.store(totals + row, largest + tl.log(tl.sum(part, 0)))


@triton.jit
def order_kernel(logits, keys, stride, vocab, PIECE: tl.constexpr):
    """Grid: rows, pieces. A logit's bits, read as a whole number, order as it does once negative
    ones are flipped; the id stands below them."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    real = token < vocab
    x = tl.load(logits + row * stride + token, mask=real, other=0.0)
    x = tl.where(x == 0.0, 0.0, x)  # -0.0 equals 0.0
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    tl.store(
        keys + row * vocab + token, bits * 4294967296 + (4294967295 - token.to(tl.int64)), mask=real
    )


def logprobs_of(raw: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ``kernels.logprobs.logprobs_of``."""
    raw = raw if raw.stride(1) == 1 else raw.contiguous()
    total = _total(raw)
    ids = _likeliest(raw, min(width, raw.shape[1]))
    chosen = raw.gather(1, tokens[:, None]) - total
    return chosen[:, 0], ids, raw.gather(1, ids) - total


def _total(raw: Tensor) -> Tensor:
    """log(sum(exp(row))): [L, 1]."""
    count, vocab = raw.shape
    pieces = -(-vocab // _PIECE)
    tops, sums = raw.new_empty(count, pieces), raw.new_empty(count, pieces)
    total = raw.new_empty(count, 1)
    at = (raw.stride(0), vocab)
    launch(piece_kernel, (count, pieces), raw, tops, sums, *at, PIECE=_PIECE, **EXACT)
    padded = triton.next_power_of_2(pieces)
    launch(total_kernel, (count,), tops, sums, total, pieces, PIECES_PADDED=padded, **EXACT)
    return total


def _likeliest(raw: Tensor, width: int) -> Tensor:
    """Ids of the largest logits, equal ones by id: [L, width]."""
    if width == 0:
        return raw.new_empty((len(raw), 0), dtype=torch.int64)
    count, vocab = raw.shape
    keys = raw.new_empty((count, vocab), dtype=torch.int64)
    grid = (count, -(-vocab // _PIECE))
    launch(order_kernel, grid, raw, keys, raw.stride(0), vocab, PIECE=_PIECE)
    return _LOW - (keys.topk(width).values & _LOW)
