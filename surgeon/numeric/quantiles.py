"""Exact quantiles of more numbers than fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import floor

import numpy as np

from surgeon.numeric.dtypes import Array

# Bits of a number that one pass over the data decides.
_DIGIT = 16
# Numbers that are collected and sorted at once: 8 MiB.
_COLLECTED = 1 << 20

Blocks = Callable[[], Iterable[Array]]


def quantiles(blocks: Blocks, count: int, shares: Sequence[float]) -> list[float]:
    """Return quantiles of float64 numbers >= 0 that can be read again and again, block by block.

    Between two numbers they are interpolated linearly, as numpy.quantile does by default. Each pass
    looks at 16 more bits of what may be a wanted number, until few enough may be to sort them.
    """
    positions = [share * (count - 1) for share in shares]
    ranks = sorted({rank for p in positions for rank in (floor(p), min(floor(p) + 1, count - 1))})
    values = dict(zip(ranks, _of_ranks(blocks, ranks), strict=True))
    return [_between(values, position, count) for position in positions]


def held_bytes(count: int, shares: int) -> int:
    """Return the most bytes that so many quantiles of so many numbers take besides blocks."""
    # Each lies between two numbers, and those around each of these are collected, and at last once
    # more to be sorted; or they are counted by their digits.
    numbers = 2 * shares
    collected = min(count, _COLLECTED)
    return 8 * max((numbers + 2) * collected, (numbers + 1) << _DIGIT)


def _between(values: dict[int, float], position: float, count: int) -> float:
    below = floor(position)
    low, high, part = values[below], values[min(below + 1, count - 1)], position - below
    # The two forms of numpy's own interpolation, for the same last bit.
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def _of_ranks(blocks: Blocks, ranks: Sequence[int]) -> list[float]:
    """Return the numbers that sorting would put at these wanted, from 0."""
    # The bits of numbers >= 0 are ordered as the numbers are.
    wanted = [_Wanted(0, 64, rank, None) for rank in ranks]
    while any(one.count is None or one.count > _COLLECTED for one in wanted):
        if all(one.bits == 0 for one in wanted):
            break
        wanted = _narrowed(blocks, wanted)
    return _collected(blocks, wanted)


class _Wanted:
    """Where a wanted number is: among those whose bits above `bits` are `prefix`, at a rank."""

    def __init__(self, prefix: int, bits: int, rank: int, count: int | None) -> None:
        self.prefix, self.bits, self.rank, self.count = prefix, bits, rank, count


def _narrowed(blocks: Blocks, wanted: Sequence[_Wanted]) -> list[_Wanted]:
    bits = wanted[0].bits
    counts = {one.prefix: np.zeros(1 << _DIGIT, np.int64) for one in wanted}
    for keys in map(_keys, blocks()):
        for prefix, found in counts.items():
            digits = _members(keys, prefix, bits) >> np.uint64(bits - _DIGIT)
            digits &= np.uint64((1 << _DIGIT) - 1)
            found += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
    narrowed = []
    for one in wanted:
        ends = np.cumsum(counts[one.prefix])
        digit = int(np.searchsorted(ends, one.rank, side="right"))
        own = int(counts[one.prefix][digit])
        rank = one.rank - (int(ends[digit]) - own)
        narrowed.append(_Wanted(one.prefix << _DIGIT | digit, bits - _DIGIT, rank, own))
    return narrowed


def _collected(blocks: Blocks, wanted: Sequence[_Wanted]) -> list[float]:
    bits = wanted[0].bits
    if bits == 0:  # nothing is left to be told apart
        return [float(np.uint64(one.prefix).view(np.float64)) for one in wanted]
    found: dict[int, list[Array]] = {one.prefix: [] for one in wanted}
    for keys in map(_keys, blocks()):
        for prefix, parts in found.items():
            parts.append(_members(keys, prefix, bits).copy())
    ordered = {prefix: np.sort(np.concatenate(found.pop(prefix))) for prefix in list(found)}
    return [float(ordered[one.prefix][one.rank].view(np.float64)) for one in wanted]


def _keys(block: Array) -> Array:
    # -0 is 0.
    return np.abs(block).view(np.uint64)


def _members(keys: Array, prefix: int, bits: int) -> Array:
    return keys if bits == 64 else keys[keys >> np.uint64(bits) == np.uint64(prefix)]
