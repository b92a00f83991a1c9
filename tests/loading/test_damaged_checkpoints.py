"""Whatever is wrong with a checkpoint, the answer is one line that names it, never a traceback."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.errors import ModelError, RosellmError
from tests.examples import examples
from tests.tiny_models import GPT2, LLAMA, build, write_gpt2, write_llama, write_rose_gpt

SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 11,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
}
SMALL_GPT2: dict[str, Any] = {
    "n_embd": 8,
    "n_head": 2,
    "vocab_size": 11,
    "n_layer": 1,
    "n_positions": 64,
}
SMALL_ROSE: dict[str, Any] = {
    "d_model": 8,
    "n_heads": 2,
    "d_ff": 12,
    "vocab_size": 11,
    "n_layers": 1,
    "max_position_embeddings": 64,
}
LAYER = "model.layers.1."
WITHOUT = object()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, small."""
    folder = tmp_path_factory.mktemp("pristine")
    write_llama(folder / "llama", **SMALL)
    write_gpt2(folder / "gpt2", **SMALL_GPT2)
    write_rose_gpt(folder / "rose.pt", **SMALL_ROSE)
    return folder


def load(model: Path) -> EngineCore:
    return build(model, kv_cache_gb=0.001)


def refusal(model: Path) -> str:
    """The one line that the model is refused with."""
    with pytest.raises(ModelError) as caught:
        load(model)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 500
    return message


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not WITHOUT}
    path.write_text(json.dumps(kept))


# -- tensors ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        f"{LAYER}self_attn.k_proj.weight",
        f"{LAYER}mlp.up_proj.weight",
        f"{LAYER}input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_each_tensor_must_be_there_and_fit(name: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    short = name.removeprefix("model.")

    def drop(weights: dict[str, Any]) -> None:
        del weights[name]

    def widen(weights: dict[str, Any]) -> None:
        weights[name] = torch.zeros(*(extent + 1 for extent in weights[name].shape))

    def flatten(weights: dict[str, Any]) -> None:
        weights[name] = weights[name].flatten()[None, None]

    def round_off(weights: dict[str, Any]) -> None:
        weights[name] = weights[name].to(torch.int8)

    for change, wanted in [
        (drop, f"tensor {short}: missing from the checkpoint"),
        (widen, f"tensor {name}: expected shape"),
        (flatten, f"tensor {name}: expected shape"),
        (round_off, f"tensor {name}: expected floats, found torch.int8"),
    ]:
        original = (model / "model.safetensors").read_bytes()
        change_weights(model, change)
        assert wanted in refusal(model)
        (model / "model.safetensors").write_bytes(original)


def test_several_missing_tensors_are_counted(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", num_hidden_layers=1)
    change_config(model, num_hidden_layers=2)
    assert "(and 8 more)" in refusal(model)


@pytest.mark.parametrize(
    "name",
    ["model.layers.2.mlp.up_proj.weight", f"{LAYER}self_attn.q_proj.bias", "surplus", "new\nline"],
)
def test_extra_tensor(name: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    change_weights(model, lambda weights: weights.update({name: torch.zeros(2)}))
    message = refusal(model)
    assert "not part of this model" in message
    assert name.replace("\n", "\\n") in message


def test_a_name_with_and_without_prefix_is_a_duplicate(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    change_weights(model, lambda weights: weights.update({"norm.weight": torch.zeros(48)}))
    assert "norm.weight: twice in the checkpoint" in refusal(model)


def test_a_tensor_in_two_shards_is_a_duplicate(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", shards=2)
    first, second = sorted(model.glob("model-*.safetensors"))
    weights = {**load_file(first), **load_file(second)}
    save_file(weights, second)
    assert "twice in the checkpoint" in refusal(model)


def test_what_carries_nothing_is_passed_over(tmp_path: Path) -> None:
    """Rotary frequencies, causal masks and a tied head that old exporters wrote."""
    llama = write_llama(tmp_path / "llama", tie_word_embeddings=True)
    surplus = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "lm_head.weight": torch.zeros(97, 48),
    }
    change_weights(llama, lambda weights: weights.update(surplus))
    load(llama)
    gpt2 = write_gpt2(tmp_path / "gpt2")
    surplus = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
        "lm_head.weight": torch.zeros(97, 48),
    }
    change_weights(gpt2, lambda weights: weights.update(surplus))
    load(gpt2)


# -- files ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 2000, -1])
def test_truncated_safetensors(keep: int, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in refusal(model)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"\x00" * 64,
        b"\xff" * 64,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
    ],
    ids=["text", "zeros", "ones", "no tensors", "huge header"],
)
def test_garbage_for_safetensors(content: bytes, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    (model / "model.safetensors").write_bytes(content)
    assert str(model / "model.safetensors") in refusal(model)


def test_missing_weights(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    (model / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(model)


def test_missing_shard(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", shards=3)
    shard = model / "model-00002-of-00003.safetensors"
    shard.unlink()
    assert str(shard) in refusal(model)


@pytest.mark.parametrize(
    "entry",
    [
        "../model/model.safetensors",
        "/etc/hostname",
        "..",
        "",
        "a/../b",
        "x" * 5000,
        "\0",
        7,
        None,
        ["x"],
    ],
)
def test_an_index_cannot_point_outside(entry: Any, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", shards=2)
    index = model / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["lm_head.weight"] = entry
    index.write_text(json.dumps(table))
    refusal(model)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}']
)
def test_damaged_index(content: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", shards=2)
    index = model / "model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in refusal(model)


def test_no_model(tmp_path: Path) -> None:
    assert "no such model folder" in refusal(tmp_path / "nowhere")
    assert "config.json: no such file" in refusal(tmp_path)


# -- config.json ------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    (model / "config.json").write_bytes(content)
    assert str(model / "config.json") in refusal(model)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["MambaForCausalLM"], "unknown architecture 'MambaForCausalLM'"),
        (["x" * 5000], "unknown architecture 'xxx"),
        ([], "no architectures"),
        ("LlamaForCausalLM", "no architectures"),
        ([None], "no architectures"),
        (WITHOUT, "no architectures"),
    ],
)
def test_architecture(names: Any, wanted: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    change_config(model, architectures=names)
    assert wanted in refusal(model)


NEEDED = {
    "llama": ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
              "num_attention_heads"],
    "gpt2": ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions"],
}  # fmt: skip
SIZES = {
    "llama": [*NEEDED["llama"], "num_key_value_heads", "head_dim", "max_position_embeddings"],
    "gpt2": [*NEEDED["gpt2"], "n_inner"],
}
NUMBERS = {"llama": ["rms_norm_eps", "rope_theta"], "gpt2": ["layer_norm_epsilon"]}
FLAGS = {"llama": ["tie_word_embeddings", "attention_bias", "mlp_bias"],
         "gpt2": ["tie_word_embeddings"]}  # fmt: skip
NAMES = {"llama": ["hidden_act"], "gpt2": ["activation_function"]}
BAD_SIZES = [0, -1, -(10**30), 10**30, 1.5, 8.0, "8", True, [8], {"a": 8}, float("nan")]
BAD_NUMBERS = ["1e-5", True, [1e-5], {}, float("nan"), float("inf"), -1.0, 10**400]


def cases(keys: dict[str, list[str]], values: list[Any]) -> list[Any]:
    return [
        pytest.param(kind, key, value, id=f"{kind}-{key}-{str(value)[:12]}")
        for kind in keys
        for key in keys[kind]
        for value in values
    ]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *cases(NEEDED, [WITHOUT, None]),
        *cases(SIZES, BAD_SIZES),
        *cases(NUMBERS, BAD_NUMBERS),
        *cases(FLAGS, ["false", 1, [], {}]),
        *cases(NAMES, ["swish_not", 3, [], {}, True]),
        *cases({"llama": ["rope_scaling"]}, ["linear", 3, ["linear"], {"type": "yarn"}]),
        *cases({"llama": ["rope_parameters"]}, ["x", 3, [1], {"rope_theta": "a"}]),
        *cases({"llama": ["rope_theta"]}, [0, 0.0]),
        *cases({"gpt2": ["scale_attn_weights"]}, [False]),
        *cases({"gpt2": ["scale_attn_by_inverse_layer_idx"]}, [True]),
    ],
)
def test_config_value(kind: str, key: str, value: Any, pristine: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(pristine / kind, model)
    if key.startswith("rope_"):
        change_config(model, rope_theta=WITHOUT)
    change_config(model, **{key: value})
    refusal(model)


@pytest.mark.parametrize(
    ("kind", "changes", "wanted"),
    [
        ("llama", {"num_key_value_heads": 4}, "2 heads, not a multiple of its 4 KV heads"),
        ("llama", {"head_dim": 3}, "head_dim"),
        ("llama", {"num_attention_heads": 16, "num_key_value_heads": 16}, "head_dim = 0"),
        ("gpt2", {"n_head": 3}, "n_embd"),
    ],
)
def test_sizes_that_do_not_go_together(
    kind: str, changes: dict[str, Any], wanted: str, pristine: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(pristine / kind, model)
    change_config(model, **changes)
    assert wanted in refusal(model)


@pytest.mark.parametrize(("kind", "hidden"), [("llama", "hidden_size"), ("gpt2", "n_embd")])
def test_more_than_the_memory_holds(kind: str, hidden: str, pristine: Path, tmp_path: Path) -> None:
    """Said before anything is allocated."""
    model = tmp_path / "model"
    shutil.copytree(pristine / kind, model)
    change_config(model, **{"vocab_size": 16_000_000, hidden: 120_000})
    assert "GiB are free" in refusal(model)


# -- anything at all --------------------------------------------------------------

FUZZ = settings(
    max_examples=examples(150),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def loads_or_is_refused(model: Path) -> None:
    """Either is fine; any other exception, or more than a line, is not."""
    message = ""
    try:
        load(model)
    except RosellmError as error:
        message = str(error)
    assert message.isprintable(), message
    assert len(message) < 1000


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """A few bytes replaced, removed or repeated, more often near the beginning and the end."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        size = len(data)
        near = st.integers(0, min(size, 600) - 1)
        at = draw(near | near.map(lambda i, size=size: size - 1 - i) | st.integers(0, size - 1))
        action = draw(st.sampled_from(["replace", "cut", "repeat", "truncate"]))
        length = draw(st.integers(1, 8))
        if action == "replace":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif action == "cut":
            del data[at : at + length]
        elif action == "repeat":
            data[at:at] = data[at : at + length]
        elif size > 50:
            del data[max(at, 40) :]
    return bytes(data)


def test_an_archive_that_claims_to_have_a_part_elsewhere(pristine: Path, tmp_path: Path) -> None:
    """Python's own look at the end of a zip file raises then."""
    model = tmp_path / "rose.pt"
    whole = (pristine / "rose.pt").read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2)
    at = whole.rindex(b"PK\x05\x06")
    start = at - len(locator) if whole[at - 20 : at - 16] == b"PK\x06\x07" else at
    model.write_bytes(whole[:start] + locator + whole[at:])
    with pytest.raises(RosellmError, match="not a readable torch checkpoint"):
        load(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_config_value(kind: str, pristine: Path, tmp_path: Path) -> None:
    config = {**(LLAMA if kind == "llama" else GPT2)}
    keys = [*config, "head_dim", "rope_scaling", "rope_parameters", "n_inner", "dtype"]
    original = json.loads((pristine / kind / "config.json").read_text())
    model = tmp_path / "model"
    shutil.copytree(pristine / kind, model)

    @FUZZ
    @given(st.dictionaries(st.sampled_from(keys), json_values, min_size=1, max_size=2))
    def check(changes: dict[str, Any]) -> None:
        (model / "config.json").write_text(json.dumps({**original, **changes}))
        loads_or_is_refused(model)

    check()


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("llama", "config.json"),
        ("llama", "model.safetensors"),
        ("gpt2", "model.safetensors"),
        ("rose.pt", ""),
    ],
)
def test_any_damage(kind: str, file: str, pristine: Path, tmp_path: Path) -> None:
    model = tmp_path / kind
    if file:
        shutil.copytree(pristine / kind, model)
    else:
        shutil.copy(pristine / kind, model)
    target = model / file if file else model
    content = target.read_bytes()

    @FUZZ
    @given(damage(content))
    def check(damaged: bytes) -> None:
        target.unlink()  # an earlier mapping of the old file stays whole
        target.write_bytes(damaged)
        loads_or_is_refused(model)

    check()


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    """The shards of the helper hold every tensor once."""
    model = write_llama(tmp_path / "model", shards=3, dtype=torch.bfloat16)
    names: list[str] = []
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="pt") as reader:
            names += reader.keys()
    assert len(names) == len(set(names)) == 21
    assert load(model).facts.dtype == "bfloat16"
