"""Random numbers as a function: (seed, choice, position, token) -> uniform.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
in integer arithmetic, so the stream is the same on every device, in every batch, and
whenever a step is run again. Nothing is stored between steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> list[Tensor]:
    """Four 32-bit words (in int64) for each 4x32-bit counter under a 64-bit key.

    Products wrap around modulo 2^64; the mask after the shift undoes the sign.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        a, b = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((b >> 32) & _MASK) ^ x1 ^ k0,
            b & _MASK,
            ((a >> 32) & _MASK) ^ x3 ^ k1,
            a & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [x0, x1, x2, x3]


def gumbel(seeds: Tensor, choices: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [R, vocab_size] in fp32 for keys [R]; token t uses counter t // 4."""
    blocks = torch.arange(-(-vocab_size // 4), device=seeds.device)
    shape = (len(seeds), len(blocks))
    counter = (
        blocks.expand(shape),
        positions[:, None].expand(shape),
        choices[:, None].expand(shape),
        torch.zeros(shape, dtype=torch.int64, device=seeds.device),
    )
    words = torch.stack(philox(counter, seeds[:, None]), dim=-1).flatten(1)[:, :vocab_size]
    # 23 bits and a half: exact in fp32, so that the uniform is never 0 or 1.
    uniform = ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))
