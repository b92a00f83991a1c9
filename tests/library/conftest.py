"""One small random model in this process, for all tests that leave it as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rosellm import LLM
from rosellm.roseinfer.messages import Stats
from tests.e2e.conftest import write_tokenizer
from tests.tiny_models import write_llama

CONTEXT = 512


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "tiny-llama"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    return write_llama(
        folder, vocab_size=size, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0
    )


@pytest.fixture(scope="session")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, device="cpu", max_num_seqs=16) as llm:
        yield llm


def idle(llm: LLM) -> Stats:
    """The engine's state once nothing runs, waits or holds a block."""
    until = time.monotonic() + 10
    while True:
        stats = llm.service.pipeline.stats
        if not (stats.running or stats.waiting or stats.blocks_used):
            return stats
        assert time.monotonic() < until, stats
        time.sleep(0.01)
