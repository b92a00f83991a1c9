"""``rosellm plan``: its arithmetic is what an engine then takes, and what ``serve`` goes by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rosellm import cli
from rosellm.commands import footprint
from rosellm.commands.model_facts import choices, find
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.host_memory import Resident
from rosellm.roseinfer.layers.linear import Matrix
from rosellm.roseinfer.runner import memory
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.runner.plan import MemoryPlan, plan_memory
from tests.e2e.conftest import write_tokenizer
from tests.tiny_models import engine_config, write_gpt2, write_llama

Show = pytest.CaptureFixture[str]
GIB = 1 << 30
ROOT = Path(__file__).parents[2]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    return write_llama(folder, hidden_size=64, num_attention_heads=4, intermediate_size=160)


@pytest.fixture
def no_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starting a process."""

    class Known:
        def __init__(self, _: str) -> None:
            pass

        def result(self) -> Resident:
            return Resident(anonymous=60 << 20, mapped=20 << 20, peak=80 << 20)

        def stop(self) -> None:
            pass

    monkeypatch.setattr("rosellm.commands.plan.Footprint", Known)


def plan_of(model: Path, free: int = GIB, **settings: Any) -> MemoryPlan:
    config = engine_config(model, **settings)
    return plan_memory(choices(config, find(str(model))), free)


# -- what is planned is what is allocated ----------------------------------------------------


@pytest.mark.parametrize("settings", [
    {}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "int4"},
    {"kernels": "reference"}, {"kv_cache_dtype": "int8"},
    {"quantization": "int4", "head_quantization": "int4", "dtype": "bfloat16"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sizes_are_those_of_the_tensors(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    write = write_llama if kind == "llama" else write_gpt2
    model = write(tmp_path / kind)
    settings = {"kv_cache_gb": 0.01, "max_num_seqs": 4, **settings}
    planned = plan_of(model, **settings)
    core = build_engine(engine_config(model, **settings))
    runner = core._runner
    assert isinstance(runner, ModelRunner)
    assert planned.needs.weights == held_bytes(runner)
    assert planned.cache.num_bytes == cache_bytes(runner._storage)
    tables = sum(t.cos.nbytes + t.sin.nbytes for t in runner._ropes.values())
    assert planned.needs.tables == tables
    assert core.facts.capacity_tokens == planned.cache.capacity_tokens


def held_bytes(runner: ModelRunner) -> int:
    """Of all parameters and packed weights, shared ones once."""
    total = 0
    for _, module in runner.model.own_modules():
        total += sum(p.nbytes for p in module.parameters(recurse=False))
        if isinstance(module, Matrix):
            packed = module.packed
            total += (
                packed.matrix.data.nbytes if hasattr(packed, "matrix") else packed.weight.nbytes
            )
    return total


def cache_bytes(storage: KVStorage) -> int:
    """Of all blocks but the two that belong to no sequence, of each layer."""
    total = 0
    for group, count in zip(storage.groups, storage.null_blocks, strict=True):
        for layer in group.layers:
            for part in storage.layer(layer):
                scales = 0 if part.scales is None else part.scales.nbytes
                total += (part.data.nbytes + scales) * count // (count + 2)
    return total


def test_concurrency_is_what_the_blocks_hold(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "llama")
    planned = plan_of(model, kv_cache_gb=0.001, max_num_seqs=1000)
    [blocks] = planned.cache.num_blocks
    assert planned.cache.sequences(256) == blocks // 16
    assert planned.cache.sequences(17) == blocks // 2
    assert plan_of(model, max_num_seqs=3).cache.sequences(16) == 3


# -- too little memory -----------------------------------------------------------------------


def refusal(model: Path, free: int, **settings: Any) -> str:
    with pytest.raises(RosellmError) as caught:
        plan_of(model, free, **settings)
    message = str(caught.value)
    assert message.isprintable()
    return message


def advised(message: str) -> list[str]:
    return message.partition("what would fit: ")[2].split(", ")


def test_what_would_fit_does(tmp_path: Path) -> None:
    """Each flag that is advised is enough by itself, and one that is not would not have been."""
    model = write_llama(
        tmp_path / "m",
        num_attention_heads=4,
        hidden_size=128,
        intermediate_size=400,
        num_hidden_layers=12,
        max_position_embeddings=64,
    )
    settings: dict[str, Any] = {"max_num_batched_tokens": 32, "max_num_seqs": 2}
    needs = plan_of(model, **settings).needs
    free = needs.serving - needs.weights // 4
    flags = advised(refusal(model, free, **settings))
    assert "--dtype bfloat16" in flags
    assert "--quantization int4" in flags
    names = ("dtype", "quantization", "kv_cache_dtype")
    for flag in (
        "--dtype bfloat16",
        "--quantization int8",
        "--quantization int4",
        "--kv-cache-dtype int8",
    ):
        name, value = flag.removeprefix("--").replace("-", "_").split(" ")
        assert name in names
        if flag in flags:
            plan_of(model, free, **settings, **{name: value})
        else:
            refusal(model, free, **settings, **{name: value})


def test_where_nothing_fits_nothing_is_advised(tmp_path: Path) -> None:
    message = refusal(write_llama(tmp_path / "model"), 1000)
    assert "the weights take" in message
    assert "would fit" not in message


def test_a_cache_that_is_too_small_is_told_how_large(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    message = refusal(model, GIB, max_model_len=256, kv_cache_gb=0.00001)
    size = message.partition("--kv-cache-gb (")[2].partition(" ")[0]
    assert plan_of(model, max_model_len=256, kv_cache_gb=float(size)).cache.max_model_len == 256


def test_serve_says_it_before_anything_is_loaded(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rosellm.roseinfer.engine.build.fill", refuse)
    monkeypatch.setattr(memory, "available", lambda _: 1000)
    with pytest.raises(RosellmError, match="the weights take"):
        build_engine(engine_config(llama))


# -- the command -----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_footprint")
class TestCommand:
    def test_json_is_one_object(self, capsys: Show, llama: Path) -> None:
        argv = ["plan", str(llama), "--device=cpu", "--kv-cache-gb=0.01", "--json"]
        assert cli.main([*argv, "--memory-gb=8"]) == 0
        told = json.loads(capsys.readouterr().out)
        planned = plan_of(llama, kv_cache_gb=0.01)
        assert told["fits"] is True
        assert told["weights_bytes"] == planned.needs.weights
        assert told["kv_cache_bytes"] == planned.cache_bytes
        assert told["server_process_bytes"] == 80 << 20
        parts = ("server_process_bytes", "engine_process_bytes")
        assert told["peak_bytes"] == planned.peak + sum(told[part] for part in parts)
        assert told["concurrency"][-1]["tokens"] == told["max_model_len"] == 256

    def test_a_table_for_people(self, capsys: Show, llama: Path) -> None:
        assert cli.main(["plan", str(llama), "--device=cpu"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert rows[0] == str(llama)
        names = [row.strip().split("  ")[0] for row in rows]
        assert {"weights", "KV cache", "a step", "peak", "fits", "of 256 tokens"} <= set(names)

    def test_what_does_not_fit_is_exit_code_1(self, capsys: Show, llama: Path) -> None:
        argv = ["plan", str(llama), "--device=cpu", "--memory-gb=0.001", "--json"]
        assert cli.main(argv) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["fits"] is False
        assert "the weights take" in told["reason"]
        assert told["weights_bytes"] > 0
        assert cli.main(argv[:-1]) == 1
        assert "no: the weights take" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--max-model-len=4000"], "made for 256 positions"),
            (["--memory-gb=0"], "must be above 0"),
            (["--memory-gb=x"], "invalid"),
            (["--kv-cache-gbb=1"], "did you mean --kv-cache-gb?"),
        ],
    )
    def test_mistakes(self, capsys: Show, llama: Path, flags: list[str], says: str) -> None:
        code = cli.main(["plan", str(llama), "--device=cpu", *flags])
        captured = capsys.readouterr()
        assert code in (1, 2)
        assert says in captured.err + captured.out

    def test_no_weights_are_needed(self, capsys: Show, llama: Path) -> None:
        (llama / "model.safetensors").unlink()
        assert cli.main(["plan", str(llama), "--device=cpu", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["dtype"] == "float32"


def test_the_server_process_is_measured(llama: Path) -> None:
    found = footprint.Footprint(str(llama)).result()
    assert found is not None
    assert 40 << 20 < found.anonymous < 300 << 20


# -- against a process -----------------------------------------------------------------------

PEAKS = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"quantization": "int8"},
    {"quantization": "int4"},
    {"quantization": "int4", "kv_cache_dtype": "int8"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", PEAKS, ids=str)
def test_the_peak_is_within_five_percent(settings: dict[str, str], large: Path) -> None:
    """Of an engine that has run until every block of its cache was written; the second start maps
    what the first one quantised."""
    settings = {"kv_cache_gb": "0.1", "max_num_seqs": "16", **settings}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", "import sys; from rosellm.cli import main; sys.exit(main())",
         "plan", str(large), "--device=cpu", "--json", *flags],
        env=environment, capture_output=True, check=True,
    )  # fmt: skip
    planned = json.loads(told.stdout)["engine_peak_bytes"]
    for _ in range(2 if "quantization" in settings else 1):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "commands" / "peak.py"), str(large), *flags],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        measured = int(done.stdout)
        assert abs(planned / measured - 1) < 0.05, (planned, measured)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 170 MB in float32."""
    folder = tmp_path_factory.mktemp("large") / "model"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    return write_llama(
        folder, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, vocab_size=16_000,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=2048, std=0.02,
    )  # fmt: skip
