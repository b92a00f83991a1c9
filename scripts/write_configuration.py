"""Writes docs/configuration.md from the config dataclasses, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rosellm.roseinfer.server import flags

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

HEAD = """\
# Configuration

Every setting of the engine and of the server. This page is written by
`python scripts/write_configuration.py` from `rosellm/roseinfer/config.py`, where each setting
stands once; a test keeps the two together.

A flag of `rosellm serve`, `rosellm generate`, `rosellm chat` and `rosellm bench offline` is the
setting's name with dashes (`--max-model-len`), a keyword of `LLM(...)` the name itself
(`max_model_len`). A yes-or-no flag has a `--no-` form. A request's own fields come before the
sampling defaults here, and these before the model's `generation_config.json`.

The model is the first argument, `rosellm serve MODEL`: a Hugging Face folder, a hub id
(`org/name[@revision]`) or a rosetrainer `.pt` checkpoint. Left out, it is `rosellm-demo`, the small
model that comes with rosellm, which may be called by that name too.
"""

TAIL = """\
## Other spellings

| flag | the same as |
| --- | --- |
| `--checkpoint-path FILE` | `MODEL` |
| `--tokenizer-name NAME` | `--tokenizer NAME` |
| `--bf16` | `--dtype bfloat16` |
| `--no-amp` | `--dtype float32` |

## Environment

| variable | what it does |
| --- | --- |
| `ROSELLM_API_KEY` | what every route but the probes asks for; `rosellm chat --url` sends it |
| `OTEL_EXPORTER_OTLP_ENDPOINT` | where traces are sent without `--otlp-endpoint`; OpenTelemetry's \
other variables (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...) count too |
| `HF_HOME` | where the hub's files are kept (default `~/.cache/huggingface`) |
| `HF_TOKEN` | token for gated and private models |
| `HF_HUB_OFFLINE` | `1` never asks the network: only what is in the cache is found |
| `HF_ENDPOINT` | another hub than huggingface.co |
| `ROSELLM_CPU_THREADS` | threads of the native CPU kernels (default: the cores it may use) |
| `ROSELLM_CPU_LEVEL` | their instructions: `portable`, `avx2`, `avx512` (default: the best) |
| `OMP_NUM_THREADS` | threads of torch's products on a CPU |
| `OMP_WAIT_POLICY` | set, it replaces the engine's own choice (`passive`, with a brief spin) |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(_section, flags.CONFIGS), TAIL])


def _section(config: type) -> str:
    lines = [f"## {(config.__doc__ or '').strip()}", ""]
    lines += ["| setting | values | default | what it sets |", "| --- | --- | --- | --- |"]
    lines += _rows(config)
    return "\n".join([*lines, ""])


def _rows(config: type) -> Iterator[str]:
    hints = get_type_hints(config)
    for item in fields(config):
        if item.name == "model":
            continue
        help = str(item.metadata["help"]).replace("|", "\\|")
        values = _values(hints[item.name], item.metadata)
        yield f"| `{item.name}` | {values} | {_default(item.default)} | {help} |"


def _values(hint: Any, metadata: Any) -> str:
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    kind = parts[0] if parts else hint
    if kind is bool:
        return "yes, no"
    if kind is str:
        return "text"
    least, most = metadata["least"], metadata["most"]
    above = f" to {most}" if most != float("inf") else " or more"
    return f"{'integer' if kind is int else 'number'}, {least}{above}"


def _default(default: Any) -> str:
    if default is None or default is MISSING:
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page())
