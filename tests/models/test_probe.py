"""What start-up says about invariance is tried, not believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.reference import PackedLinear
from tests.tiny_models import build, write_gpt2, write_llama


def _careless(x: Tensor, packed: PackedLinear) -> Tensor:
    """A product whose rows notice how many they are."""
    product = x @ packed.weight[: packed.out_features, : packed.in_features].T
    return product + 1e-3 * len(x)


@pytest.mark.parametrize("write", [write_llama, write_gpt2])
def test_the_promise_is_tried_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: type
) -> None:
    folder = write(tmp_path / "model")
    honest = build(folder, kernels="reference").facts
    assert honest.invariant
    assert honest.fingerprint.endswith("_invariant")
    monkeypatch.setattr(reference, "linear", _careless)
    careless = build(folder, kernels="reference").facts
    assert not careless.invariant
    assert careless.fingerprint.endswith("_batch-dependent")
    assert "do not keep their bits" in str(careless.decisions)
