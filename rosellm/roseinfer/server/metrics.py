"""What ``GET /metrics`` shows: the engine's state, and counts and times of requests for text.

Names are vLLM's, so that dashboards and gateways that know it work as they are; each is there under
``rosellm:`` and under ``vllm:``. What vLLM does not have is there under the first alone. No label
ever holds anything of a request's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rosellm.roseinfer.messages import Timings
from rosellm.roseinfer.server.loop_lag import LoopLag
from rosellm.roseinfer.server.state_metrics import OWN, Source, State

if TYPE_CHECKING:
    from rosellm.roseinfer.server.delta import Delta
    from rosellm.roseinfer.server.job import Job

VLLM = "vllm:"
LABELS = ["model_name"]
SECONDS = tuple(0.001 * 2**power for power in range(19))  # 1 ms to 262 s
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
REJECTED = {
    400: "invalid",
    401: "unauthorized",
    404: "not_found",
    405: "wrong_method",
    408: "too_slow",
    413: "too_large",
    414: "too_large",
    429: "over_limit",
    431: "too_large",
    503: "unavailable",
    504: "timeout",
}
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """All figures of one server.

    Args:
        model: the name that it is served under.
        source: what is read of the state when it is asked for.

    Attributes:
        loop_lag: to be started on the event loop that serves.
    """

    def __init__(self, model: str, source: Source) -> None:
        self._own = CollectorRegistry()
        self._model = model
        counter, histogram = self._counter, self._histogram
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.cache_queries = counter(
            "prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache."
        )
        self.cache_hits = counter(
            "prefix_cache_hits", "Prompt tokens that were found in the prefix cache."
        )
        self.finished = Counter(
            f"{OWN}request_success",
            "Choices that have ended, by why.",
            [*LABELS, "finished_reason"],
            registry=self._own,
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request's admission to its first token.", SECONDS
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds", "Between a choice's tokens.", SECONDS
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds",
            "A choice's mean time for each token after the first.",
            SECONDS,
        )
        self.end_to_end = histogram(
            "e2e_request_latency_seconds", "From a request's admission to a choice's end.", SECONDS
        )
        self.request_prompt = histogram("request_prompt_tokens", "Tokens of prompts.", COUNTS)
        self.request_generation = histogram(
            "request_generation_tokens", "Tokens of choices.", COUNTS
        )
        self.queue_time = histogram(
            "request_queue_time_seconds",
            "From a choice's arrival in the engine to its admission.",
            SECONDS,
        )
        self.prefill_time = histogram(
            "request_prefill_time_seconds", "From a choice's admission to its first token.", SECONDS
        )
        self.decode_time = histogram(
            "request_decode_time_seconds", "From a choice's first token to its last.", SECONDS
        )
        self.inference_time = histogram(
            "request_inference_time_seconds",
            "From a choice's admission to its last token.",
            SECONDS,
        )
        self.params_n = histogram("request_params_n", "Choices asked for.", (1, 2, 5, 10, 20))
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "Longest answer that is asked for.", COUNTS
        )
        self.longest_generation = histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest choice.", COUNTS
        )
        self.loop_lag = LoopLag(
            histogram("event_loop_lag_seconds", "How late the event loop is.", LAGS).observe
        )
        self.disconnects = counter("client_disconnects", "Requests whose client left too early.")
        self._rejected = Counter(
            f"{OWN}rejected",
            "Requests that were refused.",
            [*LABELS, "reason"],
            registry=self._own,
        )
        self._registry = CollectorRegistry()
        state = State(model, source)
        self._registry.register(_Both(self._own, state))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Every family, as it stands."""
        return self._registry.collect()

    def reject(self, status: int) -> None:
        """A request was answered with this status, 400 or more."""
        self._rejected.labels(self._model, REJECTED.get(status, f"{status // 100}xx")).inc()

    def watch(self, jobs: Sequence[Job]) -> Timing:
        """What follows the answer to these jobs from now on."""
        return Timing(self, self._model, jobs)

    def _counter(self, name: str, about: str) -> Counter:
        made = Counter(OWN + name, about, LABELS, registry=self._own)
        return made.labels(self._model)

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(OWN + name, about, LABELS, buckets=buckets, registry=self._own)
        return made.labels(self._model)


class Timing:
    """One request; sees its answer, see ``Watcher``."""

    def __init__(self, metrics: Metrics, model: str, jobs: Sequence[Job]) -> None:
        self._metrics = metrics
        self._model = model
        self._begun = time.monotonic()
        self._choices = [_Choice() for job in jobs for _ in range(job.n)]
        self._open = len(self._choices)
        self._failed = False
        self._jobs = list(jobs)  # whose prompts have not been counted

    def see(self, item: Delta | Exception) -> None:
        """Count the tokens, and time them."""
        if isinstance(item, Exception):
            self._failed = True
            return
        self._count_prompts()
        choice, now = self._choices[item.index], time.monotonic()
        self._metrics.cache_hits.inc(item.cached)
        choice.timings = item.timings or choice.timings
        if item.ids:
            self._take(choice, len(item.ids), now)
        if item.finish is not None:
            self._finish(choice, item.finish, now)

    def _count_prompts(self) -> None:
        """With the first news: a request that is refused has none read."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            tokens = len(job.prompt)
            self._metrics.prompt_tokens.inc(tokens)
            self._metrics.cache_queries.inc(tokens)
            self._metrics.request_prompt.observe(tokens)
            self._metrics.params_n.observe(job.n)
            self._metrics.params_max_tokens.observe(job.params.max_tokens)

    def _take(self, choice: _Choice, tokens: int, now: float) -> None:
        metrics = self._metrics
        if not choice.tokens:
            choice.first = now
            metrics.first_token.observe(now - self._begun)
        else:
            metrics.between_tokens.observe(now - choice.latest)
        choice.tokens, choice.latest = choice.tokens + tokens, now
        metrics.generation_tokens.inc(tokens)

    def _finish(self, choice: _Choice, reason: str, now: float) -> None:
        metrics = self._metrics
        self._open -= 1
        metrics.finished.labels(self._model, reason).inc()
        metrics.end_to_end.observe(now - self._begun)
        metrics.request_generation.observe(choice.tokens)
        self._observe_phases(choice)
        if not self._open:
            metrics.longest_generation.observe(max(each.tokens for each in self._choices))
        if choice.tokens > 1:
            metrics.per_token.observe((now - choice.first) / (choice.tokens - 1))

    def _observe_phases(self, choice: _Choice) -> None:
        if choice.timings is None:
            return
        metrics, prefill = self._metrics, choice.timings.prefill
        decode = choice.latest - choice.first
        metrics.queue_time.observe(choice.timings.queue)
        metrics.prefill_time.observe(prefill)
        metrics.decode_time.observe(decode)
        metrics.inference_time.observe(prefill + decode)

    def end(self) -> None:
        """Count what did not come to its own end."""
        if not self._open:
            return
        reason = "error" if self._failed else "abort"
        self._metrics.finished.labels(self._model, reason).inc(self._open)


class _Choice:
    __slots__ = ("first", "latest", "timings", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.first = self.latest = 0.0
        self.timings: Timings | None = None


ONLY_OWN = frozenset(
    OWN + name
    for name in (
        "client_disconnects",
        "engine_restarts",
        "event_loop_lag_seconds",
        "process_anonymous_memory_bytes",
        "uptime_seconds",
        "build_info",
        "rejected",
        "num_requests_waiting_grammar",
        "num_prompt_tokens_waiting",
        "engine_steps",
        "incomplete_structured_answers",
    )
)


class _Both(Collector):
    """Every family of others, and again under vLLM's prefix where vLLM has it."""

    def __init__(self, *others: CollectorRegistry | Collector) -> None:
        self._others = others

    def collect(self) -> Iterable[Metric]:
        for family in (family for other in self._others for family in other.collect()):
            yield _under(OWN, family)
            if family.name not in ONLY_OWN:
                yield _under(VLLM, family)


def _under(prefix: str, family: Metric) -> Metric:
    """A family under a prefix, without the times at which its series were made.

    vLLM numbers its engines; here there is one.
    """
    name = family.name.replace(OWN, prefix, 1)
    copy = Metric(name, family.documentation, family.type, family.unit)
    copy.samples = [
        sample._replace(
            name=sample.name.replace(OWN, prefix, 1), labels={**sample.labels, "engine": "0"}
        )
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return copy
