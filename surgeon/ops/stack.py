"""stack: one tensor of several, along a new dimension."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from surgeon.base.patterns import Destination, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Joined, LazyTensor, Rearranged
from surgeon.ops.shared.grouping import dimension, put_together, require_alike


@op(group="structure", example={"from": "encoder.{i}.weight", "into": "encoder.weight"})
def stack(
    draft: Draft,
    *,
    from_: Annotated[Names, "the entries in order; of one pattern, by the number captured"],
    into: Annotated[Destination, "the name of the result; its captures group the entries"],
    dim: Annotated[int, "the new dimension; -1 is after the last"] = 0,
    expect: Annotated[int | None, "how many entries each has", {"minimum": 1}] = None,
) -> None:
    """Stack tensors of one shape along a new dimension, as experts are.

    A capture that `into` does not use is a number, and orders the entries: `layers.{i}.{e}.w` into
    `layers.{i}.w` stacks the experts of each layer. Of modules, tensors of the same last name
    belong together. Raises where dtypes or shapes differ, a group lacks a number, or a name is
    taken.
    """
    put_together(draft, from_, into, expect, partial(_stack, dim))


def _stack(dim: int, names: Sequence[str], parts: tuple[LazyTensor, ...]) -> LazyTensor:
    require_alike(names, parts, None)
    shape = parts[0].spec.shape
    dim = dimension(names[0], parts[0].spec, dim, after=1)
    entry = (*shape[:dim], 1, *shape[dim:])
    order = tuple(range(len(shape)))
    return Joined(tuple(Rearranged(part, order, entry) for part in parts), dim)
