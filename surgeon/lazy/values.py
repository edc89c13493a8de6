"""Looking at tensors' values before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.lazy import BLOCK, LazyTensor, Scratch, rounded, upcast_blocks
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Block
from surgeon.numeric.dtypes import DTYPES, LARGEST, Array


def same_values(a: LazyTensor, b: LazyTensor, scratch: Scratch) -> bool:
    """Say whether two tensors of one spec hold the same bytes."""
    if a is b:
        return True
    for start in range(0, a.spec.count, BLOCK):
        stop = min(start + BLOCK, a.spec.count)
        with scratch.scope():
            x, y = (t.elements(start, stop, scratch).view(np.uint8) for t in (a, b))
            if not np.array_equal(x, y):
                return False
    return True


@dataclass(frozen=True)
class Far:
    """How many values are farther apart than they may be, and the farthest by how much."""

    count: int
    most: float


def close_values(
    a: LazyTensor, b: LazyTensor, atol: float, rtol: float, scratch: Scratch
) -> Far | None:
    """Return what is farther apart than atol + rtol |b|, None where nothing is.

    Of two tensors of floats; equal infinities are close, and NaN is close to nothing.
    """
    count, most = 0, 0.0
    for start in range(0, a.spec.count, BLOCK):
        stop = min(start + BLOCK, a.spec.count)
        with scratch.scope(), np.errstate(invalid="ignore", over="ignore"):
            x, y = upcast_blocks(
                [rounded(a), rounded(b)], start, stop, scratch, np.dtype(np.float64)
            )
            apart = np.where(x == y, 0.0, np.abs(x - y))
            far = ~(apart <= atol + rtol * np.abs(y)) | (np.isinf(y) & (x != y))
            if far.any():
                count += int(far.sum())
                most = max(most, float(np.max(apart[far])))
    return Far(count, most) if count else None


def is_zero_tensor(tensor: LazyTensor, scratch: Scratch) -> bool:
    """Say whether a tensor holds nothing but zeros, of either sign."""
    is_float = DTYPES[tensor.spec.dtype].kind == "float"
    for start in range(0, tensor.spec.count, BLOCK):
        stop = min(start + BLOCK, tensor.spec.count)
        with scratch.scope():
            if is_float:
                block = upcast_blocks([rounded(tensor)], start, stop, scratch)[0]
            else:
                block = tensor.elements(start, stop, scratch).view(np.uint8)
            if block.any():
                return False
    return True


def is_finite(block: Array) -> bool:
    """Say whether a block of floats holds neither NaN nor Inf."""
    # One cheap pass: a sum is finite unless an element is not, or (looked at closer) it overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(block, axis=None)
    return bool(np.isfinite(total) or np.isfinite(block).all())


def require_finite(block: Array, what: str) -> None:
    """Raise PlanError where a block holds NaN or Inf."""
    if not is_finite(block):
        raise PlanError(f'{what} holds NaN or Inf; "nonfinite": "allow" lets them through')


def beyond(name: str, dtype: str) -> PlanError:
    """Return the error of a result that a dtype has no finite value for."""
    return PlanError(f"'{name}': the result is beyond {dtype}'s largest value {LARGEST[dtype]:g}")


def is_finite_tensor(tensor: LazyTensor, scratch: Scratch) -> bool:
    """Say whether a tensor holds neither NaN nor Inf; integers never do."""
    if DTYPES[tensor.spec.dtype].kind != "float":
        return True
    for start in range(0, tensor.spec.count, BLOCK):
        with scratch.scope():
            stop = min(start + BLOCK, tensor.spec.count)
            if compiled.knows(tensor.spec.dtype):
                block = Block(tensor.elements(start, stop, scratch), tensor.spec.dtype)
                if not compiled.extremes(block, np.zeros(2)):
                    return False
            elif not is_finite(upcast_blocks([tensor], start, stop, scratch)[0]):
                return False
    return True
