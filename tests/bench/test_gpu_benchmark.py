"""``make gpu``'s table on a CPU and models of no size: that none of it is untried."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import gpu, gpu_load
from rosellm.roseinfer.runner.fetch import Fetched


def measured(capsys: pytest.CaptureFixture[str], shapes: list[str], *others: str) -> gpu.Figures:
    command = ["--device", "cpu", "--tiny", "--rounds", "1", "--dtype", "float32", "--only"]
    assert gpu.main([*command, *shapes, *others]) == 0
    said = capsys.readouterr().out
    found: gpu.Figures = json.loads(said.splitlines()[-1])
    for shape in shapes:
        rows = found[shape]
        for name in ("batch 1", "batch 4", "prefill"):
            assert rows[name]["tokens_s"] > 0, said
        assert 0 < rows["idle"]["host_ms"] <= rows["idle"]["step_ms"]
    return found


def test_sections_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.gpu_peers, "absent", lambda: "not now")
    found = measured(capsys, ["qwen3-0.6b"], "nano-vllm", "determinism")
    assert found["qwen3-0.6b"]["transformers"] == {"skipped": "not now"}
    assert found["nano-vllm"]["output_tokens_s"] > 0
    modes = [f"{mode}, batch {batch}" for mode in ("deterministic", "fast") for batch in (1, 4)]
    assert list(found["determinism"]) == modes
    assert min(found["determinism"].values()) > 0


class SlowEvent:
    """A device that takes its time."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        time.sleep(0.02)


def test_waiting_for_the_device_is_told_apart() -> None:
    plain = Fetched.wait
    with gpu_load.waits() as waited:
        for event in (SlowEvent, None):
            [found] = Fetched([torch.arange(3)], event).wait()
            assert found.tolist() == [0, 1, 2]
    assert Fetched.wait is plain
    assert waited[0] >= 0.02 > waited[1]


@pytest.mark.slow
def test_every_section_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["gpt2-small", "qwen3-0.6b", "llama-3.1-8b"]
    found = measured(capsys, shapes, "first-token")
    assert found["first-token"]["first_token_s"] > 0
    for shape in shapes:
        assert found[shape]["transformers"]["generate, batch 1"]["tokens_s"] > 0


def test_a_row_that_fails_costs_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    found: gpu.Figures = {}

    def fails() -> gpu.Figures:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    gpu.guarded(found, "large", fails)
    gpu.guarded(found, "small", lambda: {"tokens_s": 1.0})
    assert found["large"] == {"skipped": "RuntimeError: CUDA out of memory."}
    assert found["small"] == {"tokens_s": 1.0}
    assert "large: skipped" in capsys.readouterr().out


def test_time_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--device", "cpu", "--tiny", "--minutes", "0", "--only", "nano-vllm"]
    assert gpu.main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "minutes were over" in found["nano-vllm"]["skipped"]
