"""Boxes of a tensor's elements: `fc.weight`, `fc.weight[7:8]`, `fc.weight[:,64:96]`.

A region is one half-open range per dimension. New rows are regions, optimizer groups are made of
regions, and a stage covers a parameter exactly when its regions partition it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

from surgeon.base.errors import PlanError

Region = tuple[tuple[int, int], ...]

# More regions of one tensor than this are no description of it any more.
_MOST = 4096
_BLOCK = re.compile(r"(?P<name>[^\[\]]+)\[(?P<slices>[-\d:,\s]+)\]")
_SLICE = re.compile(r"\s*(?:(\d+)?\s*:\s*(\d+)?)\s*")


def whole(shape: Sequence[int]) -> Region:
    """Return the region that is all of a tensor of this shape."""
    return _whole(tuple(shape))


# A model has few shapes.
@lru_cache(maxsize=1024)
def _whole(shape: tuple[int, ...]) -> Region:
    return tuple((0, size) for size in shape)


def count(region: Region) -> int:
    """Return the number of elements in a region."""
    return prod(stop - start for start, stop in region)


def intersection(a: Region, b: Region) -> Region | None:
    """Return what two regions of one tensor share, None where that is nothing."""
    shared = tuple((max(a0, b0), min(a1, b1)) for (a0, a1), (b0, b1) in zip(a, b, strict=True))
    return shared if all(start < stop for start, stop in shared) else None


def without(region: Region, taken: Region) -> list[Region]:
    """Return disjoint regions that cover `region` minus `taken`."""
    hole = intersection(region, taken)
    if hole is None:
        return [region]
    rest: list[Region] = []
    for dim, ((start, stop), (hole_start, hole_stop)) in enumerate(zip(region, hole, strict=True)):
        around = (hole[:dim], region[dim + 1 :])
        if start < hole_start:
            rest.append((*around[0], (start, hole_start), *around[1]))
        if hole_stop < stop:
            rest.append((*around[0], (hole_stop, stop), *around[1]))
    return rest


def remainder(shape: Sequence[int], taken: Iterable[Region]) -> list[Region]:
    """Return disjoint regions that cover all of `shape` that `taken` leaves."""
    rest = [whole(shape)] if prod(shape) else []
    for region in taken:
        rest = [piece for old in rest for piece in without(old, region)]
    return sorted(rest)


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Region]:
    """Yield disjoint regions that hold elements start to stop of a tensor, in their order."""
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    row = prod(shape[1:])
    (first, inside), (end, rest) = divmod(start, row), divmod(stop, row)
    if first == end or inside:
        upto = min(stop - first * row, row)
        yield from (((first, first + 1), *box) for box in boxes(shape[1:], inside, upto))
        first += 1
    if first < end:
        yield ((first, end), *whole(shape[1:]))
    if first <= end:
        yield from (((end, end + 1), *box) for box in boxes(shape[1:], 0, rest))


def reshaped(region: Region, old: Sequence[int], new: Sequence[int]) -> list[Region]:
    """Return disjoint regions of shape `new` that hold the same elements as one of shape `old`.

    Raises PlanError where that takes thousands of them.
    """
    choices: list[list[Region]] = []
    for (first, last), (begin, end) in _groups(old, new):
        runs = _runs(region[first:last], old[first:last])
        found: list[Region] = []
        for start, stop in runs:
            found += boxes(new[begin:end], start, stop)
            if len(found) * prod(map(len, choices)) > _MOST:
                raise PlanError(
                    f"what is new of it in shape {tuple(old)} would be over {_MOST} pieces in "
                    f"shape {tuple(new)}; reshape it before the step that widens it"
                )
        choices.append(found)
    return [tuple(side for box in parts for side in box) for parts in product(*choices)]


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield ranges of dimensions of two shapes that hold as many elements, as few as possible."""
    last = end = 0
    while last < len(old) or end < len(new):
        first, begin = last, end
        last, end = min(last + 1, len(old)), min(end + 1, len(new))
        while (counts := (prod(old[first:last]), prod(new[begin:end])))[0] != counts[1]:
            if counts[0] < counts[1]:
                last += 1
            else:
                end += 1
        yield (first, last), (begin, end)


def _runs(region: Region, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of elements, counted flat, that a region consists of."""
    partial = [dim for dim, size in enumerate(shape) if region[dim] != (0, size)]
    if not partial:
        yield 0, prod(shape)
        return
    inner = prod(shape[partial[-1] + 1 :])
    start, stop = region[partial[-1]]
    for index in product(*(range(*side) for side in region[: partial[-1]])):
        row = 0
        for entry, size in zip(index, shape, strict=False):
            row = row * size + entry
        row *= shape[partial[-1]]
        yield (row + start) * inner, (row + stop) * inner


def spelled(name: str, region: Region, shape: Sequence[int]) -> str:
    """Write a region the way the manifest does: whole tensors by name, parts with slices."""
    slices = [
        ":" if (start, stop) == (0, size) else f"{start}:{stop}"
        for (start, stop), size in zip(region, shape, strict=True)
    ]
    while slices and slices[-1] == ":":
        slices.pop()
    return f"{name}[{','.join(slices)}]" if slices else name


def split_block(text: str) -> tuple[str, str | None]:
    """Split `fc.weight[7:8]` into its name and its slices; the slices are None without any."""
    found = _BLOCK.fullmatch(text)
    return (found["name"], found["slices"]) if found else (text, None)


def parsed(slices: str | None, shape: Sequence[int]) -> Region:
    """Return the region that `7:8` or `:,64:96` means in a tensor of this shape.

    Raises ValueError, with a message for the user, where it lies outside of the shape.
    """
    region = list(whole(shape))
    parts = slices.split(",") if slices is not None else []
    if len(parts) > len(region):
        raise ValueError(f"{len(parts)} slices for a tensor of shape {tuple(shape)}")
    for dim, part in enumerate(parts):
        found = _SLICE.fullmatch(part)
        if not found:
            raise ValueError(f"'{part}' is not a slice like 3:5, 3: or :")
        start, stop = int(found[1] or 0), int(found[2]) if found[2] else shape[dim]
        if not start < stop <= shape[dim]:
            raise ValueError(
                f"[{part}] is empty or outside of dimension {dim}, which has {shape[dim]} entries"
            )
        region[dim] = (start, stop)
    return tuple(region)
