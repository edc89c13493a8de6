"""concat: one tensor of several, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Destination, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Joined, LazyTensor, Selected
from surgeon.ops.shared.counts import Count, number
from surgeon.ops.shared.grouping import dimension, put_together, require_alike


@op(
    group="structure",
    example={
        "from": ["encoder.{i}.bias", "encoder.{i}.norm.bias", "encoder.{i}.norm.weight"],
        "dim": 0,
        "into": "encoder.{i}.vectors",
    },
)
def concat(
    draft: Draft,
    *,
    from_: Annotated[Names, "the parts in order; of one pattern, by the number captured"],
    dim: Annotated[int, "the dimension along which they follow each other; -1 is the last"],
    into: Annotated[Destination, "the name of the result; its captures group the parts"],
    expect: Annotated[int | None, "how many parts each has", {"minimum": 1}] = None,
    groups: Annotated[
        Count, "how many groups (heads) the parts alternate in: a slice of each per group"
    ] = 1,
) -> None:
    """Put tensors end to end along a dimension, in the place of the first.

    One step serves all layers: `["h.{i}.q.weight", "h.{i}.k.weight", "h.{i}.v.weight"]` into
    `h.{i}.qkv.weight`. A capture that `into` does not use is a number, and orders the parts. Of
    modules, tensors of the same last name belong together. Parts have one dtype, and differ in
    size along `dim` alone. With `groups`, as in fused heads of GPT-NeoX, the result is group 0 of
    each part, then group 1 of each, and so on. Raises where a group lacks a part or a name is
    taken.
    """
    each = number(draft, groups, "groups")
    put_together(draft, from_, into, expect, partial(_join, dim, each))


def _join(dim: int, groups: int, names: Sequence[str], parts: tuple[LazyTensor, ...]) -> LazyTensor:
    dims = {dimension(name, part.spec, dim) for name, part in zip(names, parts, strict=True)}
    dim = dims.pop()
    require_alike(names, parts, dim)
    joined = Joined(parts, dim)
    if groups == 1:
        return joined
    sizes = [part.spec.shape[dim] for part in parts]
    if problems := [
        f"'{name}' is {part.spec}: {size} in dimension {dim} is not {groups} equal groups"
        for name, part, size in zip(names, parts, sizes, strict=True)
        if size % groups
    ]:
        raise PlanError(*problems)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    ranges = [
        (start + group * size // groups, start + (group + 1) * size // groups)
        for group in range(groups)
        for start, size in zip(starts, sizes, strict=True)
    ]
    return Selected(joined, dim, tuple(ranges))
