"""Raising and rounding against torch's casts and against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.base.errors import PlanError
from surgeon.numeric.dtypes import (
    DTYPES,
    LARGEST,
    SPARE,
    downcast,
    dtype_named,
    upcast,
    working_dtype,
)

SMALL = ["BF16", "F16", "F8_E4M3", "F8_E5M2"]
BITS = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def torch_dtype(name: str) -> torch.dtype:
    return getattr(torch, DTYPES[name].torch)


def codes_of(name: str) -> np.ndarray:
    """Every code of a dtype of up to 16 bits, as storage."""
    return np.arange(2 ** DTYPES[name].bits).astype(f"u{DTYPES[name].bits // 8}")


def values_of(codes: np.ndarray, name: str) -> np.ndarray:
    """What the codes mean, according to torch; float64."""
    signed = torch.from_numpy(codes.view(f"i{codes.itemsize}").copy())
    return signed.view(torch_dtype(name)).to(torch.float64).numpy()


def storage(codes: np.ndarray, name: str) -> np.ndarray:
    return codes.view(DTYPES[name].storage)


def round_to(block: np.ndarray, name: str) -> np.ndarray:
    """The codes that `downcast` gives, as unsigned integers."""
    out = np.empty(block.shape, DTYPES[name].storage)
    downcast(block, name, out, np.empty(SPARE * block.size, np.uint32))
    return out.view(f"u{out.itemsize}")


def torch_codes(block: np.ndarray, name: str) -> np.ndarray:
    cast = torch.from_numpy(block.copy()).to(torch_dtype(name))
    return cast.view(BITS[DTYPES[name].bits]).numpy().view(f"u{DTYPES[name].bits // 8}")


def assert_same_codes(found: np.ndarray, expected: np.ndarray, block: np.ndarray) -> None:
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        at = wrong[0]
        raise AssertionError(f"{block[at]!r}: {found[at]:#x}, not {expected[at]:#x}; {wrong.size}")


def nearby(name: str) -> np.ndarray:
    """Float32 at, halfway between, and just beside all finite values of a dtype."""
    values = values_of(codes_of(name), name)
    values = np.unique(values[np.isfinite(values)])
    step = values[-1] - values[-2]
    values = np.concatenate([[values[0] - step], values, [values[-1] + step]])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    with np.errstate(over="ignore"):
        points = points.astype(np.float32)
    infinity = np.float32(np.inf)
    return np.concatenate([points, np.nextafter(points, infinity), np.nextafter(points, -infinity)])


def random_float32(count: int) -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    return bits.view(np.float32)


def test_raising_is_exact_for_every_code() -> None:
    for name, working in product(SMALL, [np.float32, np.float64]):
        codes = codes_of(name)
        found = upcast(storage(codes, name), name, np.empty(len(codes), working))
        expected = values_of(codes, name)
        np.testing.assert_array_equal(found, expected)
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found)[numbers], np.signbit(expected)[numbers])


def test_rounding_what_was_raised_gives_it_back() -> None:
    for name, working in product(SMALL, [np.float32, np.float64]):
        codes = codes_of(name)
        block = upcast(storage(codes, name), name, np.empty(len(codes), working))
        found = round_to(block, name)
        numbers = ~np.isnan(block)
        assert_same_codes(found[numbers], codes[numbers], block[numbers])
        assert np.isnan(values_of(found[~numbers], name)).all()


def expected_codes(block: np.ndarray, name: str) -> np.ndarray:
    """torch's codes, but that what it saturates in F8_E4M3 is NaN."""
    codes = torch_codes(block, name)
    if name == "F8_E4M3":
        codes[np.abs(block) > 464] |= 0x7F
    return codes


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_torchs_at_values_ties_and_their_neighbours(name: str) -> None:
    block = nearby(name)
    block = block[~np.isnan(block)]
    assert_same_codes(round_to(block, name), expected_codes(block, name), block)


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_torchs_for_a_million_random_patterns(name: str) -> None:
    block = random_float32(1_000_000)
    block = block[~np.isnan(block)]
    assert_same_codes(round_to(block, name), expected_codes(block, name), block)


NANS = np.array(
    [0x7F800001, 0x7F80FFFF, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32
)


def test_every_nan_stays_a_nan_of_its_sign() -> None:
    for name, working in product([*SMALL, "F32", "F64"], [np.float32, np.float64]):
        with np.errstate(invalid="ignore"):
            block = np.concatenate([[1, np.inf, -np.inf], NANS.view(np.float32)]).astype(working)
        codes = round_to(block, name)
        values = values_of(codes[3:], name)
        assert np.isnan(values).all()
        sign = codes[3:] >> (DTYPES[name].bits - 1)
        np.testing.assert_array_equal(sign, NANS >> 31)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("F8_E4M3", 448, 448),
        ("F8_E4M3", 463.9, 448),
        ("F8_E4M3", 464, 448),  # halfway; the code of 448 is even
        ("F8_E4M3", 464.0001, np.nan),
        ("F8_E4M3", 480, np.nan),
        ("F8_E4M3", 1e30, np.nan),
        ("F8_E4M3", np.inf, np.nan),
        ("F8_E5M2", 61439, 57344),
        ("F8_E5M2", 61440, np.inf),
        ("F8_E5M2", np.inf, np.inf),
        ("F16", 65519, 65504),
        ("F16", 65520, np.inf),
        ("BF16", 3.4e38, np.inf),
        ("F32", 1e39, np.inf),
    ],
)
def test_overflow_becomes_what_the_format_has_for_it(
    name: str, value: float, expected: float
) -> None:
    for working in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            block = np.array([value, -value]).astype(working)
        found = values_of(round_to(block, name), name)
        np.testing.assert_array_equal(found, [expected, -expected])


def test_largest_is_the_largest_finite_value() -> None:
    for name in [*SMALL, "F32", "F64"]:
        assert torch.finfo(torch_dtype(name)).max == LARGEST[name]


def naive_code(value: float, name: str) -> int:
    """The code whose exact value is nearest, the even one of two; no overflow."""
    codes = codes_of(name)[: 2 ** (DTYPES[name].bits - 1)]
    table = values_of(codes, name)
    finite = int(np.isfinite(table).sum())
    above = int(np.searchsorted(table[:finite], abs(value)))
    candidates = [code for code in (above - 1, above) if 0 <= code < finite]
    exact = Fraction(abs(value))
    nearest = min(candidates, key=lambda c: (abs(Fraction(float(table[c])) - exact), c % 2))
    return nearest | (len(codes) if np.signbit(value) else 0)


def float64_traps(name: str) -> np.ndarray:
    """Float64 so near to a tie that rounding to float32 first would make it one."""
    finite = values_of(codes_of(name), name)
    finite = np.unique(finite[np.isfinite(finite)])
    chosen = np.random.default_rng(1).choice(len(finite) - 1, 60)
    ends = np.array([0, 1, len(finite) // 2, len(finite) // 2 - 1, len(finite) // 2 + 1])
    at = np.concatenate([chosen, ends])
    ties = (finite[at] + finite[at + 1]) / 2
    return np.concatenate(
        [ties, ties * (1 + 2**-40), ties * (1 - 2**-40), np.nextafter(ties, np.inf), ties * 2**-30]
    )


@pytest.mark.parametrize("name", SMALL)
def test_float64_is_rounded_once(name: str) -> None:
    block = float64_traps(name)
    expected = np.array([naive_code(float(value), name) for value in block])
    assert_same_codes(round_to(block, name), expected.astype(codes_of(name).dtype), block)


@settings(deadline=None)
@given(st.floats(-3e4, 3e4, allow_subnormal=True), st.sampled_from(["BF16", "F16", "F8_E5M2"]))
def test_any_float64_is_rounded_to_the_nearest(value: float, name: str) -> None:
    assert int(round_to(np.array([value]), name)[0]) == naive_code(value, name)


@pytest.mark.parametrize("name", ["F32", "F64"])
def test_wide_dtypes_are_cast_as_numpy_does(name: str) -> None:
    block = random_float32(1000)
    block = block[~np.isnan(block)].astype(np.float64) * (1 + 2**-30)
    with np.errstate(over="ignore"):
        expected = block.astype(DTYPES[name].storage)
    np.testing.assert_array_equal(round_to(block, name), expected.view(f"u{expected.itemsize}"))


def test_rounding_leaves_its_operand_alone() -> None:
    for name in SMALL:
        block = random_float32(1000)
        before = block.copy()
        round_to(block, name)
        np.testing.assert_array_equal(block.view(np.uint32), before.view(np.uint32))


def test_dtypes_are_found_by_either_name() -> None:
    for name in DTYPES:
        assert dtype_named(name) == name
        assert dtype_named(DTYPES[name].torch) == name
        assert dtype_named(f"torch.{DTYPES[name].torch}") == name


def test_dtypes_have_the_size_that_torch_gives_them() -> None:
    for name in [n for n in DTYPES if hasattr(torch, DTYPES[n].torch)]:
        bits = torch_dtype(name).itemsize * 8
        assert DTYPES[name].bits == (4 if name == "F4" else bits)  # torch packs two of them
        assert DTYPES[name].storage.itemsize * 8 == bits


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["BF16", "F32"], np.float32),
        (["F8_E4M3", "F16"], np.float32),
        (["BF16", "F64"], np.float64),
        (["I64", "I64"], np.int64),
        (["BOOL"], np.uint8),
    ],
)
def test_working_dtype_is_wide_enough(names: list[str], expected: type) -> None:
    assert working_dtype(*names) == np.dtype(expected)


@pytest.mark.parametrize("names", [["I64", "F32"], ["I64", "I32"], ["F4"], ["C64"]])
def test_working_dtype_refuses_to_guess(names: list[str]) -> None:
    with pytest.raises(PlanError, match="cannot compute with"):
        working_dtype(*names)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F32"])
def test_blocks_of_any_shape_are_upcast_whole(dtype):
    values = np.arange(1, 7, dtype=np.float32)
    spare = np.empty(6 * SPARE, np.uint32)
    stored = downcast(values, dtype, np.empty(6, DTYPES[dtype].storage), spare).reshape(2, 3)
    back = upcast(stored, dtype, np.zeros((2, 3), np.float64))
    np.testing.assert_array_equal(back.reshape(-1), values)
