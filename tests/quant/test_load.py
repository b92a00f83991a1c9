"""Quantised models: the same bits from a checkpoint, from the cache and from a written folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.engine import load
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.write import forgetful_ops, write_folder
from rosellm.roseinfer.errors import ConfigError, ModelError
from rosellm.roseinfer.kernels.cpu import matrix, packing
from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.cpu.library import load as load_library
from rosellm.roseinfer.loading import assign
from rosellm.roseinfer.loading.assign import Place, load_weights
from rosellm.roseinfer.loading.mapped import mapped_tensors
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.quant.formats import FORMATS, HEAD_BESIDE_INT4, Format, Recipe
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.runner.resolve import resolve_quantization
from tests.models.test_moe import MIXTRAL, QWEN3, write_moe
from tests.tiny_models import (
    all_logits,
    build,
    generate,
    greedy,
    random_prompts,
    write_gpt2,
    write_llama,
    write_rose_gpt,
    write_safetensors,
)

PROMPT = random_prompts([40], 97)[0]
INT8, INT4 = FORMATS["int8"], FORMATS["int4"]
HEAD = HEAD_BESIDE_INT4


def logits(model: Path, **settings: Any) -> Tensor:
    return all_logits(build(model, kernels="reference", **settings), PROMPT)


def said(core: EngineCore) -> str:
    """What the engine says of where its weights came from."""
    (reason,) = (each.reason for each in core.facts.decisions if each.name == "weights")
    return reason


def rounded(weight: Tensor, format: Format | None) -> Tensor:
    return weight if format is None else quantize(weight, format).dequantize()


# -- what is quantised -----------------------------------------------------------------------


def meant(weights: dict[str, Tensor], layers: Format, head: Format | None) -> dict[str, Tensor]:
    """A Llama's weights, each matrix rounded on its own under the checkpoint's names."""
    tied = "lm_head.weight" not in weights
    heads = ("lm_head.weight", "model.embed_tokens.weight" if tied else "")
    return {
        name: rounded(weight, head if name in heads else layers)
        if "_proj.weight" in name or ".experts." in name or name in heads
        else weight
        for name, weight in weights.items()
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("settings", "layers", "head"),
    [
        ({"quantization": "int8"}, INT8, INT8),
        ({"quantization": "int4"}, INT4, HEAD),
        ({"quantization": "int4", "head_quantization": "int4"}, INT4, INT4),
        ({"quantization": "int4", "head_quantization": "none"}, INT4, None),
        ({"quantization": "int4", "quantization_group": 32}, Format(4, 32), HEAD),
        ({"quantization": "int8", "quantization_group": 64}, Format(8, 64), INT8),
    ],
)
def test_a_llama(tmp_path, settings, layers, head, tied):
    model = write_llama(tmp_path / "model", tie_word_embeddings=tied, attention_bias=True)
    shutil.copytree(model, tmp_path / "meant")
    weights = meant(load_file(model / "model.safetensors"), layers, head)
    write_safetensors(tmp_path / "meant", weights)
    assert torch.equal(logits(model, **settings), logits(tmp_path / "meant"))


def test_the_head_alone(tmp_path):
    model = write_llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    found = logits(model, head_quantization="int8")
    weights["lm_head.weight"] = rounded(weights["lm_head.weight"], INT8)
    write_safetensors(model, weights)
    assert torch.equal(found, logits(model))


def test_matrices_that_are_stored_input_first(tmp_path):
    model = write_gpt2(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("attn.weight", "proj.weight", "fc.weight")):
            weights[name] = rounded(weight.t(), INT4).t().contiguous()
    weights["transformer.wte.weight"] = rounded(weights["transformer.wte.weight"], HEAD)
    found = logits(model, quantization="int4")
    write_safetensors(model, weights)
    assert torch.equal(found, logits(model))


@pytest.mark.parametrize("config", [MIXTRAL, QWEN3], ids=["mixtral", "qwen3"])
def test_experts_are_quantised_and_routers_are_not(tmp_path, config):
    model = write_moe(tmp_path / "model", config)
    weights = load_file(model / "model.safetensors")
    found = logits(model, quantization="int4")
    write_safetensors(model, meant(weights, INT4, HEAD))
    assert torch.equal(found, logits(model))


def test_numbers_are_not_rounded_twice(tmp_path):
    """What is quantised is what the checkpoint holds, whatever the model computes in."""
    model = write_llama(tmp_path / "model")
    kept: dict[str, dict[str, Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        write_folder(
            ModelConfig(str(model), dtype=str(dtype).removeprefix("torch."), quantization="int8"),
            tmp_path / str(dtype),
        )
        kept[str(dtype)] = load_file(tmp_path / str(dtype) / "model.safetensors")
    codes = [name for name in kept["torch.float32"] if ".weight." in name]
    assert codes
    for name in codes:
        assert torch.equal(kept["torch.float32"][name], kept["torch.bfloat16"][name])


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    model = write_llama(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    write_safetensors(model, weights)
    with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.up.*not finite"):
        build(model, quantization="int4")


# -- the cache -------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: write_llama(path / "model", shards=3),
    "tied": lambda path: write_llama(path / "model", tie_word_embeddings=True, mlp_bias=True),
    "bf16": lambda path: write_llama(path / "model", dtype=torch.bfloat16),
    "fp16": lambda path: write_llama(path / "model", dtype=torch.float16),
    "gpt2": lambda path: write_gpt2(path / "model"),
    "rose": lambda path: write_rose_gpt(path / "model.pt"),
    "experts": lambda path: write_moe(path / "model", QWEN3),
}


@dataclass(frozen=True)
class Native:
    """What of the native kernels these tests touch."""

    library: Library
    Matrix: type = matrix.Matrix
    Packing: type = packing.Packing


@pytest.fixture
def native() -> Native:
    library = load_library()
    if not isinstance(library, Library):
        pytest.skip(library.reason)
    return Native(library)


@pytest.fixture
def no_quantising(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, nothing can be quantised any more."""

    def refuse(*_: Any) -> None:
        raise AssertionError("quantised again")

    return lambda: monkeypatch.setattr(assign, "quantize", refuse)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_second_start_reads_what_the_first_one_kept(tmp_path, kind, cache, no_quantising):
    model = WRITERS[kind](tmp_path)
    first = build(model, quantization="int4", kernels="reference")
    (entry,) = cache.iterdir()
    assert said(first) == f"kept in {entry}"
    no_quantising()
    second = build(model, quantization="int4", kernels="reference")
    assert said(second) == f"read from {entry}"
    assert torch.equal(all_logits(first, PROMPT), all_logits(second, PROMPT))
    assert first.facts.fingerprint == second.facts.fingerprint


def mapped_files() -> str:
    """The files that this process has mapped."""
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "rose"])
def test_the_native_kernels_second_start_is_a_mapping(tmp_path, kind, cache, monkeypatch, native):
    """What they multiply is in the file: nothing is quantised, laid out or copied."""
    model = WRITERS[kind](tmp_path)
    settings = {"quantization": "int4", "kv_cache_gb": 0.01}
    first = build(model, **settings)
    (entry,) = cache.iterdir()
    assert said(first) == f"kept in {entry}"
    wanted = generate(first, [PROMPT], greedy(6)), all_logits(first, PROMPT)
    assert str(entry) not in mapped_files()

    def refuse(*_: Any) -> None:
        raise AssertionError("quantised or laid out again")

    monkeypatch.setattr(native.Packing, "layout", native.Packing(native.library).layout)
    monkeypatch.setattr(assign, "quantize", refuse)
    monkeypatch.setattr(native.Matrix, "pack_codes", refuse)
    second = build(model, **settings)
    assert said(second) == f"mapped from {entry}"
    assert str(entry) in mapped_files()
    assert generate(second, [PROMPT], greedy(6)) == wanted[0]
    assert torch.equal(all_logits(second, PROMPT), wanted[1])
    assert first.facts.fingerprint == second.facts.fingerprint
    shutil.rmtree(entry)  # whoever has it mapped keeps it
    assert torch.equal(all_logits(second, PROMPT), wanted[1])


def test_another_layout_is_another_entry(tmp_path, cache, monkeypatch, native):
    """As of another version, whose kernels would read other numbers in these bytes."""
    model = write_llama(tmp_path / "model")
    expected = all_logits(build(model, quantization="int4"), PROMPT)
    monkeypatch.setattr(native.Packing, "layout", "another")
    core = build(model, quantization="int4")
    assert len(list(cache.iterdir())) == 2
    assert said(core).startswith("kept in ")
    assert torch.equal(all_logits(core, PROMPT), expected)


def test_a_layouts_name_is_that_of_its_bytes(native, monkeypatch):
    assert native.Packing(native.library).layout == native.Packing(native.library).layout
    before = native.Packing(native.library).layout
    pack = native.Matrix.pack_codes

    def otherwise(matrix: Any, codes: Any, first: int = 0) -> None:
        pack(matrix, codes, first)
        matrix.data[1000] += 1

    monkeypatch.setattr(native.Matrix, "pack_codes", otherwise)
    assert native.Packing(native.library).layout != before


def test_other_weights_and_other_settings_are_other_entries(tmp_path, cache):
    model = write_llama(tmp_path / "model")
    made = set()
    others = ({"head_quantization": "int4"}, {"dtype": "bfloat16"}, {"quantization_group": 64})
    for settings in ({}, *others):
        build(model, quantization="int4", **settings)
        made |= set(cache.iterdir())
    assert len(made) == 4
    before = (model / "model.safetensors").stat()
    weights = load_file(model / "model.safetensors")
    write_safetensors(model, {name: weight + 1 for name, weight in weights.items()})
    os.utime(model / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    build(model, quantization="int4")
    assert len(set(cache.iterdir())) == 5


def test_quantised_is_another_fingerprint(tmp_path):
    model = write_llama(tmp_path / "model")
    facts = [build(model, quantization=kind).facts for kind in ("none", "int8", "int4")]
    assert len({each.fingerprint for each in facts}) == 3


def test_a_cache_that_cannot_be_written_costs_no_start(tmp_path, monkeypatch):
    model = write_llama(tmp_path / "model")
    expected = logits(model, quantization="int4")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    core = build(model, quantization="int4", kernels="reference")
    assert said(core).startswith("not kept for the next start: ")
    assert torch.equal(all_logits(core, PROMPT), expected)


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    model = write_llama(tmp_path / "model")
    put = load.Store.put

    def full(store: load.Store, name: str, tensor: Tensor) -> None:
        if name == "norm.weight":
            raise OSError(28, "No space left on device")
        put(store, name, tensor)

    monkeypatch.setattr(load.Store, "put", full)
    core = build(model, quantization="int4")
    assert said(core) == "not kept for the next start: No space left on device"
    assert list(cache.iterdir()) == []


def test_an_interrupted_start_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    model = write_llama(tmp_path / "model")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load.Store, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        build(model, quantization="int4")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_damaged_entry_is_made_anew(tmp_path, cache, damage):
    model = write_llama(tmp_path / "model")
    expected = logits(model, quantization="int4")
    (entry,) = cache.iterdir()
    if damage == "truncated":
        data = (entry / "model.safetensors").read_bytes()
        (entry / "model.safetensors").write_bytes(data[:-100])
    else:
        (entry / "config.json").unlink()
    core = build(model, quantization="int4", kernels="reference")
    assert said(core) == f"kept in {entry}"
    assert torch.equal(all_logits(core, PROMPT), expected)


# -- a written folder ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_written_folder_is_the_same_model(tmp_path, kind):
    model = WRITERS[kind](tmp_path)
    count = write_folder(ModelConfig(str(model), quantization="int4"), tmp_path / "out")
    assert count == (tmp_path / "out" / "model.safetensors").stat().st_size
    core = build(tmp_path / "out", kernels="reference")
    assert said(core) == "as they are stored"
    assert torch.equal(all_logits(core, PROMPT), logits(model, quantization="int4"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    model = write_llama(tmp_path / "model")
    write_folder(ModelConfig(str(model), quantization="int4"), tmp_path / "out")
    return tmp_path / "out"


def test_the_same_flags_are_no_contradiction_and_others_are(written):
    assert torch.equal(logits(written, quantization="int4"), logits(written))
    with pytest.raises(ConfigError, match="--quantization int8: the model is quantised already"):
        build(written, quantization="int8")
    with pytest.raises(ModelError, match="quantised already"):
        write_folder(ModelConfig(str(written), quantization="int4"), written.parent / "again")


def test_a_folder_in_groups_of_another_size(tmp_path):
    model, out = write_llama(tmp_path / "model"), tmp_path / "out"
    settings = {"quantization": "int4", "quantization_group": 32}
    write_folder(ModelConfig(str(model), **settings), out)
    expected = logits(model, **settings)
    for again in ({}, {"quantization": "int4"}, settings):
        assert torch.equal(logits(out, **again), expected)
    with pytest.raises(ConfigError, match=r"already \(int4 in groups of 32, head int8"):
        build(out, **{**settings, "quantization_group": 64})


def test_a_folder_whose_head_has_other_groups_than_are_usual_now():
    stored = Recipe(Format(4, 32), INT8)
    for flags in ({}, {"quantization_group": 32}):
        config = ModelConfig("m", quantization="int4", **flags)
        assert resolve_quantization(config, stored) == stored


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "int4", "quantization_group": 48}, "groups of 48: must be one of 32, 64"),
        ({"quantization_group": 64}, "64: only int8 and int4 weights have groups"),
        ({"head_quantization": "int8", "quantization_group": 64}, "64: only int8 and int4"),
        ({"quantization": "fp8", "quantization_group": 64}, "64: only int8 and int4"),
    ],
)
def test_groups_that_make_no_sense(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=f"^--quantization-group:? {message}"):
        build(write_llama(tmp_path / "model"), **settings)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, written):
    before = (written / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="something already"):
        write_folder(ModelConfig(str(tmp_path / "model"), quantization="int8"), written)
    assert (written / "config.json").read_bytes() == before
    (tmp_path / "empty").mkdir()
    write_folder(ModelConfig(str(tmp_path / "model"), quantization="int8"), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model", "out"]


def test_nothing_to_quantise(tmp_path):
    model = write_llama(tmp_path / "model")
    with pytest.raises(ConfigError, match="nothing to do"):
        write_folder(ModelConfig(str(model)), tmp_path / "out")


def _section(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rosellm_quantization"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 99}, "another version of rosellm.*quantise it again"),
        ({"layers": {"bits": 5, "group": 32}}, "rosellm_quantization is damaged"),
        ({"layers": {"bits": 4, "group": 0}}, "one of 32, 64"),
        ({"layers": {"bits": 4, "group": 1 << 40}}, "one of 32, 64"),
        ({"head": "int8"}, "rosellm_quantization is damaged"),
        ({"extra": 1}, "rosellm_quantization is damaged"),
        ({"layers": {"bits": 8, "group": 32}}, "expected shape|not part of this model"),
    ],
)
def test_a_damaged_section(written, changes, complaint):
    _section(written, **changes)
    with pytest.raises(ModelError, match=complaint):
        build(written)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("head.weight.scales"), r"head\.weight\.scales: missing"),
        (lambda t: t.update({"more": torch.zeros(1)}), "more: not part of this model"),
        (lambda t: t["head.weight.scales"].fill_(float("inf")), r"head\.weight: its scales"),
        (lambda t: t["blocks.0.mlp.up.weight.steps"].fill_(99), r"mlp\.up\.weight: its scales"),
        (
            lambda t: t.update({"head.weight.data": t["head.weight.data"].to(torch.uint8)}),
            "expected torch.int8, found torch.uint8",
        ),
        (
            lambda t: t.update({"head.weight.data": t["head.weight.data"][:5].clone()}),
            r"expected shape \[97, 48\], found \[5, 48\]",
        ),
    ],
)
def test_damaged_tensors(written, change, complaint):
    tensors = load_file(written / "model.safetensors")
    change(tensors)
    save_file(tensors, written / "model.safetensors")
    with pytest.raises(ModelError, match=complaint):
        build(written)


# -- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(INT4, HEAD)], ids=["plain", "quantised"])
def test_no_more_than_a_layer_is_plain_at_a_time(tmp_path, recipe):
    config = {**MIXTRAL, "num_hidden_layers": 6, "num_local_experts": 2}
    weights = load_file(write_moe(tmp_path / "model", config) / "model.safetensors")
    architecture = find_architecture("MixtralForCausalLM")
    with torch.device("meta"):
        model = architecture.build(forgetful_ops(), architecture.read_config(config))
    model.hold(recipe)
    layer = sum(w.nbytes for name, w in weights.items() if ".layers.0." in name)

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(weights):
            yield name, weights[name]
            waiting = (p for p in model.parameters() if not p.is_meta and p.dim() == 2)
            assert sum(p.nbytes for p in waiting) <= layer

    place = Place(torch.float32, torch.device("cpu"))
    load_weights(model, architecture.weights, watched(), place)


def test_mapped_tensors(tmp_path):
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64]
    tensors = {str(kind): torch.arange(60).view(3, 20).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "nothing": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "file")
    found = dict(mapped_tensors(tmp_path / "file"))  # all are read after their pages were dropped
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert tensor is not None
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_what_was_read_is_not_held_in_memory(tmp_path):
    status = Path("/proc/self/status")
    if "RssFile" not in (status.read_text() if status.exists() else ""):
        pytest.skip("nothing here says how much of a mapping is in memory")

    def mapped() -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) * 1024

    save_file({str(i): torch.zeros(4 << 20, dtype=torch.uint8) for i in range(16)}, tmp_path / "f")
    before = mapped()
    most = 0
    for _, tensor in mapped_tensors(tmp_path / "f"):
        assert tensor is not None
        tensor.sum()
        most = max(most, mapped() - before)
    assert most < 12 << 20
