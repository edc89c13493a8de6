"""untie: give a name a tensor of its own again."""

from __future__ import annotations

from collections import Counter

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import detached


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
