"""permute: the dimensions in another order."""

from __future__ import annotations

from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Rearranged
from surgeon.ops.shared.grouping import require_bytes


@op(group="structure", example={"target": "stem.weight", "order": [2, 3, 1, 0]})
def permute(
    draft: Draft,
    *,
    target: Target,
    order: Annotated[
        list[int],
        "for each dimension of the result, the dimension that it was",
        {"items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True},
    ],
) -> None:
    """Put the dimensions of tensors into another order.

    As `torch.permute`: a convolution's (out, in, height, width) with `[2, 3, 1, 0]` is (height,
    width, in, out). Raises for a tensor that has not as many dimensions as `order`.
    """
    if sorted(order) != list(range(len(order))):
        raise PlanError(f"order {order} is no order of the dimensions 0 to {len(order) - 1}")
    changes: dict[str, LazyTensor] = {}
    problems: list[str] = []
    for name in draft.select(target):
        spec = draft.spec(name)
        require_bytes(name, spec)
        if len(spec.shape) != len(order):
            problems.append(
                f"'{name}' is {spec} and has {len(spec.shape)} dimensions, but order {order} is "
                f"of {len(order)}"
            )
        elif order != sorted(order):
            shape = tuple(spec.shape[dim] for dim in order)
            changes[name] = Rearranged(draft[name], tuple(order), shape)
    if problems:
        raise PlanError(*problems)
    draft.replace(changes)
