"""Numbers in 8 bits with a binary point (e4m3, arXiv:2209.05433), in plain torch: the spec.

A code is worth sign * 2^(e - 7) * (1 + m / 8), from 2^-9 to 448; there is no infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor

TYPE = torch.float8_e4m3fn
MOST = 448.0


def rows_to_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., K] as e4m3 codes, and their scales [...] in fp32: the largest number becomes 448.

    What is no number makes the scale none, so that whoever reads the row sees it; where the scale
    has no reciprocal in fp32, all codes are 0.
    """
    wide = x.float()
    scales = wide.abs().amax(-1) / MOST
    inverse = torch.where(scales >= torch.finfo(torch.float32).tiny, 1 / scales, 0.0)
    codes = (wide * inverse[..., None]).nan_to_num(0.0).clamp(-MOST, MOST).to(TYPE)
    return codes, scales


def scaled_product(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, K] times a weight [N, K] transposed, both in fp8, plus bias: [T, N] in x's type.

    Args:
        codes: uint8, rows of whole 16 bytes.
        scales: fp32 [N].
    """
    rows, row_scales = rows_to_codes(x)
    product = torch._scaled_mm(
        rows,
        codes.view(TYPE).t(),
        scale_a=row_scales[:, None],
        scale_b=scales[None, :],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    if bias is not None:
        product = product + bias
    return product.to(x.dtype)
