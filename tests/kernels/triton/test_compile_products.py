"""Every product is compiled for cards that are not here: Triton's interpreter forgives more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.kernels.triton import tiles

pytest.importorskip("triton")

SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes that a program may have (CUDA C++ Programming Guide, technical specifications)."""
TYPES = ("fp32", "bf16", "fp16")
SPILLED = 16
"""Bytes of a thread's registers that may go to memory where numbers are made of few bits."""

TILES = {
    "bf16": tiles.TILES,
    "fp32": tiles.WIDE_TILES,
    **{f"{form} bf16": tiles.PACKED_TILES for form in ("int8", "int4", "fp8")},
}
"""What a model may be computed by."""


def compiled(cache: Path, which: str, *capabilities: int) -> list[dict[str, Any]]:
    program = [sys.executable, "-W", "ignore", "-m", "tests.kernels.triton.compile_products"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    told = subprocess.run(
        [*program, which, *map(str, capabilities)],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return [json.loads(line) for line in told.stdout.splitlines()]


def assert_sound(kernels: list[dict[str, Any]]) -> None:
    """Each became machine code, keeps all but a few of its sums in registers, and multiplies by the
    one instruction that all tiles share: what a row's bits rest on."""
    assert kernels
    for each in kernels:
        assert each["cubin"] > 0
        plain = each["kernel"] == "finish" or each["kernel"].split()[0] in TYPES
        assert each["spilled"] <= (0 if plain else SPILLED), each
        assert each["shared"] <= SHARED[each["capability"]], each
        if each["kernel"] == "finish" or "fp32" in each["kernel"]:
            assert each["instructions"] == []
        elif each["capability"] == 90:
            assert each["instructions"] == ["wgmma.mma_async m64 k16"], each
        else:
            assert each["instructions"] == ["mma m16 k16"], each


def test_a_few_kernels(tmp_path):
    kernels = compiled(tmp_path, "few", 90)
    assert [each["kernel"].split()[0] for each in kernels] == ["int4", "finish"]
    assert_sound(kernels)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel(tmp_path, capability):
    kernels = compiled(tmp_path, "every", capability)
    names = [each["kernel"] for each in kernels]
    for words, shapes in TILES.items():
        for tile in shapes:
            assert any(f"{words} {tile.columns}x{tile.rows} " in name for name in names), words
    assert "finish" in names
    assert {each["capability"] for each in kernels} == {capability}
    assert_sound(kernels)
