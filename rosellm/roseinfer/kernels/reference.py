"""Every operation in plain torch: the specification that fast kernels are tested against.

All of it is *schedule-invariant*: a row's bits depend on that row alone, not on
how many rows came with it or where among them it stood. What it takes:

* Matrix products run on row tiles of one fixed height, the last one padded with
  zeros, with both weight dimensions padded to a multiple of 16: libraries choose
  their loops by shape, and edge columns may be computed in another order.
* Batched products run over a fixed number of matrices where the library looks at it (CUDA).
* Attention runs over query and KV tiles of fixed size, in the order of position.
* Sums and running sums are trees of elementwise additions: a library's reduction splits
  its work by the whole tensor's shape.
* No op whose vector and scalar code differ (``silu``, ``gelu``, ``sigmoid``) is used
  on a flat array, since a row's place decides which of them it meets. ``exp``, ``erf``
  and ``tanh`` are safe: they run the same code on every element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels import float8
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.tensor import QuantizedTensor

Activation = Literal["silu_mul", "gelu_tanh_mul", "gelu_erf", "gelu_tanh"]
"""Those of two inputs end in "mul"."""

PAD = 16
"""Weights are padded to a multiple of this in both dimensions."""

_MATRICES = 128
"""Matrices in one batched product on CUDA."""


@dataclass(frozen=True)
class PackedLinear:
    """A weight in the layout of these kernels.

    Attributes:
        weight: [out padded, in padded], any float dtype.
        bias: [out padded] or None.
        out_features, in_features: without padding.
        activation: of the product, or None.
    """

    weight: Tensor
    bias: Tensor | None
    out_features: int
    in_features: int
    activation: Activation | None


def tile_rows(device: torch.device) -> int:
    """Height of a row tile: small where decoding is bound by memory, larger on a GPU."""
    return 16 if device.type == "cpu" else 64


def _padding(size: int) -> int:
    return -size % PAD


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension, kept: halves are added until one column is left."""
    while (width := x.shape[-1]) > 1:
        half = (width + 1) // 2
        folded = x[..., : width - half] + x[..., half:]
        x = folded if width % 2 == 0 else torch.cat([folded, x[..., half - 1 : half]], dim=-1)
    return x


def prefix_sum(x: Tensor) -> Tensor:
    """Running sum over the last dimension; an entry's bits depend on those up to it alone
    (Hillis and Steele, "Data parallel algorithms", CACM 1986)."""
    shift = 1
    while shift < x.shape[-1]:
        x = torch.cat([x[..., :shift], x[..., shift:] + x[..., :-shift]], dim=-1)
        shift *= 2
    return x


def batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices a [..., M, K] and b [..., K, N] with equal leading dimensions."""
    left, right = a.flatten(0, -3), b.flatten(0, -3)
    if a.device.type == "cuda":
        pairs = zip(left.split(_MATRICES), right.split(_MATRICES), strict=True)
        product = torch.cat([_full_bmm(x, y) for x, y in pairs])
    else:
        product = torch.bmm(left, right)
    return product.view(*a.shape[:-1], b.shape[-1])


def _full_bmm(a: Tensor, b: Tensor) -> Tensor:
    """``_MATRICES`` products in one call, the missing ones with zeros."""
    count = len(a)
    if count < _MATRICES:
        missing = (0, 0, 0, 0, 0, _MATRICES - count)
        a, b = F.pad(a, missing), F.pad(b, missing)
    return torch.bmm(a, b)[:count]


def pack_linear(
    weight: Tensor, bias: Tensor | None, activation: Activation | None = None
) -> PackedLinear:
    """Lay out a [out, in] weight; no copy is made if nothing needs padding."""
    out_features, in_features = weight.shape
    rows, columns = _padding(out_features), _padding(in_features)
    if rows or columns:
        weight = F.pad(weight, (0, columns, 0, rows))
    if bias is not None and rows:
        bias = F.pad(bias, (0, rows))
    return PackedLinear(weight, bias, out_features, in_features, activation)


def held_bytes(
    shape: tuple[int, int],
    dtype: torch.dtype,
    _format: Format | None,
    _activation: Activation | None,
) -> int:
    """Memory of a packed weight [out, in]; a quantised one is held as what its numbers mean."""
    rows, columns = (extent + _padding(extent) for extent in shape)
    return rows * columns * dtype.itemsize


def pack_quantized(
    weight: QuantizedTensor, bias: Tensor | None, activation: Activation | None, dtype: torch.dtype
) -> PackedLinear:
    """Lay out the numbers that a quantised weight means, in the type that is computed in."""
    return pack_linear(weight.dequantize(dtype), bias, activation)


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x [T, in] times weight transposed, plus bias, then the activation: [T, out], in x's dtype.

    With an activation of two inputs, out is halved.
    """
    rows, height = x.shape[0], tile_rows(x.device)
    columns = _padding(packed.in_features)
    if columns or rows % height:
        x = F.pad(x, (0, columns, 0, -rows % height))
    tiles = [F.linear(tile, packed.weight, packed.bias) for tile in x.split(height)]
    product = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
    product = product[:rows, : packed.out_features]
    return product if packed.activation is None else ACTIVATIONS[packed.activation](product)


def logits(x: Tensor, packed: PackedLinear) -> Logits:
    """The same of a head, in fp32."""
    return Logits(linear(x, packed).float())


def embedding(ids: Tensor, packed: PackedLinear) -> Tensor:
    """Rows of a packed table: [T, in]. The table may be a head's weight as well."""
    return packed.weight[ids, : packed.in_features]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H] over its root mean square, times weight; computed in fp32 (arXiv:1910.07467)."""
    wide = x.float()
    scale = torch.rsqrt(tree_sum(wide * wide) / x.shape[-1] + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [T, H] normalised to mean 0 and variance 1, scaled and shifted; computed in fp32."""
    wide = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return wide.to(x.dtype)


def silu_mul(x: Tensor) -> Tensor:
    """silu(first half) * second half of the last dimension: [T, 2F] -> [T, F]."""
    gate, up = x.float().chunk(2, dim=-1)
    return (gate / (1.0 + torch.exp(-gate)) * up).to(x.dtype)


def gelu_tanh_mul(x: Tensor) -> Tensor:
    """gelu_tanh(first half) * second half of the last dimension: [T, 2F] -> [T, F]."""
    gate, up = x.float().chunk(2, dim=-1)
    return (gelu_tanh(gate) * up).to(x.dtype)


def gelu_erf(x: Tensor) -> Tensor:
    """The exact GELU, x * Phi(x) (arXiv:1606.08415)."""
    wide = x.float()
    return (wide * 0.5 * (1.0 + torch.erf(wide * 0.5**0.5))).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, as in the original GPT-2."""
    wide = x.float()
    inner = (2.0 / torch.pi) ** 0.5 * (wide + 0.044715 * wide.pow(3))
    return (0.5 * wide * (1.0 + torch.tanh(inner))).to(x.dtype)


ACTIVATIONS = {
    "silu_mul": silu_mul,
    "gelu_tanh_mul": gelu_tanh_mul,
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
}


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves: x [T, heads, D]; cos, sin [T, R/2] in fp32, R <= D (arXiv:2104.09864)."""
    half = cos.shape[-1]
    wide = x.float()
    first, second = wide[..., :half], wide[..., half : 2 * half]
    cos, sin = cos[:, None], sin[:, None]
    rotated = [first * cos - second * sin, second * cos + first * sin, wide[..., 2 * half :]]
    return torch.cat(rotated, dim=-1).to(x.dtype)


def route(scores: Tensor, count: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """The likeliest ``count`` of softmax(scores [T, E]), equals by index: weights in fp32 and
    indices, each [T, count], likeliest first; ``normalise`` makes a row's weights sum to 1."""
    wide = scores.float()
    odds = torch.exp(wide - wide.amax(-1, keepdim=True))
    ranked = (odds / tree_sum(odds)).sort(dim=-1, descending=True, stable=True)
    weights, indices = ranked.values[:, :count], ranked.indices[:, :count]
    return (weights / tree_sum(weights) if normalise else weights), indices


def write_kv(cache: KVTensor, slots: Tensor, values: Tensor) -> None:
    """Store values [T, kv heads, D] at slots [T] of a cache, in its type."""
    if cache.scales is None:
        cache.data.index_copy_(0, slots, values.to(cache.data.dtype))
        return
    codes, scales = kv_codes(values, cache.data.dtype)
    # as bytes: few operations know floats of 8 bits
    cache.data.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
    cache.scales.index_copy_(0, slots, scales)


def kv_codes(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Heads [..., D] in int8, and their scales [...] in fp32: the largest number becomes 127.
    In e4m3 it becomes 448.

    What is no number makes the scale none, so that whoever reads the head sees it; where the
    scale has no reciprocal in fp32, all codes are 0.
    """
    if dtype == float8.TYPE:
        return float8.rows_to_codes(x)
    wide = x.float()
    scales = wide.abs().amax(-1) / 127
    inverse = torch.where(scales >= torch.finfo(torch.float32).tiny, 1 / scales, 0.0)
    codes = (wide * inverse[..., None]).nan_to_num(0.0).round().to(torch.int8)
    return codes, scales


def read_kv(cache: KVTensor, rows: Tensor) -> Tensor:
    """Heads [N, D] of a cache in fp32, where row = slot * kv heads + head."""
    stored = cache.data.flatten(0, 1)
    if cache.scales is None:
        return stored.index_select(0, rows).float()
    codes: Tensor = stored.view(torch.uint8).index_select(0, rows).view(stored.dtype)
    heads = codes.float()
    return heads * cache.scales.flatten().index_select(0, rows)[:, None]
