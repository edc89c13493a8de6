"""Quantiles against numpy's, in one pass and in many."""

from functools import partial

import numpy as np
import pytest

from surgeon.numeric import quantiles as module
from surgeon.numeric.quantiles import quantiles

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
GENERATOR = np.random.default_rng(0)
NUMBERS = {
    "uniform": GENERATOR.random(1001),
    "of all sizes": np.exp(GENERATOR.standard_normal(1000) * 50),
    "few values": GENERATOR.integers(0, 3, 999).astype(np.float64),
    "zeros": np.zeros(10),
    "tiny": GENERATOR.random(100) * 5e-324 * 100,
    "one": np.array([3.0]),
    "two": np.array([3.0, 1.0]),
    "zeros of both signs": np.array([-0.0, 0.0, -0.0, 1.0]),
}


@pytest.mark.parametrize("collected", [1 << 20, 5, 1, 0])
def test_quantiles_are_those_of_numpy(collected, monkeypatch):
    for numbers in NUMBERS.values():
        monkeypatch.setattr(module, "_COLLECTED", collected)
        found = quantiles(partial(np.array_split, numbers, 3), len(numbers), SHARES)
        assert found == list(np.quantile(numbers, SHARES))


def test_blocks_are_left_alone():
    block = np.array([2.0, 1.0, 3.0])
    block.flags.writeable = False
    assert quantiles(lambda: [block], 3, [0.5]) == [2.0]
