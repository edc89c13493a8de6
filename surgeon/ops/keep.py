"""keep: leave everything else out."""

from __future__ import annotations

from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op


@op(group="structure", example={"target": ["encoder", "classifier"]})
def keep(draft: Draft, *, target: Target) -> None:
    """Leave everything out of the result but these tensors."""
    draft.tensors = {name: draft[name] for name in draft.select(target)}
