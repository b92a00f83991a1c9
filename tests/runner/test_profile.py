"""The KV cache of a GPU, sized from what is free: with a stand-in for its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from rosellm.commands.model_facts import choices, find
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.errors import ConfigError, ModelError
from rosellm.roseinfer.runner import profile
from rosellm.roseinfer.runner.choices import Choices
from rosellm.roseinfer.runner.plan import needs_of, plan_measured, plan_memory, upload_bytes
from rosellm.roseinfer.runner.profile import largest_plan, step_bytes
from rosellm.roseinfer.runner.resolve import spared
from tests.tiny_models import engine_config, write_llama

MIB = 1 << 20


@dataclass
class FakeMeter:
    """A card whose steps take ``step`` bytes, and more than there is where ``error`` is set."""

    left: int = 0
    step: int = 0
    error: Exception | None = None
    ran: int = 0

    def free(self) -> int:
        return self.left

    def peak(self, run: Callable[[], object]) -> int:
        if self.error is not None:
            raise self.error
        run()
        self.ran += 1
        return self.step


def on_cuda(model: Path, **settings: object) -> Choices:
    """What would be decided on a card: everything but the device is as on the CPU."""
    made = choices(engine_config(model, kernels="reference", **settings), find(str(model)))
    return replace(made, device=torch.device("cuda"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


def test_the_share_is_of_what_is_free(model: Path) -> None:
    """What others have is not free, so it is theirs; of the rest they are left a tenth."""
    made = on_cuda(model)
    assert spared(made.config.cache, 1000, made.device) == 100
    assert spared(on_cuda(model, gpu_memory_utilization=0.5).config.cache, 1000, made.device) == 500
    assert spared(on_cuda(model, kv_cache_gb=0.1).config.cache, 1000, made.device) == 0
    assert spared(made.config.cache, 1000, torch.device("cpu")) == 0


def test_blocks_are_what_a_measured_step_leaves(model: Path) -> None:
    made = on_cuda(model, max_num_seqs=512)
    needs = needs_of(made)
    [group] = made.spec.kv_groups
    block = group.bytes_per_token(made.kv_dtype) * made.config.cache.block_size
    room = needs.tables + needs.buffers + needs.graphs
    plan = plan_measured(made, step=MIB, free=4 * MIB + room, spared=MIB)
    [count] = plan.cache.num_blocks
    assert (count + 1) * block <= 2 * MIB < (count + 2) * block
    more = plan_measured(made, step=MIB // 2, free=4 * MIB + room, spared=MIB)
    assert more.cache.num_blocks[0] > count


def test_buffers_and_graphs_are_counted(model: Path) -> None:
    made = on_cuda(model)
    [group] = made.spec.kv_groups
    trash = group.bytes_per_token(made.kv_dtype) * made.config.cache.block_size
    without, recording = needs_of(made), needs_of(replace(made, graphs=True))
    assert without.buffers == recording.buffers == upload_bytes(made) + trash
    assert without.graphs == 0
    assert 11 * (1 << 23) < recording.graphs < 12 * (1 << 23)
    assert recording.serving == without.serving + recording.graphs
    on_host = needs_of(replace(made, device=torch.device("cpu")))
    assert on_host.buffers == on_host.graphs == 0


def test_too_little_names_the_options(model: Path) -> None:
    made = on_cuda(model, max_model_len=256)
    with pytest.raises(ModelError, match="--gpu-memory-utilization") as refused:
        plan_memory(made, 10_000)
    assert "\n" not in str(refused.value)
    needs = needs_of(made)
    with pytest.raises(ConfigError, match="--gpu-memory-utilization"):
        plan_memory(made, int((needs.serving + 60_000) / 0.9))


def test_the_largest_step_is_as_large_as_one_can_be(model: Path) -> None:
    for settings in (
        {"max_num_batched_tokens": 100, "max_num_seqs": 10},
        {"max_num_batched_tokens": 1000, "max_num_seqs": 10},
        {"max_num_batched_tokens": 5, "max_num_seqs": 10},
        {"max_num_batched_tokens": 5000, "max_num_seqs": 2},
    ):
        made = on_cuda(model, **settings)
        plan = largest_plan(made, 256)
        most = min(settings["max_num_batched_tokens"], 256 * settings["max_num_seqs"])
        assert plan.num_tokens == most
        assert len(plan.work) <= settings["max_num_seqs"]
        assert max(len(work.tokens) for work in plan.work) <= 256
        assert all(work.logits for work in plan.work)


def test_it_really_runs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one block for everyone; what is left then is an engine's cache."""
    config = engine_config(model, kernels="reference", max_num_batched_tokens=300)
    core = build_engine(config)
    made = choices(config, find(str(model)))
    made = replace(made, model=core.runner.model)  # type: ignore[attr-defined]
    held: list[int] = []

    def storage(*args: object) -> KVStorage:
        made = KVStorage(*args)  # type: ignore[arg-type]
        held.extend(made.null_blocks)
        return made

    monkeypatch.setattr(profile, "KVStorage", storage)
    meter = FakeMeter(step=12345)
    assert step_bytes(made, 256, meter) == 12345
    assert meter.ran == 1
    assert held == [1]


def test_a_step_that_does_not_fit_is_one_line(model: Path) -> None:
    made = on_cuda(model, max_num_batched_tokens=300)
    made = replace(made, device=torch.device("cpu"))
    meter = FakeMeter(error=torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"))
    with pytest.raises(ConfigError, match="a smaller --max-num-batched-tokens") as refused:
        step_bytes(made, 256, meter)
    assert "\n" not in str(refused.value)
    with pytest.raises(RuntimeError, match="a bug"):
        step_bytes(made, 256, FakeMeter(error=RuntimeError("a bug")))
