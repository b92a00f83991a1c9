"""What every "auto" came to, and why. Config in, decisions out; nothing is mutated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rosellm.roseinfer.attention import flashinfer
from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.cache.storage import KVGroup
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels import float8
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.messages import Decision
from rosellm.roseinfer.models.spec import ModelSpec
from rosellm.roseinfer.quant.formats import FORMATS, HEAD_BESIDE_INT4, Format, Recipe
from rosellm.roseinfer.runner import memory

_CPU_SHARE = 0.5
_CPU_STEP_TOKENS = 512
_GPU_STEP_TOKENS = 4096
_GIB = 1 << 30
_KV_TYPES = {"int8": torch.int8, "fp8": float8.TYPE}


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
    """The type of weights and activations, and of the KV cache where no other is asked for."""
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


def resolve_kv_dtype(
    config: CacheConfig, spec: ModelSpec, dtype: torch.dtype
) -> tuple[torch.dtype, Sequence[Decision]]:
    """The type of keys and values in the cache, and what is to be said of it.

    Raises:
        ConfigError: a smaller one is asked for where nothing is kept.
    """
    if config.kv_cache_dtype == "auto":
        return dtype, []
    if not spec.causal:
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype}: an encoder keeps no keys and values from "
            "one step to the next, so there is nothing to save; leave the flag out"
        )
    reason = "asked for; a scale for each head of a token"
    decision = Decision("KV dtype", config.kv_cache_dtype, reason)
    return _KV_TYPES[config.kv_cache_dtype], [decision]


def resolve_quantization(config: ModelConfig, stored: Recipe | None) -> Recipe:
    """Which matrices are held in few bits, and how.

    Args:
        stored: the recipe by which the checkpoint is quantised already, if it is.
    """
    layers, head = config.quantization, config.head_quantization
    if head == "auto":
        head = layers if layers in ("none", "fp8") else "int8"
    group = config.quantization_group
    coarse = layers == "int4" and head == "int8"
    head_form = HEAD_BESIDE_INT4 if coarse else FORMATS.get(head)
    asked = Recipe(_grouped(FORMATS.get(layers), group), head_form)
    if stored is None:
        return asked
    alike = asked == Recipe() or asked.labels == stored.labels
    if not alike or (group is not None and asked.layers != stored.layers):
        raise ConfigError(
            f"--quantization {layers}: the model is quantised already ({_recipe(stored)}); "
            "leave the flags for that out, or name the model it was made from"
        )
    return stored


def _grouped(form: Format | None, group: int | None) -> Format | None:
    """A format in groups of another size, if that is asked for."""
    if group is None:
        return form
    if form is None or not form.group:
        raise ConfigError(f"--quantization-group {group}: only int8 and int4 weights have groups")
    try:
        return replace(form, group=group)
    except ValueError as error:
        raise ConfigError(f"--quantization-group: {error}") from None


def check_fp8(
    lacks: str | None, lacks_cache: str | None, recipe: Recipe, kv_dtype: torch.dtype
) -> None:
    """Refuse fp8 where kernels do not know it.

    Args:
        lacks, lacks_cache: why they have no such weights, and no such cache; None if they do.

    Raises:
        ConfigError: naming the flag.
    """
    asked = {
        "--quantization": lacks if recipe.layers == FORMATS["fp8"] else None,
        "--head-quantization": lacks if recipe.head == FORMATS["fp8"] else None,
        "--kv-cache-dtype": lacks_cache if kv_dtype == float8.TYPE else None,
    }
    for flag, reason in asked.items():
        if reason is not None:
            raise ConfigError(f"{flag} fp8: {reason}; use int8, or --kernels reference (slow)")


def explain_quantization(recipe: Recipe, reason: str) -> Sequence[Decision]:
    """A recipe as a decision, if there is anything to say."""
    return [] if recipe == Recipe() else [Decision("weights", _recipe(recipe), reason)]


def _recipe(recipe: Recipe) -> str:
    layers, head = (each.name if each else "not quantised" for each in (recipe.layers, recipe.head))
    return f"{layers}, head {head}"


def resolve_step_tokens(
    config: SchedulerConfig, spec: ModelSpec, device: torch.device
) -> tuple[int, Decision]:
    """Token budget of one step."""
    if config.max_num_batched_tokens is not None:
        if config.max_num_batched_tokens < 1:
            raise ConfigError("--max-num-batched-tokens must be at least 1")
        value, reason = config.max_num_batched_tokens, "asked for"
    else:
        value = _CPU_STEP_TOKENS if device.type == "cpu" else _GPU_STEP_TOKENS
        reason = f"default on {device.type}"
    if not spec.causal and value < spec.max_positions:
        value, reason = spec.max_positions, "an encoder computes a prompt in one step"
    return value, Decision("step budget", f"{value} tokens", reason)


def resolve_overlap(config: SchedulerConfig, device: torch.device) -> tuple[bool, Decision]:
    """Whether a step is submitted before the one before it has come back."""
    if config.overlap != "auto":
        return config.overlap == "on", Decision("overlap", config.overlap, "asked for")
    if device.type == "cpu":
        reason = "a step keeps all cores busy until it is done: nothing would happen meanwhile"
        return False, Decision("overlap", "off", reason)
    return True, Decision("overlap", "on", "the next step is planned while the GPU computes one")


def resolve_attention(
    config: EngineConfig,
    spec: ModelSpec,
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> tuple[AttentionBackend, Decision]:
    """How attention is computed; ConfigError if it cannot be so."""
    size = config.cache.block_size
    if config.model.attention == "auto":
        own = ops.attention(size, device, spec.heads // spec.kv_heads)
        why = "paged; that of the kernels"
        if device.type == "cuda":
            why += ", FlashInfer's is taken only where --attention asks for it"
        return own, Decision("attention", own.name, why)
    reason = flashinfer.why_not(
        device, dtype, kv_dtype, spec.heads, spec.kv_groups, spec.attention_softcap
    )
    if reason is not None:
        raise ConfigError(f"--attention flashinfer: {reason}; use --attention auto")
    memory.empty_caches(device)  # of the trial
    why = "asked for; paged; a row's bits may depend on its batch"
    if config.model.deterministic:
        why += ", --deterministic notwithstanding"
    theirs = flashinfer.FlashInferAttention(size, device)
    return theirs, Decision("attention", theirs.name, why)


def resolve_cuda_graphs(
    config: ModelConfig, spec: ModelSpec, backend: AttentionBackend, device: torch.device
) -> tuple[bool, Sequence[Decision]]:
    """Whether decode steps are recorded as CUDA graphs, and what is to be said of it."""
    if device.type != "cuda":
        return False, []
    reason = _why_eager(config, spec, backend)
    if reason:
        return False, [Decision("CUDA graphs", "off", reason)]
    how = "of decode steps, each size recorded when it has been met a few times"
    return True, [Decision("CUDA graphs", "on", how)]


def _why_eager(config: ModelConfig, spec: ModelSpec, backend: AttentionBackend) -> str:
    if config.enforce_eager:
        return "asked for by --enforce-eager"
    if not spec.causal:
        return "an encoder computes whole prompts"
    if spec.experts is not None:
        return "which rows go to which expert is known to the host alone"
    return "" if backend.capturable else f"{backend.name} attention cannot be recorded"


class TooLittleError(ConfigError):
    """Memory is not enough for what is asked for; with other settings it may be."""


@dataclass(frozen=True)
class CachePlan:
    """Size of the KV cache, in blocks of each group, and the longest sequence it is meant for.

    Attributes:
        num_bytes: of all blocks, were every one written.
        decisions: on the context and on the cache.
    """

    num_blocks: tuple[int, ...]
    capacity_tokens: int
    max_model_len: int
    num_bytes: int
    decisions: tuple[Decision, ...]
    pools: tuple[Pool, ...]
    max_num_seqs: int

    def sequences(self, length: int) -> int:
        """How many sequences of so many tokens can run at the same time."""
        pairs = zip(self.num_blocks, self.pools, strict=True)
        return min(self.max_num_seqs, *(pool.sequences(count, length) for count, pool in pairs))


def resolve_cache(
    config: EngineConfig,
    spec: ModelSpec,
    kv_dtype: torch.dtype,
    device: torch.device,
    step_tokens: int,
    free_bytes: int,
) -> CachePlan:
    """Size the block pools from free memory; ConfigError if the context cannot fit."""
    size = config.cache.block_size
    if size < 1:
        raise ConfigError("--block-size must be at least 1")
    wanted = wanted_length(config.model, spec)
    pools = [
        Pool.of(group, kv_dtype, size, wanted, config.scheduler.max_num_seqs, step_tokens)
        for group in spec.kv_groups
    ]
    budget, why = _budget(config.cache, free_bytes, device)
    blocks = _affordable(pools, budget)
    longest = wanted if all(blocks >= pool.least for pool in pools) else max(blocks, 0) * size
    if longest < min(wanted, size) or (config.model.max_model_len and longest < wanted):
        needed = sum((pool.least + 1) * pool.block_bytes for pool in pools)
        fits = max(blocks, 0) * size
        shorter = f"a smaller --max-model-len ({fits} would fit) or " if fits else ""
        raise TooLittleError(
            f"a context of {wanted} tokens needs {needed / _GIB:.2g} GiB of KV cache and "
            f"{budget / _GIB:.2g} GiB are set aside for it; use {shorter}"
            f"{_larger(config.cache, needed, free_bytes, device)}"
        )
    counts = tuple(min(pool.useful, blocks) for pool in pools)
    memory = sum(n * pool.block_bytes for n, pool in zip(counts, pools, strict=True))
    limit = "the limits can use no more" if counts == tuple(p.useful for p in pools) else why
    capacity = max(counts) * size
    return CachePlan(
        counts,
        capacity,
        longest,
        memory,
        (
            Decision("context", f"{longest} tokens", _why_length(longest, wanted, spec)),
            Decision(
                "KV cache",
                f"{' + '.join(map(str, counts))} blocks of {size} = {capacity} tokens, "
                f"{memory / _GIB:.2f} GiB",
                f"{_bytes_a_token(spec, kv_dtype)}; {limit}",
            ),
        ),
        tuple(pools),
        config.scheduler.max_num_seqs,
    )


@dataclass(frozen=True)
class Pool:
    """What one KV group asks for.

    Attributes:
        size: tokens in a block.
        block_bytes: of one block, all the group's layers.
        least: blocks that the longest sequence holds at once.
        useful: blocks beyond which the limits on sequences leave the rest unused.
        kept: most blocks of a sequence between two steps; None without a window.
        chunk: blocks that a step's tokens take besides, in a group with a window.
    """

    size: int
    block_bytes: int
    least: int
    useful: int
    kept: int | None = None
    chunk: int = 0

    @classmethod
    def of(
        cls,
        group: KVGroup,
        kv_dtype: torch.dtype,
        size: int,
        longest: int,
        sequences: int,
        step_tokens: int,
    ) -> Pool:
        whole = -(-longest // size)
        block_bytes = group.bytes_per_token(kv_dtype) * size
        if group.window is None:
            return cls(size, block_bytes, whole, sequences * whole)
        # What a window covers may begin and end inside a block; a step's chunk comes on top.
        kept, chunk = -(-(group.window - 1) // size) + 2, -(-step_tokens // size)
        return cls(
            size,
            block_bytes,
            min(whole, kept + chunk),
            min(sequences * whole, sequences * kept + chunk),
            kept,
            chunk,
        )

    def sequences(self, blocks: int, length: int) -> int:
        """How many sequences of so many tokens have room in so many blocks."""
        whole = -(-length // self.size)
        if self.kept is None or whole <= self.kept:
            return blocks // whole
        return max(blocks - self.chunk, 0) // self.kept or int(blocks >= min(whole, self.least))


def _affordable(pools: Sequence[Pool], budget: float) -> int:
    """Most blocks a group for which memory suffices; a group takes no more than it can use.

    A block more of each group is kept empty (``KVStorage``).
    """
    low, high = -1, max(pool.useful for pool in pools)
    while low < high:
        middle = (low + high + 1) // 2
        cost = sum((min(pool.useful, middle) + 1) * pool.block_bytes for pool in pools)
        low, high = (middle, high) if cost <= budget else (low, middle - 1)
    return low


def _larger(config: CacheConfig, needed: int, free_bytes: int, device: torch.device) -> str:
    """What to say of a larger cache: how large it has to be, where there is memory for it."""
    if device.type == "cuda" and config.kv_cache_gb is None:
        return "a larger --gpu-memory-utilization"
    if needed > free_bytes:
        return "a larger --kv-cache-gb"
    return f"a larger --kv-cache-gb ({needed / _GIB * 1.005 + 0.0005:.3f} would fit)"


def _bytes_a_token(spec: ModelSpec, kv_dtype: torch.dtype) -> str:
    parts = [
        f"{group.bytes_per_token(kv_dtype)} bytes a token"
        + (f" within {group.window}" if group.window else "")
        for group in spec.kv_groups
    ]
    return ", ".join(parts)


def _why_length(longest: int, wanted: int, spec: ModelSpec) -> str:
    if longest < wanted:
        return f"{wanted} were wanted; the KV cache holds no more"
    return "what the model was made for" if wanted == spec.max_positions else "asked for"


def wanted_length(config: ModelConfig, spec: ModelSpec) -> int:
    """Longest sequence that is to be served, if memory allows."""
    wanted = spec.max_positions if config.max_model_len is None else config.max_model_len
    if wanted < 2:
        raise ConfigError("--max-model-len must be at least 2")
    longest = max(spec.max_positions, spec.stretched_positions)
    if wanted > longest:
        raise ConfigError(
            f"--max-model-len {wanted}: the model was made for {longest} positions; "
            "pass no more, or leave the flag out"
        )
    return wanted


def _budget(config: CacheConfig, free_bytes: int, device: torch.device) -> tuple[float, str]:
    """Bytes for the KV cache, and the arithmetic in words."""
    free = free_bytes / _GIB
    if config.kv_cache_gb is not None:
        if not config.kv_cache_gb <= free:  # NaN is not
            raise TooLittleError(
                f"--kv-cache-gb {config.kv_cache_gb}: only {free:.2f} GiB are free beside the "
                "weights and a step's results; pass less, or leave the flag out"
            )
        return config.kv_cache_gb * _GIB, "size asked for"
    if device.type == "cuda":
        share = f"{config.gpu_memory_utilization:.0%} of the memory free at the start"
        return free_bytes, f"what is left of {share} beside weights and a step"
    return free_bytes * _CPU_SHARE, f"{_CPU_SHARE:.0%} of the {free:.2f} GiB free beside all else"


def spared(config: CacheConfig, free_bytes: int, device: torch.device) -> int:
    """Of the bytes that were free at the start, those that are left to others."""
    if device.type != "cuda" or config.kv_cache_gb is not None:
        return 0
    return free_bytes - int(free_bytes * config.gpu_memory_utilization)
