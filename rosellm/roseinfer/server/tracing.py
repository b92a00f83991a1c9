"""Traces for an OpenTelemetry collector: a server span for each request, a child for each phase.

The libraries are an extra (``pip install rosellm[otel]``), loaded only where traces are asked for.
Spans are made when a request is over, so that they cost it nothing, and hold times, counts and the
route: never anything that was said.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

import rosellm
from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.server.timeline import Timeline
from rosellm.roseinfer.server.tracing_options import asked_by_environment, is_installed, traces_url

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

UNTRACED = frozenset({"/health", "/livez", "/readyz", "/metrics"})
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/v1/embeddings": "embeddings",
}
FAREWELL_S = 2.0


def load_tracing(asked: ServerConfig, model: str) -> Tracing | None:
    """What sends traces where the flag, or OpenTelemetry's own variables, say; None for nowhere."""
    if asked.otlp_endpoint is None and not asked_by_environment():
        return None
    if not is_installed():
        log.warning("no traces are sent: OTEL_* asks for them, but rosellm[otel] is not installed")
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = {"service.version": rosellm.__version__}
    resource = Resource.create(about if _names_itself() else {**about, "service.name": "rosellm"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(asked.otlp_endpoint and traces_url(asked.otlp_endpoint))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, model)


def _names_itself() -> bool:
    """Whether the environment says what service this is."""
    attributes = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in attributes


class Tracing:
    """Makes spans of requests.

    Args:
        model: what is served.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("rosellm", rosellm.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def record(self, scope: Scope, status: int) -> None:
        """Make the spans of a request that is over; a failure is logged, and costs nothing else."""
        if scope["path"] in UNTRACED:
            return
        try:
            self._record(scope, status)
        except Exception:
            log.exception("a request could not be traced")

    def close(self) -> None:
        """Send what is left, if that is possible within a moment."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(FAREWELL_S)

    def _record(self, scope: Scope, status: int) -> None:
        from opentelemetry import trace

        timeline: Timeline = scope["state"]["timeline"]
        epoch = time.time_ns() - round(timeline.now() * 1e9)  # of the clock
        end = epoch + round(timeline.now() * 1e9)
        route = getattr(scope.get("route"), "path", None)
        method = scope["method"]
        span = self._tracer.start_span(
            f"{method} {route}" if route else method,
            context=self._propagator.extract(dict(Headers(scope=scope))),
            kind=trace.SpanKind.SERVER,
            start_time=epoch + round(timeline.begun * 1e9),
            attributes=dict(self._attributes(scope, route, status)),
        )
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        if span.is_recording():
            self._record_phases(trace.set_span_in_context(span), timeline, epoch)
        span.end(end)

    def _attributes(
        self, scope: Scope, route: str | None, status: int
    ) -> Iterator[tuple[str, Any]]:
        """By OpenTelemetry's semantic conventions for HTTP and for generative AI."""
        timeline: Timeline = scope["state"]["timeline"]
        yield "http.request.method", scope["method"]
        yield "url.scheme", scope["scheme"]
        yield "rosellm.request_id", scope["state"]["request_id"]
        if route:
            yield "http.route", route
            yield "url.path", route
        if status:
            yield "http.response.status_code", status
        if status >= 500:
            yield "error.type", str(status)
        if timeline.disconnected:
            yield "rosellm.client_disconnected", True
        if route in OPERATIONS:
            yield "gen_ai.operation.name", OPERATIONS[route]
            yield "gen_ai.provider.name", "rosellm"
            yield "gen_ai.request.model", self._model
        if timeline.generates:
            yield "gen_ai.response.model", self._model
            yield "gen_ai.usage.input_tokens", timeline.prompt_tokens
            yield "gen_ai.usage.cache_read.input_tokens", timeline.cached_tokens
            yield "gen_ai.usage.output_tokens", timeline.completion_tokens
            yield "gen_ai.response.finish_reasons", list(timeline.finish_reasons)

    def _record_phases(self, parent: Any, timeline: Timeline, epoch: int) -> None:
        for name, start, end, waited in _merged(timeline):
            child: Span = self._tracer.start_span(
                name, context=parent, start_time=epoch + round(start * 1e9)
            )
            if waited:
                child.set_attribute("rosellm.client_seconds", waited)
            if name == "prefill":
                computed = timeline.prompt_tokens - timeline.cached_tokens
                child.set_attribute("rosellm.cached_tokens", timeline.cached_tokens)
                child.set_attribute("rosellm.computed_tokens", computed)
            child.end(epoch + round(end * 1e9))


def _merged(timeline: Timeline) -> Iterator[tuple[str, float, float, float]]:
    """Its stretches, with making and sending an answer as one, and how long the client took."""
    begun: float | None = None
    waited = until = 0.0
    for name, start, end in timeline.stretches():
        if name in ("respond", "client"):
            begun = start if begun is None else begun
            waited += (end - start) * (name == "client")
            until = end
            continue
        if begun is not None:
            yield "respond", begun, until, waited
            begun, waited = None, 0.0
        yield name, start, end, 0.0
    if begun is not None:
        yield "respond", begun, until, waited
