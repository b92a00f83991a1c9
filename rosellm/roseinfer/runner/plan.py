"""How much memory an engine will take, before anything of it is allocated.

``rosellm plan`` shows this arithmetic, and ``build_engine`` goes by it. It counts what grows with
the model and the limits; what the interpreter, torch and the kernels take is measured by whoever
asks, since it is there before. Prompts that wait and grammars are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.errors import ModelError, RosellmError
from rosellm.roseinfer.layers.linear import Matrix
from rosellm.roseinfer.models.spec import ModelSpec
from rosellm.roseinfer.runner import resolve
from rosellm.roseinfer.runner.choices import Choices, choose
from rosellm.roseinfer.runner.cuda_graph import sizes
from rosellm.roseinfer.runner.resolve import CachePlan, TooLittleError

_GIB = 1 << 30
_FLOAT_BYTES = 4
_TOKEN_NUMBERS, _BLOCK_NUMBERS = 8, 1  # ids, positions, slots, tiles; tables
_ROW_NUMBERS = 1 << 20
_MOST_UPLOADED = 64 << 20

BLOCK_RECORD_BYTES = 400
"""What the scheduler's side keeps of a block in use: reference, hash, places in two tables."""

WARM_BYTES = 16 << 20
"""Pages of torch's and the kernels' code that only a step brings in, and their small buffers; as
measured on Linux."""

GRAPH_BYTES = 8 << 20
"""What a CUDA graph takes beside its rows' activations: the driver's record of its kernels."""

EXTRA_ROW_BYTES = 44
"""A token of the vocabulary in a row with penalties and log-probabilities: copies of the logits,
counts of the prompt's and the answer's tokens, and what is made of them."""


@dataclass(frozen=True)
class Needs:
    """Bytes that are needed whatever the size of the KV cache.

    Attributes:
        weights: as the kernels hold them, quantised or not.
        tables: of rotary embeddings, for every position that is served, or wanted.
        step: activations, workspaces and logits of the largest step.
        extras: on top of ``step`` where every row has penalties and log-probabilities.
        loading: on top of the weights while they are loaded: what is being laid out.
        buffers: those that steps are sent through, and the blocks that padding writes to.
        graphs: of CUDA graphs.
    """

    weights: int
    tables: int
    step: int
    extras: int
    loading: int
    buffers: int = 0
    graphs: int = 0

    @property
    def serving(self) -> int:
        """All that stays, and a step."""
        return self.weights + self.tables + self.step + self.buffers + self.graphs


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine will take.

    Attributes:
        free: bytes that were free when this was made.
    """

    needs: Needs
    cache: CachePlan
    free: int

    @property
    def cache_bytes(self) -> int:
        """Of the KV cache, all of it written, and what is remembered of its blocks."""
        return self.cache.num_bytes + sum(self.cache.num_blocks) * BLOCK_RECORD_BYTES

    @property
    def peak(self) -> int:
        """Most that is taken at one time, beside what the process has before."""
        needs = self.needs
        return WARM_BYTES + max(needs.serving + self.cache_bytes, needs.weights + needs.loading)


def plan_memory(choices: Choices, free: int) -> MemoryPlan:
    """Size everything.

    Args:
        free: bytes that can be allocated; a GPU's others keep their share of them.

    Raises:
        ModelError, ConfigError: it cannot be met; in one line, with what would fit.
    """
    needs = needs_of(choices)
    free -= resolve.spared(choices.config.cache, free, choices.device)
    try:
        return _within(choices, needs, free)
    except RosellmError as error:
        if not isinstance(error, TooLittleError | ModelError):
            raise
        others = ", ".join(fitting(choices, free))
        advice = f"; what would fit: {others}" if others else ""
        raise type(error)(f"{error}{advice}") from None


def _within(choices: Choices, needs: Needs, free: int) -> MemoryPlan:
    least = needs.weights + max(needs.loading, needs.step + needs.buffers + needs.graphs)
    if least > free:
        larger = " or a larger --gpu-memory-utilization" if choices.device.type == "cuda" else ""
        raise ModelError(
            f"the weights take {needs.weights / _GIB:.2f} GiB, loading them or a step "
            f"{(least - needs.weights) / _GIB:.2f} GiB, and {free / _GIB:.2f} GiB are free on "
            f"{choices.device}: make room, or use a smaller model{larger}"
        )
    size = partial(
        resolve.resolve_cache,
        choices.config,
        choices.spec,
        choices.kv_dtype,
        choices.device,
        choices.step_tokens,
    )
    longest = size(free - (needs.serving - needs.tables)).max_model_len
    needs = replace(needs, tables=_table_bytes(choices.spec, longest))
    return MemoryPlan(needs, size(free - needs.serving), free)


def plan_measured(choices: Choices, step: int, free: int, spared: int) -> MemoryPlan:
    """Size the KV cache when the weights are there.

    Args:
        step: bytes that the largest step took on top of what stays, as it was measured.
        free: bytes that can be allocated now.
        spared: of them, those that are left to others.

    Raises:
        ModelError, ConfigError: as ``plan_memory``.
    """
    needs = replace(needs_of(choices), weights=0, loading=0, step=step)
    return _within(choices, needs, free - spared)


def fitting(choices: Choices, free: int) -> Iterator[str]:
    """Flags of which each one alone would make it fit, the least loss first."""
    for flag, config in _alternatives(choices):
        try:
            other = choose(config, choices.described)
            _within(other, needs_of(other), free)
        except RosellmError:
            continue
        yield flag


def _alternatives(choices: Choices) -> Iterator[tuple[str, EngineConfig]]:
    config = choices.config
    model = config.model
    if choices.dtype.itemsize > 2:
        yield "--dtype bfloat16", replace(config, model=replace(model, dtype="bfloat16"))
    if choices.described.recipe is None and choices.recipe.layers is None:
        for bits in ("int8", "int4"):
            quantized = replace(model, quantization=bits)
            yield f"--quantization {bits}", replace(config, model=quantized)
    if config.cache.kv_cache_dtype == "auto":
        cache = replace(config.cache, kv_cache_dtype="int8")
        yield "--kv-cache-dtype int8", replace(config, cache=cache)


# -- what is needed --------------------------------------------------------------------------


def needs_of(choices: Choices) -> Needs:
    """The sizes of what has to be there."""
    spec = choices.spec
    rows = min(choices.config.scheduler.max_num_seqs, choices.step_tokens)
    logits = rows * spec.vocab_size if spec.generates else 0
    return Needs(
        weights=choices.model.weight_bytes(choices.dtype),
        tables=_table_bytes(spec, resolve.wanted_length(choices.config.model, spec)),
        step=_activation_bytes(choices) + logits * _logit_bytes(choices),
        extras=logits * EXTRA_ROW_BYTES,
        loading=_loading_bytes(choices),
        buffers=_buffer_bytes(choices),
        graphs=_graph_bytes(choices),
    )


def upload_bytes(choices: Choices) -> int:
    """Most that the host's numbers for a step come to: some for each token and each block."""
    sequences, size = choices.config.scheduler.max_num_seqs, choices.config.cache.block_size
    longest = resolve.wanted_length(choices.config.model, choices.spec)
    blocks = sequences * -(-longest // size)
    numbers = _TOKEN_NUMBERS * choices.step_tokens + _BLOCK_NUMBERS * blocks
    return min(numbers * len(choices.spec.kv_groups) * 8 + _ROW_NUMBERS, _MOST_UPLOADED)


def _buffer_bytes(choices: Choices) -> int:
    if choices.device.type == "cpu":
        return 0
    size = choices.config.cache.block_size
    trash = sum(group.bytes_per_token(choices.kv_dtype) for group in choices.spec.kv_groups) * size
    return upload_bytes(choices) + trash


def _graph_bytes(choices: Choices) -> int:
    if choices.device.type == "cpu" or not choices.graphs:
        return 0
    sequences = choices.config.scheduler.max_num_seqs
    rows = _activation_bytes(choices) // choices.step_tokens * sequences
    return rows + GRAPH_BYTES * len(sizes(sequences))


def _table_bytes(spec: ModelSpec, positions: int) -> int:
    """cos and sin of every position, for each different rotary embedding."""
    ropes = {spec.rope_of(layer) for layer in range(spec.num_layers)} - {None}
    return sum(positions * rope.dim * _FLOAT_BYTES for rope in ropes if rope is not None)


def _activation_bytes(choices: Choices) -> int:
    """Rows of a step between two layers, and inside one."""
    spec = choices.spec
    heads = spec.heads * spec.head_dim
    qkv = heads + 2 * spec.kv_heads * spec.head_dim
    inner = spec.intermediate_size
    if choices.ops.packed is not None:  # activations in fp32, their products' inputs in 16 bits
        width = _FLOAT_BYTES * (3 * spec.hidden_size + qkv + heads + inner) + 2 * inner
    else:
        width = choices.dtype.itemsize * (3 * spec.hidden_size + 2 * max(qkv + heads, 3 * inner))
    if spec.experts is not None:
        width += 3 * _FLOAT_BYTES * spec.experts.active * (spec.hidden_size + spec.experts.width)
    return choices.step_tokens * width


def _logit_bytes(choices: Choices) -> int:
    """Bytes of a logit, and of its copies on the way."""
    copies = 1 + 2 * (choices.spec.final_softcap is not None)
    if choices.ops.packed is None:  # put together of tiles, and then made fp32
        copies += 2
    return copies * _FLOAT_BYTES


def _loading_bytes(choices: Choices) -> int:
    """The largest matrix beside the laid out ones: as stored, as it is mapped, quantised."""
    stored = getattr(torch, choices.described.dtype, torch.float32).itemsize
    return max(_laying_out(module, choices, stored) for _, module in choices.model.own_modules())


def _laying_out(module: torch.nn.Module, choices: Choices, stored: int) -> int:
    if not isinstance(module, Matrix):
        return 0
    rows, columns = module.weight.shape
    numbers = rows * columns
    if choices.described.recipe is not None and module.format is not None:
        return module.format.num_bytes(rows, columns)
    if module.format is not None:
        return numbers * 2 * stored + module.format.num_bytes(rows, columns)
    return numbers * (choices.dtype.itemsize + stored)
