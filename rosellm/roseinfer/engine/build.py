"""From a config to an engine that serves: open, decide, load, allocate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import torch

import rosellm
from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.load import Source, fill
from rosellm.roseinfer.grammar.vocabulary import Vocabulary, load_vocabulary
from rosellm.roseinfer.loading.assign import Place
from rosellm.roseinfer.loading.checkpoint import Checkpoint
from rosellm.roseinfer.loading.identity import begin_hashing
from rosellm.roseinfer.loading.open import open_checkpoint
from rosellm.roseinfer.messages import Decision, Progress, Ready
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.models.spec import ModelSpec
from rosellm.roseinfer.runner import memory, resolve
from rosellm.roseinfer.runner.arena import uploads_of
from rosellm.roseinfer.runner.choices import Choices, Described, choose
from rosellm.roseinfer.runner.cuda_graph import CudaRecorder, DecodeGraphs, sizes, widths
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.runner.plan import needs_of, plan_measured, plan_memory, upload_bytes
from rosellm.roseinfer.runner.profile import CudaMeter, Meter, step_bytes
from rosellm.roseinfer.text.load import load_tokenizer


def build_engine(
    config: EngineConfig,
    on_progress: Callable[[Progress], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> EngineCore:
    """Load the model and stand the engine up.

    Args:
        checkpoint: where weights come from, if not from the config's model; for benchmarks.

    Raises:
        ModelError: the checkpoint cannot be served.
        ConfigError: the config cannot be met.
    """
    on_progress(Progress("opening"))
    checkpoint = checkpoint or open_checkpoint(config.model.model)
    architecture = find_architecture(checkpoint.architecture)
    spec = architecture.read_config(checkpoint.config).with_pooling(checkpoint.pooling)
    made = choose(config, Described(architecture, spec, checkpoint.dtype, checkpoint.recipe))
    free = memory.available(made.device)
    plan = plan_memory(made, free).cache  # what cannot work is refused before loading
    weights = begin_hashing(config.model.model)
    source = Source(config.model.model, checkpoint, architecture.weights)
    model, ops, device, dtype = made.model, made.ops, made.device, made.dtype
    came_from = fill(model, source, made.recipe, Place(dtype, device), on_progress, ops.packed)
    memory.give_back()
    backend, block_size = made.backend, config.cache.block_size
    if device.type == "cuda":
        on_progress(Progress("measuring memory"))
        plan = _measured(made, plan.max_model_len, free, CudaMeter(device))
    storage = KVStorage(spec.kv_groups, plan.num_blocks, block_size, made.kv_dtype, device)
    promised = ops.invariant and backend.invariant
    agreed = promised and ops.agree(dtype, device)
    invariant = agreed and model.rows_are_independent(dtype, device)
    facts = Ready(
        max_model_len=plan.max_model_len,
        vocab_size=spec.vocab_size,
        capacity_tokens=plan.capacity_tokens,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        invariant=invariant,
        fingerprint=_fingerprint(
            device,
            invariant,
            weights.result(),
            *(str(dtype), str(made.kv_dtype), repr(made.recipe), repr(spec)),
            *(ops.name, ops.identity, backend.name),
            str(plan.max_model_len),  # rope scalings may depend on it
        ),
        decisions=[
            *made.decisions,
            *resolve.explain_quantization(made.recipe, came_from or "as they are stored"),
            *made.kv_decisions,
            *plan.decisions,
            made.step_decision,
            made.overlap_decision,
            Decision("kernels", ops.name, f"{ops.reason}; {_tried(promised, invariant)}"),
            made.attention_decision,
            *made.graph_decisions,
            *([] if spec.generates else [Decision("vectors", spec.pooling, "an encoder")]),
        ],
        generates=spec.generates,
        pooling=spec.pooling,
        embedding_size=spec.hidden_size,
    )
    return EngineCore(
        _runner(made, storage, plan.max_model_len),
        facts,
        config.scheduler,
        cache=_cache(config.cache, spec, plan, made.kv_dtype),
        step_tokens=made.step_tokens,
        whole_prompts=not spec.causal,
        vocabulary=partial(_vocabulary, config.model, spec.vocab_size),
        overlap=made.overlap,
    )


def _measured(made: Choices, max_model_len: int, free: int, meter: Meter) -> resolve.CachePlan:
    """The cache that the memory is enough for, now that the weights are there.

    Args:
        free: bytes that were free at the start.
    """
    step = step_bytes(made, max_model_len, meter)
    spared = resolve.spared(made.config.cache, free, made.device)
    return plan_measured(made, step, meter.free(), spared).cache


def _runner(made: Choices, storage: KVStorage, max_model_len: int) -> ModelRunner:
    graphs = None
    if made.graphs:
        graphs = DecodeGraphs(
            CudaRecorder(made.device),
            sizes(made.config.scheduler.max_num_seqs),
            widths(max_model_len, made.config.cache.block_size),
            storage.trash_blocks,
            needs_of(made).graphs,
        )
    return ModelRunner(
        made.model,
        made.ops,
        storage,
        made.backend,
        made.device,
        max_model_len,
        made.spec.pooling,
        uploads_of(made.device, upload_bytes(made)),
        graphs,
    )


def _vocabulary(config: ModelConfig, size: int) -> Vocabulary:
    return load_vocabulary(load_tokenizer(config.tokenizer or config.model), size)


def _cache(
    config: CacheConfig, spec: ModelSpec, plan: resolve.CachePlan, kv_dtype: torch.dtype
) -> CacheManager:
    """Block tables over the storage; an encoder's prefixes depend on what follows them."""
    pools = [BlockPool(count) for count in plan.num_blocks]
    windows = [group.window for group in spec.kv_groups]
    found_again = config.prefix_cache and spec.causal
    return CacheManager(pools, config.block_size, found_again, windows, keys=[str(kv_dtype)])


def _tried(promised: bool, invariant: bool) -> str:
    if not promised:
        return "a row's bits may depend on its batch"
    kept = "keep" if invariant else "do not keep"
    return f"rows {kept} their bits in a batch, as tried on this machine"


def _fingerprint(device: torch.device, invariant: bool, *parts: str) -> str:
    """Changes when outputs may change: version, torch, device and ``parts``."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    told = "\n".join((rosellm.__version__, torch.__version__, hardware, *parts))
    digest = hashlib.blake2b(told.encode(), digest_size=6)
    promise = "invariant" if invariant else "batch-dependent"
    return f"fp_{digest.hexdigest()}_{promise}"
