"""The largest of a tensor's values, exactly, without sorting and without holding them all.

Of equal values the first ones are taken. What is compared are float64 magnitudes; the search for
the threshold reads keys instead: the bits of float32 magnitudes, which are in the same order. A
window of keys is narrowed, pass by pass, until the few values inside can be held and partitioned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Protocol, runtime_checkable

import numpy as np

from surgeon.lazy import (
    Blocks,
    Operands,
    StoredBlocks,
    is_computed_at_once,
)
from surgeon.merges.shared.sampling import sample, spread
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Block
from surgeon.numeric.dtypes import Array, upcast

# Values that are held at once for each threshold, 16 bytes each; so few that nothing is searched.
_HELD = 1 << 21
_FEW = 1 << 18
_BINS = 1 << 16
_FLOAT64 = np.dtype(np.float64)

# A new array of signed values of which the magnitudes are compared.
Measure = Callable[[Blocks], Array]


@runtime_checkable
class StoredMeasure(Protocol):
    """A measure that compiled loops take, too: the difference of stored blocks, or of one and 0."""

    def __call__(self, blocks: Blocks) -> Array: ...

    def stored(self, blocks: StoredBlocks) -> tuple[Block | None, Block]:
        """Return what is subtracted, if anything, and what it is subtracted from."""
        ...


@dataclass(frozen=True)
class Difference:
    """The measure that is the change of one model, 0 being the first."""

    model: int

    def __call__(self, blocks: Blocks) -> Array:
        change: Array = np.subtract(blocks[self.model + 1], blocks[0])
        return change

    def stored(self, blocks: StoredBlocks) -> tuple[Block | None, Block]:
        return blocks[0], blocks[self.model + 1]


@dataclass(frozen=True)
class Cut:
    """The largest of a tensor's magnitudes: what is above `least`, and its equals before `end`."""

    least: float
    end: int

    def kept(self, magnitudes: Array, start: int) -> Array:
        """Say which elements of a block belong to them; `start` is where the block begins."""
        before = min(max(self.end - start, 0), len(magnitudes))
        mask = np.empty(len(magnitudes), bool)
        np.greater_equal(magnitudes[:before], self.least, out=mask[:before])
        np.greater(magnitudes[before:], self.least, out=mask[before:])
        return mask


NOTHING = Cut(np.inf, 0)


def share(density: float, count: int) -> int:
    """Return how many elements a density keeps."""
    return max(1, int(density * count))


def held_bytes(count: int, thresholds: int) -> int:
    """Return the most bytes that finding thresholds in so many elements takes besides blocks."""
    held = min(count, _HELD)
    # Values and places of all of them, or as many bits as there are elements; of one of them once
    # more, in one piece and partitioned.
    return thresholds * max(16 * held, count // 8) + 26 * held


def cuts(
    operands: Operands,
    measures: Sequence[Measure],
    counts: Sequence[Sequence[int]],
    *,
    monotone_in_float32: bool = False,
) -> list[list[Cut]]:
    """Return, for each measure, the cuts that its `counts` largest magnitudes are.

    With `monotone_in_float32`, magnitudes in float32 are in the order of those in float64, as those
    of one rounded difference of float32 values are.
    """
    size = operands.tensors[0].spec.count
    if size <= _FEW:
        return _partition(operands, measures, counts)
    looks_compiled = operands.are_compiled and all(isinstance(m, StoredMeasure) for m in measures)
    narrow = monotone_in_float32 and not looks_compiled  # compiled loops read float64 as fast
    keys = np.dtype(np.float32 if narrow else np.float64)
    found = [
        [_Search(measure, wanted, size, keys) for wanted in wanteds]
        for measure, wanteds in zip(measures, counts, strict=True)
    ]
    pending = [search for searches in found for search in searches if search.cut is None]
    if pending and not any(map(is_computed_at_once, operands.tensors)):
        _guess(operands, pending, keys)
    while pending:
        for dtype in {search.keys for search in pending}:
            _pass(operands, [search for search in pending if search.keys == dtype], dtype)
        pending = [search for search in pending if not search.is_settled()]
    return [[search.cut or NOTHING for search in searches] for searches in found]


def _partition(
    operands: Operands, measures: Sequence[Measure], counts: Sequence[Sequence[int]]
) -> list[list[Cut]]:
    """Return the cuts of a tensor of which all magnitudes are held."""
    size = operands.tensors[0].spec.count
    positions = np.arange(size)
    return [
        [_all_or_none(n, size) or _cut(positions, found, n) for n in wanteds]
        for found, wanteds in zip(_magnitudes(operands, measures), counts, strict=True)
    ]


def _magnitudes(operands: Operands, measures: Sequence[Measure]) -> list[Array]:
    """Return all magnitudes of each measure, as float64."""
    stored = [measure for measure in measures if isinstance(measure, StoredMeasure)]
    if operands.are_compiled and len(stored) == len(measures):
        return _stored_magnitudes(operands, stored)
    parts: list[list[Array]] = [[] for _ in measures]
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are the largest
        for blocks in operands.blocks(_FLOAT64):
            for part, measure in zip(parts, measures, strict=True):
                part.append(np.abs(measure(blocks)))
    return [np.concatenate(part) if part else np.empty(0) for part in parts]


def _stored_magnitudes(operands: Operands, measures: Sequence[StoredMeasure]) -> list[Array]:
    """Return all magnitudes of each measure, as a compiled loop finds them."""
    size = operands.tensors[0].spec.count
    found = [np.empty(size) for _ in measures]
    places, counts = np.empty(size, np.int64), np.zeros(2, np.uint64)
    most = _largest_key(_FLOAT64)
    for blocks in operands.stored_blocks(wide=True):
        start = blocks.start
        for measure, values in zip(measures, found, strict=True):
            base, block = measure.stored(blocks)
            room = places[start:], values[start:]
            compiled.within(block, base, 0, most, start, *room, counts)
    return found


def _all_or_none(wanted: int, size: int) -> Cut | None:
    if wanted >= size:
        return Cut(0.0, size)
    return NOTHING if wanted <= 0 else None


def _pass(operands: Operands, searches: Sequence[_Search], dtype: np.dtype[Any]) -> None:
    """Have searches look at all blocks; each measure is taken once."""
    by_measure: dict[int, list[_Search]] = {}
    for search in searches:
        by_measure.setdefault(id(search.measure), []).append(search)
    if operands.are_compiled and all(isinstance(s.measure, StoredMeasure) for s in searches):
        for stored in operands.stored_blocks(wide=True):
            for search in searches:
                search.look_at_stored(stored)
        return
    for blocks in operands.blocks(_FLOAT64 if _needs_float64(operands) else dtype):
        for group in by_measure.values():
            with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are the largest
                keys = _keys(group[0].measure(blocks), dtype)
            for search in group:
                search.look(keys, blocks)


def _needs_float64(operands: Operands) -> bool:
    """Say whether float32 does not hold the operands: they are float64, or not rounded yet."""
    return any(tensor.spec.dtype == "F64" or not tensor.is_exact for tensor in operands.tensors)


def _keys(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return unsigned integers in the order of the magnitudes."""
    values = values.astype(dtype, copy=False)
    bits: Array = values.view(f"u{dtype.itemsize}")
    return np.bitwise_and(bits, _largest_key(dtype), out=bits)


def _largest_key(dtype: np.dtype[Any]) -> int:
    return (1 << (8 * dtype.itemsize - 1)) - 1


def _guess(operands: Operands, searches: Iterable[_Search], dtype: np.dtype[Any]) -> None:
    """Begin each search with the window that a sample of the tensor suggests."""
    blocks = sample(operands, _FLOAT64 if _needs_float64(operands) else dtype)
    samples: dict[int, Array] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for measure in {id(search.measure): search.measure for search in searches}.values():
            samples[id(measure)] = np.abs(measure(blocks).astype(np.float64, copy=False))
    for search in searches:
        search.guess(samples[id(search.measure)])


@dataclass
class _Search:
    """The threshold of the `wanted` largest magnitudes, as far as it is known.

    It is between the keys `low` and `high`. One pass counts what is above, and holds the values
    between them, or counts those in bins, or, where all have one key and are too many to be held,
    holds their extremes and, as bits, where they are.
    """

    measure: Measure
    wanted: int
    size: int
    keys: np.dtype[Any]
    cut: Cut | None = None
    low: int = 0
    high: int = 0
    above: int = 0
    inside: int = 0
    holds: bool = True
    held: list[tuple[Array, Array]] = field(default_factory=list)
    bins: Array | None = None
    edges: list[float] = field(default_factory=list)
    equals: list[tuple[int, int, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cut = _all_or_none(self.wanted, self.size)
        self._look_between(0, _largest_key(self.keys), self.size)

    def guess(self, some: Array) -> None:
        """Narrow the window to what a sample of magnitudes suggests."""
        place = int(len(some) * self.wanted / self.size)
        reach = spread(some, nth_largest(some, place + 1)[0])
        first, last = place - reach, place + reach
        low, high = 0.0, np.inf
        if last < len(some):
            low = nth_largest(some, last + 1)[0]
        if first >= 0:
            high = nth_largest(some, first + 1)[0]
        inside = np.count_nonzero((some >= low) & (some <= high))
        edges = _keys(np.array([low, high]), self.keys)
        top = int(edges[1]) if first >= 0 else _largest_key(self.keys)
        self._look_between(int(edges[0]), top, int(1.25 * inside / len(some) * self.size))

    def _look_between(self, low: int, high: int, expected: int) -> None:
        self.low, self.high, self.above, self.inside = low, high, 0, 0
        self.holds, self.held, self.bins = expected <= _HELD, [], None
        self.edges, self.equals = [], []

    @property
    def _shift(self) -> int:
        """How many bits of a key its bin leaves out."""
        return max(0, (self.high - self.low).bit_length() - (_BINS - 1).bit_length())

    def look(self, keys: Array, blocks: Blocks) -> None:
        """Take note of the next block."""
        kind = keys.dtype.type
        self.above += int(np.count_nonzero(keys > kind(self.high)))
        from_low = keys - kind(self.low)  # what is below wraps around
        mask = from_low <= kind(self.high - self.low)
        found = np.flatnonzero(mask)
        self.inside += len(found)
        if self.holds and self.inside > _HELD:
            self.held.clear()
        elif self.holds:
            self.held.append((found + blocks.start, self._exact(blocks, found)))
        elif self.low < self.high:
            bins = np.right_shift(from_low[found], kind(self._shift)).astype(np.int64)
            counted = np.bincount(bins, minlength=_BINS)
            self.bins = counted if self.bins is None else self.bins + counted
        elif len(found):
            values = self._exact(blocks, found)
            self.edges += [values.min(), values.max()]
            self.equals.append((blocks.start, len(found), np.packbits(mask)))

    def look_at_stored(self, blocks: StoredBlocks) -> None:
        """Take note of the next block, in a compiled loop."""
        assert isinstance(self.measure, StoredMeasure)
        base, block = self.measure.stored(blocks)
        counts, window, size = np.zeros(2, np.uint64), (self.low, self.high), len(block.elements)
        if self.holds:
            room = self._room(size)
            compiled.within(block, base, *window, blocks.start, *room, counts)
        elif self.low < self.high:
            if self.bins is None:
                self.bins = np.zeros(_BINS, np.int64)
            compiled.bins(block, base, *window, self._shift, self.bins, counts)
        else:
            raised = Blocks(
                (upcast(b.elements, b.dtype, np.empty(size, np.float64)) for b in blocks),
                blocks.start,
            )
            with np.errstate(over="ignore", invalid="ignore"):
                self.look(_keys(self.measure(raised), self.keys), raised)
        self.above += int(counts[0])
        self.inside += int(counts[1])

    def _room(self, size: int) -> tuple[Array, Array]:
        """Return where a block's places and values go: behind the others, unless these are many."""
        if not self.held:
            count = min(self.size, _HELD + size)
            self.held = [(np.empty(count, np.int64), np.empty(count))]
        at = self.inside if self.inside <= _HELD else 0
        ((places, values),) = self.held
        return places[at:], values[at:]

    def _exact(self, blocks: Blocks, found: Array) -> Array:
        few = Blocks((block[found].astype(np.float64) for block in blocks), blocks.start)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.abs(self.measure(few))

    def is_settled(self) -> bool:
        """Say, after a pass, whether the threshold is known; if not, the window is narrower."""
        missing = self.wanted - self.above
        if not 0 < missing <= self.inside:
            self._look_between(0, _largest_key(self.keys), self.size)  # the guess was wrong
        elif self.holds and self.inside <= _HELD:
            positions, values = (a[0] if len(a) == 1 else np.concatenate(a)
                                 for a in zip(*self.held, strict=True))  # fmt: skip
            self.cut = _cut(positions[: self.inside], values[: self.inside], missing)
            self.held = []
        elif self.bins is not None:
            bin_ = len(self.bins) - 1 - int(np.cumsum(self.bins[::-1]).searchsorted(missing))
            low = self.low + (bin_ << self._shift)
            high = min(self.high, low + (1 << self._shift) - 1)
            self._look_between(low, high, int(self.bins[bin_]))
        elif self.low < self.high:
            self._look_between(self.low, self.high, self.inside)  # more than expected
        else:
            self._settle_equals(missing)
        return self.cut is not None

    def _settle_equals(self, missing: int) -> None:
        least, most = min(self.edges), max(self.edges)
        if least == most:
            self.cut = Cut(least, self._end_of_equals(missing))
        else:
            # Equal in float32 alone.
            self.keys = _FLOAT64
            low, high = _keys(np.array([least, most]), self.keys)
            self._look_between(int(low), int(high), self.inside)

    def _end_of_equals(self, missing: int) -> int:
        """Return what follows the position of the last wanted one."""
        for start, count, bits in self.equals:
            if missing <= count:
                return start + int(np.flatnonzero(np.unpackbits(bits))[missing - 1]) + 1
            missing -= count
        raise AssertionError("fewer values than were counted")


def _cut(positions: Array, values: Array, wanted: int) -> Cut:
    """Return the cut that the `wanted` largest of these values are."""
    pivot, equals = nth_largest(values, wanted)
    if isnan(pivot):
        return NOTHING
    return Cut(pivot, int(positions[values == pivot][equals - 1]) + 1)


def nth_largest(magnitudes: Array, wanted: int) -> tuple[float, int]:
    """Return the `wanted`-th largest, NaN being the largest, and how many equals go with it."""
    if compiled.loops():
        return compiled.nth(magnitudes, wanted)
    place = len(magnitudes) - wanted
    pivot = np.partition(magnitudes, place)[place]
    above = len(magnitudes) - int(np.count_nonzero(magnitudes <= pivot))
    return float(pivot), wanted - above
