"""Singular vectors found apart are as good as LAPACK's, on spectra of many kinds."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.numeric.blas import one_thread
from surgeon.numeric.matrices import kept_share, right_singular, singular

ROWS, COLUMNS, RANK = 300, 420, 12
SPECTRA = {
    "falls fast": 0.5 ** np.arange(ROWS),
    "falls slowly": 1 - np.arange(ROWS) / (2 * ROWS),
    "noise under a signal": np.r_[np.linspace(3, 1, 8), np.full(ROWS - 8, 1e-2)],
    "of lower rank": np.r_[np.linspace(3, 1, 8), np.zeros(ROWS - 8)],
    "equal ones": np.r_[np.ones(RANK), 0.5 * 0.9 ** np.arange(ROWS - RANK)],
    "tiny": 1e-200 * 0.5 ** np.arange(ROWS),
    "huge": 1e150 * 0.5 ** np.arange(ROWS),
    "nothing": np.zeros(ROWS),
}


def matrix_of(spectrum, *, is_tall):
    random = np.random.default_rng(3)
    left = np.linalg.qr(random.standard_normal((ROWS, ROWS)))[0]
    right = np.linalg.qr(random.standard_normal((COLUMNS, ROWS)))[0]
    made = (left * spectrum) @ right.T
    return made.T.copy() if is_tall else made


@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_first_triplets_are_the_matrix_s(spectrum, is_tall):
    matrix = matrix_of(spectrum, is_tall=is_tall)
    with one_thread():
        left, values, right = singular(matrix, RANK)
    scale = spectrum[0] or 1
    np.testing.assert_allclose(values, spectrum[:RANK], rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(left.T @ left, np.eye(RANK), rtol=0, atol=1e-13)
    np.testing.assert_allclose(right @ right.T, np.eye(RANK), rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix @ right.T, left * values, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(left.T @ matrix, values[:, None] * right, rtol=0, atol=1e-13 * scale)


def test_nearest_matrix_is_as_near_as_can_be():
    spectrum = SPECTRA["noise under a signal"]
    matrix = matrix_of(spectrum, is_tall=False)
    left, values, right = singular(matrix, RANK)
    distance = np.linalg.norm(matrix - (left * values) @ right)
    assert distance == pytest.approx(np.sqrt(np.sum(spectrum[RANK:] ** 2)), rel=1e-12)
    share = np.sum(spectrum[:RANK] ** 2) / np.sum(spectrum**2)
    assert kept_share(matrix, right_singular(matrix, RANK)) == pytest.approx(share, rel=1e-12)


def test_all_is_kept_of_a_matrix_of_that_rank():
    matrix = matrix_of(SPECTRA["of lower rank"], is_tall=True)
    assert kept_share(matrix, right_singular(matrix, RANK)) == 1
