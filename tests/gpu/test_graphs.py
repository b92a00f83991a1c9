"""On a card: CUDA graphs, copies that nobody waits for, memory that is really free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner.cuda_graph import PATIENCE, DecodeGraphs
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.runner.profile import CudaMeter
from rosellm.roseinfer.step import StepPlan, Work
from tests.tiny_models import build, generate, greedy, random_prompts, write_llama

pytestmark = pytest.mark.gpu

LENGTHS = [1, 5, 16, 17, 40, 63, 64, 65, 100, 130, 7, 3]
VOCABULARY = 1003
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "llama"
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8}
    return write_llama(
        path,
        vocab_size=VOCABULARY,
        num_hidden_layers=3,
        std=0.08,
        max_position_embeddings=4096,
        **sizes,
    )


def runner_of(core: EngineCore) -> ModelRunner:
    runner = core.runner
    assert isinstance(runner, ModelRunner)
    return runner


def graphs_of(core: EngineCore) -> DecodeGraphs:
    graphs = runner_of(core)._graphs
    if graphs is None:
        pytest.skip(next(d.reason for d in core.facts.decisions if d.name == "CUDA graphs"))
    return graphs


def params(count: int) -> list[SamplingParams]:
    sampled = {"temperature": 0.9, "top_p": 0.95, "top_k": 200, "logprobs": 5, "max_tokens": 40}
    return [
        greedy(40) if i % 2 else SamplingParams(seed=i, repetition_penalty=1.1, **sampled)  # type: ignore[arg-type]
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_graph_equals_eager_in_bits(folder: Path, dtype: str) -> None:
    """Batches grow and shrink through several sizes; chunks of prompts come between."""
    prompts = random_prompts(LENGTHS, VOCABULARY)
    arrivals = [0, 0, 1, 9, 9, 9, 10, 20, 21, 22, 60, 61]
    settings = {"device": "cuda", "dtype": dtype, "prefix_cache": False}
    core = build(folder, **settings)
    graphs = graphs_of(core)
    found = generate(core, prompts, params(12), arrivals=arrivals)
    assert len({shape.sequences for shape in graphs.shapes}) > 2
    again = generate(core, prompts, params(12), arrivals=arrivals)  # all of them replayed
    eager = build(folder, enforce_eager=True, **settings)
    assert runner_of(eager)._graphs is None
    expected = generate(eager, prompts, params(12), arrivals=arrivals)
    assert found == expected
    assert again == expected


def test_widths_change_no_bit(folder: Path) -> None:
    """A short sequence beside a long one runs in a wider graph."""
    core = build(folder, device="cuda", dtype="bfloat16", prefix_cache=False)
    graphs = graphs_of(core)
    short, long = random_prompts([30, 2500], VOCABULARY)
    alone = generate(core, [short], greedy(30))[0]
    together = generate(core, [short, long], greedy(30))[0]
    assert together == alone
    assert len({shape.blocks for shape in graphs.shapes}) > 1


def test_padding_reaches_no_sequence(folder: Path) -> None:
    """Whatever the trash block holds."""
    core = build(folder, device="cuda", dtype="bfloat16")
    graphs_of(core)
    runner = runner_of(core)
    plan = StepPlan(tuple(Work(i, 0, (i + 5,), ((i,),)) for i in range(3)))
    states = [runner.hidden_states(plan) for _ in range(PATIENCE + 2)]
    storage = runner._storage
    for layer in storage.groups[0].layers:
        for part in storage.layer(layer):
            size = part.data.shape[0] // (storage.trash_blocks[0] + 1)
            part.data[-size:] = torch.nan
    states.append(runner.hidden_states(plan))
    assert all(torch.equal(state, states[0]) for state in states)


def test_a_decode_step_waits_once(folder: Path) -> None:
    """torch raises at whatever synchronises while a greedy step is submitted.

    The engine would make an answer of that error, so it is kept here.
    """
    core = build(folder, device="cuda", dtype="bfloat16")
    runner = runner_of(core)
    prompts = random_prompts([5, 9, 13], VOCABULARY)
    generate(core, prompts, greedy(20, logprobs=None))
    plain = greedy(30, logprobs=None)
    original, steps = runner.execute, 0
    waits: list[str] = []

    def strict(plan: StepPlan, masks: object = None) -> object:
        nonlocal steps
        decodes = all(len(work.tokens) == 1 for work in plan.work)
        graphs = runner._graphs
        recording = graphs is not None and graphs._shape_of(plan) not in graphs.shapes
        if not decodes or recording:
            return original(plan)
        steps += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(plan)
        except RuntimeError as error:
            waits.append(str(error))
            raise
        finally:
            torch.cuda.set_sync_debug_mode("default")

    runner.execute = strict  # type: ignore[method-assign, assignment]
    answers = [generate(core, prompts, plain) for _ in range(2)]
    assert not waits
    assert steps > 20
    assert answers[0] == answers[1]
    assert [len(each.tokens[0]) for each in answers[0]] == [30] * 3


def test_memory_is_what_is_free(folder: Path) -> None:
    """What others hold is theirs, and all that is promised can be allocated."""
    before, _ = torch.cuda.mem_get_info()
    held = torch.empty(before // 2, dtype=torch.uint8, device=CUDA)
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    core = build(folder, device="cuda", max_num_seqs=4096, gpu_memory_utilization=0.5)
    left, _ = torch.cuda.mem_get_info()
    assert left >= 0.4 * free
    assert core.facts.capacity_tokens > 0
    del held


def test_the_peak_is_measured() -> None:
    meter = CudaMeter(CUDA)

    def run() -> None:
        torch.empty(256 << 20, dtype=torch.uint8, device=CUDA)

    assert 256 << 20 <= meter.peak(run) < 300 << 20
    assert meter.free() > 0


def test_running_out_of_memory_is_survived(folder: Path) -> None:
    """Another program takes everything; a large step then fails, and its halves do not."""
    core = build(folder, device="cuda", dtype="float32", kv_cache_gb=0.5, prefix_cache=False)
    prompts = random_prompts([900] * 8, VOCABULARY)
    expected = generate(core, prompts, greedy(4))
    torch.cuda.empty_cache()
    runner = runner_of(core)
    original, failures = runner.execute, 0

    def tight(plan: StepPlan, masks: object = None) -> object:
        """As if memory were enough for 500 tokens, by the allocator's own error."""
        nonlocal failures
        if plan.num_tokens > 500:
            failures += 1
            free, _ = torch.cuda.mem_get_info()
            torch.empty(free + (1 << 34), dtype=torch.uint8, device=CUDA)
        return original(plan)

    runner.execute = tight  # type: ignore[method-assign, assignment]
    assert generate(core, prompts, greedy(4)) == expected
    assert failures > 0
