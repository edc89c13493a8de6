"""Tensors as arrays of NumPy and tensors of torch, and back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.base.errors import UsageError
from surgeon.lazy import ByteRange, LazyTensor, Scratch, TensorSpec, walk
from surgeon.numeric.dtypes import DTYPES, Array, dtype_named, upcast

if TYPE_CHECKING:
    import torch

BYTES = np.dtype(np.uint8)


def read(tensor: LazyTensor, start: int, stop: int, scratch: Scratch) -> Array:
    """Return elements start to stop as bytes of their own: read, or computed block by block."""
    scratch.forget(walk(tensor))
    bits = DTYPES[tensor.spec.dtype].bits
    out = np.empty((stop - start) * bits // 8, BYTES)
    done = 0
    for piece in tensor.pieces(start, stop) if stop > start else ():
        if isinstance(piece, ByteRange):
            piece.file.read_into(piece.offset, out[done : done + piece.size_bytes].data)
            done += piece.size_bytes
            continue
        first, step = piece.start, piece.tensor.step
        while first < piece.stop:
            last = min(first + step - first % step, piece.stop)
            with scratch.scope():
                block = piece.tensor.elements(first, last, scratch).view(BYTES)
                out[done : done + block.size] = block
                done += block.size
            first = last
    return out


def numpy_dtype(dtype: str) -> np.dtype[Any] | None:
    """Return NumPy's own dtype of this name; None where it has none."""
    known = DTYPES[dtype]
    if known.kind == "bool":
        return np.dtype(np.bool_)
    is_own = known.kind == "float" and known.storage.kind != "f"
    return None if is_own or known.kind == "opaque" else known.storage


def as_numpy(data: Array, spec: TensorSpec, what: str) -> Array:
    """Return bytes as an array; BF16 and FP8, which NumPy lacks, as the same values in float32."""
    dtype = numpy_dtype(spec.dtype)
    if dtype is not None:
        return data.view(dtype).reshape(spec.shape)
    if DTYPES[spec.dtype].kind == "opaque":
        raise UsageError(f"{what}: is {spec.dtype}, which NumPy has no values for")
    out = np.empty(spec.count, np.float32)
    stored = data.view(DTYPES[spec.dtype].storage)
    return upcast(stored, spec.dtype, out).reshape(spec.shape)


def as_torch(data: Array, spec: TensorSpec, what: str) -> torch.Tensor:
    """Return bytes as a tensor of torch, whose memory they are."""
    import torch

    dtype = getattr(torch, DTYPES[spec.dtype].torch, None)
    if dtype is None or DTYPES[spec.dtype].bits < 8:
        raise UsageError(f"{what}: is {spec.dtype}, which this torch has no tensors of")
    if not data.size:  # whose strides torch would take for another dtype's
        return torch.empty(spec.shape, dtype=dtype)
    return torch.from_numpy(data).view(dtype).reshape(spec.shape)


def is_torch(value: object) -> bool:
    """Say whether a value is a tensor of torch, which is imported already where it is one."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def from_torch(tensor: torch.Tensor, what: str) -> tuple[str, Array]:
    """Return the dtype and the bytes of a tensor; raises UsageError where it has none of its own.

    They are the tensor's memory where that is contiguous and on the CPU.
    """
    dtype = dtype_named(str(tensor.dtype))
    is_plain = str(tensor.layout) == "torch.strided" and not tensor.is_meta
    if dtype is None or DTYPES[dtype].bits < 8 or not is_plain or tensor.is_quantized:
        kind = "meta" if tensor.is_meta else f"{tensor.layout} {tensor.dtype}"
        raise UsageError(f"{what}: is a tensor of torch without plain values ({kind})")
    if hasattr(tensor, "full_tensor"):
        raise UsageError(f"{what}: is one rank's part of a tensor; gather it with full_tensor()")
    found = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    return dtype, found.view(sys.modules["torch"].uint8).numpy()


def from_numpy(array: Array, what: str) -> tuple[str, Array]:
    """Return the dtype and the bytes of an array; raises UsageError for what is no tensor's."""
    dtype = dtype_named(array.dtype.name)
    if dtype is None:
        raise UsageError(f"{what}: is an array of {array.dtype}, which no checkpoint holds")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return dtype, np.ascontiguousarray(array).reshape(-1).view(BYTES)
