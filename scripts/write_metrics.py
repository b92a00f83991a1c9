"""Writes docs/metrics.md from what ``GET /metrics`` exports, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric

from rosellm.roseinfer.messages import Stats
from rosellm.roseinfer.server.metrics import Metrics
from rosellm.roseinfer.server.state_metrics import OWN, Source

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
VLLM = "vllm:"

HEAD = """\
# Metrics

`GET /metrics` speaks Prometheus's text format. It needs the key, where one is set. This page is
written by `python scripts/write_metrics.py` from what the server exports; a test keeps the two
together.

Names and meanings are vLLM's where vLLM has such a metric: it is then there twice, as
`rosellm:NAME` and as `vllm:NAME`, so that dashboards and gateways made for vLLM work as they are.
The others are there under `rosellm:` alone. Every one has the labels `model_name` and, as vLLM's
have, `engine`, which is always `0` here. No label ever holds anything of a request, a key or a
client.

`deploy/grafana/rosellm.json` is a Grafana dashboard of these.

| `rosellm:` | as `vllm:` too | kind | labels | what it is |
| --- | --- | --- | --- | --- |
"""

TAIL = """
`finished_reason` is `stop`, `length`, `tool_calls`, `abort` (the client left) or `error`. `reason`
of a refusal is `invalid`, `unauthorized`, `not_found`, `wrong_method`, `too_slow`, `too_large`,
`over_limit`, `unavailable`, `timeout`, or the class of its status, such as `5xx`. `process` is
`server` or `engine`; its memory is what `/proc` calls `RssAnon`: weights that are mapped from a
file do not count. The event loop's lag is measured every 10 ms; while it is late, everyone waits.

Prometheus's usual `process_*` metrics of the server's process stand beside these.

## One request

`"return_timings": true` in a chat or a completion adds `timings` to its answer, or to the last
chunk of its stream: seconds by phase, which add up to `total_s`, and tokens. The access log has the
same, up to the answer's last byte (`--log-format json`):

| field | what it is |
| --- | --- |
| `receive_s` | reading and checking the request |
| `tokenise_s` | rendering the chat template, and tokenising |
| `grammar_s` | checking and compiling a grammar |
| `queue_s` | waiting to be admitted |
| `prefill_s` | computing what of the prompt was not cached, up to the first token |
| `decode_s` | from token to token |
| `preempted_s` | from each preemption to the next token |
| `engine_s` | between the two processes, and what the engine did not tell: of a request that was \
broken off early, or while an engine was replaced |
| `respond_s` | making the answer |
| `client_s` | waiting for the client to take an answer that is complete |
| `prompt_tokens`, `cached_tokens`, `computed_tokens`, `completion_tokens` | counts |
| `preemptions` | how often it made room for others |

Of several choices, the engine's phases are those of the one that ended last.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(_rows()) + "\n" + TAIL


def _rows() -> Iterator[str]:
    families = {family.name: family for family in exported()}
    for name, family in sorted(families.items()):
        if not name.startswith(OWN):
            continue
        bare = name.removeprefix(OWN)
        shown = bare + ("_total" if family.type == "counter" else "")
        twice = "yes" if VLLM + bare in families else ""
        facts = [f"`{shown}`", twice, family.type, _labels(family), family.documentation]
        yield f"| {' | '.join(facts)} |"


def exported() -> list[Metric]:
    """Every family that a server exports, with a sample of each."""
    source = Source(
        Stats,
        build=dict.fromkeys(("version", "fingerprint", "dtype", "device"), ""),
        cache=dict.fromkeys(("block_size", "num_gpu_blocks"), ""),
    )
    metrics = Metrics("m", source)
    metrics.reject(400)
    metrics.finished.labels("m", "stop")
    return list(metrics.collect())


def _labels(family: Metric) -> str:
    names = {name for sample in family.samples for name in sample.labels}
    return ", ".join(f"`{name}`" for name in sorted(names - {"model_name", "engine", "le"}))


if __name__ == "__main__":
    PAGE.write_text(page())
