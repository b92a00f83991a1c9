"""Metrics that are read when they are asked for: the engine's state, and the processes'."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rosellm.roseinfer.messages import Stats
from rosellm.roseinfer.server.step_sizes import StepSizes

OWN = "rosellm:"


def no_pid() -> int | None:
    """Of an engine that has no process of its own."""
    return None


@dataclass(frozen=True)
class Source:
    """Where the state comes from.

    Attributes:
        stats: gives the engine's state after its last step.
        steps: gives the sizes of the engine's steps so far.
        restarts: gives how many engines have taken a dead one's place.
        engine_pid: gives the engine's process, if it has one of its own.
        build: what runs, as labels.
        cache: what vLLM calls the cache's configuration, as labels.
    """

    stats: Callable[[], Stats]
    steps: Callable[[], StepSizes] = lambda: StepSizes()
    restarts: Callable[[], int] = int
    engine_pid: Callable[[], int | None] = no_pid
    build: Mapping[str, str] = field(default_factory=dict)
    cache: Mapping[str, str] = field(default_factory=dict)


class State(Collector):
    """The state of one model's server."""

    def __init__(self, model: str, source: Source) -> None:
        self._model = model
        self._source = source
        self._begun = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        yield from self._engine(self._source.stats())
        yield self._steps(self._source.steps())
        yield self._counter(
            "engine_restarts", "Engines that took a dead one's place.", self._source.restarts()
        )
        yield from self._memory()
        yield self._gauge(
            "uptime_seconds", "Since this server started.", time.monotonic() - self._begun
        )
        yield self._gauge("build_info", "What runs; always 1.", 1, self._source.build)
        yield self._gauge(
            "cache_config_info", "The KV cache's configuration; always 1.", 1, self._source.cache
        )

    def _engine(self, stats: Stats) -> Iterator[Metric]:
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        for name, about, value in (
            ("num_requests_running", "Sequences that run.", stats.running),
            ("num_requests_waiting", "Sequences that wait.", stats.waiting),
            ("num_prompt_tokens_waiting", "Tokens of prompts that wait.", stats.waiting_tokens),
            ("kv_cache_usage_perc", "Share of the KV cache that is in use, 0 to 1.", used),
            (
                "num_requests_waiting_grammar",
                "Sequences that wait for a grammar.",
                stats.waiting_grammar,
            ),
        ):
            yield self._gauge(name, about, value)
        for name, about, value in (
            ("num_preemptions", "Sequences that made room for others.", stats.preemptions),
            ("spec_decode_num_drafts", "Drafts, each of a sequence in a step.", stats.drafts),
            ("spec_decode_num_draft_tokens", "Tokens drafted.", stats.drafted),
            ("spec_decode_num_accepted_tokens", "Drafted tokens that were right.", stats.accepted),
            ("engine_steps", "Steps of the engine.", stats.steps),
            (
                "incomplete_structured_answers",
                "Answers that ended before they matched.",
                stats.incomplete,
            ),
        ):
            yield self._counter(name, about, value)

    def _steps(self, sizes: StepSizes) -> Metric:
        family = HistogramMetricFamily(
            f"{OWN}iteration_tokens_total", "Tokens of the engine's steps.", labels=["model_name"]
        )
        family.add_metric([self._model], sizes.buckets(), sizes.tokens)
        return family

    def _memory(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            f"{OWN}process_anonymous_memory_bytes",
            "Memory of a process that no file stands behind.",
            labels=["model_name", "process"],
        )
        for process, pid in (("server", os.getpid()), ("engine", self._source.engine_pid())):
            size = None if pid is None else anonymous_memory(pid)
            if size is not None:
                family.add_metric([self._model, process], size)
        yield family

    def _counter(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(OWN + name, about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _gauge(
        self, name: str, about: str, value: float, labels: Mapping[str, str] | None = None
    ) -> Metric:
        more = labels or {}
        family = GaugeMetricFamily(OWN + name, about, labels=["model_name", *more])
        family.add_metric([self._model, *more.values()], value)
        return family


def anonymous_memory(pid: int) -> int | None:
    """Bytes; None where the system does not tell, or the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return None
