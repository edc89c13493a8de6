"""fill: one value everywhere."""

from __future__ import annotations

from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import fresh
from surgeon.lazy import LazyTensor


@op(group="values", example={"target": "encoder.1.norm.running_mean", "value": 0})
def fill(
    draft: Draft,
    *,
    target: Target,
    value: Annotated[float, "the value; 0 or 1 for booleans"],
) -> None:
    """Give every element of tensors one value.

    Unlike `reinit` with `constant`, all tensors of a module get it, the bias too. Floating-point
    tensors get it rounded once, integers and booleans only a value that they hold exactly. The
    values count as new. Raises where a dtype cannot hold the value.
    """
    init = {"name": "constant", "val": value}
    changes: dict[str, LazyTensor] = {}
    problems: list[str] = []
    for name in draft.select(target):
        try:
            changes[name] = fresh(
                draft.spec(name), init, draft.stream(name), name=name.rpartition(".")[2]
            )
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*problems)
    draft.replace(changes)
