"""multiply: tensors times other tensors, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Annotated

import numpy as np

from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import fresh
from surgeon.lazy import LazyTensor, Product, Rearranged, TensorSpec
from surgeon.numeric.dtypes import Array
from surgeon.ops.shared.arithmetic import Integers, NonFinite, calculated
from surgeon.ops.shared.pairs import pairs


@op(group="values", example={"target": "encoder.1.weight", "from": "encoder.0.norm.weight",
                             "dim": 1})  # fmt: skip
def multiply(
    draft: Draft,
    *,
    target: Names,
    from_: Destinations,
    model: Annotated[str | None, "the model to take factors from; default the state"] = None,
    dim: Annotated[
        int | None,
        "for factors that are a vector: the dimension whose entries it has one for; -1 is the last",
    ] = None,
    integers: Integers = "keep",
    nonfinite: NonFinite = "error",
) -> None:
    """Multiply tensors by other tensors, element by element.

    `target` captures, `from` says the name of the factors of each. They have the tensor's shape;
    with `dim`, one factor for each entry along that dimension: `{"target": "h.{i}.fc.weight",
    "from": "h.{i}.norm.weight", "dim": 1}` folds a norm's weights into the layer that reads it.
    Floating-point dtypes may differ. Calculated in float64 and rounded once. Raises, while
    writing, where either holds NaN or Inf, or where a product is beyond the dtype's largest value.
    """
    changes: dict[str, LazyTensor] = {}
    misfit = partial(_misfit, dim)
    for name, ours, factors in pairs(
        draft, target, from_, model, integers, done="multiplied", misfit=misfit
    ):
        if dim is not None:
            factors = _spread(draft, factors, ours.spec.shape, dim % len(ours.spec.shape))
        changes[name] = calculated(name, ours.spec, _multiply, (ours, factors), nonfinite)
    draft.replace(changes)


def _misfit(dim: int | None, ours: TensorSpec, theirs: TensorSpec) -> str | None:
    if dim is None:
        is_vector = len(theirs.shape) == 1 and theirs.shape[0] in ours.shape
        hint = "'dim' says which dimension a vector has factors for" if is_vector else ""
        return None if ours.shape == theirs.shape else hint
    if not -len(ours.shape) <= dim < len(ours.shape):
        return f"there is no dimension {dim}"
    return None if theirs.shape == (ours.shape[dim],) else f"'dim' is {dim}"


def _spread(draft: Draft, vector: LazyTensor, shape: tuple[int, ...], dim: int) -> LazyTensor:
    """Return a vector's entries along a dimension, the same for all of the others.

    As products with ones, which are exact and made strip by strip.
    """
    size, before, after = shape[dim], prod(shape[:dim]), prod(shape[dim + 1 :])
    column = Rearranged(vector, (0,), (size, 1))
    row = Product((1, size, after), column, _ones(draft, (1, after)))
    return Product(shape, _ones(draft, (before, 1)), row)


def _ones(draft: Draft, shape: tuple[int, int]) -> LazyTensor:
    return fresh(TensorSpec("F32", shape), "ones", draft.stream("ones"), name="ones")


def _multiply(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    return np.multiply(blocks[0], blocks[1], out=out)
