"""Matrix products on CUDA as ``table.Ops`` wants them: packing, and which kernel runs.

Two modes. *Deterministic*: all products are ours, and a row's bits do not depend on its batch.
Otherwise plain weights go through cuBLAS (``F.linear``) and fp8 ones, where the card multiplies
them, through ``torch._scaled_mm`` with rows rounded to fp8 too; both choose their sums by shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rosellm.roseinfer.kernels import float8
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.triton import matmul, matmul_quantized, rows, tiles
from rosellm.roseinfer.kernels.triton.launch import EXACT, launch
from rosellm.roseinfer.kernels.triton.packing import PackedCodes, pack, packed_bytes
from rosellm.roseinfer.kernels.triton.support import FLOAT8_CAPABILITY
from rosellm.roseinfer.kernels.triton.tiles import Card, Tile
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor

_FINISH_BLOCK = 512
_FLOAT8_MULTIPLE = 16
_TRIED_ROWS = 300


@dataclass(frozen=True)
class Weight:
    """A weight [rows, columns], laid out.

    Attributes:
        data: plain, or in few bits.
        bias: fp32 [rows], or None.
    """

    data: Tensor | PackedCodes
    bias: Tensor | None
    activation: Activation | None

    @property
    def gated(self) -> bool:
        return self.activation is not None and self.activation.endswith("mul")

    @property
    def shape(self) -> tuple[int, int]:
        if isinstance(self.data, PackedCodes):
            return self.data.rows, self.data.columns
        height, width = self.data.shape
        return height, width

    @property
    def out_features(self) -> int:
        """Columns of the result."""
        return self.shape[0] // 2 if self.gated else self.shape[0]


Size: TypeAlias = tuple[int, int]


class Products:
    """See ``table.Ops``, whose signatures these are.

    Args:
        deterministic: whether a row's bits must not depend on its batch.
        card: of the device; by default it is asked.

    Attributes:
        identity: what start-up calls them.
    """

    def __init__(
        self, device: torch.device, *, deterministic: bool = True, card: Card | None = None
    ) -> None:
        self.identity = "invariant in Triton" if deterministic else "cuBLAS where it has them"
        self._deterministic = deterministic
        self._format: Format | None = None
        self._card = card or card_of(device)
        self._float8 = device.type == "cuda" and (
            torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY
        )

    def pack_linear(
        self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None
    ) -> Weight:
        return Weight(weight.contiguous(), _wide(bias), activation)

    def pack_quantized(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        activation: Activation | None,
        dtype: torch.dtype,
    ) -> Weight:
        self._format = weight.format
        return Weight(pack(weight, dtype), _wide(bias), activation)

    def held_bytes(
        self,
        shape: Size,
        dtype: torch.dtype,
        form: Format | None,
        _activation: Activation | None,
    ) -> int:
        if form is not None:
            return packed_bytes(form, *shape)
        return shape[0] * shape[1] * dtype.itemsize

    def embedding(self, ids: Tensor, weight: Weight) -> Tensor:
        data = weight.data
        if isinstance(data, PackedCodes):
            return data.numbers(ids)
        return rows.lookup(ids, data)

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        if not len(x):
            return x.new_empty(0, weight.out_features)
        if not self._deterministic:
            product = self._by_library(x, weight)
            if product is not None:
                kind = weight.activation
                return product if kind is None else rows.activate(product, kind)
        return self._by_kernel(x, weight)

    def agree(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Try on this card whether all tiles, and parts of K summed by one program or by several,
        give a row the same bits: of a plain weight, of one in the format that was packed last, and
        of a gate. Triton's interpreter takes too long for that."""
        if device.type != "cuda":
            return True
        most = _TRIED_ROWS
        k = 2048
        values = torch.arange(most * k, device=device, dtype=torch.float32)
        x = (values * 0.37).sin().view(most, k).to(dtype)
        wide = (values * 0.73).cos().view(most, k)
        tried = [Weight(wide.to(dtype), None, each) for each in (None, "silu_mul")]
        if self._format is not None:
            few = quantize(wide, self._format, search=False)
            tried.append(self.pack_quantized(few, None, None, dtype))
        return all(self._tiles_agree(x, weight) for weight in tried)

    def _tiles_agree(self, x: Tensor, weight: Weight) -> bool:
        """Whether all rows, and the first one alone, are the same by whatever may compute them."""
        shapes, block_k, step = _shapes(x.dtype, isinstance(weight.data, PackedCodes))
        count, size = self._cut(weight, x.shape[1], block_k)
        whole = self._by_kernel(x, weight)
        for tile in tiles.fitting(shapes, count, weight.gated, self._card, step):
            for spread in (False, True) if count > 1 else (False,):
                for few in (len(x), 1):
                    found = self._compute(x[:few], weight, tile, Parts(count, size, spread))
                    if not torch.equal(found, whole[:few]):
                        return False
        return True

    def _by_library(self, x: Tensor, weight: Weight) -> Tensor | None:
        """The product before its activation, if a library does it."""
        data = weight.data
        if isinstance(data, Tensor):
            bias = None if weight.bias is None else weight.bias.to(x.dtype)
            return F.linear(x, data, bias)
        fits = all(extent % _FLOAT8_MULTIPLE == 0 for extent in weight.shape)
        if data.kind != "fp8" or not (self._float8 and fits and x.dtype != torch.float32):
            return None
        return float8.scaled_product(
            x, data.codes[:, : data.columns], data.scales[: data.rows], weight.bias
        )

    def _by_kernel(self, x: Tensor, weight: Weight) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        packed = isinstance(weight.data, PackedCodes)
        shapes, block_k, step = _shapes(x.dtype, packed)
        (m, k), n = x.shape, weight.out_features
        count, size = self._cut(weight, k, block_k)
        tile = tiles.choose(shapes, m, n, count, weight.gated, self._card, step)
        spread = count > 1 and tiles.count(tile, m, n) < self._card.processors
        return self._compute(x, weight, tile, Parts(count, size, spread))

    def _compute(self, x: Tensor, weight: Weight, tile: Tile, parts: Parts) -> Tensor:
        m, n = len(x), weight.out_features
        out = x.new_empty(m, n)
        sums = x.new_empty((parts.count, m, n), dtype=torch.float32) if parts.spread else out
        run = _packed_product if isinstance(weight.data, PackedCodes) else _plain_product
        run(x, weight, out, sums, tile, parts)
        if parts.spread:
            _finish(weight, out, sums, parts.count)
        return out

    def _cut(self, weight: Weight, k: int, block_k: int) -> tuple[int, int]:
        """How many parts K has, and how long each is."""
        if weight.gated:
            return 1, max(k, 1)
        return tiles.parts(weight.out_features, k, block_k, self._card.processors)


@dataclass(frozen=True)
class Parts:
    """How K is cut: see ``tiles.parts``; ``spread`` over programs or one after another."""

    count: int
    size: int
    spread: bool


def card_of(device: torch.device) -> Card:
    """A device, as tiles are chosen for it; for Triton's interpreter, a small one."""
    if device.type != "cuda":
        return Card(processors=4, shared=99 << 10)
    about = torch.cuda.get_device_properties(device)
    shared: int = getattr(about, "shared_memory_per_block_optin", about.shared_memory_per_block)
    return Card(about.multi_processor_count, shared, wgmma=about.major == 9)


def _shapes(dtype: torch.dtype, packed: bool) -> tuple[tuple[Tile, ...], int, int]:
    """Tiles, columns of K in a step, and bytes of a row in one."""
    if packed:
        shapes = tiles.PACKED_TILES if dtype.itemsize == 2 else tiles.WIDE_TILES
        return shapes, tiles.PACKED_BLOCK_K, tiles.PACKED_BLOCK_K * dtype.itemsize
    if dtype.itemsize == 2:
        return tiles.TILES, tiles.BLOCK_K, tiles.BLOCK_K * dtype.itemsize
    return tiles.WIDE_TILES, tiles.WIDE_BLOCK_K, tiles.WIDE_BLOCK_K * dtype.itemsize


def _plain_product(
    x: Tensor, weight: Weight, out: Tensor, sums: Tensor, tile: Tile, parts: Parts
) -> None:
    block_k = _shapes(x.dtype, False)[1]
    k = x.shape[1]
    launch(
        matmul.product,
        _grid(tile, out, parts),
        *(x, weight.data, _or(weight.bias, out), out, sums),
        *(*out.shape, k, x.stride(0), parts.size),
        BLOCK_K=block_k,
        EVEN=k % block_k == 0,
        **_settings(weight, tile, parts),
    )


def _packed_product(
    x: Tensor, weight: Weight, out: Tensor, sums: Tensor, tile: Tile, parts: Parts
) -> None:
    data = weight.data
    assert isinstance(data, PackedCodes)
    k = x.shape[1]
    launch(
        matmul_quantized.packed_product,
        _grid(tile, out, parts),
        *(x, data.codes, data.scales, _or(data.points, data.codes), _or(weight.bias, out)),
        *(out, sums, *out.shape, k, x.stride(0), data.codes.stride(0), data.scales.shape[-1]),
        parts.size,
        KIND=data.kind,
        GROUP_SIZE=data.group,
        EVEN=k % tiles.PACKED_BLOCK_K == 0,
        **_settings(weight, tile, parts),
    )


def _finish(weight: Weight, out: Tensor, sums: Tensor, count: int) -> None:
    data = weight.data
    scales = data.scales if isinstance(data, PackedCodes) and data.kind == "fp8" else None
    m, n = out.shape
    launch(
        matmul.finish,
        (-(-n // _FINISH_BLOCK), m),
        *(sums, _or(weight.bias, out), out, _or(scales, out), m, n),
        PARTS=count,
        SCALED=scales is not None,
        ACTIVATION=weight.activation or "none",
        HAS_BIAS=weight.bias is not None,
        BLOCK=_FINISH_BLOCK,
        num_warps=4,
        **EXACT,
    )


def _grid(tile: Tile, out: Tensor, parts: Parts) -> tuple[int, ...]:
    return tiles.count(tile, *out.shape), parts.count if parts.spread else 1


def _settings(weight: Weight, tile: Tile, parts: Parts) -> dict[str, Any]:
    """What both kernels are compiled for."""
    return {
        "PARTS": parts.count,
        "SPREAD": parts.spread,
        "ACTIVATION": weight.activation or "none",
        "GATED": weight.gated,
        "HAS_BIAS": weight.bias is not None,
        "BLOCK_N": tile.columns,
        "BLOCK_M": tile.rows,
        "GROUP": tile.group,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **EXACT,
    }


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer for what is not there, which is not looked at."""
    return other if tensor is None else tensor


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
