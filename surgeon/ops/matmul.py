"""matmul: matrices times other matrices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np

from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Product, TensorSpec
from surgeon.numeric.dtypes import Array
from surgeon.ops.shared.arithmetic import Integers, NonFinite, calculated
from surgeon.ops.shared.pairs import pairs

Side = Literal["left", "right"]


@op(group="values", example={"target": "classifier.weight", "from": "encoder.1.weight"})
def matmul(
    draft: Draft,
    *,
    target: Names,
    from_: Destinations,
    model: Annotated[str | None, "the model to take factors from; default the state"] = None,
    side: Annotated[Side, "where the other matrix F stands: left is F W, right is W F"] = "right",
    integers: Integers = "keep",
    nonfinite: NonFinite = "error",
) -> None:
    """Multiply matrices by other matrices.

    `target` captures, `from` says the name of the factor F of each: a weight W (outputs, inputs)
    becomes W F, which is the layer after one of weight F, or F W, and its shape that of the
    product. A vector (a bias) becomes F W with `side` left. Calculated in float64 and rounded once;
    both factors are held in memory while the product is written. Raises, while writing, where a
    factor holds NaN or Inf, or where a product is beyond the dtype's largest value.
    """
    changes: dict[str, LazyTensor] = {}
    for name, ours, factor in pairs(
        draft, target, from_, model, integers, done="multiplied", misfit=partial(_misfit, side)
    ):
        changes[name] = _product(name, ours, factor, side, nonfinite)
    draft.replace(changes)


def _misfit(side: Side, ours: TensorSpec, theirs: TensorSpec) -> str | None:
    if len(theirs.shape) != 2 or len(ours.shape) not in ((1, 2) if side == "left" else (2,)):
        return "matrices (rank 2) are multiplied, and from the left vectors"
    left, right = (theirs, ours) if side == "left" else (ours, theirs)
    if left.shape[-1] == right.shape[0]:
        return None
    other = "right" if side == "left" else "left"
    columns = f"{left.shape[-1]} columns do not meet {right.shape[0]} rows"
    return f"{columns}; 'side' may be {other}" if _fits(other, ours, theirs) else columns


def _fits(side: str, ours: TensorSpec, theirs: TensorSpec) -> bool:
    left, right = (theirs, ours) if side == "left" else (ours, theirs)
    return len(ours.shape) == 2 and left.shape[-1] == right.shape[0]


def _product(
    name: str, ours: LazyTensor, factor: LazyTensor, side: Side, nonfinite: NonFinite
) -> LazyTensor:
    rest = ours.spec.shape[1:]
    if side == "left":
        shape, product = (factor.spec.shape[0], *rest), (factor, ours)
    else:
        shape, product = (ours.spec.shape[0], factor.spec.shape[1]), (ours, factor)
    spec = TensorSpec(ours.spec.dtype, shape)
    return calculated(name, spec, _as_it_is, (Product(shape, *product),), nonfinite)


def _as_it_is(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.copyto(out, blocks[0])
    return out
