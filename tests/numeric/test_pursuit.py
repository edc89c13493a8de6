"""Orthogonal matching pursuit, held to least squares one target at a time."""

import numpy as np
import pytest

from surgeon.numeric.pursuit import matching_pursuit


def naive(target, vectors, count):
    """Return the coefficients of all vectors, chosen one by one and fitted by least squares."""
    chosen, left = [], target.copy()
    for _ in range(count):
        along = np.abs(vectors @ left)
        along[chosen] = -1
        chosen.append(int(np.argmax(along)))
        factors = np.linalg.lstsq(vectors[chosen].T, target, rcond=None)[0]
        left = target - vectors[chosen].T @ factors
    made = np.zeros(len(vectors))
    made[chosen] = factors
    return made


def dense(chosen, factors, many):
    made = np.zeros((len(chosen), many))
    for row, (places, values) in enumerate(zip(chosen, factors, strict=True)):
        np.add.at(made[row], places, values)
    return made


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("rows", [5, 40])
def test_it_is_least_squares_on_what_is_chosen(count, rows):
    generator = np.random.default_rng(count)
    vectors, targets = generator.normal(size=(40, 12)), generator.normal(size=(7, 12))
    blocks = [(first, vectors[first : first + rows]) for first in range(0, 40, rows)]
    found = dense(*matching_pursuit(targets, lambda: blocks, count), 40)
    expected = np.stack([naive(target, vectors, count) for target in targets])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_what_is_matched_needs_no_more():
    vectors = np.eye(4)[[0, 0, 1, 2]]
    targets = np.array([[3.0, 0, 0, 0], [0, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0, 5]])
    chosen, factors = matching_pursuit(targets, lambda: [(0, vectors)], 3)
    np.testing.assert_allclose(dense(chosen, factors, 4) @ vectors, targets * [1, 1, 1, 0])
