"""split: several tensors of one, cut along a dimension."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.indices import Ranges
from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Selected
from surgeon.ops.shared.counts import Count, number
from surgeon.ops.shared.fused import require_unmixed
from surgeon.ops.shared.grouping import dimension, take_apart


@op(
    group="structure",
    example={
        "target": "encoder.{i}.weight",
        "dim": 0,
        "parts": 2,
        "into": ["encoder.{i}.first.weight", "encoder.{i}.second.weight"],
    },
    exactly_one=("sizes", "parts", "proportions"),
)
def split(
    draft: Draft,
    *,
    target: Annotated[Names, "the tensors to cut: a tensor, a module or a pattern, or several"],
    dim: Annotated[int, "the dimension to cut; -1 is the last"],
    into: Annotated[
        Destinations, "the parts' names, or one with a capture of its own that counts them from 0"
    ],
    sizes: Annotated[
        list[int] | None,
        "the parts' sizes along the dimension",
        {"items": {"type": "integer", "minimum": 1}, "minItems": 1},
    ] = None,
    parts: Annotated[int | None, "the number of parts of equal size", {"minimum": 1}] = None,
    proportions: Annotated[
        list[Count] | None,
        "the parts' sizes in proportion, such as heads of queries, keys and values",
        {"minItems": 1},
    ] = None,
    groups: Annotated[
        Count, "how many groups (heads) the parts alternate in: a slice of each per group"
    ] = 1,
) -> None:
    """Cut tensors along a dimension; the parts take their place.

    Captures of `target` name the parts, so that one step serves all layers. `sizes` add up to the
    dimension's size; `proportions` share it out, by numbers or by what the config beside the input
    says: `[{"config": "num_attention_heads"}, 2, 2]`. With `groups`, as in fused heads of GPT-NeoX,
    the dimension holds for each group (head) a slice of every part; the parts come out whole, and
    `concat` with the same `groups` is the way back. Raises where sizes do not fit or a name is
    taken.
    """
    shares = [number(draft, share, "proportions") for share in proportions or ()]
    shares = shares or [1] * (parts or 1)
    each = number(draft, groups, "groups")
    take_apart(draft, target, into, partial(_parts, draft, dim, sizes, shares, each))


def _parts(
    draft: Draft,
    dim: int,
    sizes: list[int] | None,
    shares: list[int],
    groups: int,
    name: str,
    tensor: LazyTensor,
) -> list[LazyTensor]:
    dim = dimension(name, tensor.spec, dim)
    size = tensor.spec.shape[dim]
    if sizes is None and size % sum(shares):
        equal = f"{len(shares)} equal parts" if set(shares) == {1} else f"parts as {shares}"
        raise PlanError(
            f"'{name}' is {tensor.spec}: {size} in dimension {dim} is not {equal}; give 'sizes'"
        )
    sizes = sizes or [size // sum(shares) * share for share in shares]
    if sum(sizes) != size:
        raise PlanError(
            f"'{name}' is {tensor.spec}: sizes {sizes} are {sum(sizes)} together, not {size}"
        )
    if uneven := [part for part in sizes if part % groups]:
        raise PlanError(f"'{name}': a part of {uneven[0]} is not {groups} equal groups")
    found: list[Ranges] = []
    start = 0
    for part in sizes:
        ranges = tuple(
            (first, first + part // groups)
            for first in range(start // groups, size, size // groups or 1)
        )
        found.append(ranges)
        start += part
    require_unmixed(draft, name, dim, found)
    return [Selected(tensor, dim, ranges) for ranges in found]
