"""Rotary frequencies for contexts longer than a model was first trained on.

None of them looks at the sequence at hand. The published forms of ``dynamic`` and
``longrope`` do: their frequencies change while a sequence grows, and with them every key
that is in the cache already, so that an answer would depend on how it was scheduled. Here
the frequencies are fixed once, for the longest sequence that is served.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def powers(theta: float, dim: int) -> Tensor:
    """theta ** (2i / dim) for each pair of dimensions i: [dim / 2], fp32."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return torch.as_tensor(theta**exponents)


@dataclass(frozen=True)
class Unscaled:
    """Rotary embedding as published (arXiv:2104.09864); base of the scalings.

    Attributes:
        amplitude: multiplies cos and sin.
    """

    amplitude: float = 1.0

    def frequencies(self, theta: float, dim: int, max_positions: int) -> Tensor:
        """Angle between neighbouring positions, per pair of dimensions.

        Args:
            theta: base of the frequencies.
            dim: rotated dimensions.
            max_positions: longest sequence that is served.

        Returns:
            [dim / 2], fp32.
        """
        return 1.0 / powers(theta, dim)


@dataclass(frozen=True, kw_only=True)
class Linear(Unscaled):
    """Positions divided by a factor (arXiv:2306.15595)."""

    factor: float

    def frequencies(self, theta: float, dim: int, max_positions: int) -> Tensor:
        return 1.0 / powers(theta, dim) / self.factor


@dataclass(frozen=True, kw_only=True)
class Dynamic(Unscaled):
    """A larger base, the longer the context (NTK-aware scaling, as in arXiv:2309.00071).

    Up to the original length nothing changes.
    """

    factor: float
    original: int

    def frequencies(self, theta: float, dim: int, max_positions: int) -> Tensor:
        stretch = max(max_positions, self.original) / self.original
        base = theta * (self.factor * stretch - (self.factor - 1)) ** (dim / (dim - 2))
        return 1.0 / powers(base, dim)


@dataclass(frozen=True, kw_only=True)
class Llama3(Unscaled):
    """Slow frequencies divided by a factor, fast ones kept, a blend between (Llama 3.1).

    Attributes:
        low, high: turns within the original length below which a frequency is divided and
            above which it is kept.
    """

    factor: float
    low: float
    high: float
    original: int

    def frequencies(self, theta: float, dim: int, max_positions: int) -> Tensor:
        plain = 1.0 / powers(theta, dim)
        turns = self.original * plain / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain * kept + plain / self.factor * (1 - kept)


@dataclass(frozen=True, kw_only=True)
class Yarn(Unscaled):
    """Like ``Llama3``, but the blend is linear in the dimension (arXiv:2309.00071).

    Attributes:
        beta_fast, beta_slow: turns within the original length at which dividing begins and
            is complete.
        truncate: whether the dimensions found for them are rounded to whole ones.
    """

    factor: float
    original: int
    beta_fast: float
    beta_slow: float
    truncate: bool

    def frequencies(self, theta: float, dim: int, max_positions: int) -> Tensor:
        plain = 1.0 / powers(theta, dim)
        low, high = (self._dimension(beta, theta, dim) for beta in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low or 0.001
        divided = ((torch.arange(dim // 2).float() - low) / width).clamp(0, 1)
        return plain / self.factor * divided + plain * (1 - divided)

    def _dimension(self, turns: float, theta: float, dim: int) -> float:
        """The pair of dimensions, not rounded, that turns so often in the original length."""
        return dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True, kw_only=True)
class LongRope(Unscaled):
    """A divisor of its own for each frequency, searched for (arXiv:2402.13753).

    Attributes:
        short, long: the divisors for contexts up to the original length and beyond.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int

    def frequencies(self, theta: float, dim: int, max_positions: int) -> Tensor:
        divisors = self.long if max_positions > self.original else self.short
        return 1.0 / (torch.tensor(divisors) * powers(theta, dim))
