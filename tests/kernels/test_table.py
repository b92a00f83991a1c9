"""Which operations are chosen, and what is said where those that are wanted cannot run."""

from __future__ import annotations

import sys

import pytest
import torch

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels import table
from rosellm.roseinfer.kernels.cpu.library import Unavailable
from rosellm.roseinfer.kernels.table import choose_ops
from rosellm.roseinfer.kernels.triton import support

CPU, CARD = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "interpreted", lambda: False)
    monkeypatch.setattr(support, "find_spec", lambda name: name)
    monkeypatch.setattr(support, "version", lambda name: "3.9.0")


def test_the_reference_can_be_asked_for() -> None:
    assert choose_ops(CPU, "reference").name == "reference"


def test_native_kernels_are_refused_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--kernels native: .* not on cuda"):
        choose_ops(CARD, "native")
    monkeypatch.setattr(table, "load", lambda: Unavailable("it was not built"))
    with pytest.raises(ConfigError, match="--kernels native: it was not built"):
        choose_ops(CPU, "native")
    auto = choose_ops(CPU)
    assert (auto.name, auto.reason) == ("reference", "it was not built")


def test_triton_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="--kernels triton: Triton's kernels run on CUDA"):
        choose_ops(CPU, "triton")


def test_auto_says_why_triton_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    ops = choose_ops(CARD)
    assert (ops.name, ops.reason) == ("reference", "triton is not installed")


@pytest.mark.parametrize(
    ("version", "capability", "dtype", "reason"),
    [
        ("3.5.1", (9, 0), torch.bfloat16, "triton 3.5 is older than 3.6"),
        ("3.10.0+git1", (7, 5), torch.float16, "the card has compute capability 7.5"),
        ("3.6.0", (9, 0), torch.float64, "no Triton kernels for float64"),
    ],
)
def test_reasons_against_triton(
    version: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(support, "version", lambda name: version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = support.why_not(CARD, dtype)
    assert found is not None
    assert found.startswith(reason)


def test_a_kernel_that_cannot_be_compiled_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in sys.modules:
        pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = support.why_not(CARD)  # there is no card
    assert found is not None
    assert found.startswith("triton cannot compile here")
