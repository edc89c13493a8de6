"""delete: leave tensors out."""

from __future__ import annotations

from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op


@op(group="structure", example={"target": "encoder.0.norm"})
def delete(draft: Draft, *, target: Target) -> None:
    """Leave tensors out of the result.

    Of tied names that are stored once, the one that is stored takes the others along.
    """
    for name in draft.select(target, itself=True):
        del draft.tensors[name]
