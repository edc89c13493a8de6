"""reshape: the same elements under another shape."""

from __future__ import annotations

from math import prod
from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Rearranged, TensorSpec


@op(group="structure", example={"target": "stem.weight", "shape": [4, -1]})
def reshape(
    draft: Draft,
    *,
    target: Target,
    shape: Annotated[
        list[int],
        "the new shape; one -1 stands for what is left",
        {"items": {"type": "integer", "minimum": -1}},
    ],
) -> None:
    """Give tensors another shape; their elements keep their order.

    Raises where the number of elements would be another, and where what this recipe created of a
    tensor would fall into thousands of pieces.
    """
    if shape.count(-1) > 1:
        raise PlanError(f"shape {shape} has more than one -1")
    changes: dict[str, LazyTensor] = {}
    problems: list[str] = []
    for name in draft.select(target):
        spec = draft.spec(name)
        known = prod(size for size in shape if size != -1)
        left = spec.count // known if known else 0
        sizes = tuple(left if size == -1 else size for size in shape)
        if prod(sizes) != spec.count or (-1 in shape and not known):
            problems.append(f"'{name}' is {spec}: {spec.count} elements do not fit shape {shape}")
        elif sizes != spec.shape:
            changes[name] = _reshape(name, draft[name], spec, sizes)
    if problems:
        raise PlanError(*problems)
    draft.replace(changes)


def _reshape(name: str, tensor: LazyTensor, spec: TensorSpec, sizes: tuple[int, ...]) -> LazyTensor:
    try:
        return Rearranged(tensor, tuple(range(len(spec.shape))), sizes)
    except PlanError as error:  # too many pieces of it are new
        raise error.at(f"'{name}'") from None
