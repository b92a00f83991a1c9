"""Graphs of decode steps: which there are, when they are made, and that they change no bit.

Recording is a stand-in's; the engine, the model and the padding are real.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner import resolve
from rosellm.roseinfer.runner.cuda_graph import (
    PATIENCE,
    DecodeGraphs,
    Recorder,
    Shape,
    sizes,
    widths,
)
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import StepPlan, Work
from tests.runner.decoding import FakeRecorder, FlatAttention, on_stand_ins
from tests.tiny_models import build, generate, greedy, random_prompts, read_spec, write_llama

BLOCK = 4


def graphs_of(recorder: Recorder, *, most: int = 8, budget: int = 1 << 30) -> DecodeGraphs:
    return DecodeGraphs(recorder, sizes(most), widths(40, BLOCK), (99,), budget)


def decode(count: int, *, tokens: int = 1, blocks: int = 1) -> StepPlan:
    table = tuple(range(blocks))
    return StepPlan(tuple(Work(i, 0, (5,) * tokens, (table,)) for i in range(count)))


def run(graphs: DecodeGraphs, plan: StepPlan, mark: int | None = 0) -> Shape | None:
    """A step whose result is how many sequences it was padded to."""
    shape = graphs.claim(plan)
    if shape is not None:
        padded = graphs.pad(plan, shape)
        result = graphs.run(shape, mark, lambda: torch.tensor([float(len(padded.work))]))
        assert result.tolist() == [shape.sequences]
    return shape


# -- the ladder -------------------------------------------------------------------------------


def test_sizes_end_with_what_can_run() -> None:
    assert sizes(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert sizes(1) == (1,)
    assert sizes(3) == (1, 2, 3)
    assert sizes(20) == (1, 2, 4, 8, 16, 20)
    assert sizes(300)[-3:] == (256, 288, 300)
    assert all(list(sizes(most)) == sorted(set(sizes(most))) for most in range(1, 600))


def test_widths_end_with_the_longest_sequence() -> None:
    assert widths(131072, 16) == (64, 256, 1024, 4096, 8192)
    assert widths(1000, 16) == (63,)
    assert widths(1025, 16) == (64, 65)


def test_a_step_takes_the_smallest_that_holds_it() -> None:
    graphs = graphs_of(FakeRecorder())
    for _ in range(PATIENCE):
        assert [run(graphs, decode(n)) for n in (1, 3, 5)] == [None] * 3
    found = [run(graphs, decode(n)) for n in (1, 2, 3, 4, 5, 8)]
    assert [shape and shape.sequences for shape in found] == [1, None, 4, 4, 8, 8]


@pytest.mark.parametrize(
    "plan", [decode(9), decode(2, tokens=2), decode(1, blocks=11)], ids=["many", "drafts", "long"]
)
def test_what_no_graph_holds_runs_without(plan: StepPlan) -> None:
    graphs = graphs_of(FakeRecorder())
    assert {run(graphs, plan) for _ in range(PATIENCE + 3)} == {None}


def test_padding_writes_to_trash_alone() -> None:
    plan = decode(3)
    padded = graphs_of(FakeRecorder()).pad(plan, Shape(8, 10))
    assert padded.work[:3] == plan.work
    assert {work.tables for work in padded.work[3:]} == {((99,),)}
    assert not any(work.logits or work.pool or work.scoring for work in padded.work[3:])


# -- when -------------------------------------------------------------------------------------


def test_recording_waits_until_a_size_has_been_met_and_happens_once() -> None:
    recorder = FakeRecorder()
    graphs = graphs_of(recorder)
    for _ in range(PATIENCE):
        assert run(graphs, decode(4)) is None
    assert recorder.graphs == []
    for replays in range(4):
        assert run(graphs, decode(4)) is not None
        assert [graph.replays for graph in recorder.graphs] == [replays]
    assert graphs.num_bytes == 10


def test_inputs_that_lie_elsewhere_are_another_graph() -> None:
    recorder = FakeRecorder()
    graphs = graphs_of(recorder)
    for mark in (0, 0, 0, 0, 512, 512, 0):
        run(graphs, decode(4), mark)
    assert [graph.replays for graph in recorder.graphs] == [1, 1]
    run(graphs, decode(4), None)  # nobody knows where: not recorded, and none of them
    assert [graph.replays for graph in recorder.graphs] == [1, 1]


def test_a_failure_is_said_once_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    recorder = FakeRecorder(error=RuntimeError("operation not permitted\nwhen capturing"))
    graphs = graphs_of(recorder)
    for _ in range(PATIENCE + 2):
        for count in (1, 2, 4):
            run(graphs, decode(count))
    [record] = caplog.records
    assert "operation not permitted" in record.message
    assert "\n" not in record.message
    recorder.error = None
    assert run(graphs, decode(4)) is None


def test_what_was_recorded_before_a_failure_stays() -> None:
    recorder = FakeRecorder()
    graphs = graphs_of(recorder)
    for _ in range(PATIENCE + 1):
        run(graphs, decode(4))
    recorder.error = torch.OutOfMemoryError("no")
    for _ in range(PATIENCE + 1):
        run(graphs, decode(8))
    assert run(graphs, decode(4)) == Shape(4, 10)
    assert run(graphs, decode(8)) is None


def test_their_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    recorder = FakeRecorder(num_bytes=10)
    graphs = graphs_of(recorder, budget=15)
    for _ in range(PATIENCE + 3):
        for count in (1, 2, 4, 8):
            run(graphs, decode(count))
    assert len(recorder.graphs) == 2
    assert "memory" in caplog.text


def test_dropped_graphs_are_not_made_again() -> None:
    recorder = FakeRecorder()
    graphs = graphs_of(recorder)
    for _ in range(PATIENCE + 1):
        run(graphs, decode(4))
    graphs.drop("memory ran out")
    assert graphs.num_bytes == 0
    assert {run(graphs, decode(4)) for _ in range(PATIENCE + 2)} == {None}


# -- whether ----------------------------------------------------------------------------------


class Unfit(FlatAttention):
    name = "unfit"
    capturable = False


def decided(tmp_path: Path, backend: AttentionBackend, device: str, **settings: bool) -> str:
    spec = read_spec(write_llama(tmp_path / "llama"))
    config = ModelConfig(**settings)
    on, told = resolve.resolve_cuda_graphs(config, spec, backend, torch.device(device))
    if not told:
        return f"{on}"
    [decision] = told
    assert decision.value == ("on" if on else "off")
    return decision.reason


def test_the_decision_says_why(tmp_path: Path) -> None:
    fit, unfit = FlatAttention(BLOCK), Unfit(BLOCK)
    assert decided(tmp_path, fit, "cpu") == "False"
    assert "recorded when" in decided(tmp_path, fit, "cuda")
    assert "--enforce-eager" in decided(tmp_path, fit, "cuda", enforce_eager=True)
    assert "unfit attention" in decided(tmp_path, unfit, "cuda")


# -- graph = eager, in bits -------------------------------------------------------------------


def rewired(core: EngineCore, graphs: DecodeGraphs | None) -> EngineCore:
    return on_stand_ins(core, FlatAttention(BLOCK), graphs)


@pytest.mark.parametrize("window", [None, 9])
def test_graph_equals_eager_in_bits(tmp_path: Path, window: int | None) -> None:
    """Batches that grow and shrink, greedy and sampled, with chunks of prompts in between."""
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    sliding = {} if window is None else {"sliding_window": window, **mistral}
    model = write_llama(tmp_path / "llama", **sliding)
    prompts = random_prompts([3, 9, 1, 17, 4], 97)
    sampled = SamplingParams(seed=3, max_tokens=19, temperature=0.9, top_p=0.9, logprobs=2)
    params: Sequence[SamplingParams] = [greedy(24), sampled, greedy(9), sampled, greedy(30)]

    def answers(graphs: DecodeGraphs | None) -> object:
        core = build(model, kernels="reference", block_size=BLOCK, max_num_batched_tokens=8)
        core = rewired(core, graphs)
        return generate(core, prompts, params, arrivals=[0, 0, 2, 3, 12])

    recorder = FakeRecorder()
    trash = rewired(build(model, kernels="reference", block_size=BLOCK), None)
    assert isinstance(trash.runner, ModelRunner)
    blocks = trash.runner._storage.trash_blocks
    graphs = DecodeGraphs(recorder, sizes(8), widths(64, BLOCK), blocks, 1 << 30)
    assert answers(graphs) == answers(None)
    assert sum(graph.replays for graph in recorder.graphs) > 10
    assert len({shape.sequences for shape in graphs.shapes}) > 1


def test_hidden_states_are_without_padding(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "llama")
    core = build(model, kernels="reference", block_size=BLOCK)
    plan = StepPlan(tuple(Work(i, 0, (i + 5,), ((i,),)) for i in range(3)))

    def states(graphs: DecodeGraphs | None) -> list[Tensor]:
        runner = rewired(core, graphs).runner
        assert isinstance(runner, ModelRunner)
        return [runner.hidden_states(plan) for _ in range(PATIENCE + 3)]

    runner = core.runner
    assert isinstance(runner, ModelRunner)
    graphs = DecodeGraphs(FakeRecorder(), (4,), (1,), runner._storage.trash_blocks, 1 << 30)
    expected = states(None)[0]
    assert all(torch.equal(found, expected) for found in states(graphs))
    assert graphs.shapes == {Shape(4, 1)}


def test_when_memory_runs_out_again_graphs_go(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "llama")
    core = build(model, kernels="reference", block_size=BLOCK)
    runner = core.runner
    assert isinstance(runner, ModelRunner)
    graphs = DecodeGraphs(FakeRecorder(), (1,), (10,), runner._storage.trash_blocks, 1 << 30)
    runner = rewired(core, graphs).runner
    assert isinstance(runner, ModelRunner)
    for _ in range(PATIENCE + 1):
        runner.hidden_states(StepPlan((Work(0, 0, (5,), ((0,),)),)))
    assert not runner.make_room(ValueError("a bug"))
    assert runner.make_room(torch.OutOfMemoryError("CUDA out of memory"))
    assert graphs.shapes == {Shape(1, 10)}
    assert runner.make_room(torch.OutOfMemoryError("CUDA out of memory"))
    assert graphs.shapes == {Shape(1, 10)}
    failed = RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    assert runner.make_room(failed, again=True)
    assert graphs.shapes == set()
