"""weight_align: bring new rows to the mean norm of the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isfinite, prod
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.base.regions import whole
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import BLOCK, Blockwise, Joined, LazyTensor, Operands, Selected
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.modules import layers

Ranges = list[tuple[int, int]]


@op(
    group="values",
    example={"target": "classifier", "rows": [5, 6]},
    paper="Zhao et al. 2020, Maintaining Discrimination and Fairness in Class Incremental "
    "Learning, https://arxiv.org/abs/1911.07053",
)
def weight_align(
    draft: Draft,
    *,
    target: Target,
    rows: Annotated[
        list[int] | None,
        "the rows to scale; by default those that this recipe created",
        {"items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
    ] = None,
) -> None:
    """Scale new rows so that their mean norm equals the old rows'.

    All new rows of a weight (rank 2 or more) are multiplied by the mean Euclidean norm of its old
    rows over that of its new ones (equation 8), in float64, rounded once; old rows keep their bits.
    Biases stay as they are. Raises where there are no new rows or no others, and, while writing,
    where a mean norm is zero or not finite.
    """
    changes: dict[str, LazyTensor] = {}
    for layer in layers(draft, target):
        weights = [
            name
            for name in layer.names
            if DTYPES[draft.spec(name).dtype].kind == "float" and len(draft.spec(name).shape) > 1
        ]
        if not weights:
            raise PlanError(f"'{layer.module or layer.names[0]}' has no weight with rows")
        for name in weights:
            new = _ranges(rows) if rows else _created_rows(draft[name])
            changes[name] = _align(name, draft[name], new)
    draft.replace(changes)


def _ranges(rows: Sequence[int]) -> Ranges:
    ranges: Ranges = []
    for row in sorted(rows):
        if ranges and ranges[-1][1] == row:
            ranges[-1] = (ranges[-1][0], row + 1)
        else:
            ranges.append((row, row + 1))
    return ranges


def _created_rows(tensor: LazyTensor) -> Ranges:
    full = whole(tensor.spec.shape)
    return sorted(region[0] for region in tensor.new_regions() if region[1:] == full[1:])


def _align(name: str, tensor: LazyTensor, new: Ranges) -> LazyTensor:
    """Return the tensor with old rows as they are, byte ranges where they were, and new scaled."""
    size = tensor.spec.shape[0]
    if not new:
        raise PlanError(f"'{name}' has no new rows; say which with \"rows\"")
    if new[-1][1] > size:
        raise PlanError(f"'{name}' has {size} rows, and no row {new[-1][1] - 1}")
    if sum(stop - start for start, stop in new) == size:
        raise PlanError(f"'{name}' has no rows beside the new ones to align them to")
    scaled = Blockwise(
        tensor.spec,
        _scale_rows,
        (tensor,),
        statistics=partial(_factor, name, new),
        working=np.dtype(np.float64),
        explain=partial(_too_large, name),
    )
    parts: list[LazyTensor] = []
    done = 0
    for start, stop in new:
        if done < start:
            parts.append(Selected(tensor, 0, ((done, start),)))
        parts.append(Selected(scaled, 0, ((start, stop),)))
        done = stop
    if done < size:
        parts.append(Selected(tensor, 0, ((done, size),)))
    return Joined(tuple(parts), 0)


def _factor(name: str, new: Ranges, operands: Operands) -> float:
    """Return the old rows' mean norm over the new ones'."""
    (tensor,) = operands.tensors
    row = prod(tensor.spec.shape[1:])
    squares = np.zeros(tensor.spec.shape[0])
    for number, (block,) in enumerate(operands.blocks()):
        start = number * BLOCK
        first, last = start // row, (start + len(block) - 1) // row
        # Where each row begins in this block; the first may have begun before it.
        begins = np.maximum(np.arange(first, last + 1) * row - start, 0)
        squares[first : last + 1] += np.add.reduceat(np.square(block, dtype=np.float64), begins)
    is_new = np.zeros(len(squares), np.bool_)
    for first, last in new:
        is_new[first:last] = True
    norms = np.sqrt(squares)
    means = {"old": float(norms[~is_new].mean()), "new": float(norms[is_new].mean())}
    for what, mean in means.items():
        if not isfinite(mean) or mean == 0:
            raise PlanError(
                f"'{name}' cannot be aligned: the mean norm of its {what} rows is {mean:g}"
            )
    return means["old"] / means["new"]


def _scale_rows(blocks: Sequence[Array], statistics: float, out: Array) -> Array:
    return np.multiply(blocks[0], statistics, out=out)


def _too_large(name: str, blocks: Sequence[Array]) -> None:
    raise PlanError(f"'{name}' cannot be aligned: its dtype cannot hold the scaled rows")
