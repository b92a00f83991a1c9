"""What a load test found: figures as JSON, and the same as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rosellm.bench.load import Outcome
from rosellm.bench.stats import milliseconds, summary

LATENCIES = {
    "ttft_ms": "time to first token",
    "itl_ms": "inter-token latency",
    "tpot_ms": "time per output token",
    "e2e_ms": "end to end",
}
BUSY = 0.7
"""Share of a core above which the load generator itself delays what it measures."""
SHOWN_ERRORS = 8


def figures(outcomes: Sequence[Outcome], client_cpu: float) -> dict[str, Any]:
    """All figures of a run.

    Latencies are those of completed requests and begin before the connection is opened:
    ``ttft`` ends at the first text, ``itl`` is every gap between chunks of text, ``tpot`` is
    (end - first) / (tokens - 1) of a request.

    Args:
        client_cpu: processor time of the load generator per second of the run.
    """
    good = [outcome for outcome in outcomes if outcome.error is None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    start = min((o.started for o in outcomes), default=0.0)
    seconds = max((o.end for o in good), default=start) - start
    inputs, outputs = sum(o.prompt_tokens for o in good), sum(o.output_tokens for o in good)
    return {
        "requests": len(outcomes),
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "errors": dict(errors.most_common()),
        "duration_s": round(seconds, 3),
        "requests_per_s": _rate(len(good), seconds),
        "output_tokens_per_s": _rate(outputs, seconds),
        "total_tokens_per_s": _rate(inputs + outputs, seconds),
        "prompt_tokens": _counts(o.prompt_tokens for o in good),
        "output_tokens": _counts(o.output_tokens for o in good),
        "text_chunks": sum(len(o.gaps) + 1 for o in good),
        "without_usage": sum(not o.counted for o in good),
        **_latencies(good),
        "connect_ms": milliseconds(o.connected - o.started for o in good),
        "late_ms": milliseconds(o.late for o in good),
        "client_cpu": round(client_cpu, 3),
    }


def _latencies(good: Sequence[Outcome]) -> dict[str, Any]:
    many = [o for o in good if o.output_tokens > 1]
    return {
        "ttft_ms": milliseconds(o.first - o.started for o in good),
        "itl_ms": milliseconds(gap for o in good for gap in o.gaps),
        "tpot_ms": milliseconds((o.end - o.first) / (o.output_tokens - 1) for o in many),
        "e2e_ms": milliseconds(o.end - o.started for o in good),
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None


def _counts(values: Any) -> dict[str, float] | None:
    counts = list(values)
    found = summary(counts)
    return found and {"total": sum(counts), "min": min(counts), **found}


def show(console: Console, title: str, found: Mapping[str, Any]) -> None:
    """Print the figures, and everything that makes them doubtful."""
    console.print(_latency_table(title, found))
    console.print(_total_table(found))
    for message, count in list(found["errors"].items())[:SHOWN_ERRORS]:
        console.print(f"[red]{count} failed:[/] ", end="")
        console.print(message, markup=False, highlight=False)
    for doubt in _doubts(found):
        console.print(f"[yellow]note:[/] {doubt}")


def _latency_table(title: str, found: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("milliseconds")
    for column in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    for key, name in LATENCIES.items():
        values = found[key] or {}
        cells = (f"{values[c.header]:,.2f}" if values else "-" for c in table.columns[1:])
        table.add_row(name, *cells)
    return table


def _total_table(found: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column()
    rate = "{:,.1f}".format
    table.add_row("requests", f"{found['completed']} completed, {found['failed']} failed")
    table.add_row("duration", f"{found['duration_s']:,.2f} s")
    for key, name in (("requests_per_s", "requests/s"), ("output_tokens_per_s", "output tokens/s"),
                      ("total_tokens_per_s", "total tokens/s")):  # fmt: skip
        table.add_row(name, "-" if found[key] is None else rate(found[key]))
    for key, name in (("prompt_tokens", "prompt tokens"), ("output_tokens", "output tokens")):
        if (counts := found[key]) is not None:
            spread = f"{counts['mean']:,.1f} a request, {counts['min']:,} to {counts['max']:,.0f}"
            table.add_row(name, f"{counts['total']:,} ({spread})")
    return table


def _doubts(found: Mapping[str, Any]) -> list[str]:
    doubts = []
    if found["client_cpu"] > BUSY:
        doubts.append(
            f"the load generator used {found['client_cpu']:.0%} of a core; "
            "latencies hold its own delays too"
        )
    if found["without_usage"]:
        doubts.append(
            f"{found['without_usage']} answers came without usage: chunks were counted as tokens"
        )
    late = found["late_ms"]
    if late and late["p99"] > 10:
        doubts.append(f"requests were sent late: by {late['p99']:.0f} ms at the 99th percentile")
    return doubts
