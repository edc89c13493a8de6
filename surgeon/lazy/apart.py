"""What has to be known of tensors, found out once for all who write parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surgeon.lazy.base import LazyTensor, bottom_up, walk
from surgeon.lazy.blockwise import Blockwise
from surgeon.lazy.scratch import Scratch
from surgeon.lazy.whole_tensor import WholeTensor


def learners(tensor: LazyTensor) -> tuple[Blockwise, ...]:
    """Return the forms below of which something has to be known, operands before what they make.

    None where one of them keeps its very values, as decompositions do: they cannot be told.
    """
    forms = [form for form in bottom_up(tensor) if form.is_computed_at_once]
    found = tuple(form for form in forms if isinstance(form, Blockwise))
    return found if len(found) == len(forms) else ()


def learn(forms: Sequence[Blockwise], scratch: Scratch) -> list[Any]:
    """Find out what has to be known of each form; reads all of its operands."""
    scratch.forget(forms)
    return [form.known(scratch) for form in forms]


def tell(forms: Sequence[Blockwise], facts: Sequence[Any], scratch: Scratch) -> None:
    """Let a worker know what another one learned."""
    for form, fact in zip(forms, facts, strict=True):
        scratch.known(form, lambda _, fact=fact: fact)  # type: ignore[misc]


def unknown(tensor: LazyTensor) -> Iterator[WholeTensor]:
    """Yield the forms below whose small values each process keeps, and this one does not know."""
    return (form for form in walk(tensor) if isinstance(form, WholeTensor) and form.is_awaited)
