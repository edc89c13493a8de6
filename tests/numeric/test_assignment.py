"""The assignment problem against scipy's solver, and against trying everything."""

import itertools

import numpy as np
import pytest

from surgeon.numeric.assignment import assignment
from tests.late import Late

optimize = Late("scipy.optimize")

GENERATOR = np.random.default_rng(0)


def total(costs, columns):
    assert sorted(columns.tolist()) == list(range(len(costs)))
    return costs[np.arange(len(costs)), columns].sum()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 150])
@pytest.mark.parametrize("kind", ["normal", "uniform", "few values", "equal rows", "low rank"])
def test_costs_are_as_low_as_those_of_scipy(size, kind):
    low_rank = GENERATOR.random((size, 2)) @ GENERATOR.random((2, size))
    costs = {
        "normal": GENERATOR.standard_normal((size, size)),
        "uniform": GENERATOR.random((size, size)) * 1e6,
        "few values": GENERATOR.integers(0, 3, (size, size)).astype(float),
        "equal rows": np.tile(GENERATOR.random(size), (size, 1)),
        "low rank": low_rank,
    }[kind]
    expected = costs[optimize.linear_sum_assignment(costs)].sum()
    np.testing.assert_allclose(total(costs, assignment(costs)), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_no_permutation_costs_less(seed):
    costs = np.random.default_rng(seed).standard_normal((5, 5))
    least = min(total(costs, np.array(p)) for p in itertools.permutations(range(5)))
    np.testing.assert_allclose(total(costs, assignment(costs)), least, rtol=1e-13)


def test_nothing_is_assigned_to_nobody():
    assert assignment(np.zeros((0, 0))).tolist() == []


def test_equal_choices_stay_in_order():
    assert assignment(1 - np.eye(4)).tolist() == [0, 1, 2, 3]


def test_costs_are_left_alone():
    costs = GENERATOR.random((6, 6))
    costs.flags.writeable = False
    assignment(costs)
