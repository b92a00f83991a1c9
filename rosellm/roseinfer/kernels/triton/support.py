"""Whether Triton's kernels can run here, and if not, why. Importing this imports no triton."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

LEAST_VERSION = (3, 6)
LEAST_CAPABILITY = (8, 0)
"""Ampere: matrix instructions for bf16."""

FLOAT8_CAPABILITY = (8, 9)
"""Ada: numbers in e4m3."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """The first reason against it, or None. On a CPU only Triton's interpreter runs, for tests."""
    if find_spec("triton") is None:
        return "triton is not installed"
    found = _version()
    if found < LEAST_VERSION:
        return f"triton {_dotted(found)} is older than {_dotted(LEAST_VERSION)}"
    if dtype is not None and dtype not in DTYPES:
        return f"no Triton kernels for {str(dtype).removeprefix('torch.')}"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"Triton's kernels run on CUDA, not on {device.type}"
    return _of_card(torch.cuda.get_device_capability(device)) or _of_compiler(device)


def no_fp8_cache(device: torch.device) -> str | None:
    """Why keys and values cannot be in e4m3, or None: kernels convert those by an instruction."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY:
        return None
    return f"the card lacks e4m3, which compute capability {_dotted(FLOAT8_CAPABILITY)} has"


def interpreted() -> bool:
    """Whether triton interprets its kernels on the CPU, step by step."""
    triton: Any = sys.modules.get("triton")
    if triton is not None:
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET") == "1"


def _of_card(capability: tuple[int, int]) -> str | None:
    if capability >= LEAST_CAPABILITY:
        return None
    wanted = _dotted(LEAST_CAPABILITY)
    return f"the card has compute capability {_dotted(capability)}, and {wanted} is needed"


def _of_compiler(device: torch.device) -> str | None:
    """Triton compiles when it first runs, and needs a C compiler and Python's headers for that."""
    from rosellm.roseinfer.kernels.triton.rows import rms_norm

    try:
        row = torch.ones(1, 16, device=device)
        found = rms_norm(row, row[0], 0.0)
        return None if torch.equal(found, row) else "a first kernel computed something wrong"
    except Exception as error:  # whatever it is, there is another way to compute
        first = str(error).strip().partition("\n")[0]
        return f"triton cannot compile here ({type(error).__name__}: {first})"


def _version() -> tuple[int, ...]:
    try:
        text = version("triton")
    except PackageNotFoundError:  # built under another name
        import triton

        text = triton.__version__
    numbers = text.partition("+")[0].split(".")[:2]
    return tuple(int(number) for number in numbers)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
