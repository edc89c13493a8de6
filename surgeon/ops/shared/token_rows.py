"""New rows of a vocabulary that are made of old ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.initialisers.parts import Bound
from surgeon.lazy import Fresh, LazyTensor, Scratch, Stream
from surgeon.numeric.dtypes import DTYPES, Array

# A tensor and the entries of it whose mean a new one is; none for zeros.
Entries = Sequence[tuple[LazyTensor, int]]


def require_numbers(name: str, tensor: LazyTensor) -> None:
    """Raise PlanError for a tensor of whose entries there is no mean."""
    if DTYPES[tensor.spec.dtype].kind != "float":
        raise PlanError(f"'{name}' is {tensor.spec}, of whose entries there is no mean")


def means(
    like: LazyTensor, dim: int, entries: Sequence[Entries], stream: Stream, name: str
) -> LazyTensor:
    """Return new entries along a dimension, each the mean of others, in float64.

    The others are entries along the same dimension of tensors that are alike but for its size.
    """
    operands = tuple({id(tensor): tensor for some in entries for tensor, _ in some}.values())
    spec = like.spec.resized(dim, len(entries))
    return Fresh(spec, Bound(name, partial(_means, dim, entries), operands), stream)


def _means(
    dim: int,
    entries: Sequence[Entries],
    start: int,
    stop: int,
    stream: Stream,
    scratch: Scratch,
) -> Array:
    made = np.zeros(stop - start)
    if not entries:
        return made
    after = next((prod(t.spec.shape[dim + 1 :]) for some in entries for t, _ in some), 1)
    place = start
    while place < stop:
        outer, inside = divmod(place, len(entries) * after)
        number, first = divmod(inside, after)
        last = min(after, first + stop - place)
        out = made[place - start : place - start + last - first]
        for tensor, entry in entries[number]:
            begin = (outer * tensor.spec.shape[dim] + entry) * after
            with scratch.scope():
                out += tensor.values(begin + first, begin + last, scratch)
        if len(entries[number]) > 1:
            out /= len(entries[number])
        place += last - first
    return made
