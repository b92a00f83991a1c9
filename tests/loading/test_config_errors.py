"""An engine config that cannot be met: one line that names the flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rosellm.roseinfer.errors import ConfigError
from tests.tiny_models import build, write_gpt2, write_llama

GiB = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model"), max_position_embeddings=256)


def refusal(model: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(model, **settings)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_model_len": 257}, "--max-model-len 257: the model was made for 256 positions"),
        ({"max_model_len": 1}, "--max-model-len must be at least 2"),
        ({"max_model_len": 0}, "--max-model-len"),
        ({"max_model_len": -5}, "--max-model-len"),
        ({"kv_cache_gb": 1e9}, "--kv-cache-gb 1000000000.0: only"),
        ({"kv_cache_gb": 0.0}, "--kv-cache-gb"),
        ({"kv_cache_gb": -1.0}, "--kv-cache-gb"),
        ({"kv_cache_gb": float("nan")}, "--kv-cache-gb"),
        ({"kv_cache_gb": 1e-9}, "larger --kv-cache-gb"),
        ({"block_size": 0}, "--block-size must be at least 1"),
        ({"block_size": -16}, "--block-size must be at least 1"),
        ({"block_size": 10**12}, "--kv-cache-gb"),
        ({"max_num_seqs": 0}, "--max-num-seqs must be at least 1"),
        ({"max_num_batched_tokens": 0}, "--max-num-batched-tokens must be at least 1"),
        ({"max_num_batched_tokens": -1}, "--max-num-batched-tokens must be at least 1"),
        ({"max_queue": 0}, "--max-queue must be at least 1"),
    ],
    ids=str,
)
def test_value_out_of_range(settings: dict[str, Any], wanted: str, model: Path) -> None:
    assert wanted in refusal(model, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(model: Path) -> None:
    assert "--device cuda: torch finds no CUDA device" in refusal(model, device="cuda")


def test_a_length_that_memory_does_not_hold(model: Path) -> None:
    """The length that would fit is said, and does."""
    # 256 bytes a token: 16 blocks of 16, one of which is the null block.
    settings = {"kv_cache_gb": 16 * 16 * 256 / GiB}
    message = refusal(model, max_model_len=250, **settings)
    assert "a context of 250 tokens" in message
    assert "(240 would fit)" in message
    assert build(model, max_model_len=240, **settings).facts.max_model_len == 240


def test_an_unasked_length_gives_way(model: Path) -> None:
    facts = build(model, kv_cache_gb=16 * 16 * 256 / GiB).facts
    assert facts.max_model_len == facts.capacity_tokens == 240
    assert "the KV cache holds no more" in str(facts.decisions)


def test_learned_positions_bound_the_length(tmp_path: Path) -> None:
    model = write_gpt2(tmp_path / "model", n_positions=40)
    assert "made for 40 positions" in refusal(model, max_model_len=41)
    assert build(model).facts.max_model_len == 40


def test_block_larger_than_the_context(model: Path) -> None:
    assert build(model, block_size=1000, max_num_seqs=2).facts.max_model_len == 256
