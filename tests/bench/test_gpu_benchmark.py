"""``make gpu``'s table on a CPU and models of no size: that none of it is untried."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu


def test_every_section_runs(capsys: pytest.CaptureFixture[str]) -> None:
    sections = [name for name in gpu.SECTIONS if name != "first-token"]
    command = ["--device", "cpu", "--tiny", "--rounds", "1", "--dtype", "float32", "--only"]
    assert gpu.main([*command, *sections]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    for shape in ("gpt2-small", "qwen3-0.6b", "llama-3.1-8b"):
        rows = found[shape]
        for name in ("batch 1", "batch 4", "prefill"):
            assert rows[name]["tokens_s"] > 0, said
        assert rows["idle"]["step_ms"] > 0
        peer = rows["transformers"]
        assert "skipped" in peer or peer["generate, batch 1"]["tokens_s"] > 0, said
    assert found["nano-vllm"]["output_tokens_s"] > 0
    assert found["determinism"]


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
