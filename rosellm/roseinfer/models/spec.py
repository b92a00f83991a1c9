"""What the engine knows of a model, in its own words.

Names of a checkpoint's world appear only in an architecture's config reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rosellm.roseinfer.cache.storage import KVGroup
from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.messages import Pooling

if TYPE_CHECKING:
    from torch import nn

    from rosellm.roseinfer.kernels.table import Ops
    from rosellm.roseinfer.models.skeleton import Model

Activation = Literal["silu_mul", "gelu_erf", "gelu_tanh"]
Norm = Literal["rms", "layer"]

LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 12,
    "heads": 1 << 16,
    "kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_positions": 1 << 31,
}
"""Sizes far beyond any model's; up to these, no tensor's number of elements overflows."""

_FLOAT32_MAX = 3.4e38


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and choices of a transformer. Fields of one entry a layer may be empty: the default.

    Attributes:
        max_positions: longest sequence that the model was made for.
        rope: rotary embedding of all layers, or None.
        ropes: that of each layer, where they differ; None for a layer without.
        windows: how many latest positions each layer sees; None sees all.
        learned_positions: whether a table of positions is added to the embeddings.
        tied: whether the head is the embedding table.
        attention_bias, attention_out_bias: of the qkv and of the output projection.
        attention_scale: multiplies the scores; None is head_dim ** -0.5.
        attention_softcap: scores become softcap * tanh(scores / softcap).
        causal: whether a token sees only those before it; an encoder's sees all.
        pooling: how a sequence's vector is made of its hidden states.
        generates: whether there is a head for the next token.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm: Norm
    norm_eps: float
    activation: Activation
    rope: RopeSpec | None = None
    ropes: tuple[RopeSpec | None, ...] = ()
    windows: tuple[int | None, ...] = ()
    learned_positions: bool = False
    tied: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    mlp_bias: bool = False
    causal: bool = True
    pooling: Pooling = "last"
    generates: bool = True

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                value = shown(repr(getattr(self, name)))
                raise ModelError(f"the model's config says {name} = {value}")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"the model's config has {self.heads} heads, "
                f"not a multiple of its {self.kv_heads} KV heads"
            )
        if self.norm_eps < 0:
            raise ModelError(f"the model's config has {self.norm_eps} for the norms' epsilon")
        for name in ("ropes", "windows"):
            if len(getattr(self, name)) not in (0, self.num_layers):
                raise ModelError(
                    f"the model's config has {len(getattr(self, name))} {name} "
                    f"for {self.num_layers} layers"
                )
        for window in self.windows:
            if window is not None and window < 1:
                raise ModelError(f"the model's config has a sliding window of {window}")
        for rope in {self.rope, *self.ropes}:
            if rope is not None and (rope.dim < 2 or rope.dim % 2 or rope.theta <= 0):
                raise ModelError(
                    f"rotary embedding needs an even head_dim and a positive rope_theta; "
                    f"the model's config has {rope.dim} and {rope.theta}"
                )

    def rope_of(self, layer: int) -> RopeSpec | None:
        return self.ropes[layer] if self.ropes else self.rope

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """Layers by what they keep: all positions, or a window of each width."""
        windows = self.windows or (None,) * self.num_layers
        return tuple(
            KVGroup(
                tuple(layer for layer, own in enumerate(windows) if own == window),
                self.kv_heads,
                self.head_dim,
                window,
                self.causal,
            )
            for window in dict.fromkeys(windows)
        )


@dataclass(frozen=True)
class WeightMap:
    """How a checkpoint's tensors become parameters, as data.

    Keys are the checkpoint's names, values ours, ``{i}`` the layer in both; a value may
    end in ``:part``, one part of a fused weight.

    Attributes:
        names: for weights; biases follow their weights where the parameter exists.
        prefixes: optional beginnings of the checkpoint's names, taken off if present.
        transposed: checkpoint names whose tensors are stored [in, out].
        ignored: regular expressions of names that carry nothing to load.
    """

    names: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """The three declarations that make a model, and the skeleton that they fill."""

    read_config: Callable[[Mapping[str, Any]], ModelSpec]
    weights: WeightMap
    block: Callable[[Ops, ModelSpec, int], nn.Module]
    skeleton: Callable[[Ops, Architecture, ModelSpec], Model]

    def build(self, ops: Ops, spec: ModelSpec) -> Model:
        """The model, its parameters not filled yet."""
        return self.skeleton(ops, self, spec)


@dataclass(frozen=True)
class ConfigReader:
    """Typed look-ups in a checkpoint's config, with errors that name the key."""

    values: Mapping[str, Any]

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not -_FLOAT32_MAX < value < _FLOAT32_MAX:  # NaN is not either
            raise self._unexpected(key, "a number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unexpected(key, "an integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._unexpected(key, "true or false")
        return value

    def choice(self, key: str, default: str, choices: Mapping[str, Any]) -> Any:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self._unexpected(key, f"one of {', '.join(sorted(choices))}")
        return choices[value]

    def table(self, key: str) -> Mapping[str, Any]:
        """A nested object; empty where there is none."""
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self._unexpected(key, "an object")
        return value

    def refuse(self, key: str, harmless: Any = False) -> None:
        """Complain about a setting that changes the model in a way that is not built."""
        if self._get(key, harmless) != harmless:
            raise self._unexpected(key, f"{harmless!r}: anything else is not supported")

    def _unexpected(self, key: str, wanted: str) -> ModelError:
        found = shown(repr(self.values.get(key)))
        return ModelError(f"the model's config has {key} = {found}, expected {wanted}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"the model's config has no {key}")
        return value
