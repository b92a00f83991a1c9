"""A tiny configuration of every architecture, as its publishers spell it, and what to vary.

The weights come from transformers: its model is built from the config, filled with random
numbers large enough that a mistake shows, and saved, so that names and layout on disk are
not ours either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _config(architecture: str, model_type: str, **keys: Any) -> dict[str, Any]:
    return {**_COMMON, "architectures": [architecture], "model_type": model_type, **keys}


_GEMMA3: dict[str, Any] = {
    "head_dim": 10,
    "num_hidden_layers": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 16,
    "sliding_window_pattern": 3,
    "query_pre_attn_scalar": 13,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}

BASES: dict[str, dict[str, Any]] = {
    "llama": _config("LlamaForCausalLM", "llama", rope_theta=10000.0),
    "mistral": _config("MistralForCausalLM", "mistral", sliding_window=24),
    "qwen2": _config("Qwen2ForCausalLM", "qwen2", tie_word_embeddings=True, rope_theta=1e6,
                     use_sliding_window=False, sliding_window=20, max_window_layers=1),
    "qwen3": _config("Qwen3ForCausalLM", "qwen3", head_dim=10, tie_word_embeddings=True,
                     num_attention_heads=3, num_key_value_heads=1, attention_bias=False),
    "gemma2": _config("Gemma2ForCausalLM", "gemma2", head_dim=10, num_hidden_layers=3,
                      hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
                      sliding_window=16, query_pre_attn_scalar=13,
                      attn_logit_softcapping=1.5, final_logit_softcapping=2.5),
    "gemma3": _config("Gemma3ForCausalLM", "gemma3_text", **_GEMMA3),
    "gemma3 with images": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": _config("", "gemma3_text", **_GEMMA3),
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 16,
                          "intermediate_size": 24, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "image_token_index": 200, "boi_token_index": 201, "eoi_token_index": 202,
    },
    "phi3": _config("Phi3ForCausalLM", "phi3", sliding_window=None,
                    original_max_position_embeddings=256),
    "smollm3": _config("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=3,
                       no_rope_layer_interval=2, tie_word_embeddings=True),
    "gpt_neox": _config("GPTNeoXForCausalLM", "gpt_neox", hidden_act="gelu", layer_norm_eps=1e-5,
                        num_attention_heads=3, rotary_pct=0.25, rotary_emb_base=10000,
                        use_parallel_residual=True),
    "olmo2": _config("Olmo2ForCausalLM", "olmo2", rms_norm_eps=1e-6),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A configuration and how to run it.

    Attributes:
        changes: keys of the base's config.json that are different.
        max_model_len: for the engine.
        lengths: of the prompts.
        long: length of the text whose every logit is compared.
        first: length of a text that transformers sees first; it fixes the frequencies of
            ``dynamic`` rope scaling, which stay for the texts after it.
        slow: whether only the full run has time for it.
    """

    base: str
    changes: dict[str, Any] = field(default_factory=dict)
    max_model_len: int | None = None
    lengths: tuple[int, ...] = (1, 37, 5, 60, 16)
    long: int = 150
    first: int = 0
    slow: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {**BASES[self.base], **self.changes}


def _slow(base: str, **changes: Any) -> Case:
    return Case(base, changes, slow=True)


def _rope(kind: str, key: str = "rope_type", **values: Any) -> dict[str, Any]:
    return {key: kind, **values}


_SLIDING, _FULL = "sliding_attention", "full_attention"
_LLAMA3 = _rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64)  # fmt: skip
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
_LINEAR = _rope("linear", "type", factor=2.5)
_DYNAMIC = _rope("dynamic", "type", factor=4.0)
_DIVISORS = {
    "short_factor": [1.0, 1.1, 1.3, 1.9],
    "long_factor": [1.0, 2.2, 5.5, 9.7],
}
_LONGROPE = _rope("longrope", "type", **_DIVISORS)
_PARTIAL = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3}

ROPE_CASES: dict[str, Case] = {
    "llama3": Case("llama", {"rope_scaling": _LLAMA3}),
    "llama3, new spelling": Case(
        "llama", {"rope_parameters": {**_LLAMA3, "rope_theta": 5e5}}, slow=True
    ),
    "linear": Case("llama", {"rope_scaling": _LINEAR}),
    "linear, beyond the length given": Case(
        "llama",
        {"rope_scaling": _LINEAR, "max_position_embeddings": 64},
        max_model_len=160,
        slow=True,
    ),
    "yarn": Case("llama", {"rope_scaling": _YARN, "max_position_embeddings": 64}),
    "yarn, all its keys": Case(
        "llama",
        {"rope_scaling": {**_YARN, "beta_fast": 8, "beta_slow": 2, "truncate": False,
                          "attention_factor": 1.3}},
    ),
    "yarn, mscale": Case(
        "llama", {"rope_scaling": {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.2}}, slow=True
    ),
    "yarn, as Qwen has it": Case(
        "qwen2",
        {"rope_scaling": {**_YARN, "type": "yarn", "original_max_position_embeddings": 48},
         "max_position_embeddings": 48},
        slow=True,
    ),
    "dynamic, up to the original length": Case(
        "llama", {"rope_scaling": _DYNAMIC, "max_position_embeddings": 160}
    ),
    "dynamic, beyond": Case(
        "llama",
        {"rope_scaling": _DYNAMIC, "max_position_embeddings": 32},
        max_model_len=128,
        lengths=(37, 60, 33, 90),
        long=120,
        first=128,
    ),
    "longrope, short": Case(
        "phi3",
        {"rope_scaling": _LONGROPE, "original_max_position_embeddings": 160},
        max_model_len=160,
    ),
    "longrope, long": Case(
        "phi3",
        {"rope_scaling": _LONGROPE, "original_max_position_embeddings": 32},
        lengths=(37, 60, 33, 90),
    ),
    "longrope, half of a head, a factor of its own": Case(
        "phi3",
        {**_PARTIAL, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 32,
         "rope_scaling": {**_LONGROPE, "factor": 6.0}},
        lengths=(37, 60, 33, 90),
        slow=True,
    ),
    "longrope, amplitude": Case(
        "phi3",
        {"rope_scaling": {**_LONGROPE, "attention_factor": 1.2},
         "original_max_position_embeddings": 32},
        lengths=(37, 60, 33, 90),
        slow=True,
    ),
}  # fmt: skip

CASES: dict[str, Case] = {
    **{base: Case(base) for base in BASES if base != "gemma3 with images"},
    "mistral: no window": _slow("mistral", sliding_window=None),
    "mistral: a window of one": _slow("mistral", sliding_window=1),
    "mistral: head_dim": _slow("mistral", head_dim=20, num_attention_heads=3,
                               num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2: windows from a layer on": Case("qwen2", {"use_sliding_window": True,
                                                     "num_hidden_layers": 3}),
    "qwen2: layer_types": _slow("qwen2", use_sliding_window=True, num_hidden_layers=3,
                                layer_types=[_SLIDING, _FULL, _SLIDING],
                                tie_word_embeddings=False),
    "qwen2: odd heads": _slow("qwen2", num_attention_heads=5, num_key_value_heads=5,
                              hidden_size=40),
    "qwen3: biases, windows": Case("qwen3", {"attention_bias": True, "num_attention_heads": 6,
                                             "num_key_value_heads": 2, "use_sliding_window": True,
                                             "sliding_window": 9, "tie_word_embeddings": False}),
    "qwen3: layer_types": _slow("qwen3", use_sliding_window=True, sliding_window=33,
                                layer_types=[_SLIDING, _FULL]),
    "gemma2: no caps": _slow("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma2: untied, biases": _slow("gemma2", tie_word_embeddings=False, attention_bias=True,
                                    num_key_value_heads=6),
    "gemma2: layer_types": _slow("gemma2", layer_types=[_FULL, _SLIDING, _SLIDING]),
    "gemma3: layer_types, a cap": _slow("gemma3", layer_types=[_FULL, _SLIDING] * 2,
                                        final_logit_softcapping=2.5),
    "gemma3: text part of a model for images": Case("gemma3 with images", slow=True),
    "gemma3: unscaled": _slow("gemma3", rope_scaling=None, num_attention_heads=3,
                              num_key_value_heads=1, attention_bias=True),
    "gemma3: ropes by layer type": _slow(
        "gemma3", rope_scaling=None, rope_theta=None, rope_local_base_freq=None,
        rope_parameters={_FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
                         _SLIDING: {"rope_type": "default", "rope_theta": 2e4}}),
    "phi3: window, part of a head": Case("phi3", {**_PARTIAL, "sliding_window": 20,
                                                  "partial_rotary_factor": 0.75}),
    "phi3: tied, one kv head": _slow("phi3", tie_word_embeddings=True, num_key_value_heads=1),
    "smollm3: listed layers, windows, biases": Case(
        "smollm3", {"no_rope_layers": [0, 1, 1], "use_sliding_window": True,
                    "sliding_window": 21, "attention_bias": True, "mlp_bias": True}),
    "smollm3: untied": _slow("smollm3", tie_word_embeddings=False, no_rope_layer_interval=3,
                             layer_types=[_SLIDING, _FULL, _FULL], sliding_window=30,
                             use_sliding_window=True),
    "gpt_neox: one after the other": Case("gpt_neox", {"use_parallel_residual": False,
                                                       "rotary_pct": 1.0,
                                                       "hidden_act": "gelu_new"}),
    "gpt_neox: no attention biases": _slow("gpt_neox", attention_bias=False, rotary_pct=0.5,
                                           tie_word_embeddings=True, hidden_act="gelu_fast"),
    "gpt_neox: new spelling": _slow(
        "gpt_neox", rotary_pct=None, rotary_emb_base=None,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0,
                         "partial_rotary_factor": 0.75}),
    "gpt_neox: linear": _slow("gpt_neox", rope_scaling={"type": "linear", "factor": 2.0}),
    "olmo2: biases, as many kv heads as heads": _slow(
        "olmo2", attention_bias=True, num_attention_heads=5, num_key_value_heads=5,
        hidden_size=40, tie_word_embeddings=True),
    "olmo2: yarn": _slow("olmo2", rope_scaling=_YARN),
}  # fmt: skip
CASES |= {f"rope: {name}": case for name, case in ROPE_CASES.items()}


AS_SAVED = "config_as_transformers_saves_it.json"
_NULLABLE = {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}


def write_model(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    std: float = 0.2,
) -> Path:
    """A folder as a publisher has it: transformers' weights, and config.json as given.

    The config that transformers wrote is kept beside it, as ``AS_SAVED``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({k: v for k, v in config.items() if v is not None or k in _NULLABLE})
    (folder / "config.json").write_text(content)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            # Norms and biases keep their one or zero in the middle.
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    model.save_pretrained(folder)
    (folder / "config.json").rename(folder / AS_SAVED)
    (folder / "config.json").write_text(content)
    return folder
