"""What the engine knows of a model, in its own words.

Names of a checkpoint's world appear only in an architecture's config reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from rosellm.roseinfer.cache.storage import KVGroup
from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.messages import Pooling

if TYPE_CHECKING:
    from torch import nn

    from rosellm.roseinfer.kernels.table import Ops
    from rosellm.roseinfer.models.skeleton import Model

Norm = Literal["rms", "layer"]
QKNorm = Literal["head", "all"]

LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 12,
    "heads": 1 << 16,
    "kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_positions": 1 << 31,
    "token_types": 1 << 16,
}
"""Sizes far beyond any model's; up to these, no tensor's number of elements overflows."""

_MOST_EXPERTS = 1 << 12
_FLOAT32_MAX = 3.4e38


@dataclass(frozen=True)
class ExpertSpec:
    """Mixtures of experts that take the MLP's place.

    Attributes:
        count: experts in a mixture.
        active: how many of them a token goes through.
        width: inner width of each.
        normalise: whether the weights of the active ones are made to sum to 1.
        layers: those with a mixture; the others keep their MLP.
    """

    count: int
    active: int
    width: int
    normalise: bool
    layers: frozenset[int]

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count <= _MOST_EXPERTS:
            raise ModelError(
                f"the model's config has {self.count} experts, {self.active} of them active"
            )
        if not 1 <= self.width <= LARGEST["intermediate_size"]:
            raise ModelError(f"the model's config has experts of width {self.width}")


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and choices of a transformer. Fields of one entry a layer may be empty: the default.

    Attributes:
        max_positions: longest sequence that the model was made for.
        stretched_positions: longest that its rope scaling reaches, if that is asked for.
        norm_offset: whether norms scale by 1 + weight.
        qk_norm: norms of queries and keys: over each head, over all heads together, or none.
        embedding_scale: multiplies the embeddings.
        final_softcap: the head's scores become softcap * tanh(scores / softcap).
        parallel_residual: whether attention and MLP read the same hidden states.
        rope: rotary embedding of all layers, or None.
        ropes: that of each layer, where they differ; None for a layer without.
        windows: how many latest positions each layer sees; None sees all.
        learned_positions: whether a table of positions is added to the embeddings.
        position_offset: rows of that table before the first position's.
        token_types: rows of an encoder's table of token types; a plain text's is the first.
        experts: mixtures of experts, where some layers have them.
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
    stretched_positions: int = 0
    norm_offset: bool = False
    qk_norm: QKNorm | None = None
    embedding_scale: float | None = None
    final_softcap: float | None = None
    parallel_residual: bool = False
    rope: RopeSpec | None = None
    ropes: tuple[RopeSpec | None, ...] = ()
    windows: tuple[int | None, ...] = ()
    learned_positions: bool = False
    position_offset: int = 0
    token_types: int = 1
    experts: ExpertSpec | None = None
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
        for name in ("attention_softcap", "final_softcap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ModelError(f"the model's config has a soft-cap of {value}")
        for rope in {self.rope, *self.ropes}:
            if rope is not None and (rope.dim < 2 or rope.dim % 2 or rope.theta <= 0):
                raise ModelError(
                    f"rotary embedding needs an even head_dim and a positive rope_theta; "
                    f"the model's config has {rope.dim} and {rope.theta}"
                )

    def with_pooling(self, asked: Pooling | None) -> ModelSpec:
        """Pooled as the checkpoint asks, where it does.

        A decoder's prompt may be computed in chunks, or come from the cache: only its last
        hidden state is sure to be there.
        """
        if self.causal and asked not in (None, "last"):
            raise ModelError(f"{asked} pooling over a decoder is not supported, only lasttoken")
        return self if asked is None else replace(self, pooling=asked)

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

    Keys are the checkpoint's names, values ours; in both, ``{i}`` is the layer and ``{e}`` the
    expert. A value may end in ``:part``, one part of a fused weight. What a layer does not
    have is passed over.

    Attributes:
        names: for weights; biases follow their weights where the parameter exists.
        prefixes: optional beginnings of the checkpoint's names, taken off if present.
        endings: older endings of the checkpoint's names, and today's.
        transposed: checkpoint names whose tensors are stored [in, out].
        by_head: checkpoint names of fused qkv weights whose rows are q, k and v of the first
            head, then those of the second, and so on.
        ignored: regular expressions of names that carry nothing to load.
    """

    names: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    endings: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    by_head: frozenset[str] = frozenset()
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
    """Typed look-ups in a checkpoint's config, with errors that name the key.

    Attributes:
        path: what comes before a key in errors: "rope_scaling." in a nested object.
    """

    values: Mapping[str, Any]
    path: str = ""

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not -_FLOAT32_MAX < value < _FLOAT32_MAX:  # NaN is not either
            raise self.unexpected(key, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise self.unexpected(key, "a number above 0")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.unexpected(key, "an integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.unexpected(key, "true or false")
        return value

    def choice(self, key: str, default: str, choices: Mapping[str, Any]) -> Any:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.unexpected(key, f"one of {', '.join(sorted(choices))}")
        return choices[value]

    def sequence(self, key: str) -> Sequence[Any]:
        value = self._get(key, None)
        if not isinstance(value, list | tuple):
            raise self.unexpected(key, "a list")
        return value

    def section(self, key: str) -> ConfigReader:
        """A nested object; empty where there is none."""
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self.unexpected(key, "an object")
        return ConfigReader(value, f"{self.path}{key}.")

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.values.get(key) is not None

    def refuse(self, key: str, harmless: Any = False) -> None:
        """Complain about a setting that changes the model in a way that is not built."""
        if self._get(key, harmless) != harmless:
            raise self.unexpected(key, f"{harmless!r}: anything else is not supported")

    def unexpected(self, key: str, wanted: str) -> ModelError:
        found = shown(repr(self.values.get(key)))
        return ModelError(f"the model's config has {self.path}{key} = {found}, expected {wanted}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"the model's config has no {self.path}{key}")
        return value
