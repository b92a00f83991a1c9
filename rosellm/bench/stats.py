"""Percentiles and means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Value below which ``share`` of the sorted values lie; linear between two of them."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values: Iterable[float], scale: float = 1.0) -> dict[str, float] | None:
    """Mean, percentiles and maximum, times ``scale``; None of nothing."""
    ordered = sorted(value * scale for value in values)
    if not ordered:
        return None
    figures = {"mean": sum(ordered) / len(ordered)}
    figures |= {name: percentile(ordered, share) for name, share in SHARES.items()}
    return {name: round(value, 3) for name, value in (figures | {"max": ordered[-1]}).items()}


def milliseconds(seconds: Iterable[float]) -> dict[str, float] | None:
    return summary(seconds, 1e3)


def median(values: Iterable[float]) -> float:
    return percentile(sorted(values), 0.5)
