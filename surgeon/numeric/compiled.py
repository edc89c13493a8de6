"""The compiled loops: kernels.c and others, where they were built when surgeon was installed.

Each takes blocks as they are stored and gives the bits that its NumPy form gives, which is what
runs where there is no library, or where SURGEON_KERNELS=numpy asks for it. While a loop runs, other
threads do.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.base.deferred import np
from surgeon.numeric.signatures import SIGNATURES, ChangeFields, EndingFields, Operand

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any

LIBRARY = Path(__file__).with_name("kernels.so")
# The dtypes that the loops know, in the order of the enum in kernels.h.
_NAMES = ("BF16", "F16", "F8_E4M3", "F8_E5M2", "F32", "F64")
CODES = {name: code for code, name in enumerate(_NAMES)}
# As in kernels.h: what a loop works on at once, and how many sums it keeps side by side.
CHUNK, LANES = 512, 128
# What is built says which calls it answers; a library that was left behind by others is no use.
_INTERFACE = 7


class Block(NamedTuple):
    """Elements of one tensor as they are stored, and their dtype."""

    elements: Array
    dtype: str


@dataclass(frozen=True)
class Change:
    """What becomes of what one model adds to the base, in this order; see kernels.c.

    Kept are magnitudes above `least`, and those equal to it before the place `end` (in the block);
    but not those of which `dropped` and `dropped_end` say the same. Then what `mask` says, or what
    random `words` say with `chances`, which it is divided by. Then it is divided by `divide`,
    multiplied by `multiply` and by its `weight`.
    """

    mask: Array | None = None
    words: Array | None = None
    chances: Array | None = None
    cut: tuple[float, int] | None = None
    dropped: tuple[float, int] = (inf, 0)
    divide: float = 1.0
    multiply: float = 1.0
    weight: float = 1.0
    share: float = 1.0


class Loops:
    """The functions of a library, by their names without `surgeon_`."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, f"surgeon_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if self.interface() != _INTERFACE:
            raise OSError(f"{path}: built from another version")
        self.crc32_begin()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@cache
def loops() -> Loops | None:
    """Return the compiled loops; None where NumPy is to do."""
    if os.environ.get("SURGEON_KERNELS", "").lower() == "numpy" or not LIBRARY.exists():
        return None
    try:
        return Loops(LIBRARY)
    except (OSError, AttributeError):  # for another machine, or another version
        return None


def kernels() -> str:
    """Return which loops run: `compiled (...)` with the kind of processor, or `numpy`."""
    found = loops()
    return f"compiled ({found.processor().decode()})" if found else "numpy"


def knows(*dtypes: str) -> bool:
    """Say whether compiled loops run, and read and write all of these dtypes."""
    return loops() is not None and all(dtype in CODES for dtype in dtypes)


def the_loops() -> Loops:
    found = loops()
    assert found is not None, "whoever calls this has asked `knows` before"
    return found


def address(array: Array | None) -> int | None:
    if array is None:
        return None
    if array.flags.carray and array.size:  # several times faster than what is below
        buffer: Any = array
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    assert array.flags.c_contiguous
    assert array.flags.aligned
    found: int = array.__array_interface__["data"][0]
    return found


def operand(block: Block | None) -> Operand:
    if block is None:
        return Operand(None, 0)
    return Operand(address(block.elements), CODES[block.dtype])


def operands_of(blocks: Sequence[Block]) -> Any:
    return (Operand * len(blocks))(*map(operand, blocks))


def upcast(block: Block, out: Array) -> Array:
    """Write the values of a block into `out`, float32 or float64, and return it."""
    function = the_loops().upcast64 if out.dtype == np.float64 else the_loops().upcast32
    function(CODES[block.dtype], address(block.elements), 0, out.size, address(out))
    return out


def downcast(values: Array, dtype: str, out: Array, *, one_nan: bool) -> bool:
    """Round float32 or float64 to `dtype`; return whether all are finite and within its largest.

    With `one_nan`, NaNs all become the one that arithmetic makes; else they keep what they can.
    """
    function = the_loops().downcast64 if values.dtype == np.float64 else the_loops().downcast32
    return not function(CODES[dtype], address(values), 0, values.size, address(out), int(one_nan))


def linear(
    blocks: Sequence[Block],
    factors: Sequence[float],
    dtype: str,
    out: Array,
    *,
    multiply: float = 1.0,
    divide: float = 1.0,
    in_float32: bool = False,
    one_nan: bool = True,
    keep_zeros: bool = False,
) -> bool:
    """Write Σ factor · block · multiply / divide, rounded once; return whether all fit.

    With `keep_zeros` a zero that is the first block's keeps that one's sign.
    """
    function = the_loops().linear32 if in_float32 else the_loops().linear64
    numbers = np.array(factors, np.float64)
    return not function(
        len(out), operands_of(blocks), len(blocks), address(numbers), multiply, divide,
        CODES[dtype], address(out), int(one_nan), int(keep_zeros),
    )  # fmt: skip


def products(
    blocks: Sequence[Block], vectors: int, *, relative: bool, mask: Array | None = None
) -> Array:
    """Return the inner products of blocks of so many vectors: (vectors, points, points)."""
    length = len(blocks[0].elements) // vectors
    points = len(blocks) - relative
    rows, columns = np.tril_indices(points)
    spare, lanes = np.empty(len(blocks) * CHUNK), np.empty(len(rows) * LANES)
    found = np.empty((vectors, len(rows)))
    the_loops().products(
        vectors, length, operands_of(blocks), len(blocks), int(relative), address(mask),
        address(spare), address(lanes), address(found),
    )  # fmt: skip
    square = np.empty((vectors, points, points))
    square[:, rows, columns] = square[:, columns, rows] = found
    return square


def within(
    block: Block,
    base: Block | None,
    low: int,
    high: int,
    start: int,
    places: Array,
    values: Array,
    counts: Array,
) -> int:
    """Note the magnitudes of block - base whose bits are from `low` to `high`, and how many.

    Their places (int64) are counted from `start`. How many are above, and how many inside, is added
    to `counts` (uint64). There is room for all elements.
    """
    assert min(len(places), len(values)) >= len(block.elements)
    return int(
        the_loops().within(
            len(block.elements), operand(base), operand(block), low, high, start,
            address(places), address(values), address(counts),
        )
    )  # fmt: skip


def nth(magnitudes: Array, wanted: int) -> tuple[float, int]:
    """Return the `wanted`-th largest of float64 magnitudes, NaN being the largest.

    And how many of those that are equal to it are among the `wanted` largest.
    """
    assert 0 < wanted <= len(magnitudes)
    keys, found = np.empty(len(magnitudes), np.uint64), np.empty(1)
    equals = the_loops().nth(
        len(magnitudes), address(magnitudes), wanted, address(keys), address(found)
    )
    return float(found[0]), int(equals)


def bins(
    block: Block, base: Block | None, low: int, high: int, shift: int, into: Array, counts: Array
) -> None:
    """Count magnitudes from `low` to `high` by their distance from `low`, shifted; as `within`."""
    assert into.dtype == np.int64
    assert (high - low) >> shift < len(into)
    the_loops().bins(
        len(block.elements), operand(base), operand(block), low, high, shift, address(into),
        address(counts),
    )  # fmt: skip


def _change(block: Block, how: Change) -> ChangeFields:
    least, end = how.cut or (0.0, 0)
    return ChangeFields(
        operand(block), address(how.mask), address(how.words), address(how.chances),
        int(how.cut is not None), least, end, *how.dropped, how.divide, how.multiply, how.weight,
        how.share,
    )  # fmt: skip


def _changes(blocks: Sequence[Block], changes: Sequence[Change]) -> Any:
    return (ChangeFields * len(blocks))(*map(_change, blocks, changes))


@dataclass(frozen=True)
class Ending:
    """How a sum of changes goes on: begun with a zero or not, divided, then multiplied."""

    divide: float = 1.0
    multiply: float = 1.0
    from_zero: bool = False


def summed(
    blocks: Sequence[Block], changes: Sequence[Change], ending: Ending, dtype: str, out: Array
) -> bool:
    """Write base - Σ (base - block), each changed, rounded once; return whether all fit."""
    base, *others = blocks
    end = EndingFields(ending.divide, ending.multiply, int(ending.from_zero))
    return not the_loops().sum(
        len(out), operand(base), _changes(others, changes), len(others), end, CODES[dtype],
        address(out),
    )  # fmt: skip


def elected(
    blocks: Sequence[Block],
    changes: Sequence[Change],
    divisors: Array,
    lambda_: float,
    dtype: str,
    out: Array,
    *,
    shares: bool = False,
) -> tuple[bool, bool]:
    """Write base + λ · the elected sum of changes, rounded once.

    Returns whether all fit, and whether all of `divisors` that were used are numbers. These are
    what to divide by for each set of models that agree, the first being bit 0.
    """
    base, *others = blocks
    assert len(divisors) == 1 << len(others)
    spare = np.empty(len(others) * CHUNK)
    flags = the_loops().elect(
        len(out), operand(base), _changes(others, changes), len(others), int(shares),
        address(divisors), lambda_, address(spare), CODES[dtype], address(out),
    )  # fmt: skip
    return not flags & 1, not flags & 2


def agreed(
    blocks: Sequence[Block],
    changes: Sequence[Change],
    divisors: Array | None,
    limits: Sequence[float],
    at_least: int,
    scale: float,
    dtype: str,
    out: Array,
) -> tuple[bool, bool]:
    """Write base + scale · the sum of changes, or what `divisors` has elected of it, where needed.

    That is where at least so many models' own changes exceed their limits times what the others
    add. Returns what `elected` does.
    """
    base, *others = blocks
    spare, least = np.empty(len(others) * CHUNK), np.array(limits, np.float64)
    flags = the_loops().consensus(
        len(out), operand(base), _changes(others, changes), len(others), address(divisors),
        address(least), at_least, scale, address(spare), CODES[dtype], address(out),
    )  # fmt: skip
    return not flags & 1, not flags & 2


def acted(
    blocks: Sequence[Block],
    limits: Sequence[float],
    boosts: Sequence[float],
    dtype: str,
    out: Array,
) -> bool:
    """Write base + the mean of the changes beyond their limits; one alone times its boost."""
    least, factors = np.array(limits, np.float64), np.array(boosts, np.float64)
    return not the_loops().act(
        len(out), operands_of(blocks), len(blocks), address(least), address(factors),
        CODES[dtype], address(out),
    )  # fmt: skip


def swapped(blocks: Sequence[Block], most: float, dtype: str, out: Array) -> bool:
    """Write the first block, moved towards the second by at most so much.

    Returns whether all results fit, and all operands are finite.
    """
    return not the_loops().near(len(out), operands_of(blocks), most, CODES[dtype], address(out))


def clamped(block: Block, low: float, high: float, dtype: str, out: Array) -> bool:
    """Write the block's values within limits; return whether all fit."""
    return not the_loops().clamp(len(out), operand(block), low, high, CODES[dtype], address(out))


def extremes(block: Block, so_far: Array) -> bool:
    """Widen (least, greatest) to a block's values but NaN; return whether all are finite."""
    return bool(the_loops().extremes(len(block.elements), operand(block), address(so_far)))


def crc32(data: Array, before: int = 0) -> int:
    """Return the CRC-32 of bytes, after those of which it was `before`."""
    return int(the_loops().crc32(before, address(data), data.nbytes))


def crc32_joined(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two runs of bytes, one after the other, from the CRC of each."""
    return int(the_loops().crc32_joined(first, second, second_bytes))


def read_runs(descriptor: int, offset: int, pitch: int, runs: Array) -> bool:
    """Fill rows of bytes from a file, `pitch` bytes apart; say whether all were there at once."""
    count, run_bytes = runs.shape
    return bool(the_loops().read_runs(descriptor, offset, pitch, run_bytes, count, address(runs)))
