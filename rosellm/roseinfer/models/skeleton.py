"""What every model is to the engine: parameters to fill, hidden states, and perhaps logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.layers.linear import Linear, Matrix
from rosellm.roseinfer.models.spec import ModelSpec
from rosellm.roseinfer.quant.formats import Recipe


class Model(nn.Module):
    """Base of the skeletons (``Decoder``, ``Encoder``).

    Attributes:
        traceable: whether ``forward`` calls nothing but layers and sums of their results, so that
            it can be written down once and run as a program.
    """

    traceable: ClassVar[bool] = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, ids: Tensor, step: Step, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states [T, H] of token ids [T]; ``embeddings`` [T, H] override the table."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Logits:
        """Scores [R, vocabulary] in fp32 of hidden states [R, H]."""
        raise NotImplementedError

    @property
    def plain_head(self) -> Linear | None:
        """The head, if its product is all that ``logits`` does."""
        return None

    def own_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules whose parameters are their own, by name."""
        yield from self.named_modules()

    def num_weights(self) -> int:
        """Numbers to load: all parameters, a table that the head shares once."""
        return sum(p.numel() for _, module in self.own_modules() for p in module.parameters(False))

    def hold(self, recipe: Recipe) -> None:
        """Say in which form each matrix will be held. Call once, before loading."""
        for name, module in self.own_modules():
            if isinstance(module, Linear):
                module.format = recipe.of(name)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Memory of all weights as the kernels will hold them, known before they are loaded.

        Args:
            dtype: the model's.
        """
        total = 0
        for _, module in self.own_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, Matrix) and name == "weight":
                    total += module.held_bytes(dtype)
                else:
                    total += parameter.numel() * dtype.itemsize
        return total

    def keep_head(self) -> None:
        """Let go of all weights that ``logits`` does without."""
        del self.embed, self.blocks

    def finish(self) -> None:
        """What is left to do when every module has its weights. Call once."""

    @torch.inference_mode()
    def rows_are_independent(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Try one product of each shape on this machine: libraries choose their loops by shape."""
        layers = [module for module in self.modules() if isinstance(module, Linear)]
        shapes = {(*layer.parts.values(), layer.in_features): layer for layer in layers}
        return all(layer.rows_are_independent(dtype, device) for layer in shapes.values())
