"""What architectures read from config.json: one line that names the key where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.errors import ConfigError, ModelError
from rosellm.roseinfer.kernels.table import choose_ops
from rosellm.roseinfer.layers.rope import RopeSpec, RopeTable
from rosellm.roseinfer.layers.rope_scaling import Dynamic, Linear, LongRope, Unscaled
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.models.spec import ModelSpec
from tests.examples import examples
from tests.models.architectures import BASES
from tests.tiny_models import build, write_llama

CPU = torch.device("cpu")
WITHOUT = object()
DIVISORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 5.0, 6.0, 7.0]}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"type": "longrope", "original_max_position_embeddings": 64, **DIVISORS}


def read(base: str, **changes: Any) -> ModelSpec:
    config = {**BASES[base], **changes}
    config = {key: value for key, value in config.items() if value is not WITHOUT}
    return find_architecture(config["architectures"][0]).read_config(config)


def refusal(base: str, **changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        read(base, **changes)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


# -- what is wrong ----------------------------------------------------------------

SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads"]  # fmt: skip


@pytest.mark.parametrize(
    "value", [WITHOUT, "8", 1.5, True, [3]], ids=["none", "text", "1.5", "true", "list"]
)
@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("base", [b for b in BASES if not b.startswith("gemma")])
def test_sizes(base: str, key: str, value: Any) -> None:
    assert key in refusal(base, **{key: value})


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        ("mistral", "sliding_window", 0),
        ("mistral", "sliding_window", -4),
        ("mistral", "sliding_window", "all"),
        ("mistral", "hidden_act", "relu"),
        ("llama", "hidden_act", "gelu"),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("gpt_neox", "quantization_config", {"load_in_8bit": True}),
        ("qwen2", "use_sliding_window", "no"),
        ("qwen2", "max_window_layers", "all"),
        ("qwen2", "layer_types", ["full_attention"]),
        ("qwen2", "layer_types", ["full_attention"] * 3),
        ("qwen2", "layer_types", ["full_attention", "linear_attention"]),
        ("qwen2", "layer_types", ["full_attention", {}]),
        ("qwen2", "layer_types", ["full_attention", "sliding_attention"]),  # no window to use
        ("qwen2", "layer_types", "full_attention"),
        ("qwen3", "attention_bias", 1),
        ("qwen3", "head_dim", "128"),
        ("gemma2", "hidden_activation", "relu"),
        ("gemma2", "query_pre_attn_scalar", 0),
        ("gemma2", "query_pre_attn_scalar", -256),
        ("gemma2", "attn_logit_softcapping", 0.0),
        ("gemma2", "final_logit_softcapping", -30.0),
        ("gemma2", "final_logit_softcapping", "30"),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma2", "sliding_window", -1),
        ("gemma3", "sliding_window_pattern", 0),
        ("gemma3", "rope_local_base_freq", "1e4"),
        ("gemma3", "rope_parameters", {"rope_theta": 3.0}),  # not by layer type
        ("gemma3", "rope_parameters", {"full_attention": 3}),
        ("gemma3 with images", "text_config", [1]),
        ("phi3", "partial_rotary_factor", 1.5),
        ("phi3", "partial_rotary_factor", 0),
        ("phi3", "original_max_position_embeddings", "4096"),
        ("smollm3", "no_rope_layers", [1, 0]),
        ("smollm3", "no_rope_layers", [1, 0, 2]),
        ("smollm3", "no_rope_layers", "101"),
        ("smollm3", "no_rope_layer_interval", 0),
        ("gpt_neox", "rotary_pct", 0),
        ("gpt_neox", "rotary_pct", "0.25"),
        ("gpt_neox", "rotary_emb_base", -1),
        ("gpt_neox", "use_parallel_residual", "yes"),
        ("gpt_neox", "num_attention_heads", 7),
        ("gpt_neox", "hidden_act", "relu"),
        ("olmo2", "attention_bias", "yes"),
        ("olmo2", "rms_norm_eps", "1e-6"),
    ],
)
def test_a_value_that_does_not_fit_is_named(base: str, key: str, value: Any) -> None:
    # What follows phi3's wrong original length is only read for a scaled rope.
    extra = {"rope_scaling": LONGROPE} if "original" in key else {}
    assert key in refusal(base, **{**extra, key: value})


@pytest.mark.parametrize(
    ("scaling", "wanted"),
    [
        ({"rope_type": "ntk"}, "unknown rope scaling 'ntk'; supported: default, dynamic, linear"),
        ({"type": 7}, "unknown rope scaling 7"),
        ({"type": ["linear"]}, "unknown rope scaling ['linear']"),
        ({"type": "linear"}, "no rope_scaling.factor"),
        ({"type": "linear", "factor": "2"}, "rope_scaling.factor = '2'"),
        ({"type": "linear", "factor": 0.5}, "rope_scaling.factor = 0.5"),
        ({"type": "linear", "factor": 2.0, "rope_theta": -1}, "rope_scaling.rope_theta = -1"),
        ({"type": "dynamic", "factor": -3}, "rope_scaling.factor = -3"),
        ({"type": "dynamic", "factor": float("nan")}, "rope_scaling.factor = nan"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "rope_scaling.high_freq_factor = 4.0"),
        ({**LLAMA3, "high_freq_factor": None}, "no rope_scaling.high_freq_factor"),
        ({**LLAMA3, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({**YARN, "beta_fast": 0.5}, "rope_scaling.beta_fast = 0.5"),
        ({**YARN, "beta_slow": 0}, "rope_scaling.beta_slow = 0"),
        ({**YARN, "truncate": "no"}, "rope_scaling.truncate = 'no'"),
        ({**YARN, "attention_factor": 0}, "rope_scaling.attention_factor = 0"),
        ({**YARN, "rope_theta": 1}, "yarn needs a rope_theta above 1"),
        ({**YARN, "mscale": "1", "mscale_all_dim": 1.0}, "rope_scaling.mscale = '1'"),
        ({**YARN, "mscale": 1, "mscale_all_dim": -7}, "rope_scaling.mscale_all_dim = -7"),
        ({**YARN, "beta_slow": 5e-324}, "rope_scaling.beta_slow = 5e-324"),
        ({**LONGROPE, "short_factor": None}, "no rope_scaling.short_factor"),
        ({**LONGROPE, "long_factor": [1.0]}, "rope_scaling.long_factor"),
        ({**LONGROPE, "long_factor": [0, 1, 1, 1]}, "rope_scaling.long_factor"),
        ({**LONGROPE, "long_factor": "1"}, "rope_scaling.long_factor"),
        ({"partial_rotary_factor": 0.5, "rope_type": "default"}, "partial_rotary_factor"),
    ],
    ids=str,
)
def test_rope_scaling(scaling: dict[str, Any], wanted: str) -> None:
    assert wanted in refusal("llama", rope_scaling=scaling)
    spelled = {"rope_scaling": WITHOUT, "rope_parameters": scaling, "rope_theta": WITHOUT}
    assert wanted.replace("rope_scaling.", "rope_parameters.") in refusal("llama", **spelled)


def test_dynamic_scaling_of_a_single_pair() -> None:
    scaling = {"type": "dynamic", "factor": 2.0}
    assert "head_dim above 2" in refusal("llama", head_dim=2, rope_scaling=scaling)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
scaling_keys = st.sampled_from(
    [*LLAMA3, *YARN, *DIVISORS, "type", "rope_theta", "mscale", "mscale_all_dim", "beta_fast",
     "beta_slow", "attention_factor"]
)  # fmt: skip
scalings = st.builds(
    lambda base, changes: {**base, **changes},
    st.sampled_from([LLAMA3, YARN, LONGROPE,
                     {"type": "dynamic", "factor": 2.0}]),
    st.dictionaries(scaling_keys, anything, max_size=2),
)  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_any_value(base: str) -> None:
    """A model that can be built, frequencies included, or one line."""
    keys = [*BASES[base], "layer_types", "no_rope_layers", "rope_scaling", "rope_parameters"]
    values = {"rope_scaling": scalings, "rope_parameters": scalings}

    @settings(max_examples=examples(60), deadline=None, database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True))
        changes = {key: data.draw(values.get(key, anything) | anything) for key in chosen}
        if "architectures" in changes:
            return
        try:
            _stand_up(base, read(base, **changes))
        except ModelError as error:
            message = str(error)
        else:
            message = ""
        assert message.isprintable()
        assert len(message) < 1000

    check()


def _stand_up(base: str, spec: ModelSpec) -> None:
    if spec.num_layers <= 8:
        with torch.device("meta"):
            find_architecture(BASES[base]["architectures"][0]).build(choose_ops(CPU), spec)
    for layer in range(min(spec.num_layers, 8)):
        rope = spec.rope_of(layer)
        if rope is not None:
            RopeTable(rope, 8, CPU)


# -- what is said in several ways -------------------------------------------------


def test_null_is_no_window_and_absence_is_the_default() -> None:
    assert read("mistral", sliding_window=None).windows == (None, None)
    assert read("mistral", sliding_window=WITHOUT).windows == (4096, 4096)
    assert read("gemma2", final_logit_softcapping=None).final_softcap is None
    assert read("gemma2", final_logit_softcapping=WITHOUT).final_softcap == 30.0


def test_a_window_not_in_use_is_none() -> None:
    spec = read("qwen2", sliding_window=20)
    assert spec.windows == (None, None)
    assert len(spec.kv_groups) == 1


def test_both_spellings_of_rope_are_one() -> None:
    for scaling in (LLAMA3, YARN, {"rope_type": "linear", "factor": 2.0}):
        older = {"type" if key == "rope_type" else key: v for key, v in scaling.items()}
        newer = {**scaling, "rope_theta": 777.0}
        assert read("llama", rope_theta=777.0, rope_scaling=older) == read(
            "llama", rope_theta=WITHOUT, rope_parameters=newer
        )


def test_older_names_of_longrope() -> None:
    today, older, oldest = (
        read("phi3", rope_scaling={"type": name, **DIVISORS}) for name in ("longrope", "su", "yarn")
    )
    assert today == older == oldest
    assert "unknown rope scaling 'su'" in refusal("llama", rope_scaling={"type": "su", **DIVISORS})


def test_the_few_keys_of_a_gemma3_with_images() -> None:
    """As published, most of the text part is left to defaults."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "model_type": "gemma3_text", "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}  # fmt: skip
    spec = read("gemma3 with images", text_config=text)
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (8, 4, 256)
    assert (spec.vocab_size, spec.max_positions, spec.tied) == (262208, 131072, True)
    assert spec.windows[:6] == (1024,) * 5 + (None,)
    assert spec.rope_of(0) == RopeSpec(1e4, 256)
    assert spec.rope_of(5) == RopeSpec(1e6, 256, Linear(factor=8.0))
    assert spec.attention_scale == 256**-0.5


# -- how long a sequence may be ---------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "served", "most"),
    [
        (LLAMA3, 256, 256),
        ({"type": "linear", "factor": 2.5}, 256, 640),
        ({"type": "dynamic", "factor": 2.0}, 256, 512),
        ({**YARN, "original_max_position_embeddings": 100}, 400, 400),
        ({**YARN, "original_max_position_embeddings": 10}, 256, 256),
        ({"type": "yarn", "factor": 2.0}, 512, 512),
    ],
    ids=str,
)
def test_the_longest_sequence(
    scaling: dict[str, Any], served: int, most: int, tmp_path: Path
) -> None:
    folder = write_llama(tmp_path / "model", rope_scaling=scaling)
    settings = {"kv_cache_gb": 0.1}
    assert build(folder, **settings).facts.max_model_len == served
    assert build(folder, max_model_len=most, **settings).facts.max_model_len == most
    with pytest.raises(ConfigError, match=f"made for {most} positions"):
        build(folder, max_model_len=most + 1, **settings)


def _table(scaling: Unscaled, max_positions: int) -> torch.Tensor:
    rope = RopeSpec(10000.0, 8, scaling)
    cos, sin = RopeTable(rope, max_positions, CPU).at(torch.arange(20))
    return torch.cat([cos, sin])


def test_what_depends_on_the_longest_sequence_is_fixed_once() -> None:
    plain = _table(Unscaled(), 32)
    dynamic = Dynamic(factor=2.0, original=32)
    assert torch.equal(_table(dynamic, 20), plain)
    assert torch.equal(_table(dynamic, 32), plain)
    assert not torch.equal(_table(dynamic, 33), plain)
    longrope = LongRope(short=(1.0,) * 4, long=(2.0,) * 4, original=32)
    assert torch.equal(_table(longrope, 32), plain)
    assert torch.equal(_table(longrope, 33), _table(Linear(factor=2.0), 33))


def test_configs_are_json() -> None:
    """So that a base is what a publisher could have written."""
    assert json.loads(json.dumps(BASES)) == BASES
