"""delete: leave tensors out."""

from __future__ import annotations

from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op


@op(group="structure", example={"target": "encoder.0.norm"})
def delete(draft: Draft, *, target: Target) -> None:
    """Leave tensors out of the result."""
    for name in draft.select(target):
        del draft.tensors[name]
