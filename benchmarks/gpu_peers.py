"""transformers beside us: the same shapes, random weights, on the same card."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PROMPT_TOKENS = 16


def absent() -> str:
    """Why it cannot be measured; empty if it can."""
    return "" if importlib.util.find_spec("transformers") else "transformers is not installed"


@contextmanager
def model_of(shape: dict[str, Any], device: str, dtype: str) -> Iterator[Any]:
    """A causal model of that config; what it held is free afterwards."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{k: v for k, v in shape.items() if k != "architectures"})
    kind = getattr(torch, dtype)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=kind, attn_implementation="sdpa")
    try:
        yield model.eval()
    finally:
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def generate(model: Any, batch: int, tokens: int) -> float:
    """Tokens a second of ``generate``, prompts of 16 tokens."""
    ids = torch.randint(model.config.vocab_size, (batch, PROMPT_TOKENS), device=model.device)

    def run() -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )

    return batch * tokens / _seconds(run, model.device)


def continuous(model: Any, batch: int, tokens: int) -> float:
    """Tokens a second of its continuous batching, once its cache and its graphs are there.

    Raises:
        RuntimeError: it made fewer tokens than were asked for. Its failures are in its log only.
    """
    from transformers import GenerationConfig

    if model.device.type != "cuda":
        raise RuntimeError("its continuous batching is measured on a card")
    ids = torch.randint(model.config.vocab_size, (batch, PROMPT_TOKENS)).tolist()
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1)

    def run() -> None:
        found = model.generate_batch(inputs=ids, generation_config=config, persistent_manager=True)
        made = sum(len(each.generated_tokens) for each in found.values())
        if made != batch * tokens:
            raise RuntimeError(f"{made} tokens instead of {batch * tokens}")

    try:
        return batch * tokens / _seconds(run, model.device)
    finally:
        model.destroy_cached_continuous_batching_manager()


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Of one call, after one to warm up."""
    run()
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
