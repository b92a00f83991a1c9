"""Writes docs/configuration.md from the config dataclasses, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rosellm.roseinfer.server.fields import CONFIGS

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

## Where settings come from

`rosellm serve` (and `python -m rosellm.roseinfer.server`, which is the same) takes them from three
places, each before the one above it:

1. a TOML file, named by `--config FILE` or `ROSELLM_CONFIG`. Its keys are the names below, without
   tables; relative paths in it are seen from where the server is started.
2. the environment: `ROSELLM_` and the name in capitals (`ROSELLM_MAX_MODEL_LEN=8192`). Yes or no is
   `1`, `true`, `yes`, `on` or `0`, `false`, `no`, `off`; lists are divided by commas; an empty
   variable counts as none.
3. flags.

<!-- file: rosellm.toml -->
```toml
model = "/models/my-llama"
served_model_name = "my-llama"
max_model_len = 8192
host = "0.0.0.0"
api_key_file = "/etc/rosellm/keys.toml"
cors_origin = ["https://app.example"]
```

A name that is no setting, a value of another type and one out of its range end the start with one
line that names the file or the variable and the setting (exit code 2). Variables that Kubernetes
sets for a service called `rosellm` are passed over (`ROSELLM_PORT=tcp://...` is one).

The model is the first argument, `rosellm serve MODEL`: a Hugging Face folder, a hub id
(`org/name[@revision]`) or a rosetrainer `.pt` checkpoint. Left out, it is `rosellm-demo`, the small
model that comes with rosellm, which may be called by that name too.
"""

TAIL = """\
## API keys

With a key set, every route but `/health`, `/livez` and `/readyz` asks for
`Authorization: Bearer KEY`. One key without limits stands in `ROSELLM_API_KEY`; several, each with
a name and limits of its own, in the file that `api_key_file` names, a TOML table for each:

<!-- file: keys.toml -->
```toml
[keys.alice]
key = "sk-alice-2f6a9c"
requests_per_minute = 60
tokens_per_minute = 20000
max_concurrent = 4

[keys.nightly-jobs]
sha256 = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
```

| field | what it says |
| --- | --- |
| `key` | the key itself; keep the file readable by its owner alone (else there is a warning) |
| `sha256` | or its hash: `printf %s "$KEY" \\| sha256sum` |
| `requests_per_minute` | requests, of any kind, that it may make |
| `tokens_per_minute` | tokens of prompts and answers |
| `max_concurrent` | requests at one time |
| `share` | of the engine's time beside others, 0.01 to 100; 1 if left out, 2 is twice as much |

A limit that is left out does not exist. Requests and tokens flow back at an even rate, up to one
minute's worth. A prompt's tokens, cached ones too, are taken when it is admitted and an answer's as
they are made; what overdraws the tokens is finished, and the next request waits until they are
paid back. A request over a limit is a 429 (`rate_limit_exceeded`) with `Retry-After`, and costs
nothing. Every answer to a limited key carries OpenAI's `x-ratelimit-limit-requests`,
`x-ratelimit-remaining-requests`, `x-ratelimit-reset-requests` (the time until all are there again)
and the same for `-tokens`.

The name is the tenant of the requests: keys do not share a prefix cache. `ROSELLM_API_KEY` has the
name `default`.

On SIGHUP (`kill -HUP`, `systemctl reload` with `ExecReload=kill -HUP $MAINPID`) the file is read
again, and connections stay as they are: a key that is gone is a 401 from then on, what runs is
finished, and a name that stays keeps what it has used up. A file with a mistake changes nothing;
the log says what is wrong with it. Without a key file, SIGHUP ends the server.

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
| `ROSELLM_CONFIG` | the file of settings, where no `--config` names one |
| `ROSELLM_` and a setting's name | the setting, see above |
| `OTEL_EXPORTER_OTLP_ENDPOINT` | where traces are sent without `--otlp-endpoint`; OpenTelemetry's \
other variables (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...) count too |
| `HF_HOME` | where the hub's files are kept (default `~/.cache/huggingface`) |
| `HF_TOKEN` | token for gated and private models |
| `HF_HUB_OFFLINE` | `1` never asks the network: only what is in the cache is found |
| `HF_ENDPOINT` | another hub than huggingface.co |
| `ROSELLM_CPU_THREADS` | threads of the native CPU kernels (default: the cores it may use) |
| `ROSELLM_CPU_LEVEL` | their level: `portable`, `avx2`, ... (CONTRIBUTING.md; default: the best) |
| `OMP_NUM_THREADS` | threads of torch's products on a CPU |
| `OMP_WAIT_POLICY` | set, it replaces the engine's own choice (`passive`, with a brief spin) |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(_section, CONFIGS), TAIL])


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
    if get_origin(hint) is tuple:
        return "texts"
    kind = parts[0] if parts else hint
    if kind is bool:
        return "yes, no"
    if kind is str:
        return "text"
    least, most = metadata["least"], metadata["most"]
    above = f" to {most}" if most != float("inf") else " or more"
    return f"{'integer' if kind is int else 'number'}, {least}{above}"


def _default(default: Any) -> str:
    if default in (None, MISSING, ()):
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page())
