"""What every model is to the engine: parameters to fill, hidden states, and perhaps logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.layers.linear import Embedding, Linear
from rosellm.roseinfer.layers.norm import RMSNorm
from rosellm.roseinfer.models.spec import ModelSpec


class Model(nn.Module):
    """Base of the skeletons (``Decoder``, ``Encoder``)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, ids: Tensor, step: Step, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states [T, H] of token ids [T]; ``embeddings`` [T, H] override the table."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [R, vocabulary] in fp32 of hidden states [R, H]."""
        raise NotImplementedError

    def num_weights(self) -> int:
        """Numbers to load: all parameters, a table that the head shares once."""
        return sum(p.numel() for module in self._own_modules() for p in module.parameters(False))

    def allocate(self, dtype: torch.dtype, device: torch.device) -> None:
        """Give every parameter memory of its own, not filled yet; they may be on "meta" before.

        Not ``to_empty``: that looks at the meta tensors, for which torch imports sympy.
        """
        for module in self._own_modules():
            for name, old in list(module.named_parameters(recurse=False)):
                new = torch.empty(old.shape, dtype=dtype, device=device)
                setattr(module, name, nn.Parameter(new, requires_grad=False))

    def pack(self) -> None:
        """Lay all weights out for the kernels. Call once, after loading."""
        for module in self._own_modules():
            if isinstance(module, Embedding | Linear | RMSNorm):
                module.pack()

    @torch.inference_mode()
    def rows_are_independent(self) -> bool:
        """Try one product of each shape on this machine: libraries choose their loops by shape."""
        layers = [module for module in self.modules() if isinstance(module, Linear)]
        shapes = {(*layer.parts.values(), layer.in_features): layer for layer in layers}
        return all(layer.rows_are_independent() for layer in shapes.values())

    def _own_modules(self) -> Iterator[nn.Module]:
        """All modules whose parameters are their own."""
        return self.modules()
