"""The safetensors dtypes: how each is stored, upcast to compute with, and rounded back.

NumPy has no bfloat16 and no float8, so a block travels as its *storage* (unsigned integers of
the same width) and only floating-point kernels see it upcast to float32 (float64 for F64).
Rounding is to nearest, ties to even, and keeps NaN; see `downcast` for what overflows.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from surgeon.base.deferred import np
from surgeon.base.errors import PlanError, UsageError, did_you_mean
from surgeon.numeric import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any
DtypeKind = Literal["float", "int", "bool", "complex", "opaque"]


class Dtype(NamedTuple):
    """One safetensors dtype: its size, NumPy's code for its bytes, its name in torch."""

    name: str
    bits: int
    kind: DtypeKind
    code: str
    torch: str

    @property
    def storage(self) -> np.dtype[Any]:
        """How NumPy holds its bytes."""
        return _storage(self.code)


@cache
def _storage(code: str) -> np.dtype[Any]:
    return np.dtype(code)


def _table(*rows: tuple[str, int, DtypeKind, str, str]) -> dict[str, Dtype]:
    return {row[0]: Dtype(row[0], row[1], row[2], row[3], row[4]) for row in rows}


# In the order in which safetensors' save_file lays tensors out: descending alignment, and within
# it the reverse of the Rust enum. Checked against the library by tests/test_execute.py.
DTYPES = _table(
    ("U64", 64, "int", "<u8", "uint64"),
    ("I64", 64, "int", "<i8", "int64"),
    ("F64", 64, "float", "<f8", "float64"),
    ("C64", 64, "complex", "<c8", "complex64"),
    ("F32", 32, "float", "<f4", "float32"),
    ("U32", 32, "int", "<u4", "uint32"),
    ("I32", 32, "int", "<i4", "int32"),
    ("BF16", 16, "float", "<u2", "bfloat16"),
    ("F16", 16, "float", "<f2", "float16"),
    ("U16", 16, "int", "<u2", "uint16"),
    ("I16", 16, "int", "<i2", "int16"),
    ("F8_E5M2FNUZ", 8, "opaque", "u1", "float8_e5m2fnuz"),
    ("F8_E4M3FNUZ", 8, "opaque", "u1", "float8_e4m3fnuz"),
    ("F8_E8M0", 8, "opaque", "u1", "float8_e8m0fnu"),
    ("F8_E4M3", 8, "float", "u1", "float8_e4m3fn"),
    ("F8_E5M2", 8, "float", "u1", "float8_e5m2"),
    ("I8", 8, "int", "i1", "int8"),
    ("U8", 8, "int", "u1", "uint8"),
    ("F6_E3M2", 6, "opaque", "u1", "float6_e3m2"),
    ("F6_E2M3", 6, "opaque", "u1", "float6_e2m3"),
    ("F4", 4, "opaque", "u1", "float4_e2m1fn_x2"),
    ("BOOL", 8, "bool", "u1", "bool"),
)
LAYOUT_RANK = {name: rank for rank, name in enumerate(DTYPES)}
_BY_WORD = {word.lower(): row.name for row in DTYPES.values() for word in (row.name, row.torch)}


def dtype_named(word: str) -> str | None:
    """Return the safetensors name of `BF16`, `bfloat16` or `torch.bfloat16`; None if unknown."""
    return _BY_WORD.get(word.lower().removeprefix("torch."))


def require_dtype(word: str) -> str:
    """Return the safetensors name of a dtype; raises UsageError for an unknown word."""
    if (name := dtype_named(word)) is None:
        hint = did_you_mean(word, _BY_WORD) or "; such as float32, float16, bfloat16"
        raise UsageError(f"there is no dtype '{word}'{hint}")
    return name


def working_dtype(*names: str) -> np.dtype[Any]:
    """Return the dtype that tensors of these dtypes are combined in."""
    kinds = {DTYPES[name].kind for name in names}
    if kinds == {"float"}:
        return np.dtype(np.float64 if "F64" in names else np.float32)
    if len(set(names)) == 1 and kinds <= {"int", "bool"}:
        return DTYPES[names[0]].storage
    raise PlanError(f"cannot compute with {' and '.join(sorted(set(names)))} together")


_ONE_NAN = 0x7FC00000  # the float32 that arithmetic makes


@cache
def _float8_values(exponent_bits: int, mantissa_bits: int, finite_only: bool) -> Array:
    """Return the float32 value of each of the 256 codes of a float8 format."""
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes & 0x7F) >> mantissa_bits
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    values = np.where(
        exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias)
    )
    top = exponent == (1 << exponent_bits) - 1
    if finite_only:  # E4M3FN: no infinities, all ones is NaN
        values = np.where((codes & 0x7F) == 0x7F, np.nan, values)
    else:
        values = np.where(top, np.where(fraction == 0, np.inf, np.nan), values)
    found = (sign * values).astype(np.float32)
    nans = np.isnan(found)
    # Of their sign, which a product may lose.
    found.view(np.uint32)[nans] = _ONE_NAN | (codes[nans] & 0x80) << 24
    return found


# Bits of exponent and mantissa, and whether there is no infinity.
_FLOAT8 = {"F8_E4M3": (4, 3, True), "F8_E5M2": (5, 2, False)}
LARGEST = {
    "F16": 65504.0,
    "BF16": float.fromhex("0x1.fep+127"),
    "F32": float.fromhex("0x1.fffffep+127"),
    "F64": sys.float_info.max,
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
}


# Elements of uint32 scratch that rounding takes for each value.
SPARE = 3
# What rounding takes per element, as measured with tracemalloc; to float8 in the second place.
_ROUNDING, _ROUNDING_FLOAT8 = 24, 56
# The bits of a float64 that are kept on the way to bfloat16: two more than that has.
_BEYOND_BFLOAT16 = (1 << 64) - (1 << 43)


def upcast(block: Array, dtype: str, out: Array) -> Array:
    """Write the values of a storage block into `out` (float32 or float64) and return it."""
    if compiled.knows(dtype) and _is_flat(block, out):
        return compiled.upcast(compiled.Block(block, dtype), out)
    if dtype == "BF16":
        narrow = out if out.dtype == np.float32 else np.empty(block.shape, np.float32)
        bits = narrow.view(np.uint32)
        np.copyto(bits, block)
        np.left_shift(bits, 16, out=bits)
        block = narrow
    elif dtype in _FLOAT8:
        block = _float8_values(*_FLOAT8[dtype])[block]
    if block is not out:
        with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN becomes a quiet one
            np.copyto(out, block)
            if dtype == "F16":  # of which some builds of NumPy make no quiet one
                np.multiply(out, 1, out=out)
    return out


def _is_flat(*blocks: Array) -> bool:
    return all(b.flags.c_contiguous and b.flags.aligned and b.dtype.isnative for b in blocks)


def _round_to_bfloat16(block: Array, out: Array, spare: Array, finite: bool) -> None:
    # Adding 0x7FFF plus the lowest kept bit rounds to nearest even; on a NaN the sum could carry
    # into Inf or 0, so NaNs are put back afterwards as quiet NaNs of the same sign.
    bits, spare = block.view(np.uint32), spare[: len(block)]
    np.right_shift(bits, 16, out=spare)
    np.bitwise_and(spare, 1, out=spare)
    np.add(spare, 0x7FFF, out=spare)
    np.add(spare, bits, out=spare)
    np.right_shift(spare, 16, out=spare)
    np.copyto(out, spare, casting="unsafe")
    if not finite:
        nans = np.isnan(block)
        out[nans] = ((bits[nans] >> 16) | 0x40).astype(np.uint16)


def _narrowed(block: Array, spare: Array, finite: bool) -> Array:
    """Return float64 values as float32, in `spare`, from which rounding to bfloat16 is correct.

    Rounding twice would err where the first rounding ends halfway. So the lowest bits are cut off,
    which leaves more than bfloat16 keeps, and what was cut off is remembered in the last bit.
    """
    count = len(block)
    exact = spare[: 2 * count].view(np.uint64)
    np.bitwise_and(block.view(np.uint64), np.uint64(_BEYOND_BFLOAT16), out=exact)
    cut = exact.view(np.float64)
    bits = spare[2 * count : 3 * count]
    narrow: Array = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(narrow, cut, casting="same_kind")
        inexact = np.not_equal(cut, block)
        if not finite:
            special = ~np.isfinite(narrow)
            narrow[special] = block[special]
            inexact[special] = False
    np.bitwise_or(bits, inexact, out=bits)
    return narrow


def _round_to_float8(block: Array, dtype: str) -> Array:
    values = _float8_values(*_FLOAT8[dtype])
    codes = np.flatnonzero(np.isfinite(values[:128])).astype(np.uint8)  # ascending, from +0
    grid = values[codes].astype(np.float64)
    magnitude = np.abs(block).astype(np.float64)
    upper = np.searchsorted(grid, magnitude, side="left").clip(0, len(grid) - 1)
    lower = np.maximum(upper - 1, 0)
    below, above = magnitude - grid[lower], grid[upper] - magnitude
    # Of two neighbours at the same distance the even code wins; codes count upwards with value.
    nearer_is_lower = (below < above) | ((below == above) & (codes[lower] % 2 == 0))
    code = codes[np.where(nearer_is_lower, lower, upper)]
    # Halfway to the next step, which the format does not have, the even code wins once more: E4M3
    # keeps its largest value there, E5M2 does not.
    halfway = grid[-1] + (grid[-1] - grid[-2]) / 2
    overflow = magnitude > halfway if codes[-1] % 2 == 0 else magnitude >= halfway
    code[overflow | ~np.isfinite(magnitude)] = 0x7F if dtype == "F8_E4M3" else 0x7C
    code[np.isnan(block)] = 0x7F if dtype == "F8_E4M3" else 0x7E
    return code | (np.signbit(block).astype(np.uint8) << 7)


def rounding_bytes(dtype: str) -> int:
    """Return the bytes per element that rounding to a dtype takes."""
    return _ROUNDING_FLOAT8 if dtype in _FLOAT8 else _ROUNDING


def _round_to_float16(block: Array, out: Array) -> None:
    np.copyto(out, block, casting="unsafe")
    if len(nans := np.flatnonzero(np.isnan(block))):  # of which builds of NumPy differ, too
        bits = block[nans].astype(np.float32).view(np.uint32)
        kept = (bits >> 16) & 0x8000 | 0x7E00 | (bits >> 13) & 0x3FF
        out.view(np.uint16)[nans] = kept.astype(np.uint16)


def downcast(block: Array, dtype: str, out: Array, spare: Array, *, one_nan: bool = False) -> Array:
    """Round a working block to `dtype` into the storage block `out` and return it.

    Values that round beyond the largest finite one become what the format has for it: an infinity,
    or NaN in F8_E4M3 (where torch saturates to 448, even infinities); whoever must not let that
    pass asks `downcast_fits`. `spare` is uint32 scratch, `SPARE` per element, used for BF16.
    With `one_nan` all NaNs become the one that arithmetic makes; else they keep their sign, and of
    their other bits the first. `block` is not changed.
    """
    downcast_fits(block, dtype, out, spare, one_nan=one_nan)
    return out


def downcast_fits(
    block: Array, dtype: str, out: Array, spare: Array, *, one_nan: bool = False
) -> bool:
    """Downcast; return whether all values are finite and within the dtype's largest, unrounded."""
    if DTYPES[dtype].kind != "float" or block.dtype.kind != "f":
        np.copyto(out, block, casting="unsafe")
        return True
    if compiled.knows(dtype) and _is_flat(block, out):
        return compiled.downcast(block, dtype, out, one_nan=one_nan)
    fits = _fits(block, dtype)
    if one_nan and not fits:
        block = np.where(np.isnan(block), block.dtype.type(np.nan), block)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "BF16":
            narrow = block if block.dtype == np.float32 else _narrowed(block, spare, fits)
            _round_to_bfloat16(narrow, out, spare, fits)
        elif dtype in _FLOAT8:
            np.copyto(out, _round_to_float8(block, dtype))
        elif dtype == "F16" and not fits:
            _round_to_float16(block, out)
        else:
            np.copyto(out, block, casting="unsafe")
    return fits


def _fits(block: Array, dtype: str) -> bool:
    if not len(block):
        return True
    largest = LARGEST[dtype]
    high, low = float(np.maximum.reduce(block)), float(np.minimum.reduce(block))
    return high <= largest and low >= -largest  # false for NaN
