"""Loops that draw and rank, against NumPy's generators and sums written out."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.lazy import Stream
from surgeon.lazy.random import CHUNK, truths
from surgeon.numeric import compiled, drawing
from surgeon.numeric.compiled import Block

pytestmark = pytest.mark.skipif(not compiled.loops(), reason="NumPy loops run")


@given(
    key=st.integers(0, 2**128 - 1),
    chunk=st.integers(0, 1000),
    count=st.integers(1, 9000),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_bernoulli_takes_eight_bits_of_numpys_philox(
    key: int, chunk: int, count: int, chance: float
) -> None:
    level, rest = divmod(chance * 256, 1)
    philox = np.random.Philox(key=key, counter=chunk << 128)
    numbers = philox.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]
    expected = numbers < level
    expected[numbers == level] = np.random.Generator(philox).random((numbers == level).sum()) < rest
    found = drawing.bernoulli(key, chunk, int(level), rest, np.empty(count, bool))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (CHUNK - 3, 2 * CHUNK + 5), (5, CHUNK)])
def test_truths_do_not_depend_on_which_are_asked_for(start: int, stop: int) -> None:
    stream, count = Stream(3, "0", "w"), 3 * CHUNK - 7
    whole = truths(stream, 0.3, count, 0, count)
    np.testing.assert_array_equal(truths(stream, 0.3, count, start, stop), whole[start:stop])
    assert abs(whole.mean() - 0.3) < 5 * math.sqrt(0.21 / count)


@given(seed=st.integers(0, 10**6), row=st.sampled_from([1, 2, 40, 700, 33000]))
def test_kept_are_those_whose_numbers_are_below_their_probability(seed: int, row: int) -> None:
    random = np.random.default_rng(seed)
    change, words = random.normal(size=2 * row), random.integers(0, 2**32, 2 * row, np.uint32)
    table = np.linspace(0.3, 0.7, row)
    ranks = np.argsort(np.argsort(np.abs(change).reshape(2, row), axis=1, kind="stable"), axis=1)
    found = drawing.kept_by_rank(Block(change, "F64"), None, row, table, words)
    np.testing.assert_array_equal(found, (words >> 8) / 2**24 < table[ranks].reshape(-1))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 3000))
def test_magnitudes_are_summed_with_and_without_a_mask(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    block, base = random.integers(-(2**40), 2**40, (2, count)) / 2**20
    mask = random.random(count) < 0.4
    found = drawing.magnitudes(Block(block, "F64"), Block(base, "F64"), mask)
    exact = [Fraction(abs(a - b)) for a, b in zip(block, base, strict=True)]
    kept = sum((size for size, keeps in zip(exact, mask, strict=True) if keeps), Fraction(0))
    assert found == (float(sum(exact)), float(kept))
