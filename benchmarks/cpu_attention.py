"""Native paged attention beside what this machine can do at most.

    python -m benchmarks.cpu_attention
    python -m benchmarks.cpu_attention --caches bfloat16 --rounds 9

Heads are those of Qwen3-0.6B: 16, over 8 of keys and values, of 128 numbers. A case is one layer's
attention, over layers that take turns and are more than a cache of the processor holds: one token
for each of some sequences with a long context, or a whole prompt. The share is that of the faster
of two ceilings' times: reading the keys and values once, and multiplying what the tokens see (a
prompt's diagonal counted exactly), at the peak for the numbers that are multiplied. The last line
is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from ctypes import byref
from dataclasses import asdict, dataclass, field
from statistics import median

import torch
from torch import Tensor

from benchmarks.cpu_kernels import WORKING_SET, Peaks
from rosellm.bench.machine import describe
from rosellm.roseinfer.attention.native import NativeAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage, KVTensor
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library, load

HEADS, KV_HEADS, DIM = 16, 8, 128
BLOCK_SIZE = 16
CONTEXT = 2048
DECODES = [1, 8, 32]
PROMPTS = [512, 2048]
CACHES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "int8": torch.int8,
}
ENOUGH_S = 0.02

Layer = tuple[KVTensor, KVTensor]


@dataclass
class Case:
    """One step's attention.

    Attributes:
        operations: of the products, two for each multiplication.
    """

    cache: str
    kind: str
    sequences: int
    tokens: int
    num_bytes: int
    operations: int
    run: Callable[[], None]
    times: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Add the time of one call, from as many as take a while."""
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < ENOUGH_S:
            self.run()
            calls += 1
        self.times.append(elapsed / calls)


@dataclass(frozen=True)
class Figures:
    """What came of a case: medians."""

    cache: str
    kind: str
    sequences: int
    us: float
    gb_s: float
    gop_s: float
    share: float


def figures(case: Case, peaks: dict[str, float], level: str) -> Figures:
    seconds = median(case.times)
    halves = level in ("avx512_bf16", "amx") and case.cache in ("bfloat16", "int8")
    peak = peaks["bf16" if halves else "fp32"]
    least = max(case.num_bytes / peaks["read"], case.operations / peak) / 1e9
    return Figures(
        case.cache, case.kind, case.sequences, round(seconds * 1e6, 1),
        round(case.num_bytes / seconds / 1e9, 2), round(case.operations / seconds / 1e9, 1),
        round(least / seconds, 3),
    )  # fmt: skip


def cases(library: Library, cache: str) -> list[Case]:
    decodes = [make(library, cache, count, CONTEXT, 1) for count in DECODES]
    return decodes + [make(library, cache, 1, length, length) for length in PROMPTS]


def make(library: Library, cache: str, sequences: int, context: int, tokens: int) -> Case:
    """Sequences of one length, of each of which the last tokens are computed."""
    blocks = context // BLOCK_SIZE
    order = torch.randperm(sequences * blocks).view(sequences, blocks).tolist()
    backend = NativeAttention(BLOCK_SIZE, library)
    starts, lengths = [context - tokens] * sequences, [tokens] * sequences
    meta = backend.prepare(starts, lengths, [tuple(table) for table in order], sequences * blocks)
    layer = _layer(cache, sequences * context)
    num_bytes = sum(part.nbytes for part in _parts(layer))
    layers = [layer]
    while len(layers) * num_bytes < WORKING_SET:
        layers.append(_copied(layer))
    seen = sequences * sum(range(context - tokens + 1, context + 1))
    kind = f"decode at {context}" if tokens == 1 else f"prompt of {context}"
    operations = 4 * HEADS * DIM * seen
    run = _taking_turns(library, layers, meta.sequences, sequences * tokens, keep=meta)
    return Case(cache, kind, sequences, tokens, num_bytes, operations, run)


def _layer(cache: str, slots: int) -> Layer:
    """Keys and values."""
    group = KVGroup((0,), KV_HEADS, DIM)
    storage = KVStorage([group], [slots - 1], 1, CACHES[cache], torch.device("cpu"))
    for part in storage.layer(0):
        reference.write_kv(part, torch.arange(slots), torch.randn(slots, KV_HEADS, DIM))
    return storage.layer(0)


def _parts(layer: Layer) -> list[Tensor]:
    every = [part for kept in layer for part in (kept.data, kept.scales)]
    return [part for part in every if part is not None]


def _copied(layer: Layer) -> Layer:
    keys, values = (
        KVTensor(kept.data.clone(), None if kept.scales is None else kept.scales.clone())
        for kept in layer
    )
    return keys, values


def _taking_turns(
    library: Library,
    layers: list[Layer],
    sequences: structs.Sequences,
    rows: int,
    keep: object,
) -> Callable[[], None]:
    q, out = torch.randn(rows, HEADS * DIM), torch.empty(rows, HEADS * DIM)
    parts = (structs.Activations.of(part) for part in (q, out))
    call = structs.Attention(*parts, HEADS, DIM**-0.5, 0.0)
    caches = [structs.KvCache.of(*layer) for layer in layers]
    turn, kept = 0, (q, out, layers, keep)

    def run() -> None:
        nonlocal turn
        turn = (turn + 1) % len(caches)
        assert kept
        library.c.rose_attention(byref(call), byref(sequences), byref(caches[turn]))

    return run


def report(found: list[Figures], ceilings: dict[str, float]) -> None:
    rounded = ", ".join(f"{kind} {value:.1f}" for kind, value in ceilings.items())
    print(f"ceilings: {rounded} (GB/s, then Gop/s)")
    print(f"{'cache':9} {'step':15} {'seqs':>4} {'us':>10} {'GB/s':>7} {'Gop/s':>7} {'share':>6}")
    for each in found:
        print(
            f"{each.cache:9} {each.kind:15} {each.sequences:4} {each.us:10.1f} {each.gb_s:7.2f} "
            f"{each.gop_s:7.1f} {each.share:6.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--rounds", type=int, default=5, help="samples of each")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    options = parser.parse_args()
    library = load()
    if not isinstance(library, Library):
        raise SystemExit(f"error: {library.reason}")
    if options.threads:
        library.set_threads(options.threads)
    peaks, done = Peaks(library), []
    for cache in options.caches:
        chosen = cases(library, cache)
        for _ in range(options.rounds):
            peaks.measure()
            for case in chosen:
                case.sample()
        done += [(case.cache, case) for case in chosen]
        for case in chosen:
            case.run = lambda: None  # lets go of its layers
    ceilings = peaks.best()
    found = [figures(case, ceilings, library.level) for _, case in done]
    report(found, ceilings)
    results = [asdict(each) for each in found]
    print(json.dumps({"machine": describe(), "kernels": library.describe(),
                      "ceilings": ceilings, "attention": results}))  # fmt: skip


if __name__ == "__main__":
    main()
