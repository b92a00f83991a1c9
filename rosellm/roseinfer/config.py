"""Everything that can be configured, as frozen dataclasses.

Command-line flags are generated from these fields (``server/flags.py``), and so are the keys of
the config file and the variables of the environment (``server/sources.py``): a field's name, type,
default and help are written once. Nothing here is ever
mutated: what "auto" came to is decided by ``resolve`` functions elsewhere,
which return decisions with their reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
Kernels = Literal["auto", "reference", "native", "triton"]
Attention = Literal["auto", "flashinfer"]
Quantization = Literal["none", "int8", "int4", "fp8"]
UnknownParameters = Literal["reject", "warn"]
HeadQuantization = Literal["auto", "none", "int8", "int4", "fp8"]
KVCacheDType = Literal["auto", "int8", "fp8"]
ToolParser = Literal[
    "auto",
    "none",
    "hermes",
    "llama3_json",
    "mistral",
    "mistral_args",
    "pythonic",
    "deepseek",
    "harmony",
]
ReasoningParser = Literal[
    "auto",
    "none",
    "think",
    "deepseek_r1",
    "mistral",
    "granite",
    "command",
    "seed_oss",
    "kimi",
    "harmony",
]
Speculate = Literal["none", "ngram"]
Overlap = Literal["auto", "on", "off"]
LogFormat = Literal["text", "json"]


UNBOUNDED = 1 << 62
QUEUED_CACHES = 4
"""By default so many times the tokens that the KV cache holds may wait."""
ORIGIN = (r"\*|https?://[^/?#@\s,]+", "an origin such as https://app.example:8443, or *")
"""What a browser calls a page's origin: no path, no slash at the end."""


def option(
    default: Any,
    help: str,
    *,
    least: float = 0,
    most: float = float("inf"),
    form: tuple[str, str] | None = None,
) -> Any:
    """A dataclass field with the sentence that ``--help`` prints for it, and its range.

    Args:
        form: what each text of a list must match as a whole, and how to say that.
    """
    about = {"help": help, "least": least, "most": most, "form": form}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    model: str = option(
        "",
        "Hugging Face folder, hub id (org/name[@revision]), or rosetrainer .pt checkpoint;"
        " default: rosellm-demo, which comes with rosellm",
    )
    tokenizer: str | None = option(
        None, "tokenizer to use instead of the model's own: a folder, a file or a hub id"
    )
    chat_template: str | None = option(
        None, "chat template to use instead of the model's: a Jinja file, or the name of one of its"
    )
    tool_parser: ToolParser = option(
        "auto", "format in which the model calls tools; auto is what its chat template shows"
    )
    reasoning_parser: ReasoningParser = option(
        "auto", "markers of the model's reasoning; auto is what its chat template shows"
    )
    dtype: DType = option("auto", "type of weights and KV cache; auto keeps the checkpoint's")
    quantization: Quantization = option(
        "none", "hold the blocks' weights in 8 or 4 bits; none holds them as they are stored"
    )
    head_quantization: HeadQuantization = option(
        "auto",
        "the same for the head; auto is fp8 beside fp8, int8 where blocks are quantised else",
    )
    quantization_group: int | None = option(
        None,
        "columns of the blocks' matrices that share a scale in int8 and int4: 32, 64, 128 or 256;"
        " fewer are more exact and slower; default: 32 in 8 bits, 128 in 4",
        least=32,
        most=256,
    )
    device: Device = option("auto", "auto takes a CUDA device where there is one")
    kernels: Kernels = option(
        "auto",
        "auto takes the fastest there are for the device; native are those for CPUs, triton those"
        " for CUDA, reference is plain torch",
    )
    attention: Attention = option(
        "auto",
        "auto takes that of the kernels; flashinfer, where it is installed, gives up that a row's"
        " bits do not depend on its batch",
    )
    deterministic: bool = option(
        True,
        "on CUDA, take products of which a row's bits do not depend on its batch; without, a"
        " library's (elsewhere all products are so)",
    )
    enforce_eager: bool = option(
        False, "start every operation of a step by itself: no CUDA graphs on a GPU"
    )
    max_model_len: int | None = option(
        None,
        "longest prompt plus answer, in tokens; default: what the model and memory allow",
        least=1,
    )


@dataclass(frozen=True)
class CacheConfig:
    """KV cache"""

    block_size: int = option(16, "tokens in one KV block", least=1)
    kv_cache_gb: float | None = option(
        None, "memory for the KV cache, in GiB; default: sized from free memory"
    )
    gpu_memory_utilization: float = option(
        0.9,
        "share of the memory that is free on a GPU at the start, what other programs use not"
        " counted, which weights, steps and KV cache may take together",
        least=0.01,
        most=1,
    )
    kv_cache_dtype: KVCacheDType = option(
        "auto", "hold keys and values in 8 bits, a scale for each head of a token; auto is `dtype`"
    )
    prefix_cache: bool = option(True, "reuse the KV blocks of equal prompt prefixes")


@dataclass(frozen=True)
class SchedulerConfig:
    """Scheduling"""

    max_num_seqs: int = option(64, "sequences that may run in one step", least=1)
    max_num_batched_tokens: int | None = option(
        None, "tokens computed in one step; default: 512 on a CPU, 4096 on a GPU", least=1
    )
    max_queue: int = option(1024, "sequences that may wait; a request beyond them is a 503")
    max_queue_tokens: int | None = option(
        None,
        "prompt tokens that may wait; a request beyond them is a 503; default: four times what the"
        " KV cache holds",
        least=1,
    )
    itl_target_ms: float | None = option(
        None,
        "milliseconds between a stream's tokens that other prompts, taken in chunks, are not to"
        " exceed; default: none",
        least=1,
    )
    neighbour_stretch: float = option(
        2.0,
        "times as long as they would be without it, a tenant that asks for much may make the steps"
        " of those that ask for little",
        least=1,
    )
    fair_output_weight: float = option(
        1.0, "what a token of an answer counts beside one of a prompt where tenants share the time"
    )
    priority_ageing_s: float = option(
        10.0, "seconds of waiting that are worth one level of priority"
    )
    speculate: Speculate = option(
        "none", "draft tokens and verify several in one step; ngram drafts what repeats"
    )
    overlap: Overlap = option(
        "auto",
        "plan and submit a step while the one before is computed, over tokens that are not known"
        " yet: on, off, or auto: on a GPU",
    )
    num_speculative_tokens: int = option(
        16, "most tokens in one draft, those of a request's `prediction` included; 0 drafts none"
    )


@dataclass(frozen=True)
class EngineConfig:
    """All that an engine process is told. Crosses the process boundary as msgspec."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling defaults (a request's own fields come first)"""

    do_sample: bool | None = option(None, "sample, or take the likeliest token each time")
    temperature: float | None = option(None, "default temperature; 0 is greedy", most=2)
    top_k: int | None = option(None, "default top-k; 0 considers every token")
    top_p: float | None = option(None, "default top-p", most=1)
    stop_on_eos: bool | None = option(None, "end an answer at the end-of-sequence token")


@dataclass(frozen=True)
class ServerConfig:
    """Server"""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on", most=65535)
    served_model_name: str | None = option(
        None, "name that requests use in `model`; default: the folder's or file's name"
    )
    access_log: bool = option(True, "log one line a request")
    log_format: LogFormat = option(
        "text", "form of log lines on stderr: text for people, or json, an object on each line"
    )
    log_prompts: bool = option(
        False, "put each request's body into its log line; else nothing that it says is logged"
    )
    otlp_endpoint: str | None = option(
        None,
        "send a trace of each request to this OpenTelemetry collector (OTLP over HTTP, such as"
        " http://localhost:4318); needs rosellm[otel]",
    )
    unknown_parameters: UnknownParameters = option(
        "reject",
        "what a request field that nobody knows comes to: a 400, or (warn) an answer without it"
        " whose `warnings` name it",
    )
    log_requests: str | None = option(
        None,
        "file to which each request is appended as a line of JSON, with its prompt's tokens and its"
        " answer's; `rosellm replay` answers them again",
    )
    default_timeout_s: float | None = option(
        None,
        "seconds that a request may take which has no `timeout` of its own; then it is a 504",
        least=0.001,
    )
    max_request_tokens: int | None = option(
        None,
        "tokens that one request's answers may come to, all choices x `max_tokens`; default: those"
        " of 128 whole contexts",
        least=1,
    )
    max_body_mb: int = option(8, "largest request body, in MiB; a larger one is a 413", least=1)
    max_connections: int = option(
        4096, "connections at one time; one beyond them is a 503", least=1
    )
    request_timeout_s: float = option(
        10.0, "seconds in which a request has to arrive, headers and body; else it is a 408"
    )
    keep_alive_timeout_s: int = option(
        5,
        "seconds after which a connection without a request is closed; behind a load balancer, more"
        " than those after which that closes its own",
        least=1,
    )
    stall_timeout_s: float = option(
        30.0, "seconds after which a client that has stopped reading its answer is cut off"
    )
    drain_timeout: float = option(
        30.0, "seconds that requests in flight have to finish when the server is told to stop"
    )
    engine_restarts: int = option(
        3, "times that an engine that died or hangs is started again within 5 minutes"
    )
    api_key_file: str | None = option(
        None, "TOML file of API keys with their names and limits, beside ROSELLM_API_KEY"
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "origin whose web pages may read the answers, or * for all; several by commas",
        form=ORIGIN,
    )
    tls_cert: str | None = option(
        None, "certificate chain in PEM: serve https; its private key may be in the same file"
    )
    tls_key: str | None = option(None, "private key of `tls_cert`, in PEM and without a passphrase")
    insecure: bool = option(
        False, "listen on an address that other machines reach although no key is set"
    )
