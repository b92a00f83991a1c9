"""Compiles every product for cards that are not here, and says which instructions each has.

A program, since the tests' process has Triton's interpreter: prints a line of JSON a kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rosellm.roseinfer.kernels.triton import matmul, matmul_quantized, tiles
from rosellm.roseinfer.kernels.triton.launch import EXACT

TYPES = {"fp32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
INTEGERS = ("m", "n", "k", "x_stride", "w_stride", "padded", "part_size")
SCALES = {"int8": "*fp16", "int4": "*fp16", "fp8": "*fp32"}

Variant = tuple[Any, str, dict[str, str], dict[str, Any], dict[str, int]]


def shape(tile: tiles.Tile, *, parts: int, spread: bool, activation: str) -> dict[str, Any]:
    return {
        "PARTS": parts,
        "SPREAD": spread,
        "ACTIVATION": activation,
        "GATED": activation.endswith("mul"),
        "HAS_BIAS": True,
        "BLOCK_N": tile.columns,
        "BLOCK_M": tile.rows,
        "GROUP": tile.group,
    }


def plain(dtype: str, tile: tiles.Tile, even: bool = True, **how: Any) -> Variant:
    block = tiles.BLOCK_K if dtype != "fp32" else tiles.WIDE_BLOCK_K
    kind = TYPES[dtype]
    pointers = {"x": kind, "w": kind, "bias": "*fp32", "out": kind, "partials": "*fp32"}
    constants = {**shape(tile, **how), "BLOCK_K": block, "EVEN": even}
    name = f"{dtype} {tile.columns}x{tile.rows} {how}"
    return matmul.product, name, pointers, constants, options(tile)


def packed(form: str, dtype: str, tile: tiles.Tile, even: bool = True, **how: Any) -> Variant:
    kind = TYPES[dtype]
    pointers = {
        "x": kind,
        "w": "*u8",
        "scales": SCALES[form],
        "points": "*i16",
        "bias": "*fp32",
        "out": kind,
        "partials": "*fp32",
    }
    group = {"int8": 32, "int4": 128, "fp8": 0}[form]
    constants = {**shape(tile, **how), "KIND": form, "GROUP_SIZE": group, "EVEN": even}
    name = f"{form} {dtype} {tile.columns}x{tile.rows} {how}"
    return matmul_quantized.packed_product, name, pointers, constants, options(tile)


def options(tile: tiles.Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def ending() -> Variant:
    pointers = {"partials": "*fp32", "bias": "*fp32", "out": "*bf16", "scales": "*fp32"}
    constants = {"PARTS": 4, "SCALED": True, "ACTIVATION": "gelu_erf", "HAS_BIAS": True}
    return matmul.finish, "finish", pointers, {**constants, "BLOCK": 512}, {"num_warps": 4}


WHOLE = {"parts": 1, "spread": False, "activation": "none"}
INNER = {"parts": 4, "spread": False, "activation": "none"}
SPREAD = {"parts": 4, "spread": True, "activation": "none"}
GATED = {"parts": 1, "spread": False, "activation": "silu_mul"}


def few() -> Iterator[Variant]:
    """The one that asks most of the compiler, and how parts are summed."""
    yield packed("int4", "bf16", tiles.PACKED_TILES[-1], **WHOLE)
    yield ending()


def every(capability: int) -> Iterator[Variant]:
    """What that card may be given: a tile gets two accumulators only where it holds them."""
    card = tiles.Card(100, 163 << 10, wgmma=capability == 90)
    yield ending()
    for tile in tiles.TILES:
        yield plain("bf16", tile, **WHOLE)
        if card.holds(tile, 2):
            yield plain("bf16", tile, **INNER)
            yield plain("bf16", tile, **GATED)
    yield plain("bf16", tiles.TILES[-1], even=False, **SPREAD)
    yield plain("fp16", tiles.TILES[1], **SPREAD)
    for tile in tiles.WIDE_TILES:
        yield plain("fp32", tile, **INNER)
    yield plain("fp32", tiles.WIDE_TILES[-1], **{**GATED, "activation": "gelu_tanh_mul"})
    for form in SCALES:
        for tile in tiles.PACKED_TILES:
            yield packed(form, "bf16", tile, **WHOLE)
        largest = [tile for tile in tiles.PACKED_TILES if card.holds(tile, 2)][:2]
        for tile in largest:
            yield packed(form, "bf16", tile, **INNER)
            yield packed(form, "bf16", tile, **GATED)
        yield packed(form, "fp16", tiles.PACKED_TILES[-1], even=False, **SPREAD)
        yield packed(form, "fp32", tiles.WIDE_TILES[-1], **WHOLE)


def about(variant: Variant, capability: int) -> dict[str, Any]:
    kernel, name, pointers, constants, how = variant
    signature = dict.fromkeys(constants, "constexpr")
    for parameter in kernel.arg_names:
        if parameter not in constants:
            signature[parameter] = "i32" if parameter in INTEGERS else pointers[parameter]
    places = {parameter: index for index, parameter in enumerate(kernel.arg_names)}
    divided = [each for each in signature if each not in constants and each != "m"]
    attributes = {(places[each],): [["tt.divisibility", 16]] for each in divided}
    ordered = {parameter: signature[parameter] for parameter in kernel.arg_names}
    source = ASTSource(kernel, ordered, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    made = compiled(source, target=target, options={**how, **EXACT})
    found = re.findall(r"(w?gmma\.mma_async|mma)\.sync\.aligned\.m(\d+)n\d+k(\d+)", made.asm["ptx"])
    return {
        "kernel": name,
        "capability": capability,
        "instructions": sorted({f"{kind} m{m} k{k}" for kind, m, k in found}),
        "shared": made.metadata.shared,
        **resources(made.asm["cubin"]),
        "cubin": len(made.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of what has no place in them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], stdout=subprocess.PIPE, check=True, text=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


if __name__ == "__main__":
    for capability in map(int, sys.argv[2:]):
        for each in few() if sys.argv[1] == "few" else every(capability):
            print(json.dumps(about(each, capability)), flush=True)
