"""unstack: a tensor for each entry of a dimension."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Destinations, Name
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Rearranged, Selected
from surgeon.ops.shared.grouping import dimension, take_apart


@op(group="structure", example={"from": "encoder.{i}.bias", "into": "encoder.{i}.bias.{entry}"})
def unstack(
    draft: Draft,
    *,
    from_: Annotated[Name, "the tensors to take apart: a tensor, a module or a pattern"],
    into: Annotated[
        Destinations, "the entries' names, or one with a capture of its own that counts from 0"
    ],
    dim: Annotated[int, "the dimension that goes; -1 is the last"] = 0,
    expect: Annotated[int | None, "how many entries each has", {"minimum": 0}] = None,
) -> None:
    """Make each entry of a dimension a tensor of its own.

    `layers.{i}.w` into `layers.{i}.{e}.w` gives the experts of each layer numbers from 0. `stack`
    is the way back. Raises where a tensor has another number of entries, or a name is taken.
    """
    take_apart(draft, from_, into, partial(_entries, dim, expect))


def _entries(dim: int, expect: int | None, name: str, tensor: LazyTensor) -> list[LazyTensor]:
    dim = dimension(name, tensor.spec, dim)
    shape = tensor.spec.shape
    if expect is not None and shape[dim] != expect:
        raise PlanError(
            f"'{name}' is {tensor.spec}: {shape[dim]} entries in dimension {dim}, expected {expect}"
        )
    order = tuple(range(len(shape)))
    rest = (*shape[:dim], *shape[dim + 1 :])
    return [
        Rearranged(Selected(tensor, dim, ((number, number + 1),)), order, rest)
        for number in range(shape[dim])
    ]
