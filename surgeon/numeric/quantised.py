"""Codes of quantised formats to values, and values to codes: whole runs in, float32 out.

Each kernel gets a block of whole runs, flat and as it is stored, the companions' stored arrays,
and the number of the first run. What comes out is exact, or the one float32 rounding that the
format's own library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.numeric.dtypes import LARGEST, Array, upcast

# Open Compute Project, Microscaling Formats specification 1.0, table 5: E2M1, the sign last.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4_VALUES = np.concatenate([_E2M1, -_E2M1])
# bitsandbytes divides by 127 in this way (functional.int8_vectorwise_dequant).
_ONE_127TH = np.float32(7.874015718698502e-3)
# Where AWQ keeps the eight columns of a word: bit offsets.
_AWQ_SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)


def as_floats(stored: Array, dtype: str) -> Array:
    """Return stored scales or codes as float32; U8 and F8_E8M0 scales are powers of two."""
    if dtype in ("F8_E8M0", "U8"):
        powers: Array = np.ldexp(np.float32(1), stored.astype(np.int32) - 127)
        return powers
    return upcast(stored, dtype, np.empty(stored.shape, np.float32))


@dataclass(frozen=True)
class ScaledCodes:
    """FP8 or int8 codes times a scale per tensor, row, group of columns, or block.

    Runs are rows. `shape` is the codes', `block` how many rows and columns share a scale, `scales`
    the shape of the scales as (experts, rows, columns). The companions are scales, and zero points
    where `zeros` names their dtype.
    """

    codes: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    scales: tuple[int, int, int]
    scale: str
    zeros: str | None = None
    is_by_127: bool = False

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        columns = self.shape[-1]
        codes = block.reshape(-1, columns)
        values = (
            codes.astype(np.float32)
            if self.codes == "I8"
            else upcast(codes, self.codes, np.empty(codes.shape, np.float32))
        )
        if self.zeros:
            values -= self._spread(companions[1].astype(np.float32), first, len(codes))
        values *= self._spread(as_floats(companions[0], self.scale), first, len(codes))
        if self.is_by_127:
            values *= _ONE_127TH
        return values

    def _spread(self, scales: Array, first: int, count: int) -> Array:
        """Return the scales of some rows, for each of their columns."""
        experts, rows, columns = self.scales
        expert, row = np.divmod(np.arange(first, first + count), self.shape[-2])
        if experts == 1:
            expert[:] = 0
        chosen = scales.reshape(self.scales)[expert, np.minimum(row // self.block[0], rows - 1)]
        repeats = 1 if columns == 1 else self.block[1]
        spread: Array = np.repeat(chosen, repeats, axis=1)[:, : self.shape[-1]]
        return spread


def mxfp4(block: Array, companions: Sequence[Array], first: int) -> Array:
    """Return E2M1 values times a power of two per 32 of them; runs are these."""
    codes = block.reshape(-1, 16)
    exponents = companions[0].reshape(-1)[first : first + len(codes)].astype(np.int32) - 127
    values = np.stack([FP4_VALUES[codes & 15], FP4_VALUES[codes >> 4]], axis=-1)
    scaled: Array = np.ldexp(values.reshape(-1, 32), exponents[:, None])
    return scaled


def unpacked(words: Array, bits: int) -> Array:
    """Return the numbers that `bits` words of 32 bits hold along axis 0, lowest bits first.

    (words, ...) -> (32 * words / bits, ...); words are whole groups where numbers straddle them.
    """
    packed = words.view(np.uint32)
    each = 32 if bits == 3 else 32 // bits
    grouped = packed.reshape(-1, each * bits // 32, *packed.shape[1:])
    parts = []
    for number in range(each):
        word, shift = divmod(number * bits, 32)
        part = grouped[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            part = part | (grouped[:, word + 1] << np.uint32(32 - shift))
        parts.append(part & np.uint32((1 << bits) - 1))
    return np.stack(parts, axis=1).reshape(-1, *packed.shape[1:])


@dataclass(frozen=True)
class GPTQ:
    """GPTQ's (numbers - zero points) * scales, as (inputs, outputs).

    A run is the rows that whole words hold. The companions are scales, packed zero points, and
    g_idx, each row's group, where there is one; else groups have `group_size` rows. The first
    version of the format keeps zero points less one (`offset` 1).
    """

    outputs: int
    bits: int
    scale: str
    group_size: int
    offset: int

    @property
    def rows(self) -> int:
        """The rows of a run."""
        return 32 if self.bits == 3 else 32 // self.bits

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        numbers = unpacked(block.reshape(-1, self.outputs), self.bits).astype(np.int32)
        rows = np.arange(len(numbers)) + first * self.rows
        groups = companions[2][rows] if len(companions) > 2 else rows // self.group_size
        used, place = np.unique(groups, return_inverse=True)
        packed = np.ascontiguousarray(companions[1][used].T)
        zeros = unpacked(packed, self.bits).T.astype(np.int32) + self.offset
        scales = as_floats(companions[0][used], self.scale)
        values: Array = (numbers - zeros[place]).astype(np.float32) * scales[place]
        return values


@dataclass(frozen=True)
class AWQ:
    """AWQ's (numbers - zero points) * scales, as (inputs, outputs); runs are rows.

    The companions are scales and zero points, which are packed as the numbers are.
    """

    outputs: int
    scale: str
    group_size: int

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        numbers = self._unpacked(block.reshape(-1, self.outputs // 8))
        groups = (np.arange(len(numbers)) + first) // self.group_size
        used, place = np.unique(groups, return_inverse=True)
        zeros = self._unpacked(companions[1][used])
        scales = as_floats(companions[0][used], self.scale)
        values: Array = (numbers - zeros[place]).astype(np.float32) * scales[place]
        return values

    @staticmethod
    def _unpacked(words: Array) -> Array:
        spread = (words.view(np.uint32)[..., None] >> _AWQ_SHIFTS) & np.uint32(15)
        return spread.reshape(len(words), -1).astype(np.int32)


@dataclass(frozen=True)
class Bitsandbytes4:
    """Entries of a table of 16 times the largest magnitude per block; runs are blocks.

    The companions are the magnitudes and the table; where the magnitudes are codes themselves,
    also their own magnitudes and table, and `offset` is added to what these say.
    """

    count: int
    block: int
    nested_block: int
    offset: float

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        codes = block.view(np.uint8)
        table = companions[1].astype(np.float32)
        values = np.stack([table[codes >> 4], table[codes & 15]], axis=-1).reshape(-1)
        values = values[: self.count - first * self.block]
        blocks = np.arange(-(-len(values) // self.block)) + first
        largest = np.repeat(self._magnitudes(companions, blocks), self.block)[: len(values)]
        return np.asarray(values * largest)

    def _magnitudes(self, companions: Sequence[Array], blocks: Array) -> Array:
        magnitudes = companions[0].reshape(-1)[blocks]
        if len(companions) == 2:
            return magnitudes.astype(np.float32)
        own = companions[2].reshape(-1)[blocks // self.nested_block].astype(np.float32)
        nested: Array = companions[3].astype(np.float32)[magnitudes] * own
        return nested + np.float32(self.offset)


@dataclass(frozen=True)
class PackedIntegers:
    """compressed-tensors' packed signed integers times scales; runs are rows.

    The companions are scales (rows, groups), packed zero points where `has_zeros` (along rows), and
    each column's group where `has_groups`.
    """

    columns: int
    bits: int
    scale: str
    has_zeros: bool
    has_groups: bool

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        words = -(-self.columns * self.bits // 32)
        packed = np.ascontiguousarray(block.reshape(-1, words).T)
        half = 1 << (self.bits - 1)
        numbers = unpacked(packed, self.bits).T[:, : self.columns].astype(np.int32) - half
        rows = np.arange(len(numbers)) + first
        scales = as_floats(companions[0][rows], self.scale)
        group = np.arange(self.columns) // -(-self.columns // scales.shape[1])
        if self.has_groups:
            group = companions[-1]
        if self.has_zeros:
            zeros = unpacked(companions[1], self.bits).astype(np.int32) - half
            numbers = numbers - zeros[rows][:, group]
        values: Array = numbers.astype(np.float32) * scales[:, group]
        return values


# --- To FP8 ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockScales:
    """The scales of blocks of a matrix in FP8 (E4M3), as transformers makes them; see `_scales`.

    A run is the rows of a block. With `codes`, what comes out are the values to be rounded to FP8
    instead.
    """

    columns: int
    block: tuple[int, int]
    codes: bool

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        high, wide = self.block
        tiles = block.reshape(-1, high, self.columns // wide, wide)
        largest = np.abs(tiles).max(axis=(1, 3))
        factors, scales = _scales(largest)
        if not self.codes:
            return scales
        values = tiles * factors[:, None, :, None]
        # A NaN passes, for whoever looks at what comes out.
        clipped: Array = np.clip(values, -LARGEST["F8_E4M3"], LARGEST["F8_E4M3"])
        return clipped


def _scales(largest: Array) -> tuple[Array, Array]:
    """Return what values are multiplied with, and the scales by which they come back (float32)."""
    safe = np.where(largest > 0, largest, np.float32(1))
    # As torch divides a number by a tensor: by its reciprocal, which transformers' codes go by.
    factors = np.float32(1) / safe * np.float32(LARGEST["F8_E4M3"])
    factors = np.where(largest > 0, factors, np.float32(1))
    return factors, np.float32(1) / factors
