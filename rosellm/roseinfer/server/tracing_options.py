"""Whether and where traces are sent: what the flag and the environment say, checked.

Loads nothing of OpenTelemetry, so that a mistake is told at once.
"""

from __future__ import annotations

import importlib.util
import os
from urllib.parse import urlsplit

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.errors import ConfigError

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def check_tracing(asked: ServerConfig) -> None:
    """Refuse at once what cannot be done.

    Raises:
        ConfigError: the endpoint is none, or the extra is not installed.
    """
    endpoint = asked.otlp_endpoint
    if endpoint is None:
        return
    if not _is_url(endpoint):
        raise ConfigError(f"--otlp-endpoint {endpoint!r}: not a URL like http://localhost:4318")
    if not is_installed():
        raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'rosellm[otel]'")


def is_installed() -> bool:
    """Whether the extra is there."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in NEEDED)
    except (ImportError, ValueError):  # a package above it is not there
        return False


def asked_by_environment() -> bool:
    """Whether OpenTelemetry's own variables name a collector."""
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(os.environ.get(name) for name in ENDPOINT_VARIABLES)


def traces_url(endpoint: str) -> str:
    """A collector's address, completed as OpenTelemetry completes its variable.

    >>> traces_url("http://localhost:4318")
    'http://localhost:4318/v1/traces'
    """
    return endpoint if endpoint.endswith("/v1/traces") else endpoint.rstrip("/") + "/v1/traces"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
