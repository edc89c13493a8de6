"""The compiled loops that draw at random, and rank: what is kept by chance."""

from __future__ import annotations

from surgeon.base.deferred import np
from surgeon.numeric.compiled import CHUNK, Array, Block, address, operand, the_loops


def magnitudes(block: Block, base: Block, mask: Array) -> tuple[float, float]:
    """Return Σ |block - base|, and the same of what a mask keeps."""
    found = np.empty(2)
    the_loops().magnitudes(
        len(block.elements), operand(base), operand(block), address(mask), address(found)
    )
    return float(found[0]), float(found[1])


def by_rank(block: Block, base: Block | None, row: int, table: Array) -> Array:
    """Return, for each element of whole rows, what `table` has for the rank of its magnitude."""
    out = np.empty(len(block.elements))
    _by_rank(block, base, row, table, out, None, None)
    return out


def kept_by_rank(block: Block, base: Block | None, row: int, table: Array, words: Array) -> Array:
    """Say which elements random uint32 keep, with the probabilities that `by_rank` returns."""
    mask = np.empty(len(block.elements), bool)
    _by_rank(block, base, row, table, np.empty(row), words, mask)
    return mask


def _by_rank(
    block: Block,
    base: Block | None,
    row: int,
    table: Array,
    out: Array,
    words: Array | None,
    mask: Array | None,
) -> None:
    spare = np.empty(3 * row + CHUNK, np.uint64)
    the_loops().by_rank(
        len(block.elements) // row, row, operand(base), operand(block), address(table),
        address(spare), address(out), address(words), address(mask),
    )  # fmt: skip


def philox(key: int, chunk: int, first: int, out: Array) -> Array:
    """Fill `out` with what Philox(key, counter=chunk << 128) gives after steps of 32 bytes."""
    steps, rest = divmod(out.nbytes, 32)
    assert not rest
    the_loops().philox(address(_key(key)), chunk, first, steps, address(out))
    return out


def bernoulli(key: int, chunk: int, level: int, rest: float, out: Array) -> Array:
    """Fill `out` with truths: `level` of 256, and the share `rest` of one more, are true.

    They are made of what `philox` gives of a chunk: eight bits each, and then a float64 in 0 to 1
    for each of which the bits are `level`.
    """
    the_loops().bernoulli(len(out), address(_key(key)), chunk, level, rest, address(out))
    return out


def _key(key: int) -> Array:
    return np.array([key & (1 << 64) - 1, key >> 64], np.uint64)
