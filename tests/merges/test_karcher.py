"""karcher: against the iteration on whole vectors, in naive float64 loops."""

import math

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.compare import (
    arc,
    assert_all_rounded,
    assert_rounded,
    combined,
    dot,
    families,
    given,
    norm,
    numbers,
    relatives,
    tensor_of,
)
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "karcher", "models": list(models), **parameters}


def naive(tensors, weights=None, tolerance=1e-5, max_iterations=10):
    """u ← exp_u(Σ α_i log_u u_i), every vector whole."""
    vectors = [numbers(tensor) for tensor in tensors]
    weights = weights or [1.0] * len(vectors)
    norms = [norm(vector) for vector in vectors]
    units = [[x / n for x in v] for v, n in zip(vectors, norms, strict=True) if n]
    alphas = [w for w, n in zip(weights, norms, strict=True) if n]
    alphas = [alpha / sum(alphas) for alpha in alphas]
    place = combined(alphas, units)
    length = norm(place)
    place = [x / length for x in place] if length >= tolerance else units[0]
    for _ in range(max_iterations):
        logs = [logarithm(place, unit, tolerance) for unit in units]
        towards = combined(alphas, logs)
        length = norm(towards)
        if length < tolerance:
            break
        place = combined([math.cos(length), math.sin(length) / length], [place, towards])
        length = norm(place)
        place = [x / length for x in place]
    scale = math.fsum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    return tensor_of([x * scale for x in place], tensors[0])


def logarithm(place, unit, tolerance):
    cosine = max(-1.0, min(1.0, dot(place, unit)))
    angle = math.acos(cosine)
    if angle < tolerance:
        return [0.0] * len(place)
    return combined([angle / math.sin(angle), -cosine * angle / math.sin(angle)], [unit, place])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("apart", [0.001, 0.3, 3.0])
def test_inner_products_are_enough_for_the_iteration(bench, count, apart):
    tensors = families(count, apart=apart)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


@pytest.mark.parametrize(
    ("tolerance", "max_iterations"), [(1e-5, 1), (1e-5, 2), (0.05, 10), (1e-9, 50)]
)
def test_iteration_ends_where_it_should(bench, tolerance, max_iterations):
    tensors = relatives(4, torch.float64, apart=3.0)
    options = {"tolerance": tolerance, "max_iterations": max_iterations}
    made = bench.operate(step(*given(bench, tensors), **options))["w"]
    assert_rounded(made, naive(tensors, **options))


def test_weights_are_one_per_operand(bench):
    tensors = relatives(3, torch.bfloat16, apart=2.0)
    made = bench.operate(step(*given(bench, tensors), weights=[1, 2, 0.5]))["w"]
    assert_rounded(made, naive(tensors, [1, 2, 0.5]))


def test_mean_of_two_is_halfway_on_the_arc(bench):
    a, b = relatives(2, torch.float64, apart=2.0)
    made = bench.operate(step(*given(bench, [a / a.norm(), b / b.norm()])))["w"]
    halfway = arc(0.5, numbers(a / a.norm()), numbers(b / b.norm()))
    assert_rounded(made, tensor_of(halfway, a))


def test_mean_minimises_the_sum_of_squared_angles(bench):
    tensors = [t / t.norm() for t in relatives(4, torch.float64, size=3, apart=1.0)]
    made = bench.operate(step(*given(bench, tensors), tolerance=1e-12, max_iterations=100))["w"]

    def spread(place):
        return sum(torch.acos((place / place.norm()) @ t) ** 2 for t in tensors)

    nearby = made + 1e-3 * torch.randn(200, 3, dtype=torch.float64)
    assert all(spread(place) > spread(made) for place in nearby)


def test_zero_vectors_have_no_direction_but_a_length(bench):
    a, b = relatives(2, torch.float64, apart=2.0)
    tensors = [a, torch.zeros_like(a), b]
    made = bench.operate(step(*given(bench, tensors)))["w"]
    assert_rounded(made, naive(tensors))


def test_small_tensors_have_directions_too(bench):
    """Unlike in mergekit 0.1.5, where a norm below the tolerance is zero."""
    tensors = [t * 1e-9 for t in relatives(3, torch.float64, apart=2.0)]
    made = bench.operate(step(*given(bench, tensors)))["w"]
    torch.testing.assert_close(made, naive(tensors), rtol=1e-11, atol=1e-21)


@pytest.mark.parametrize("shape", [(), (0,), (6,)])
def test_tensors_that_are_all_zero_stay_zero(bench, shape):
    made = bench.operate(step(*given(bench, [torch.zeros(shape)] * 3))).tensors
    assert_identical(made, {"w": torch.zeros(shape)})


def test_opposite_vectors_leave_the_first(bench):
    a = torch.randn(40, dtype=torch.float64)
    made = bench.operate(step(*given(bench, [a, -a])))["w"]
    torch.testing.assert_close(made, a, rtol=1e-14, atol=0)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_merging_with_itself_returns_it_to_the_bit(bench, count):
    state = torch.randn(500, dtype=torch.float64)
    made = bench.operate(step(*given(bench, [state] * count))).tensors
    assert_identical(made, {"w": state})


def test_order_of_models_does_not_matter(bench):
    base, a, b = relatives(3, torch.bfloat16, apart=2.0)
    bench.given({"w": base}, a={"w": a}, b={"w": b})
    first = bench.operate(step("a", "b")).tensors
    assert_identical(bench.operate(step("b", "a")).tensors, first)


def test_many_blocks_are_one_vector(bench):
    tensors = relatives(3, torch.bfloat16, size=70_001, apart=1.0)
    made = bench.operate(step(*given(bench, tensors), max_iterations=1))["w"]
    assert_rounded(made, naive(tensors, max_iterations=1))


def test_weights_that_are_all_zero_are_an_error(bench):
    names = given(bench, relatives(2, torch.float32, size=3))
    with pytest.raises(PlanError, match="add up to zero"):
        bench.plan(step(*names, weights=0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_operand_is_an_error(bench, value):
    names = given(bench, [torch.ones(2), torch.ones(2), torch.tensor([1.0, value])])
    with pytest.raises(PlanError, match="'w' in model 'c' holds NaN or Inf"):
        bench.operate(step(*names, weights=[1, 1, 0]))
