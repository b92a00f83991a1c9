"""What a model's config and the headers of its weights say, and what serving it would take.

Imports torch, so only inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosellm.commands.tables import size
from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.errors import ConfigError, ModelError, shown
from rosellm.roseinfer.hub import holds_model
from rosellm.roseinfer.models.registry import ARCHITECTURES

if TYPE_CHECKING:
    from rosellm.roseinfer.layers.rope import RopeSpec
    from rosellm.roseinfer.models.spec import ModelSpec
    from rosellm.roseinfer.quant.formats import Recipe
    from rosellm.roseinfer.runner.choices import Choices

Facts = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """A model on disk; ``num_bytes`` is None where its weights are not here."""

    architecture: str
    config: Mapping[str, Any]
    dtype: str
    num_bytes: int | None
    recipe: Recipe | None = None


def model_facts(config: EngineConfig) -> Facts:
    """Names and values, in the order to be shown.

    Raises:
        ModelError: the config or a header cannot be read.
    """
    found = find(config.model.model)
    if found.architecture not in ARCHITECTURES:
        yield "architecture", f"{shown(found.architecture)}: not supported (see rosellm models)"
        yield "stored", _stored(found)
        return
    made = choices(config, found)
    module = ARCHITECTURES[found.architecture].partition(":")[0].rpartition(".")[2]
    yield "architecture", f"{found.architecture} (models/{module}.py)"
    weights = made.model.num_weights()
    yield "parameters", f"{weights:,} ({_short(weights)})"
    yield "stored", _stored(found)
    yield from spec_facts(made.spec)
    yield from _memory_facts(made)


def choices(config: EngineConfig, found: Found) -> Choices:
    """What an engine of that model would be; the model stands without weights.

    Raises:
        ModelError, ConfigError: the model's config, or ours, cannot be met.
    """
    from rosellm.roseinfer.models.registry import find_architecture
    from rosellm.roseinfer.runner.choices import Described, choose

    architecture = find_architecture(found.architecture)
    spec = architecture.read_config(found.config)
    return choose(config, Described(architecture, spec, found.dtype, found.recipe))


def find(model: str) -> Found:
    """Open what is at a path: config and headers."""
    from rosellm.roseinfer.loading.open import open_checkpoint
    from rosellm.roseinfer.loading.safetensors import read_config

    folder = Path(model).expanduser()
    if folder.is_dir() and not holds_model(folder):
        config = read_config(folder)
        names = config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else "no architecture"
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"  # the usual default
        return Found(name, config, str(dtype), None)
    checkpoint = open_checkpoint(model)
    return Found(
        checkpoint.architecture,
        checkpoint.config,
        checkpoint.dtype,
        checkpoint.num_bytes,
        checkpoint.recipe,
    )


def _stored(found: Found) -> str:
    if found.num_bytes is None:
        return f"the weights are not here; {found.dtype}, by the config"
    quantized = ", quantised" if found.recipe else ""
    return f"{found.dtype}{quantized}, {size(found.num_bytes)}"


# -- sizes and choices -----------------------------------------------------------------------


def spec_facts(spec: ModelSpec) -> Facts:
    """Sizes and choices of the architecture."""
    yield "layers", str(spec.num_layers)
    yield "hidden size", f"{spec.hidden_size:,}"
    yield "MLP", _mlp(spec)
    yield "heads", f"{spec.heads}, with {spec.kv_heads} for keys and values, of {spec.head_dim}"
    yield "vocabulary", f"{spec.vocab_size:,}{', head tied to the embeddings' * spec.tied}"
    yield "context", f"{spec.max_positions:,} tokens"
    yield "positions", _positions(spec)
    if any(spec.windows):
        yield "windows", _shares(_window(window) for window in spec.windows)
    if not spec.generates:
        yield "vectors", f"{spec.hidden_size:,} numbers, {spec.pooling} pooling; no text"


def _mlp(spec: ModelSpec) -> str:
    dense = f"{spec.intermediate_size:,} wide"
    if spec.experts is None:
        return dense
    sparse = spec.experts
    mixed = f"{sparse.count} experts, {sparse.active} active, {sparse.width:,} wide"
    layers = len(sparse.layers)
    return mixed if layers == spec.num_layers else f"{mixed} in {layers} layers; else {dense}"


def _positions(spec: ModelSpec) -> str:
    if spec.learned_positions:
        return "learned, a row for each"
    return _shares(_rope(spec.rope_of(layer)) for layer in range(spec.num_layers))


def _rope(rope: RopeSpec | None) -> str:
    if rope is None:
        return "none"
    text = f"rotary, theta {rope.theta:,.0f}, {rope.dim} dimensions"
    settings = {
        name: value
        for name, value in asdict(rope.scaling).items()
        if isinstance(value, int | float) and name != "amplitude"
    }
    if not settings:
        return text
    said = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    return f"{text}, scaling {type(rope.scaling).__name__.lower()} ({said})"


def _window(window: int | None) -> str:
    return f"the latest {window:,} positions" if window else "all positions"


def _shares(values: Iterable[str]) -> str:
    """What all layers have, or how many have what."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value}: {count} layers" for value, count in counts.items())


# -- memory ----------------------------------------------------------------------------------


def _memory_facts(made: Choices) -> Facts:
    """What ``rosellm serve`` would decide now; ``rosellm plan`` tells more."""
    from rosellm.roseinfer.runner import memory, resolve
    from rosellm.roseinfer.runner.plan import needs_of

    on, how = made.decisions
    yield "runs in", f"{how.value} ({how.reason}), on {on.value} ({on.reason})"
    for decision in resolve.explain_quantization(made.recipe, ""):
        yield decision.name, decision.value
    free, needs = memory.available(made.device), needs_of(made)
    yield "memory, weights", f"{size(needs.weights)}, and {size(free)} are free now"
    try:
        if needs.weights > free:
            raise ModelError("no: the weights alone need more memory than is free")
        plan = resolve.resolve_cache(
            _unlimited(made.config),
            made.spec,
            made.kv_dtype,
            made.device,
            made.step_tokens,
            free - resolve.spared(made.config.cache, free, made.device) - needs.serving,
        )
    except (ConfigError, ModelError) as error:
        yield "fits", str(error)
        return
    yield "memory, KV cache", plan.decisions[-1].reason
    longest = f"the longest sequence {plan.max_model_len:,}"
    yield "fits", f"{plan.capacity_tokens:,} tokens in the cache, {longest}"


def _unlimited(config: EngineConfig) -> EngineConfig:
    """The same config, with more sequences at a time than any memory holds."""
    return replace(config, scheduler=replace(config.scheduler, max_num_seqs=1 << 40))


def _short(count: int) -> str:
    for unit, one in (("B", 1e9), ("M", 1e6)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count / 1e3:.3g} k"
