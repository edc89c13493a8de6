"""Which of a tensor's elements the initialisers of one step made."""

from __future__ import annotations

from typing import cast

from surgeon.base.regions import Region
from surgeon.lazy.base import ByteSource, LazyTensor, transplanted, walk
from surgeon.lazy.stored import Fresh, Stored


def makers(tensor: LazyTensor) -> set[str]:
    """Return the steps whose initialisers made something of a tensor."""
    return {form.stream.step for form in walk(tensor) if isinstance(form, Fresh)}


def regions_made_by(step: str, tensor: LazyTensor) -> tuple[Region, ...]:
    """Return where in a tensor the values are that a step's initialisers made."""

    def leaf(form: LazyTensor) -> LazyTensor:
        if isinstance(form, Fresh) and form.stream.step == step:
            return form
        # Nothing of it is new, and nobody reads it.
        return Stored(cast(ByteSource, object()), 0, form.spec)

    return transplanted(tensor, leaf).new_regions()
