"""Names of activations in configs."""

from __future__ import annotations

from rosellm.roseinfer.kernels.reference import Activation

PLAIN: dict[str, Activation] = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Of an MLP of two products."""

GATED: dict[str, Activation] = {
    "silu": "silu_mul",
    "swish": "silu_mul",
    "gelu_new": "gelu_tanh_mul",
    "gelu_fast": "gelu_tanh_mul",
    "gelu_pytorch_tanh": "gelu_tanh_mul",
}
"""Of an MLP whose first product is two, one through the activation times the other."""
