"""What a checkpoint's config says of its rotary embedding, in either of its two spellings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.layers.rope_scaling import (
    Dynamic,
    Linear,
    Llama3,
    LongRope,
    Unscaled,
    Yarn,
)
from rosellm.roseinfer.models.spec import ConfigReader

_LARGEST_FACTOR = 1e6
_SMALLEST_BETA = 1e-3
_ORIGINAL = "original_max_position_embeddings"


def read_rope(
    config: ConfigReader,
    head_dim: int,
    *,
    theta: float | None = None,
    fraction: float | None = None,
    aliases: Mapping[str, str] = {},
) -> RopeSpec:
    """Read ``rope_theta`` + ``rope_scaling``, or the newer ``rope_parameters``.

    Args:
        theta: base where ``rope_parameters`` has none; default: the config's ``rope_theta``.
        fraction: how much of a head is rotated where ``rope_parameters`` does not say;
            None for an architecture that rotates all of it.
        aliases: older names of scalings.
    """
    scaled = config.section("rope_scaling")
    section = scaled if scaled.values else config.section("rope_parameters")
    base = config.positive("rope_theta", 10000.0) if theta is None else theta
    return rope_of(config, section, head_dim, base, fraction, aliases)


def rope_of(
    config: ConfigReader,
    section: ConfigReader,
    head_dim: int,
    theta: float,
    fraction: float | None = None,
    aliases: Mapping[str, str] = {},
) -> RopeSpec:
    """Read one rotary embedding from the object that describes it; see ``read_rope``."""
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.values.get(key) or "default"
    read = _SCALINGS.get(aliases.get(kind, kind)) if isinstance(kind, str) else None
    if read is None:
        known = ", ".join(sorted(_SCALINGS))
        raise ModelError(f"unknown rope scaling {shown(repr(kind))}; supported: {known}")
    theta = section.positive("rope_theta", theta)
    dim = _rotated(config, section, head_dim, fraction)
    return RopeSpec(theta, dim, read(_Source(config, section, theta, dim)))


def read_lengths(config: ConfigReader, rope: RopeSpec) -> tuple[int, int]:
    """Longest sequence to serve, and the longest that may be asked for.

    ``max_position_embeddings`` is all there is to go by for most. With ``yarn`` the factor
    counts from the original length, which is said (vLLM's rule). With ``linear`` and
    ``dynamic`` some publishers give the length before scaling and some the one after, so
    more than that is served only to whoever asks; for ``dynamic`` this also keeps the
    frequencies those of transformers, see ``rope_scaling``.
    """
    length = config.integer("max_position_embeddings", 2048)
    match rope.scaling:
        case Yarn(factor=factor, original=original):
            return max(length, int(factor * original)), 0
        case Linear(factor=factor) | Dynamic(factor=factor):
            return length, int(factor * length)
    return length, 0


def _rotated(
    config: ConfigReader, section: ConfigReader, head_dim: int, fraction: float | None
) -> int:
    key = "partial_rotary_factor"
    if fraction is None:
        config.refuse(key, harmless=1.0)
        section.refuse(key, harmless=1.0)
        return head_dim
    share = section.positive(key, fraction)
    if share > 1:
        raise section.unexpected(key, "a number up to 1")
    return int(head_dim * share)


@dataclass(frozen=True)
class _Source:
    """Where a scaling is read from: the config, the object in it, and what is known already."""

    config: ConfigReader
    section: ConfigReader
    theta: float
    dim: int

    def factor(self) -> float:
        value = self.section.number("factor")
        if not 1 <= value <= _LARGEST_FACTOR:
            raise self.section.unexpected("factor", f"a number from 1 to {_LARGEST_FACTOR:.0e}")
        return value

    def factor_or_ratio(self) -> float:
        """The factor, or how much longer the context is than the original one."""
        if self.section.has("factor") or not self._original().has(_ORIGINAL):
            return self.factor()
        return max(self.length() / self.original(), 1.0)

    def length(self) -> int:
        return self.config.integer("max_position_embeddings", 2048)

    def original(self) -> int:
        """Length before scaling."""
        value = self._original().integer(_ORIGINAL, self.length())
        if value < 2:
            raise self._original().unexpected(_ORIGINAL, "an integer from 2 on")
        return value

    def _original(self) -> ConfigReader:
        """Where that length is: the outer key counts before the inner one, as in transformers."""
        return self.config if self.config.has(_ORIGINAL) else self.section

    def divisors(self, key: str) -> tuple[float, ...]:
        values = self.section.sequence(key)
        numbers = all(type(value) in (int, float) and 0 < value < 1e30 for value in values)
        if not numbers or len(values) != self.dim // 2:
            raise self.section.unexpected(key, f"{self.dim // 2} numbers above 0")
        return tuple(map(float, values))


def _unscaled(source: _Source) -> Unscaled:
    return Unscaled()


def _linear(source: _Source) -> Linear:
    return Linear(factor=source.factor())


def _dynamic(source: _Source) -> Dynamic:
    if source.dim <= 2:
        raise ModelError(f"dynamic rope scaling needs a head_dim above {source.dim}")
    return Dynamic(factor=source.factor(), original=max(source.length(), 1))


def _llama3(source: _Source) -> Llama3:
    section = source.section
    low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
    if high <= low:
        raise section.unexpected("high_freq_factor", f"more than low_freq_factor, {low}")
    return Llama3(factor=source.factor(), low=low, high=high, original=source.original())


def _yarn(source: _Source) -> Yarn:
    section, factor = source.section, source.factor_or_ratio()
    slow, fast = section.number("beta_slow", 1.0), section.number("beta_fast", 32.0)
    if slow < _SMALLEST_BETA:
        raise section.unexpected("beta_slow", f"a number from {_SMALLEST_BETA} on")
    if fast < slow:
        raise section.unexpected("beta_fast", f"at least beta_slow, {slow}")
    if source.theta <= 1:
        raise ModelError(f"yarn needs a rope_theta above 1; the model's config has {source.theta}")
    return Yarn(
        amplitude=section.positive("attention_factor", _yarn_amplitude(section, factor)),
        factor=factor,
        original=source.original(),
        beta_fast=fast,
        beta_slow=slow,
        truncate=section.flag("truncate", True),
    )


def _yarn_amplitude(section: ConfigReader, factor: float) -> float:
    """Equation 22 of arXiv:2309.00071; the ratio of two where DeepSeek's keys are there."""
    growth = 0.1 * math.log(factor)
    if section.has("mscale") and section.has("mscale_all_dim"):
        scale, all_dims = section.positive("mscale"), section.positive("mscale_all_dim")
        return (scale * growth + 1) / (all_dims * growth + 1)
    return growth + 1


def _longrope(source: _Source) -> LongRope:
    original = source.original()
    growth = math.log(source.factor_or_ratio()) / math.log(original)
    return LongRope(
        amplitude=source.section.positive("attention_factor", math.sqrt(1 + growth)),
        short=source.divisors("short_factor"),
        long=source.divisors("long_factor"),
        original=original,
    )


_SCALINGS: dict[str, Callable[[_Source], Unscaled]] = {
    "default": _unscaled,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
