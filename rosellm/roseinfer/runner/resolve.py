"""What every "auto" came to, and why. Config in, decisions out; nothing is mutated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.messages import Decision
from rosellm.roseinfer.models.spec import ModelSpec

_CPU_SHARE = 0.5
_GPU_SHARE = 0.9
_CPU_STEP_TOKENS = 512
_GPU_STEP_TOKENS = 4096
_GIB = 1 << 30


def resolve_device(config: ModelConfig) -> tuple[torch.device, Decision]:
    """The device to run on; ConfigError if CUDA is asked for and not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch finds no CUDA device; check the driver and that a CUDA build "
            "of torch is installed, or use --device cpu"
        )
    if config.device != "auto":
        return torch.device(config.device), Decision("device", config.device, "asked for")
    name = "cuda" if torch.cuda.is_available() else "cpu"
    reason = "a CUDA device is there" if name == "cuda" else "no CUDA device"
    return torch.device(name), Decision("device", name, reason)


def resolve_dtype(
    config: ModelConfig, stored: str, device: torch.device
) -> tuple[torch.dtype, Decision]:
    """The type of weights, activations and KV cache."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype), Decision("dtype", config.dtype, "asked for")
    name, reason = stored, "as in the checkpoint"
    if stored == "float16" and device.type == "cpu":
        name, reason = "float32", "the checkpoint is float16, which a CPU computes slowly"
    if stored == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        name, reason = "float16", "the checkpoint is bfloat16, which this GPU lacks"
    if name not in ("float32", "bfloat16", "float16"):
        name, reason = "float32", f"the checkpoint's {stored} is not computed in"
    return getattr(torch, name), Decision("dtype", name, reason)


def resolve_step_tokens(config: SchedulerConfig, device: torch.device) -> tuple[int, Decision]:
    """Token budget of one step."""
    if config.max_num_batched_tokens is not None:
        if config.max_num_batched_tokens < 1:
            raise ConfigError("--max-num-batched-tokens must be at least 1")
        value, reason = config.max_num_batched_tokens, "asked for"
    else:
        value = _CPU_STEP_TOKENS if device.type == "cpu" else _GPU_STEP_TOKENS
        reason = f"default on {device.type}"
    return value, Decision("step budget", f"{value} tokens", reason)


@dataclass(frozen=True)
class CachePlan:
    """Size of the KV cache and the longest sequence it is meant for."""

    num_blocks: int
    max_model_len: int
    decisions: tuple[Decision, ...]


def resolve_cache(
    config: EngineConfig,
    spec: ModelSpec,
    dtype: torch.dtype,
    free_bytes: int,
    device: torch.device,
) -> CachePlan:
    """Size the block pool from free memory; ConfigError if the context cannot fit."""
    size = config.cache.block_size
    if size < 1:
        raise ConfigError("--block-size must be at least 1")
    wanted = _wanted_length(config.model, spec)
    per_token = sum(group.bytes_per_token(dtype) for group in spec.kv_groups)
    budget, why = _budget(config.cache, free_bytes, device)
    useful = config.scheduler.max_num_seqs * -(-wanted // size)
    affordable = int(budget // (per_token * size)) - 1  # the null block takes one
    num_blocks = min(useful, affordable)
    capacity = num_blocks * size
    longest = min(wanted, capacity)
    if longest < min(wanted, size) or (config.model.max_model_len and longest < wanted):
        raise ConfigError(
            f"a context of {wanted} tokens needs {wanted * per_token / _GIB:.2f} GiB of KV cache "
            f"and {budget / _GIB:.2f} GiB are set aside for it; use a smaller --max-model-len "
            f"({max(capacity, 0)} would fit) or a larger --kv-cache-gb"
        )
    blocks = f"{num_blocks} blocks of {size} = {capacity} tokens"
    memory = f"{capacity * per_token / _GIB:.2f} GiB"
    limit = "the limits can use no more" if useful <= affordable else why
    return CachePlan(
        num_blocks,
        longest,
        (
            Decision("context", f"{longest} tokens", _why_length(longest, wanted, spec)),
            Decision("KV cache", f"{blocks}, {memory}", f"{per_token} bytes a token; {limit}"),
        ),
    )


def _why_length(longest: int, wanted: int, spec: ModelSpec) -> str:
    if longest < wanted:
        return f"{wanted} were wanted; the KV cache holds no more"
    return "what the model was made for" if wanted == spec.max_positions else "asked for"


def _wanted_length(config: ModelConfig, spec: ModelSpec) -> int:
    wanted = spec.max_positions if config.max_model_len is None else config.max_model_len
    if wanted < 2:
        raise ConfigError("--max-model-len must be at least 2")
    if wanted > spec.max_positions:
        raise ConfigError(
            f"--max-model-len {wanted}: the model was made for {spec.max_positions} positions"
        )
    return wanted


def _budget(config: CacheConfig, free_bytes: int, device: torch.device) -> tuple[float, str]:
    """Bytes for the KV cache, and the arithmetic in words."""
    free = free_bytes / _GIB
    if config.kv_cache_gb is not None:
        if not config.kv_cache_gb <= free:  # NaN is not
            raise ConfigError(f"--kv-cache-gb {config.kv_cache_gb}: only {free:.2f} GiB are free")
        return config.kv_cache_gb * _GIB, "size asked for"
    share = _GPU_SHARE if device.type == "cuda" else _CPU_SHARE
    return free_bytes * share, f"{share:.0%} of the {free:.2f} GiB free after loading"
