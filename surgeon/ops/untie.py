"""untie: give a name a tensor of its own again."""

from __future__ import annotations

from collections import Counter

from surgeon.draft import Draft
from surgeon.errors import PlanError
from surgeon.lazy import detached
from surgeon.patterns import Target
from surgeon.registry import op


@op(group="structure", example={"target": "head.weight"})
def untie(draft: Draft, *, target: Target) -> None:
    """Give tied names a copy of their own.

    Raises for a tensor that is not tied, unless the step is optional.
    """
    shared = Counter(map(id, draft.tensors.values()))
    for name in draft.select(target):
        if shared[id(draft[name])] > 1:
            draft.tensors[name] = detached(draft[name])
        elif not draft.optional:
            raise PlanError(f"'{name}' is not tied to another tensor")
