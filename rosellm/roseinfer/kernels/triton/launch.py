"""How every kernel is started, so that there is one place to change it."""

from __future__ import annotations

from typing import Any

EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""Products and sums are rounded one by one, as the source has them: code around an expression, and
another version of the compiler, does not change what it comes to."""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Start ``kernel`` on the current stream, unless there is nothing to do."""
    if all(grid):
        kernel[grid](*args, **options)
