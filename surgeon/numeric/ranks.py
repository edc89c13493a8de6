"""Chances that grow with the rank of a magnitude in its row, and what they keep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from surgeon.numeric.dtypes import Array

# Random numbers are whole ones below this, as those of a float32 in 0 to 1 are.
NUMBERS = 1 << 24
# Ranks are counted where that reads at most so many times what there is: sorting takes as long.
_COUNTED = 8
# Of rows that are no longer than this, probabilities are remembered.
_TABLE = 1 << 16
# Per element of whole rows, besides a magnitude and a few arrays that any kernel may have; as
# measured with tracemalloc where float32 tells no magnitude from another.
BY_RANK_BYTES, KEPT_BYTES = 40, 124


def numbers_of(words: Array) -> Array:
    """Return the whole numbers below `NUMBERS` that random uint32 are made into."""
    numbers: Array = words >> np.uint32(8)
    return numbers


@dataclass(frozen=True)
class Chances:
    """Probabilities that grow from density - ε to density + ε along the ranks of a row.

    Ranks count from 0 by ascending magnitude; of equal ones the first has the lowest.
    """

    density: float
    epsilon: float
    row: int

    def of(self, ranks: Any) -> Any:
        """Return the probabilities that ranks have."""
        return self.density - self.epsilon + 2 * self.epsilon * ranks / max(1, self.row - 1)

    def table(self) -> Array:
        """Return the probabilities of all ranks of a row, which are not to be changed."""
        return _table(self) if self.row <= _TABLE else self.of(np.arange(self.row))

    def by_rank(self, magnitudes: Array) -> Array:
        """Return the probability of each magnitude of whole rows."""
        found = np.empty(len(magnitudes))
        rows = len(magnitudes) // self.row
        order = _ascending(magnitudes.reshape(rows, self.row))
        found[order] = np.tile(self.table(), rows)
        return found

    def kept(self, magnitudes: Array, words: Array) -> Array:
        """Say which magnitudes of whole rows are kept, by a random uint32 for each.

        What is zero is said to be dropped or kept as it happens, since that makes no difference.
        """
        numbers = numbers_of(words)
        always, never = (int(np.ceil(self.of(rank) * NUMBERS)) for rank in (0, self.row - 1))
        mask: Array = numbers < np.uint32(always)
        # Only there the rank decides; what is below `always` wraps around.
        undecided = np.flatnonzero(numbers - np.uint32(always) < np.uint32(never - always))
        if not len(undecided):
            return mask
        least = self._least_ranks(numbers[undecided] * (1 / NUMBERS))
        keys = _narrow(magnitudes).view(np.uint32)
        own = keys[undecided]
        keys.reshape(-1, self.row).sort(axis=1)
        # An element has at least a rank where it is above what sorting puts before that place.
        places = undecided // self.row * self.row + least
        below = keys[places - 1]
        mask[undecided] = own > below
        # Equal to that, it has too low a rank, unless what follows is equal, too.
        equal = np.flatnonzero(own == below)
        equal = equal[keys.take(places[equal], mode="clip") == own[equal]]
        equal = equal[magnitudes[undecided[equal]] > 0]
        if len(equal):
            mask[undecided[equal]] = self._ranks(magnitudes, undecided[equal]) >= least[equal]
        return mask

    def _least_ranks(self, numbers: Array) -> Array:
        """Return the lowest ranks whose probability is above numbers that are between them."""
        per_chance = (self.row - 1) / (2 * self.epsilon)
        along = (numbers - self.of(0)) * per_chance
        ranks: Array = along.astype(np.int64)
        along -= ranks
        along -= 0.5
        ranks += 1
        # Next to a whole number, rounding decides. Errors of `along`, and of the probabilities
        # themselves, are a few units in the last place.
        unsure = np.flatnonzero(np.abs(along, out=along) >= 0.5 - per_chance * 2.0**-49)
        if len(unsure):
            ranks[unsure] = self._corrected(ranks[unsure], numbers[unsure])
        return ranks

    def _corrected(self, ranks: Array, numbers: Array) -> Array:
        """Return the lowest ranks whose probability is above these numbers, found from guesses."""
        ranks = np.clip(ranks, 1, self.row - 1)
        while (low := self.of(ranks) <= numbers).any():
            ranks += low
        while (high := self.of(ranks - 1) > numbers).any():
            ranks -= high
        return ranks

    def _ranks(self, magnitudes: Array, places: Array) -> Array:
        """Return the ranks of the magnitudes at some places, which are in ascending order."""
        rows = magnitudes.reshape(-1, self.row)
        numbers, columns = np.divmod(places, self.row)
        if len(places) * self.row <= _COUNTED * len(magnitudes):
            own, per = magnitudes[places], len(rows)
            parts = [slice(i, i + per) for i in range(0, len(places), per)]
            return np.concatenate([_counted(rows[numbers[p]], columns[p], own[p]) for p in parts])
        needed, found = np.unique(numbers, return_inverse=True)
        order = _ascending(rows[needed])
        ranks: Array = np.empty(len(order), np.int64)
        ranks[order] = np.tile(np.arange(self.row), len(needed))
        return np.take(ranks, found * self.row + columns)


@lru_cache(maxsize=4)
def _table(chances: Chances) -> Array:
    """Remember the probabilities of ranks: all blocks of many tensors have the same ones."""
    table: Array = chances.of(np.arange(chances.row))
    table.flags.writeable = False
    return table


def _counted(rows: Array, columns: Array, values: Array) -> Array:
    """Return the ranks of a value in each row, which is in this column."""
    values = values[:, np.newaxis]
    lower = np.equal(rows, values)
    lower &= np.arange(rows.shape[1]) < columns[:, np.newaxis]
    lower |= rows < values
    found: Array = np.count_nonzero(lower, axis=1)
    return found


def _narrow(magnitudes: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return magnitudes.astype(np.float32)


def _ascending(rows: Array) -> Array:
    """Return the flat positions of each row's magnitudes, ascending, equal ones in their order.

    Sorting keys that end in the position is several times faster than NumPy's argsort. The keys
    begin with the bits of float32 magnitudes; rows that these alone do not order are sorted again.
    """
    narrow = _narrow(rows)
    keys = narrow.view(np.uint32).astype(np.uint64)
    np.left_shift(keys, 32, out=keys)
    np.bitwise_or(keys, np.arange(rows.shape[1], dtype=np.uint64), out=keys)
    keys.sort(axis=1)
    np.bitwise_and(keys, 0xFFFFFFFF, out=keys)
    order: Array = keys.view(np.int64)
    inexact = np.flatnonzero(~np.equal(narrow, rows).all(axis=1))
    if len(inexact):
        ranked = np.take_along_axis(rows[inexact], order[inexact], axis=1)
        wrong = inexact[(ranked[:, 1:] < ranked[:, :-1]).any(axis=1)]
        order[wrong] = np.argsort(rows[wrong], axis=1, kind="stable")
    order += np.arange(0, rows.size, max(1, rows.shape[1]))[:, np.newaxis]
    return order.reshape(-1)
