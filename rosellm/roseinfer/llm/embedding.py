"""Vectors as the engine sends them, to numpy arrays."""

from __future__ import annotations

import numpy as np

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.llm.gather import Gathered
from rosellm.roseinfer.llm.results import Embedding
from rosellm.roseinfer.server.vectors import shortened


def check_dimensions(dimensions: int | None, size: int) -> None:
    """
    Raises:
        RequestError: the model's vectors, which have ``size`` numbers, cannot be cut to that.
    """
    if dimensions is not None and not 1 <= dimensions <= size:
        raise RequestError(f"dimensions must be 1 to {size}, not {dimensions}", param="dimensions")


def embedding(gathered: Gathered, dimensions: int | None) -> Embedding:
    """The vector, or what is left of it with so many dimensions."""
    data = gathered.vector if dimensions is None else shortened(gathered.vector, dimensions)
    return Embedding(np.frombuffer(data, "<f4").astype(np.float32), tuple(gathered.job.prompt))
