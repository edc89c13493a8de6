"""cast: another dtype for the same values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import frexp, ldexp
from typing import Annotated, Literal

import numpy as np

from surgeon.base.errors import PlanError, listed
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Blockwise, LazyTensor, TensorSpec
from surgeon.lazy.forms import Linear
from surgeon.numeric.dtypes import DTYPES, LARGEST, Array, require_dtype


@op(group="values", example={"target": "encoder", "dtype": "bfloat16"})
def cast(
    draft: Draft,
    *,
    target: Target,
    dtype: Annotated[str, "such as BF16 or bfloat16", {"format": "dtype"}],
    integers: Annotated[
        Literal["keep", "error", "cast"], "what to do with tensors of another kind than dtype"
    ] = "keep",
    overflow: Annotated[
        Literal["error", "saturate", "inf"], "what to do with values beyond dtype's largest"
    ] = "error",
) -> None:
    """Change the dtype of tensors, rounding to nearest even.

    A cast to a floating-point dtype leaves integers and booleans as they are, unless `integers`
    says otherwise, and the other way round. `saturate` gives the largest finite value, `inf` what
    the format has beyond it (NaN in F8_E4M3); NaN and Inf stay what they are.
    """
    wanted = require_dtype(dtype)
    changes: dict[str, LazyTensor] = {}
    kept: list[str] = []
    for name in draft.select(target):
        old = draft.spec(name)
        kinds = DTYPES[old.dtype].kind, DTYPES[wanted].kind
        if old.dtype == wanted:
            continue
        if kinds[0] != kinds[1] and integers == "keep":
            kept.append(name)
            continue
        if kinds[0] != kinds[1] and integers == "error":
            raise PlanError(f'\'{name}\' is {old}; "integers": "keep" leaves it as it is')
        if not {*kinds} <= {"float", "int", "bool"}:
            raise PlanError(f"'{name}' is {old}, which cannot be cast to {wanted}")
        changes[name] = _convert(name, draft[name], wanted, overflow)
    if kept:
        draft.notes.append(f"{listed(kept, 1)}: not {DTYPES[wanted].kind}; kept as is")
    draft.replace(changes)


def _convert(name: str, tensor: LazyTensor, dtype: str, overflow: str) -> LazyTensor:
    """Return the tensor in another dtype; what does not fit is found when it is written."""
    spec = TensorSpec(dtype, tensor.spec.shape)
    if DTYPES[dtype].kind != "float":
        kernel = partial(_whole_numbers, name, dtype)
        return Blockwise(spec, kernel, (tensor,), rounds=True)
    as_floats = partial(_saturate, dtype) if overflow == "saturate" else _as_they_are
    # Integers reach 2^64, which is less than BF16's and F32's largest value.
    overflows = not tensor.is_exact or LARGEST.get(tensor.spec.dtype, 2.0**64) > LARGEST[dtype]
    must_fit = overflow == "error" and overflows
    explain = partial(_require_within, name, dtype) if must_fit else None
    form = None if overflow == "saturate" else Linear([1.0], in_float32=True, copies=True)
    return Blockwise(
        spec, as_floats, (tensor,), explain=explain, rounds=True, copies=True, compiled=form
    )


def _whole_numbers(
    name: str, dtype: str, blocks: Sequence[Array], statistics: None, out: Array
) -> Array:
    """Return the values of a block; raises where the dtype cannot hold one exactly."""
    (block,) = blocks
    storage = DTYPES[dtype].storage
    limits = (0, 1) if dtype == "BOOL" else (np.iinfo(storage).min, np.iinfo(storage).max)
    with np.errstate(invalid="ignore"):
        if block.dtype.kind == "f":
            # The largest integer may be no float; the one after it is a power of two.
            fits = (block >= limits[0]) & (block < limits[1] + 1) & (np.rint(block) == block)
        else:
            fits = (block >= limits[0]) & (block <= limits[1])
    if not fits.all():
        first = block[np.flatnonzero(~fits)[0]]
        raise PlanError(f"'{name}' holds {first}, which {dtype} cannot hold exactly")
    return block


def _floats(blocks: Sequence[Array]) -> Array:
    (block,) = blocks
    return block if block.dtype.kind == "f" else block.astype(np.float64)


def _as_they_are(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    return _floats(blocks)


def _saturate(dtype: str, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    values, largest = _floats(blocks), LARGEST[dtype]
    return np.where(np.isfinite(values), np.clip(values, -largest, largest), values)


def _require_within(name: str, dtype: str, blocks: Sequence[Array]) -> None:
    """Raise PlanError where finite values would become infinite, or NaN."""
    values = _floats(blocks)
    halfway, magnitude = _rounds_up_from(dtype), np.abs(values)
    # Of two neighbours at the same distance the even one wins: in E4M3 that is the largest value.
    beyond = magnitude > halfway if dtype == "F8_E4M3" else magnitude >= halfway
    beyond &= np.isfinite(values)
    if beyond.any():
        first = values[np.flatnonzero(beyond)[0]]
        raise PlanError(
            f"'{name}' holds {first:g}, beyond {dtype}'s largest value {LARGEST[dtype]:g}; "
            '"overflow": "saturate" keeps the largest'
        )


def _rounds_up_from(dtype: str) -> float:
    """Return the magnitude halfway from the largest value to the next, which there is not."""
    mantissa = {"F16": 11, "BF16": 8, "F32": 24, "F8_E4M3": 4, "F8_E5M2": 3}[dtype]
    exponent = frexp(LARGEST[dtype])[1]
    return LARGEST[dtype] + ldexp(1.0, exponent - mantissa - 1)
