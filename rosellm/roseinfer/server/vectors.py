"""Vectors as the engine sends them, to the two forms that clients ask for."""

from __future__ import annotations

import base64
import math
import struct
from typing import Literal


def shortened(vector: bytes, dimensions: int) -> bytes:
    """The first so many numbers, brought back to unit length; a zero vector stays one.

    Args:
        vector: fp32, little-endian, as is the result.
    """
    numbers = floats(vector)[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in numbers))
    return struct.pack(f"<{dimensions}f", *(number / (length or 1.0) for number in numbers))


def encoded(vector: bytes, form: Literal["float", "base64"]) -> list[float] | str:
    """As JSON numbers, or as the base64 of the bytes themselves."""
    return floats(vector) if form == "float" else base64.b64encode(vector).decode()


def floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
