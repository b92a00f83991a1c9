"""Compile every kernel for cards that are not here: run as a program, which must not interpret.

The operations are called as they always are, on CPU tensors, with a driver in triton's place of the
card's: kernels are compiled down to machine code, and not started. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from rosellm.roseinfer.attention.step import HeadNorms, Heads
from rosellm.roseinfer.attention.triton import TritonAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage
from rosellm.roseinfer.kernels.triton import heads, launch, logprobs, rows, sampling
from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import LogitRow

CPU = torch.device("cpu")
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Card:
    """What triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compiling(found: list[Any]) -> Callable[..., None]:
    """What stands in for ``launch``."""

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        assert all(grid)
        made = kernel.warmup(*args, grid=grid, **options)
        found.append((kernel, made))

    return compile_only


def attend(dtype: torch.dtype, dim: int, kv: torch.dtype | None = None, **more: Any) -> None:
    group = KVGroup((0,), 2, dim)
    storage = KVStorage([group], [40], 16, kv or dtype, CPU)
    backend = TritonAttention(16, CPU, 4)
    window, causal = more.get("window"), more.get("causal", True)
    tables = [list(range(40)), [1]]
    meta = backend.prepare([600, 0], [1, 5], tables, 40, window, causal)
    q = torch.zeros(6, 8, dim, dtype=dtype)
    backend.run(q, *storage.layer(0), 0.1, meta, more.get("softcap"))


def to_cache(dtype: torch.dtype, dim: int, kv: torch.dtype | None, full: bool) -> None:
    cache = KVStorage([KVGroup((0,), 2, dim)], [1], 16, kv or dtype, CPU).layer(0)
    shape = Heads(8, 2, dim, 0, 0, RopeSpec(1e4, dim), 1.0, None)
    norms = HeadNorms(*torch.ones(2, dim, dtype=dtype), 1e-6) if full else None
    angles = (torch.ones(3, dim // 2),) * 2 if full else None
    qkv = torch.zeros(3, 12 * dim, dtype=dtype)
    heads.to_cache(qkv, shape, norms, angles, cache, torch.zeros(3, dtype=torch.int64))


def each_row(dtype: torch.dtype, width: int) -> None:
    x, weight = torch.zeros(3, width, dtype=dtype), torch.ones(width, dtype=dtype)
    rows.rms_norm(x, weight, 1e-6)
    rows.layer_norm(x, weight, weight, 1e-6)
    rows.sum_norm(x, x, weight, None, 1e-6)
    rows.sum_norm(x, x, weight, weight, 1e-6)
    for kind in ("silu_mul", "gelu_tanh_mul", "gelu_erf", "gelu_tanh"):
        rows.activate(x, kind)
    rows.lookup(torch.zeros(3, dtype=torch.int64), x)


def tokens(vocab: int) -> None:
    logits = torch.zeros(2, vocab)
    params = SamplingParams(1, max_tokens=9, temperature=0.5, top_k=20, top_p=0.9, min_p=0.1)
    row = LogitRow(0, params, 0, 0)
    allowed = torch.zeros(2, -(-vocab // 32), dtype=torch.int32)
    for words in (None, allowed):
        sampling.draw(logits, [row, row], words)
    logprobs._total(logits)
    logprobs._likeliest(logits, 5)


def cases(has_float8: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    half, brain, wide = torch.float16, torch.bfloat16, torch.float32
    for dtype, dim in [(brain, 64), (brain, 128), (brain, 256), (half, 80), (wide, 64), (wide, 128),
                       (wide, 256), (brain, 512), (wide, 512)]:  # fmt: skip
        yield f"attend {dtype} {dim}", lambda d=dtype, n=dim: attend(d, n)
    yield "attend gemma2", lambda: attend(brain, 256, window=100, softcap=50.0)
    yield "attend window", lambda: attend(half, 128, window=100)
    yield "attend encoder", lambda: attend(wide, 32, causal=False)
    for dtype in (half, brain, wide):
        yield f"attend int8 {dtype}", lambda d=dtype: attend(d, 128, torch.int8)
    if has_float8:
        for dtype in (half, brain, wide):
            yield f"attend fp8 {dtype}", lambda d=dtype: attend(d, 128, torch.float8_e4m3fn)
            yield f"heads fp8 {dtype}", lambda d=dtype: to_cache(d, 128, torch.float8_e4m3fn, True)
    for dtype in (half, brain, wide):
        yield f"heads {dtype}", lambda d=dtype: to_cache(d, 128, None, True)
    yield "heads bare", lambda: to_cache(brain, 80, None, False)
    yield "heads int8", lambda: to_cache(brain, 128, torch.int8, True)
    for dtype in (half, brain, wide):
        yield f"rows {dtype}", lambda d=dtype: each_row(d, 4096)
    yield "rows odd", lambda: each_row(brain, 602)
    yield "tokens", lambda: tokens(151936)
    yield "tokens odd", lambda: tokens(50257)


def used(made: Any) -> dict[str, int]:
    """Registers a thread, and bytes of stack, which is where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(TOOL), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", told))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])}


def main(capability: int) -> None:
    driver.set_active(Card(capability))
    found: list[Any] = []
    stand_in = compiling(found)
    launch.launch = stand_in
    for module in (heads, logprobs, rows, sampling, sys.modules[TritonAttention.__module__]):
        module.launch = stand_in  # type: ignore[attr-defined]
    for name, case in cases(capability >= 89):
        found.clear()
        case()
        for kernel, made in found:
            about = {"case": name, "kernel": kernel.fn.__name__, "shared": made.metadata.shared}
            about |= {"warps": made.metadata.num_warps, "fused": "fma.rn.f32" in made.asm["ptx"]}
            print(json.dumps(about | used(made)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
