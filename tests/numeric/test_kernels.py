"""The compiled loops give the bits that their NumPy forms give, whatever the bits of the blocks."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.lazy import Blocks, StoredBlocks
from surgeon.merges import fisher, sce
from surgeon.merges.shared.gram import Shares, Vectors, combination, combined
from surgeon.numeric import compiled, drawing, weighing
from surgeon.numeric.compiled import CODES, Block
from surgeon.numeric.dtypes import DTYPES, SPARE, downcast_fits, upcast
from surgeon.numeric.sums import sums

needs_loops = pytest.mark.skipif(compiled.loops() is None, reason="the loops were not compiled")
pytestmark = needs_loops

WORKING = (np.float32, np.float64)
# Zeros, the least and the largest, infinities and NaNs with payloads, ties of all small formats.
TRAPS = np.array(
    [0.0, -0.0, 5e-324, 1.4e-45, -1.4e-45, 1e-40, 2.0**-126, 2.0**-133, 2.0**-134, 2.0**-25,
     2.0**-24, 448, 464, 464.0001, 57344, 61440, 65504, 65519.99, 65520, 3.4028234e38, 3.39e38,
     1.7e308, np.inf, -np.inf, np.nan, 1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11,
     -1 - 2.0**-11 - 2.0**-45, 1.0, -1.0, 0.1]
)  # fmt: skip
COUNTS = st.sampled_from([1, 2, 7, 63, 512, 513, 1500])


def random_bits(seed: int, count: int, dtype: str) -> np.ndarray:
    """Stored elements: half of any bits at all, half of ordinary values and traps."""
    random = np.random.default_rng(seed)
    storage = DTYPES[dtype].storage
    anything = random.integers(0, 256, count * storage.itemsize, np.uint8).view(storage)
    values = np.where(random.random(count) < 0.2, random.choice(TRAPS, count),
                      random.standard_normal(count) * 10.0 ** random.integers(-3, 3))  # fmt: skip
    ordinary = downcast_numpy(values, dtype)[0]
    return np.where(random.random(count) < 0.5, anything, ordinary)


def by_numpy(call):
    """Call something where no compiled loops are found."""
    found, compiled.loops = compiled.loops, lambda: None  # type: ignore[assignment]
    try:
        return call()
    finally:
        compiled.loops = found


def downcast_numpy(values: np.ndarray, dtype: str, **options) -> tuple[np.ndarray, bool]:
    return by_numpy(lambda: downcast_to(values, dtype, **options))


def downcast_to(values: np.ndarray, dtype: str, **options) -> tuple[np.ndarray, bool]:
    out = np.empty(len(values), DTYPES[dtype].storage)
    fits = downcast_fits(values, dtype, out, np.empty(SPARE * len(values), np.uint32), **options)
    return out, fits


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    bits = f"u{found.itemsize}"
    np.testing.assert_array_equal(found.view(bits), expected.view(bits))


@pytest.mark.parametrize("working", WORKING)
@pytest.mark.parametrize("dtype", CODES)
@given(seed=st.integers(0, 10**6), count=COUNTS)
def test_upcast(dtype: str, working: type, seed: int, count: int) -> None:
    block = random_bits(seed, count, dtype)
    expected = by_numpy(lambda: upcast(block, dtype, np.empty(count, working)))
    assert_same_bits(compiled.upcast(Block(block, dtype), np.empty(count, working)), expected)


@pytest.mark.parametrize("one_nan", [False, True])
@pytest.mark.parametrize("working", ["F32", "F64"])
@pytest.mark.parametrize("dtype", CODES)
@given(seed=st.integers(0, 10**6), count=COUNTS)
def test_downcast(dtype: str, working: str, one_nan: bool, seed: int, count: int) -> None:
    values = random_bits(seed, count, working)
    out = np.empty(count, DTYPES[dtype].storage)
    fits = compiled.downcast(values, dtype, out, one_nan=one_nan)
    expected, expected_fits = downcast_numpy(values, dtype, one_nan=one_nan)
    assert fits == expected_fits
    assert_same_bits(out, expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_downcast_of_float64_beside_every_tie(dtype: str) -> None:
    codes = np.arange(2 ** DTYPES[dtype].bits).astype(f"u{DTYPES[dtype].bits // 8}")
    values = upcast(codes.view(DTYPES[dtype].storage), dtype, np.empty(len(codes)))
    values = np.unique(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2
    ties = np.concatenate([ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)])
    assert_same_bits(downcast_to(ties, dtype)[0], downcast_numpy(ties, dtype)[0])


@given(seed=st.integers(0, 10**6), count=st.integers(0, 5000), before=st.integers(0, 2**32 - 1))
def test_crc32_is_zlibs(seed: int, count: int, before: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    assert compiled.crc32(data, before) == zlib.crc32(data, before)


@given(data=st.binary(max_size=600), at=st.integers(0, 600))
def test_crc32_of_two_runs_is_that_of_both(data: bytes, at: int) -> None:
    first, second = data[:at], data[at:]
    joined = compiled.crc32_joined(zlib.crc32(first), zlib.crc32(second), len(second))
    assert joined == zlib.crc32(data)


@given(key=st.integers(0, 2**128 - 1), chunk=st.integers(0, 1000), skipped=st.integers(0, 9000))
def test_philox_is_numpys(key: int, chunk: int, skipped: int) -> None:
    generator = np.random.Philox(key=key, counter=chunk << 128)
    generator.advance(skipped)
    expected = generator.random_raw(40)
    found = drawing.philox(key, chunk, skipped, np.empty(40, np.uint64))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
@given(
    seed=st.integers(0, 10**6),
    row=st.sampled_from([1, 2, 5, 40, 700, 1101, 32767, 70000]),
    odd=st.booleans(),
)
def test_by_rank_is_a_stable_sort(dtype: str, seed: int, row: int, odd: bool) -> None:
    rows = 3 if row < 2000 else 1
    made = random_bits if odd else (coarse, fine, heavy)[seed % 3]
    base, block = (Block(made(seed + i, rows * row, dtype), dtype) for i in range(2))
    values = (upcast(b.elements, dtype, np.empty(rows * row)) for b in (block, base))
    with np.errstate(all="ignore"):
        magnitudes = np.abs(np.subtract(*values)).reshape(rows, row)
    expected = np.argsort(np.argsort(magnitudes, axis=1, kind="stable"), axis=1)
    found = drawing.by_rank(block, base, row, np.arange(row, dtype=np.float64)).reshape(rows, row)
    numbers = ~np.isnan(magnitudes)
    np.testing.assert_array_equal(found[numbers], expected[numbers])
    np.testing.assert_array_equal(np.sort(found), np.tile(np.arange(row), (rows, 1)))


def coarse(seed: int, count: int, dtype: str) -> np.ndarray:
    """Ordinary values, many of them equal."""
    random = np.random.default_rng(seed)
    fine = 2.0 ** -random.integers(2, 60)
    values = random.integers(-9, 9, count) / 8 + random.integers(0, 3, count) * fine
    return downcast_numpy(values, dtype)[0]


def fine(seed: int, count: int, dtype: str) -> np.ndarray:
    """Normal values of any size, most of them different."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(count) * 10.0 ** (seed % 90 - 45)
    return downcast_numpy(values, dtype)[0]


def heavy(seed: int, count: int, dtype: str) -> np.ndarray:
    """Values of very different sizes, and zeros."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(count) * 2.0 ** random.integers(-20, 9, count)
    return downcast_numpy(values * (random.random(count) < seed % 5 / 4), dtype)[0]


@pytest.mark.parametrize("dtype", CODES)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 3000), odd=st.booleans())
def test_magnitudes_within_a_window(dtype: str, seed: int, count: int, odd: bool) -> None:
    made = random_bits if odd else coarse
    base, block = (Block(made(seed + i, count, dtype), dtype) for i in range(2))
    values = (upcast(b.elements, b.dtype, np.empty(count)) for b in (block, base))
    with np.errstate(all="ignore"):
        keys = np.abs(np.subtract(*values)).view(np.uint64)
    # Edges at magnitudes, NaNs of any kind among them, and beside.
    low, high = sorted(
        min(max(int(key) + seed % 3 - 1, 0), 2**63 - 1)
        for key in np.random.default_rng(seed).choice(keys, 2)
    )
    places, found, counts = np.empty(count, np.int64), np.empty(count), np.zeros(2, np.uint64)
    noted = compiled.within(block, base, low, high, 100, places, found, counts)
    inside = np.flatnonzero((keys >= low) & (keys <= high))
    np.testing.assert_array_equal(places[:noted], inside + 100)
    np.testing.assert_array_equal(found[:noted].view(np.uint64), keys[inside])
    assert counts.tolist() == [int((keys > high).sum()), len(inside)]


@given(seed=st.integers(0, 10**6), count=st.integers(1, 5000), share=st.floats(0, 1))
def test_nth_is_that_of_a_sort(seed: int, count: int, share: float) -> None:
    dtype = "F64" if seed % 2 else "BF16"
    magnitudes = np.abs(upcast(random_bits(seed, count, dtype), dtype, np.empty(count)))
    wanted = 1 + int(share * (count - 1))
    expected = np.sort(magnitudes.view(np.uint64))[::-1]
    pivot, equals = compiled.nth(magnitudes, wanted)
    assert np.float64(pivot).view(np.uint64) == expected[wanted - 1]
    assert equals == wanted - int((expected > expected[wanted - 1]).sum())


@given(seed=st.integers(0, 10**6), count=st.integers(1, 3000))
def test_bins_count_every_magnitude(seed: int, count: int) -> None:
    block = Block(random_bits(seed, count, "F32"), "F32")
    keys = np.abs(upcast(block.elements, "F32", np.empty(count))).view(np.uint64)
    found, counts = np.zeros(1 << 16, np.int64), np.zeros(2, np.uint64)
    compiled.bins(block, None, 0, (1 << 63) - 1, 47, found, counts)
    expected = np.bincount((keys >> np.uint64(47)).astype(np.int64), minlength=1 << 16)
    np.testing.assert_array_equal(found, expected)
    assert counts.tolist() == [0, count]


@pytest.mark.parametrize("relative", [False, True])
@given(seed=st.integers(0, 10**6), vectors=st.integers(1, 4), length=st.integers(1, 1500))
def test_products_have_the_order_of_numpys(
    relative: bool, seed: int, vectors: int, length: int
) -> None:
    random = np.random.default_rng(seed)
    blocks = [Block(random.standard_normal(vectors * length), "F64") for _ in range(3)]
    points = [block.elements.reshape(vectors, length) for block in blocks]
    if relative:
        points = [point - points[0] for point in points[1:]]
    expected = np.array([[sums(a * b) for b in points] for a in points]).transpose(2, 0, 1)
    found = compiled.products(blocks, vectors, relative=relative)
    np.testing.assert_array_equal(found, expected)
    exact = np.einsum("ivn,jvn->vij", *[np.array(points, np.longdouble)] * 2)
    np.testing.assert_allclose(found, exact.astype(float), rtol=1e-12, atol=1e-9)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 2000))
def test_extremes_leave_nan_out(seed: int, count: int) -> None:
    block = Block(random_bits(seed, count, "F16"), "F16")
    values = upcast(block.elements, "F16", np.empty(count))
    found = np.array([np.inf, -np.inf])
    assert compiled.extremes(block, found) == np.isfinite(values).all()
    numbers = values[~np.isnan(values)]
    expected = [numbers.min(initial=np.inf), numbers.max(initial=-np.inf)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", CODES)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 1500), models=st.integers(1, 5))
def test_variance_is_numpys(dtype: str, seed: int, count: int, models: int) -> None:
    blocks = [Block(random_bits(seed + i, count, dtype), dtype) for i in range(models + 1)]
    values = Blocks((upcast(block.elements, dtype, np.empty(count)) for block in blocks), 0)
    with np.errstate(all="ignore"):
        expected = sce.variance_of(values)
    np.testing.assert_array_equal(weighing.variance(blocks), expected)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 1500))
def test_products_of_what_is_kept(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    base, block = (Block(random.standard_normal(count), "F64") for _ in range(2))
    mask = random.random(count) < 0.5
    found = compiled.products([base, block], 1, relative=True, mask=mask)
    assert found == sums(np.square((block.elements - base.elements) * mask))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
@given(seed=st.integers(0, 10**6), count=st.integers(1, 1500), models=st.integers(1, 4))
def test_mean_by_weights_of_each_element(dtype: str, seed: int, count: int, models: int) -> None:
    random = np.random.default_rng(seed)
    blocks = [Block(random_bits(seed + i, count, dtype), dtype) for i in range(models)]
    values = [random.choice([0, 5e-324, 0.3, 2, np.inf], count) for _ in blocks]
    weights = [float(weight) for weight in random.choice([0.0, 0.3, 1.0, 3.0], models)]
    total = sum(weights) or 1.0
    raised = [upcast(block.elements, dtype, np.empty(count)) for block in blocks]
    with np.errstate(all="ignore"):
        made = fisher.mean(raised, values, weights, total, np.empty(count))
    np.copyto(made, raised[0], where=(made == 0) & (raised[0] == 0))
    expected, expected_fits = downcast_numpy(made, dtype, one_nan=True)
    by = [weighing.Weights(Block(v, "F64"), factor=w) for v, w in zip(values, weights, strict=True)]
    out = np.empty(count, DTYPES[dtype].storage)
    mean = weighing.Weighed.MEAN
    assert weighing.weighed(blocks, by, mean, dtype, out, total=total) == (expected_fits, True)
    assert_same_bits(out, expected)


def test_negative_weights_of_a_mean_are_seen() -> None:
    blocks, out = [Block(np.ones(600), "F64")] * 2, np.empty(600)
    by = [weighing.Weights(Block(sign * np.ones(600), "F64"), factor=0.0) for sign in (1, -1)]
    assert weighing.weighed(blocks, by, weighing.Weighed.MEAN, "F64", out) == (True, False)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("granularity", ["row", "column"])
@pytest.mark.parametrize("dtype", ["BF16", "F64"])
@given(seed=st.integers(0, 10**6), shape=st.tuples(*[st.sampled_from([2, 3, 40])] * 3))
def test_mixes_of_rows_and_columns(
    dtype: str, granularity: str, relative: bool, seed: int, shape: tuple[int, ...]
) -> None:
    random, count = np.random.default_rng(seed), int(np.prod(shape))
    blocks = [Block(random_bits(seed + i, count, dtype), dtype) for i in range(3)]
    vectors = Vectors.of(granularity, shape)
    number = shape[0] if granularity == "row" else shape[1]
    shares = Shares(
        random.choice([0.0, -0.0, 0.25, 1.0, -3.7], (number, 3 - relative)),
        random.random(number) < random.choice([0.0, 0.5, 1.0]),
    )
    values = Blocks((upcast(block.elements, dtype, np.empty(count)) for block in blocks), 0)
    with np.errstate(all="ignore"):
        made = combination(vectors, relative=relative)(values, shares, np.empty(count))
    np.copyto(made, values[0], where=(made == 0) & (values[0] == 0))
    expected, fits = downcast_numpy(made, dtype, one_nan=True)
    out = np.empty(count, DTYPES[dtype].storage)
    form = combined(vectors, relative=relative)
    assert form(StoredBlocks(blocks, 0), shares, dtype, out) <= fits
    assert_same_bits(out, expected)
