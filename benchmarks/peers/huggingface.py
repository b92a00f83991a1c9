"""transformers in bf16, as one would write it down: a prompt's forward, then one a token.

Run as a module it is the worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from benchmarks.peers.contender import Batch, Setup, Speeds
from benchmarks.peers.worker import Worker, serve


def contenders(setup: Setup) -> list[Worker]:
    if 16 not in setup.bits:
        return []
    command = [sys.executable, "-m", "benchmarks.peers.huggingface", str(setup.model)]
    return [Worker("transformers bf16", 16, command, setup.threads)]


def _load() -> tuple[int, Callable[[Batch], Speeds]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    vocab = model.config.vocab_size

    @torch.inference_mode()
    def run(batch: Batch) -> Speeds:
        ids = torch.randint(vocab, (batch.streams, batch.prompt))
        start = time.perf_counter()
        made = model(ids, use_cache=True, logits_to_keep=1)
        ids = made.logits[:, -1:].argmax(-1)
        read = time.perf_counter()
        for _ in range(batch.output - 1):
            made = model(ids, past_key_values=made.past_key_values, use_cache=True)
            ids = made.logits[:, -1:].argmax(-1)
        decoded = batch.streams * (batch.output - 1) / (time.perf_counter() - read)
        return Speeds(batch.streams * batch.prompt / (read - start), decoded)

    return sum(weight.nbytes for weight in model.parameters()), run


if __name__ == "__main__":
    serve(_load)
