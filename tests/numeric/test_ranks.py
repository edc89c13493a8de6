"""What chance keeps by rank, against sorting each row and looking at every element."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from surgeon.lazy import Stream
from surgeon.lazy.random import CHUNK, bits, drawn_words
from surgeon.numeric.ranks import Chances

STREAM = Stream(3, "step", "tensor")
SIZE = 6000
ROWS = [1, 2, 3, 60, 1000, SIZE]
GENERATOR = np.random.default_rng(0)
NORMAL = np.abs(GENERATOR.standard_normal(SIZE))
NARROW = NORMAL.astype(np.float32).astype(np.float64)
MAGNITUDES = {
    "float64": NORMAL,
    "float32": NARROW,
    "few levels": GENERATOR.integers(0, 4, SIZE).astype(np.float64),
    "many levels": GENERATOR.integers(0, 900, SIZE).astype(np.float64),
    "all equal": np.ones(SIZE),
    "zeros": np.zeros(SIZE),
    "equal in float32": 1 + 1e-12 * GENERATOR.integers(0, 1000, SIZE),
    "pairs equal in float32": NARROW.repeat(2)[:SIZE] * np.where(np.arange(SIZE) % 2, 1, 1 + 1e-13),
    "too large for float32": NORMAL * 1e300,
    "too small for float32": NORMAL * 1e-60,
    "with NaN": np.where(GENERATOR.random(SIZE) < 0.01, np.nan, NORMAL),
    "with Inf": np.where(GENERATOR.random(SIZE) < 0.01, np.inf, NARROW),
    "all NaN": np.full(SIZE, np.nan),
}
# The last one is narrower than the random numbers are apart.
CHANCES = [(0.5, 0.1), (0.5, 0.4999), (0.3, 0.0), (0.2, 0.19), (0.75, 1e-6), (0.5, 1e-12)]


def probabilities(magnitudes, row, density, epsilon):
    """By definition: from ranks, equal magnitudes having them in their order."""
    if row == 1:
        return np.full(len(magnitudes), density)
    order = np.argsort(magnitudes.reshape(-1, row), axis=1, kind="stable")
    found = np.empty(order.shape)
    along = density - epsilon + 2 * epsilon * np.arange(row) / (row - 1)
    np.put_along_axis(found, order, np.broadcast_to(along, order.shape), axis=1)
    return found.reshape(-1)


def chances(density, epsilon, row):
    return Chances(density, epsilon if row > 1 else 0.0, row)


@pytest.mark.parametrize("kind", MAGNITUDES)
def test_kept_is_what_its_probability_says(kind):
    """What is zero or NaN stays so, whether it is kept or not."""
    magnitudes = MAGNITUDES[kind]
    numbers, words = STREAM.generator(0).random(SIZE, np.float32), drawn_words(STREAM, 0, SIZE)
    matters = magnitudes > 0
    for row, (density, epsilon) in product(ROWS, CHANCES):
        expected = numbers < probabilities(magnitudes, row, density, epsilon)
        found = chances(density, epsilon, row).kept(magnitudes, words)
        assert np.array_equal(found[matters], expected[matters]), (row, density, epsilon)


@pytest.mark.parametrize("kind", MAGNITUDES)
def test_probabilities_are_those_of_sorting(kind):
    magnitudes = MAGNITUDES[kind]
    matters = ~np.isnan(magnitudes)
    for row, (density, epsilon) in product(ROWS, CHANCES):
        found = chances(density, epsilon, row).by_rank(magnitudes)
        expected = probabilities(magnitudes, row, density, epsilon)
        assert np.array_equal(found[matters], expected[matters]), (row, density, epsilon)


def test_numbers_that_are_probabilities_are_not_below_them():
    """Where they are, but for rounding, the rounded ones are compared."""
    row = 241
    magnitudes = NORMAL[: row * 20]
    for epsilon in (n / 40 for n in range(1, 20)):
        words = GENERATOR.integers(0, 1 << 5, len(magnitudes), dtype=np.uint32) << 27
        expected = words / 2.0**32 < probabilities(magnitudes, row, 0.5, epsilon)
        found = chances(0.5, epsilon, row).kept(magnitudes, words)
        assert np.array_equal(found, expected), epsilon


def test_every_number_has_its_least_rank():
    row, numbers = 241, np.arange(1 << 8) / (1 << 8)
    for epsilon in (n / 40 for n in range(1, 20)):
        found = chances(0.5, epsilon, row)
        along = found.of(np.arange(row))
        between = numbers[(along[0] <= numbers) & (numbers < along[-1])]
        expected = np.searchsorted(along, between, side="right")
        assert np.array_equal(found._least_ranks(between), expected)


def test_words_are_those_of_float32_numbers():
    chunks = [STREAM.generator(chunk).random(CHUNK, np.float32) for chunk in range(3)]
    starts, sizes = [0, 5, 8, 65530, CHUNK, CHUNK + 3], [0, 1, 7, 8, 9, CHUNK + 100]
    for start, size in product(starts, sizes):
        found = drawn_words(STREAM, start, start + size)
        expected = np.concatenate(chunks)[start : start + size]
        assert np.array_equal((found >> 8) / 2.0**24, expected), (start, size)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_bits_are_those_of_integers(dtype):
    for size in (0, 1, 3, 8, 9, 1000):
        one, other = STREAM.generator(1), STREAM.generator(1)
        expected = one.integers(0, np.iinfo(dtype).max, size, dtype=dtype, endpoint=True)
        assert np.array_equal(bits(other.bit_generator, size, dtype), expected), size
        assert one.random() == other.random()
