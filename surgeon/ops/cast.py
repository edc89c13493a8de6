"""cast: another dtype for the same values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import frexp, ldexp
from typing import Annotated, Literal

import numpy as np

from surgeon.draft import Draft
from surgeon.dtypes import DTYPES, LARGEST, Array, require_dtype
from surgeon.errors import PlanError
from surgeon.lazy import Elementwise, LazyTensor, TensorSpec
from surgeon.patterns import Target
from surgeon.registry import op


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
        kernel = partial(_converted, name, wanted, overflow)
        changes[name] = Elementwise(TensorSpec(wanted, old.shape), kernel, (draft[name],))
    if kept:
        others = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
        draft.notes.append(f"'{kept[0]}'{others}: not {DTYPES[wanted].kind}; kept as is")
    draft.replace(changes)


def _converted(
    name: str, dtype: str, overflow: str, blocks: Sequence[Array], statistics: None, out: Array
) -> Array:
    """Return the values ready to be rounded to `dtype`; raises where they do not fit."""
    (block,) = blocks
    if DTYPES[dtype].kind == "float":
        values = block if block.dtype.kind == "f" else block.astype(np.float64)
        return _within(name, dtype, overflow, values, out)
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


def _within(name: str, dtype: str, overflow: str, values: Array, out: Array) -> Array:
    largest = LARGEST[dtype]
    if not len(values) or largest >= LARGEST["F32"] >= np.finfo(values.dtype).max:
        return values
    high, low = values.max(), values.min()
    if high <= largest and low >= -largest:
        return values
    finite = np.isfinite(values)
    halfway, magnitude = _rounds_up_from(dtype), np.abs(values)
    # Of two neighbours at the same distance the even one wins: in E4M3 that is the largest value.
    beyond = finite & (magnitude > halfway if dtype == "F8_E4M3" else magnitude >= halfway)
    if overflow == "error" and beyond.any():
        first = values[np.flatnonzero(beyond)[0]]
        raise PlanError(
            f"'{name}' holds {first:g}, beyond {dtype}'s largest value {largest:g}; "
            '"overflow": "saturate" keeps the largest'
        )
    if overflow == "saturate":
        values = np.where(finite, np.clip(values, -largest, largest), values)
    return values


def _rounds_up_from(dtype: str) -> float:
    """Return the magnitude halfway from the largest value to the next, which there is not."""
    mantissa = {"F16": 11, "BF16": 8, "F32": 24, "F8_E4M3": 4, "F8_E5M2": 3}[dtype]
    exponent = frexp(LARGEST[dtype])[1]
    return LARGEST[dtype] + ldexp(1.0, exponent - mantissa - 1)
