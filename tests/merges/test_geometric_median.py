"""geometric_median: against Weiszfeld's iteration on whole vectors, and by what makes it one."""

import math

import pytest
import torch

from tests.merges.compare import (
    assert_all_rounded,
    assert_rounded,
    combined,
    families,
    given,
    minus,
    norm,
    numbers,
    relatives,
    tensor_of,
)
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "geometric_median", "models": list(models), **parameters}


def naive(tensors, weights=None, iterations=3000):
    """x ← Σ wᵢ xᵢ / ‖x - xᵢ‖ over Σ wᵢ / ‖x - xᵢ‖, every vector whole."""
    vectors = [numbers(tensor) for tensor in tensors]
    weights = weights or [1.0] * len(vectors)
    place = combined([w / sum(weights) for w in weights], vectors)
    for _ in range(iterations):
        pulls = [w / norm(minus(v, place)) for w, v in zip(weights, vectors, strict=True)]
        last, place = place, combined([p / math.fsum(pulls) for p in pulls], vectors)
        if norm(minus(place, last)) < 1e-15 * norm(place):
            break
    return tensor_of(place, tensors[0])


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("apart", [0.01, 1.0])
def test_inner_products_are_enough_for_the_iteration(bench, count, apart):
    tensors = families(count, apart=apart)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


def test_weights_pull_as_much_as_they_say(bench):
    tensors = relatives(4, torch.bfloat16, apart=2.0)
    weights = [1, 2, 0.5, 1.5]
    made = bench.operate(step(*given(bench, tensors), weights=weights))["w"]
    assert_rounded(made, naive(tensors, weights))


def test_nothing_nearby_is_less_far_away(bench):
    tensors = relatives(4, torch.float64, size=5, apart=1.0)
    made = bench.operate(step(*given(bench, tensors)))["w"]

    def far(place):
        return sum((place - tensor).norm() for tensor in tensors)

    nearby = made + 1e-4 * torch.randn(300, 5, dtype=torch.float64)
    assert all(far(place) > far(made) for place in nearby)


def test_one_model_far_away_moves_it_little(bench):
    *near, _ = relatives(5, torch.float64, apart=0.1)
    far = [near[0] + 1e6 * torch.randn(200, dtype=torch.float64)]
    made = bench.operate(step(*given(bench, near + far)))["w"]
    assert (made - torch.stack(near).mean(0)).norm() < 3
    assert (made - torch.stack(near + far).mean(0)).norm() > 1e5


@pytest.mark.parametrize(
    ("points", "weights", "median"),
    [
        ([0.0, 1.0, 10.0], None, 1.0),  # on a line: the middle one
        ([0.0, 4.0], None, 2.0),
        ([0.0, 4.0], [1, 3], 4.0),
        ([0.0, 4.0, 4.0], None, 4.0),
        ([7.0, 1.0, 10.0], [5, 1, 1], 7.0),
        ([2.0, 2.0, 2.0], None, 2.0),
    ],
)
def test_a_model_may_be_the_median_itself(bench, points, weights, median):
    direction = torch.randn(50, dtype=torch.float64)
    tensors = [point * direction for point in points]
    parameters = {"weights": weights} if weights else {}
    made = bench.operate(step(*given(bench, tensors), **parameters))["w"]
    torch.testing.assert_close(made, median * direction, rtol=1e-12, atol=1e-12)


def test_merging_with_itself_returns_it_to_the_bit(bench):
    state = torch.randn(500, dtype=torch.float64)
    made = bench.operate(step(*given(bench, [state] * 4))).tensors
    assert_identical(made, {"w": state})
