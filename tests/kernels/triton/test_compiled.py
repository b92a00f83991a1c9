"""Every kernel compiles for cards that are not here, down to machine code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ROOM = ROOT / "rosellm/roseinfer/kernels/triton"
FILES = ("attention", "heads", "logprobs", "rows", "sampling")
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that a program may have."""
SPILLED = 96
"""Bytes of a thread's registers that may go to memory in attention in 16 bits."""


@pytest.fixture(scope="module", params=SHARED)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1"}
    environment["PYTHONPATH"] = str(ROOT)  # not the audit: ptxas is a program, too
    environment.pop("TRITON_INTERPRET", None)
    program = [sys.executable, "-m", "tests.kernels.triton.compiled", str(request.param)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return request.param, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(1200)
def test_every_kernel_is_compiled_and_fits(compiled: Any) -> None:
    capability, found = compiled
    text = "".join((ROOM / f"{name}.py").read_text() for name in FILES)
    assert {each["kernel"] for each in found} == set(re.findall(r"def (\w+_kernel)\(", text))
    for each in found:
        if " 512" not in each["case"]:
            assert each["shared"] <= SHARED[capability], each


@pytest.mark.timeout(1200)
def test_sums_and_products_are_not_contracted(compiled: Any) -> None:
    """In fp32, but for products of matrices, and within a library's function."""
    for each in compiled[1]:
        meant = each["kernel"] == "attention_kernel" and "float32" in each["case"]
        meant = meant or each["case"] == "attend encoder" or each["kernel"] == "activation_kernel"
        if each["kernel"] in ("norm_kernel", "attention_kernel", "merge_kernel", "heads_kernel"):
            assert meant or not each["fused"], each


@pytest.mark.timeout(1200)
def test_registers_suffice(compiled: Any) -> None:
    for each in compiled[1]:
        if "float32" in each["case"] or " 512" in each["case"]:
            continue
        assert each["stack"] <= SPILLED, each
