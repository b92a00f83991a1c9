"""Prompt log-probabilities and vectors of a real (tiny) model, through the engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Add, Logprobs, Output
from rosellm.roseinfer.request import SamplingParams
from tests.tiny_models import all_logits, build, random_prompts, write_llama

ROOT = Path(__file__).parents[2]
VOCAB = 97
LENGTHS = [1, 2, 40, 17]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("scores") / "model", dtype=request.param)


def run(core: EngineCore, adds: Sequence[Add]) -> dict[int, list[Output]]:
    """All rows of these requests, run together."""
    rows: dict[int, list[Output]] = {add.id: [] for add in adds}
    for add in adds:
        core.add(add)
    while core.has_work:
        for row in core.step().rows:
            rows[row.id].append(row)
        core.scheduler.check()
    return rows


def scores(
    core: EngineCore, prompts: Sequence[list[int]], top: int = 5, max_tokens: int = 0
) -> list[list[Logprobs]]:
    params = SamplingParams(seed=0, max_tokens=max_tokens, temperature=0, prompt_logprobs=top)
    rows = run(core, [Add(id, prompt, params) for id, prompt in enumerate(prompts)])
    return [[s for row in rows[id] for s in row.prompt_logprobs or []] for id in rows]


def test_scores_are_the_log_softmax_of_the_logits(folder: Path) -> None:
    core = build(folder)
    prompts = random_prompts(LENGTHS, VOCAB)
    for prompt, found in zip(prompts, scores(core, prompts), strict=True):
        assert len(found) == len(prompt) - 1
        wanted = all_logits(core, prompt).log_softmax(-1)
        for position, entry in enumerate(found):
            row = wanted[position]
            assert entry.chosen == pytest.approx(row[prompt[position + 1]].item(), abs=1e-5)
            assert entry.top == pytest.approx(row.topk(5).values.tolist(), abs=1e-5)


def test_scores_keep_their_bits_however_they_are_computed(folder: Path) -> None:
    """Alone, together, in chunks, after a prefix is cached, with tokens to follow."""
    prompts = random_prompts(LENGTHS, VOCAB)
    core = build(folder)
    alone = [scores(core, [prompt])[0] for prompt in prompts]
    assert scores(core, prompts) == alone
    assert scores(core, prompts, max_tokens=3) == alone
    for chunk in (1, 7, 16):
        assert scores(build(folder, max_num_batched_tokens=chunk), prompts) == alone
    small = build(folder, num_blocks=9, block_size=8, max_num_batched_tokens=11)
    assert scores(small, prompts, max_tokens=30) == alone
    assert small.scheduler.stats().preemptions > 0


def test_a_decoder_s_vector_is_its_last_hidden_state(folder: Path) -> None:
    prompts = random_prompts(LENGTHS, VOCAB)
    params = SamplingParams(seed=0, max_tokens=1)

    def vectors(core: EngineCore, prompts: Sequence[list[int]]) -> list[bytes]:
        rows = run(core, [Add(id, p, params, want="pooled") for id, p in enumerate(prompts)])
        [only] = zip(*rows.values(), strict=True)
        assert all(row.last and row.finish == "stop" and not row.tokens for row in only)
        return [row.pooled.data for row in only if row.pooled is not None]

    core = build(folder)
    alone = [vectors(core, [prompt])[0] for prompt in prompts]
    assert vectors(core, prompts) == alone
    assert vectors(build(folder, max_num_batched_tokens=7), prompts) == alone
    for data in alone:
        vector = np.frombuffer(data, "<f4")
        assert len(vector) == core.facts.embedding_size
        assert float((vector**2).sum()) == pytest.approx(1.0, abs=1e-5)


PEAK = """
import sys
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.request import SamplingParams
from tests.tiny_models import build, random_prompts
top = int(sys.argv[2]) if sys.argv[2] else None
core = build(sys.argv[1], max_model_len=4096)
params = SamplingParams(seed=0, max_tokens=1, temperature=0, prompt_logprobs=top)
core.add(Add(1, random_prompts([4000], 150_000)[0], params))
count = 0
while core.has_work:
    count += sum(len(row.prompt_logprobs or ()) for row in core.step().rows)
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(count, int(line.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_bounded_by_a_tile_and_not_by_the_prompt(tmp_path: Path) -> None:
    """4,000 tokens over 150,000 entries would be 2.4 GB of logits."""
    folder = write_llama(
        tmp_path / "model", vocab_size=150_000, hidden_size=48, max_position_embeddings=4096
    )

    def peak(top: str) -> tuple[int, int]:
        """Positions scored, and the process's largest size in MB."""
        command = [sys.executable, "-c", PEAK, str(folder), top]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        count, size = map(int, done.stdout.split())
        return count, size

    (none, plain), (all_but_one, scoring) = peak(""), peak("20")
    assert (none, all_but_one) == (0, 3999)
    assert scoring - plain <= 200
