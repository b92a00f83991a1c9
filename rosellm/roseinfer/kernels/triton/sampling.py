"""The next tokens of rows of logits, and how likely tokens are. No sort, and no waiting.

* ``top_kernel``: the largest logit of each piece of a row, equal ones by the lowest id.
* ``limit_kernel``: how far below the largest a row's filters still keep a token. A program has a
  row, and searches for the limit among whole numbers: each pass over the row asks at three places
  how many tokens, or how much probability, lies above, until what is left is one value.
* ``choose_kernel``: adds noise to what is kept; the largest of each piece.
* ``pick_kernel``: the largest of a row's pieces.

What is kept is what ``kernels/sampling.py`` keeps, but that likelihoods are compared as tempered
logits, in steps of 2^-24: a token that stands on a threshold to the last bits may fall on its
other side. The noise is that of ``kernels/noise.py``, uniform numbers in bits. Pieces are of one
size, and sums are taken in one order, so a row's token does not depend on other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rosellm.roseinfer.kernels.triton.launch import EXACT, launch
from rosellm.roseinfer.kernels.upload import Upload, at_once
from rosellm.roseinfer.step import LogitRow

_PIECE = 4096
_ALL = 2**31 - 2
_LEAST_TEMPERATURE = float(torch.finfo(torch.float32).tiny)

_FAR = tl.constexpr(127.0)
"""Below the largest logit by so much, a token has no probability in fp32."""
_FINE = tl.constexpr(16777216.0)
_NEVER = tl.constexpr(2147483647)
"""Key of a token that must not be chosen."""


@triton.jit
def _logits(logits, allowed, row, stride, words, token, vocab):
    """Of tokens; -inf where one must not be chosen."""
    real = token < vocab
    x = tl.load(logits + row * stride + token, mask=real, other=float("-inf"))
    if allowed is not None:
        word = tl.load(allowed + row * words + token // 32, mask=real, other=0)
        x = tl.where(((word >> (token % 32)) & 1) == 1, x, float("-inf"))
    return x


@triton.jit
def _keys(x, largest, temperature):
    """How far below the largest: fp32, and whole numbers that order as it does."""
    below = tl.div_rn(largest - x, tl.zeros_like(x) + temperature)
    near = tl.minimum(below, _FAR)
    key = (near * _FINE).to(tl.int32)
    return below, tl.where(x == float("-inf"), _NEVER, key)


@triton.jit
def _row_top(tops, row, pieces, PIECES_PADDED: tl.constexpr):
    piece = tl.arange(0, PIECES_PADDED)
    return tl.max(tl.load(tops + row * pieces + piece, mask=piece < pieces, other=float("-inf")), 0)


@triton.jit
def top_kernel(logits, allowed, tops, ids, stride, words, vocab, PIECE: tl.constexpr):
    """Grid: rows, pieces."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    x = _logits(logits, allowed, row, stride, words, token, vocab)
    top = tl.max(x, 0)
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops + at, top)
    tl.store(ids + at, tl.min(tl.where(x == top, token, _NEVER), 0))


@triton.jit
def _least_key(
    logits, allowed, row, stride, words, vocab, largest, temperature,
    target, cap, min_p, MASS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The least key up to which tokens come to the target: their number, or their mass, of those
    up to ``cap`` that are not too unlikely."""
    low = tl.zeros([], tl.int32)
    high = low + cap
    while low < high:
        step = (high - low) // 4
        a, b, c = low + step, low + 2 * step, low + 3 * step
        up_to_a = tl.zeros([PIECE], tl.float32)
        up_to_b = tl.zeros([PIECE], tl.float32)
        up_to_c = tl.zeros([PIECE], tl.float32)
        least = tl.full([PIECE], _NEVER, tl.int32)
        most = tl.zeros([PIECE], tl.int32)
        for start in range(0, vocab, PIECE):
            token = start + tl.arange(0, PIECE)
            x = _logits(logits, allowed, row, stride, words, token, vocab)
            below, key = _keys(x, largest, temperature)
            weight = tl.full([PIECE], 1.0, tl.float32)
            if MASS:
                weight = tl.exp(-below)
                weight = tl.where(weight >= min_p, weight, 0.0)
            weight = tl.where(key < _NEVER, weight, 0.0)
            up_to_a += tl.where(key <= a, weight, 0.0)
            up_to_b += tl.where(key <= b, weight, 0.0)
            up_to_c += tl.where(key <= c, weight, 0.0)
            least = tl.minimum(least, tl.where(key >= low, key, _NEVER))
            most = tl.maximum(most, tl.where(key <= high, key, 0))
        in_a = tl.sum(up_to_a, 0) >= target
        in_b = tl.sum(up_to_b, 0) >= target
        in_c = tl.sum(up_to_c, 0) >= target
        first = tl.min(least, 0)
        last = tl.max(most, 0)
        next_low = tl.where(in_a, low, tl.where(in_b, a + 1, tl.where(in_c, b + 1, c + 1)))
        next_high = tl.where(in_a, a, tl.where(in_b, b, tl.where(in_c, c, high)))
        low = tl.maximum(next_low, first)
        high = tl.minimum(next_high, last)
    return high


@triton.jit
def limit_kernel(
    logits, allowed, tops, filtered, ints, floats, limits, stride, words, vocab, pieces,
    PIECE: tl.constexpr, PIECES_PADDED: tl.constexpr,
):  # fmt: skip
    """Grid: filtered rows. The key up to which tokens are kept; ``limits`` [rows]."""
    row = tl.load(filtered + tl.program_id(0))
    temperature = tl.load(floats + row * 3)
    top_p = tl.load(floats + row * 3 + 1)
    min_p = tl.load(floats + row * 3 + 2)
    top_k = tl.load(ints + row * 4 + 3)
    largest = _row_top(tops, row, pieces, PIECES_PADDED)
    limit = tl.zeros([], tl.int32) + (_NEVER - 1)
    if top_k > 0:
        limit = _least_key(
            logits, allowed, row, stride, words, vocab, largest, temperature,
            top_k.to(tl.float32), limit, 0.0, False, PIECE,
        )  # fmt: skip
    if top_p < 1.0:
        # what top-k and min-p leave; of equals at the end, as many as top-k counts
        total = tl.zeros([PIECE], tl.float32)
        kept = tl.zeros([PIECE], tl.float32)
        edge = tl.zeros([PIECE], tl.float32)
        for start in range(0, vocab, PIECE):
            token = start + tl.arange(0, PIECE)
            x = _logits(logits, allowed, row, stride, words, token, vocab)
            below, key = _keys(x, largest, temperature)
            weight = tl.exp(-below)
            weight = tl.where(weight >= min_p, weight, 0.0)
            total += tl.where(key <= limit, weight, 0.0)
            kept += tl.where(key <= limit, 1.0, 0.0)
            edge = tl.maximum(edge, tl.where(key == limit, weight, 0.0))
        mass = tl.sum(total, 0)
        if top_k > 0:
            mass -= tl.maximum(tl.sum(kept, 0) - top_k.to(tl.float32), 0.0) * tl.max(edge, 0)
        limit = _least_key(
            logits, allowed, row, stride, words, vocab, largest, temperature,
            top_p * mass, limit, min_p, True, PIECE,
        )  # fmt: skip
    tl.store(limits + row, limit)


@triton.jit
def _noise(token, seed, choice, position):
    """Standard Gumbel noise of tokens, Philox4x32-10 with a counter of token // 4."""
    x0 = (token // 4).to(tl.uint64)
    x1 = x0 * 0 + position.to(tl.uint64)
    x2 = x0 * 0 + choice.to(tl.uint64)
    x3 = x0 * 0
    k0 = seed.to(tl.uint64) & 0xFFFFFFFF
    k1 = (seed.to(tl.uint64) >> 32) & 0xFFFFFFFF
    for _ in tl.static_range(10):
        a = x0 * 0xD2511F53
        b = x2 * 0xCD9E8D57
        x0 = (b >> 32) ^ x1 ^ k0
        x1 = b & 0xFFFFFFFF
        x2 = (a >> 32) ^ x3 ^ k1
        x3 = a & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    lane = token % 4
    word = tl.where(lane < 2, tl.where(lane == 0, x0, x1), tl.where(lane == 2, x2, x3))
    uniform = ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))


@triton.jit
def choose_kernel(
    logits, allowed, tops, ints, floats, limits, bests, ids, stride, words, vocab, pieces,
    PIECE: tl.constexpr, PIECES_PADDED: tl.constexpr,
):  # fmt: skip
    """Grid: rows, pieces. ``bests`` and ``ids`` [rows, pieces] of the greedy rows stay."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(floats + row * 3)
    if temperature == 0.0:
        return
    min_p = tl.load(floats + row * 3 + 2)
    token = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    x = _logits(logits, allowed, row, stride, words, token, vocab)
    below, key = _keys(x, _row_top(tops, row, pieces, PIECES_PADDED), temperature)
    seed = tl.load(ints + row * 4)
    noise = _noise(token, seed, tl.load(ints + row * 4 + 1), tl.load(ints + row * 4 + 2))
    kept = (key <= tl.load(limits + row)) & (tl.exp(-below) >= min_p)
    score = tl.where(kept, noise - below, float("-inf"))
    best = tl.max(score, 0)
    at = row * pieces + tl.program_id(1)
    tl.store(bests + at, best)
    tl.store(ids + at, tl.min(tl.where(score == best, token, _NEVER), 0))


@triton.jit
def pick_kernel(bests, ids, tokens, pieces, vocab, PIECES_PADDED: tl.constexpr):
    """Grid: rows. Pieces are in the order of their tokens, so the first of equals has the lowest;
    of logits that are no numbers, some token is taken."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES_PADDED)
    real = piece < pieces
    best = tl.load(bests + row * pieces + piece, mask=real, other=float("-inf"))
    token = tl.load(ids + row * pieces + piece, mask=real, other=_NEVER)
    chosen = tl.min(tl.where(best == tl.max(best, 0), token, _NEVER), 0)
    tl.store(tokens + row, tl.minimum(chosen, vocab - 1).to(tl.int64))


@dataclass(frozen=True)
class Drawing:
    """What R rows want, on the device.

    Attributes:
        ints: [R, 4] int64: seed, choice, position, top-k.
        floats: [R, 3]: temperature, top-p, min-p.
        filtered: the rows that have one of the first two filters, int64.
        limits: [R] int32, of all other rows: keys up to which tokens are kept.
    """

    ints: Tensor
    floats: Tensor
    filtered: Tensor
    limits: Tensor


def lay_out(rows: Sequence[LogitRow], _vocab_size: int, upload: Upload) -> Drawing | None:
    """What ``draw`` has to know of the rows; None where it takes the likeliest of each."""
    if not any(row.params.temperature > 0 for row in rows):
        return None
    ints = [(row.params.seed, row.choice, row.position, row.params.top_k) for row in rows]
    floats = [(_temperature(row), row.params.top_p, row.params.min_p) for row in rows]
    filtered = [i for i, row in enumerate(rows) if _is_cut(row)]
    return Drawing(
        ints=upload(np.array(ints, np.int64)),
        floats=upload(np.array(floats, np.float32)),
        filtered=upload(np.array(filtered, np.int64)),
        limits=upload(np.full(len(rows), _ALL, np.int32)),
    )


def _is_cut(row: LogitRow) -> bool:
    """Min-p needs no search."""
    return row.params.temperature > 0 and (row.params.top_k > 0 or row.params.top_p < 1)


def _temperature(row: LogitRow) -> float:
    """However small, a temperature is not 0 by rounding."""
    temperature = row.params.temperature
    return temperature and max(temperature, _LEAST_TEMPERATURE)


def draw(
    logits: Tensor,
    rows: Sequence[LogitRow],
    allowed: Tensor | None,
    drawing: Drawing | None = None,
    _tops: None = None,
) -> Tensor:
    """See ``kernels.sampling.draw``."""
    drawing = drawing or lay_out(rows, logits.shape[1], at_once(logits.device))
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    allowed = None if allowed is None else allowed.contiguous()
    count, vocab = logits.shape
    pieces = -(-vocab // _PIECE)
    padded = triton.next_power_of_2(pieces)
    where = (logits.stride(0), 0 if allowed is None else allowed.stride(0), vocab)
    tops = logits.new_empty(count, pieces)
    ids = logits.new_empty((count, pieces), dtype=torch.int32)
    launch(top_kernel, (count, pieces), logits, allowed, tops, ids, *where, PIECE=_PIECE)
    bests = tops
    if drawing is not None:
        sizes = {"PIECE": _PIECE, "PIECES_PADDED": padded}
        wanted = (drawing.ints, drawing.floats, drawing.limits)
        launch(
            limit_kernel,
            (len(drawing.filtered),),
            *(logits, allowed, tops, drawing.filtered, *wanted, *where, pieces),
            **sizes,
            num_warps=16,
            **EXACT,
        )
        bests = tops.clone()
        launch(
            choose_kernel,
            (count, pieces),
            *(logits, allowed, tops, *wanted, bests, ids, *where, pieces),
            **sizes,
            num_warps=8,
            **EXACT,
        )
    tokens = logits.new_empty(count, dtype=torch.int64)
    launch(pick_kernel, (count,), bests, ids, tokens, pieces, vocab, PIECES_PADDED=padded)
    return tokens
