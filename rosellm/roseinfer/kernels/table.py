"""Which implementation of the operations runs, and why.

Models call operations through an ``Ops`` value that is handed to them, so that a faster set can
take the reference's place without a model knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from rosellm.roseinfer.attention import by_parts
from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.attention.native import NativeAttention
from rosellm.roseinfer.attention.reference import ReferenceAttention
from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.config import Kernels
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels import logprobs, reference, sampling
from rosellm.roseinfer.kernels.cpu.library import Library, Unavailable, load
from rosellm.roseinfer.kernels.cpu.ops import NativeOps
from rosellm.roseinfer.kernels.cpu.sampling import NativeSampling
from rosellm.roseinfer.kernels.forward import Forward
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.triton import support
from rosellm.roseinfer.kernels.upload import Upload
from rosellm.roseinfer.layers.rope import RopeSpec, RopeTable
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.tensor import QuantizedTensor
from rosellm.roseinfer.step import LogitRow

if TYPE_CHECKING:
    from rosellm.roseinfer.models.skeleton import Model

_NO_FP8 = "the CPU's native kernels have none"


class PackedForm(Protocol):
    """Packed quantised weights [rows, columns] as bytes: kept in a file, they are mapped later."""

    def layout(self) -> str:
        """A name for what the bytes mean; those of another name are of no use."""

    def packed_bytes(
        self, form: Format, shape: tuple[int, int], activation: Activation | None
    ) -> int:
        """How many there are: a multiple of 64."""

    def packed_data(self, weight: Any) -> Tensor:
        """Those of a packed weight, uint8."""

    def from_packed(
        self,
        data: Tensor,
        form: Format,
        shape: tuple[int, int],
        bias: Tensor | None,
        activation: Activation | None,
    ) -> Any:
        """What ``pack_quantized`` returned, of bytes that begin at a multiple of 64."""


@dataclass(frozen=True)
class Ops:
    """One implementation of every operation. Signatures are those in ``reference``; that of
    ``attend`` is in ``attention.by_parts``, of ``draw`` in ``sampling``, of ``logprobs_of`` in
    ``logprobs``.

    Attributes:
        name: what start-up calls it.
        invariant: whether it keeps the promise of schedule-invariance.
        reason: why it was chosen.
        forward: a model as a step runs it.
        attention: makes the backend, for blocks of so many tokens and for so many query heads that
            share a KV head.
        lay_out: what ``draw`` has to know of rows, sent to the device before the step's forward:
            rows, the size of the vocabulary, and how to upload.
        held_bytes: memory of a packed weight [rows, columns] of a type, or quantised.
        identity: what else of it its results depend on: instructions, and the build.
        packed: how such weights can be kept in a file; None if not.
        agree: tries on the device, for a type, whether the kernels keep what ``invariant`` says.
        lacks: in words, why it cannot have weights in fp8; None if it can.
        lacks_cache: the same of a cache.
    """

    name: str
    invariant: bool
    reason: str
    pack_linear: Callable[[Tensor, Tensor | None, Activation | None], Any]
    pack_quantized: Callable[[QuantizedTensor, Tensor | None, Activation | None, torch.dtype], Any]
    linear: Callable[[Tensor, Any], Tensor]
    logits: Callable[[Tensor, Any], Logits]
    embedding: Callable[[Tensor, Any], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    attend: Callable[[Tensor, Heads, HeadNorms | None, Step], Tensor]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    draw: Callable[[Tensor, Sequence[LogitRow], Tensor | None, Any, Any], Tensor]
    logprobs_of: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
    forward: Callable[[Model, KVStorage, Mapping[RopeSpec, RopeTable]], Forward]
    attention: Callable[[int, torch.device, int], AttentionBackend]
    held_bytes: Callable[[tuple[int, int], torch.dtype, Format | None, Activation | None], int]
    lay_out: Callable[[Sequence[LogitRow], int, Upload], Any] = lambda rows, size, upload: None
    identity: str = ""
    packed: PackedForm | None = None
    agree: Callable[[torch.dtype, torch.device], bool] = lambda _dtype, _device: True
    lacks: str | None = None
    lacks_cache: str | None = None


def choose_ops(
    device: torch.device,
    wanted: Kernels = "auto",
    dtype: torch.dtype | None = None,
    *,
    deterministic: bool = True,
) -> Ops:
    """The best implementation for a device, or the one that is wanted.

    Args:
        dtype: of weights and activations.
        deterministic: whether a row's bits must not depend on its batch.

    Raises:
        ConfigError: the one that is wanted cannot run here.
    """
    if wanted == "auto":
        is_cpu = device.type == "cpu"
        made = _native(device) if is_cpu else _triton(device, dtype, deterministic)
        return reference_ops(made) if isinstance(made, str) else made
    if wanted == "reference":
        return reference_ops("asked for by --kernels")
    made = _native(device) if wanted == "native" else _triton(device, dtype, deterministic)
    if isinstance(made, str):
        raise ConfigError(f"--kernels {wanted}: {made}; use --kernels auto")
    return made


def _native(device: torch.device) -> Ops | str:
    """The operations, or why there are none."""
    if device.type != "cpu":
        return f"native kernels run on a CPU, not on {device.type}"
    library = load()
    return library.reason if isinstance(library, Unavailable) else native_ops(library)


def _triton(device: torch.device, dtype: torch.dtype | None, deterministic: bool) -> Ops | str:
    """The operations, or why there are none."""
    return support.why_not(device, dtype) or triton_ops(device, deterministic)


def reference_ops(reason: str) -> Ops:
    """Everything in plain torch."""
    return Ops(
        name="reference",
        invariant=True,
        reason=reason,
        pack_linear=reference.pack_linear,
        pack_quantized=reference.pack_quantized,
        linear=reference.linear,
        logits=reference.logits,
        embedding=reference.embedding,
        rms_norm=reference.rms_norm,
        layer_norm=reference.layer_norm,
        attend=by_parts.attend,
        route=reference.route,
        draw=sampling.draw,
        lay_out=sampling.lay_out,
        logprobs_of=logprobs.logprobs_of,
        forward=lambda model, _storage, _ropes: Forward(model),
        attention=lambda block_size, device, _group: ReferenceAttention(block_size, device),
        held_bytes=reference.held_bytes,
    )


def native_ops(library: Library) -> Ops:
    """Everything on the native kernels."""
    native, tokens = NativeOps(library), NativeSampling(library)
    return Ops(
        name="native",
        invariant=True,
        reason=library.describe(),
        pack_linear=native.pack_linear,
        pack_quantized=native.pack_quantized,
        linear=native.linear,
        logits=native.logits,
        embedding=native.embedding,
        rms_norm=native.rms_norm,
        layer_norm=native.layer_norm,
        attend=native.attend,
        route=native.route,
        draw=tokens.draw,
        lay_out=tokens.lay_out,
        logprobs_of=tokens.logprobs_of,
        forward=native.forward,
        attention=lambda block_size, _device, _group: NativeAttention(block_size, library),
        held_bytes=native.held_bytes,
        identity=library.identity,
        packed=native,
        lacks=_NO_FP8,
        lacks_cache=_NO_FP8,
    )


def triton_ops(device: torch.device, deterministic: bool) -> Ops:
    """Everything that pays in Triton; what is left is plain torch. Triton is imported here."""
    import triton

    from rosellm.roseinfer.attention.triton import TritonAttention
    from rosellm.roseinfer.kernels.triton import logprobs as triton_logprobs
    from rosellm.roseinfer.kernels.triton import sampling as triton_sampling
    from rosellm.roseinfer.kernels.triton.ops import TritonOps
    from rosellm.roseinfer.kernels.triton.products import Products

    products = Products(device, deterministic=deterministic)
    ops = TritonOps(products)
    where = "interpreted on the CPU, for tests" if support.interpreted() else _card(device)
    return Ops(
        name="triton",
        invariant=deterministic,
        reason=f"Triton {triton.__version__}, {where}; products: {products.identity}",
        pack_linear=products.pack_linear,
        pack_quantized=products.pack_quantized,
        linear=ops.linear,
        logits=ops.logits,
        embedding=ops.embedding,
        rms_norm=ops.rms_norm,
        layer_norm=ops.layer_norm,
        attend=ops.attend,
        route=ops.route,
        draw=triton_sampling.draw,
        lay_out=triton_sampling.lay_out,
        logprobs_of=triton_logprobs.logprobs_of,
        forward=ops.forward,
        attention=TritonAttention,
        held_bytes=products.held_bytes,
        identity=f"triton {triton.__version__}, {products.identity}",
        agree=products.agree,
        lacks_cache=support.no_fp8_cache(device),
    )


def _card(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{name}, compute capability {major}.{minor}"
