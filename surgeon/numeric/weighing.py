"""The compiled loops of variances and of sums that are weighed element by element; see mixes.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from surgeon.base.deferred import np
from surgeon.numeric.compiled import CODES, Array, Block, address, operand, operands_of, the_loops
from surgeon.numeric.signatures import WeightsFields


def variance(blocks: Sequence[Block]) -> Array:
    """Return the variance of what the others add to the first block, times their number."""
    out = np.empty(len(blocks[0].elements))
    the_loops().variance(len(out), operands_of(blocks), len(blocks), address(out))
    return out


@dataclass(frozen=True)
class Weights:
    """What one operand is multiplied by: numbers of a block, times `factor`.

    For element i of vector v it is the number at v * `by_vector` + i * `by_place`.
    """

    block: Block
    by_vector: int = 0
    by_place: int = 1
    factor: float = 1.0


class Weighed(IntEnum):
    """What becomes of weighed operands.

    Their sum; the first, less the sum of what it has more than each; or their mean, which keeps
    between them, and has the factors as weights where weights are all 0.
    """

    SUM = 0
    CHANGES = 1
    MEAN = 2


def weighed(
    blocks: Sequence[Block],
    weights: Sequence[Weights],
    what: Weighed,
    dtype: str,
    out: Array,
    *,
    vectors: int = 1,
    total: float = 1.0,
) -> tuple[bool, bool]:
    """Write what becomes of weighed blocks, rounded once.

    Returns whether all fit, and whether no weight of a mean is negative. `total` are its factors.
    """
    fields = (WeightsFields * len(blocks))(
        *(WeightsFields(operand(w.block), w.by_vector, w.by_place, w.factor) for w in weights)
    )
    flags = the_loops().weighed(
        vectors, len(out) // vectors, operands_of(blocks), len(blocks), fields, what, total,
        CODES[dtype], address(out),
    )  # fmt: skip
    return not flags & 1, not flags & 2
