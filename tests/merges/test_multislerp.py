"""multislerp: against the published iteration, in naive float64 loops."""

import math

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.compare import (
    assert_all_rounded,
    assert_rounded,
    combined,
    dot,
    families,
    given,
    minus,
    norm,
    numbers,
    plus,
    relatives,
    tensor_of,
)
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "multislerp", "models": list(models), **parameters}


def naive(tensors, weights, relative=False, normalize=True):
    """The published iteration: mean direction, tangent vectors there, their mean, and back."""
    vectors = [numbers(tensor) for tensor in tensors]
    base, points = (vectors[0], vectors[1:]) if relative else (None, vectors)
    points = [minus(point, base) for point in points] if relative else points
    shares = [w / sum(weights) for w in weights] if normalize else weights
    norms = [norm(point) for point in points]
    units = [[x / n for x in p] if n else p for p, n in zip(points, norms, strict=True)]
    mean = combined(shares, units)
    length = norm(mean)
    mean = [x / length for x in mean]
    tangents = [combined([1.0, -dot(unit, mean)], [unit, mean]) for unit in units]
    tangent = combined(shares, tangents)
    length = norm(tangent)
    ahead = math.sin(length) / length if length else 1.0
    found = combined([math.cos(length), ahead], [mean, tangent])
    scale = math.fsum(s * n for s, n in zip(shares, norms, strict=True))
    found = [x * scale for x in found]
    return tensor_of(plus(base, found) if relative else found, tensors[0])


@pytest.mark.parametrize("weights", [[1, 1], [0.3, 0.7], [1, 2, 3], [1, 0, 2], [2, -0.5, 1]])
@pytest.mark.parametrize("relative", [False, True])
def test_closed_form_is_what_the_iteration_gives(bench, weights, relative):
    tensors = families(len(weights) + relative)
    made = bench.operate(step(*given(bench, tensors), weights=weights, relative=relative)).tensors
    assert_all_rounded(made, lambda family: naive(family, weights, relative), tensors)


@pytest.mark.parametrize("relative", [False, True])
def test_weights_need_not_be_divided_by_their_sum(bench, relative):
    tensors = relatives(3 + relative, torch.bfloat16)
    weights = [0.2, 0.3, 0.4]
    merge = step(*given(bench, tensors), weights=weights, relative=relative, normalize=False)
    reference = naive(tensors, weights, relative, normalize=False)
    assert_rounded(bench.operate(merge)["w"], reference)


def test_equal_operands_are_scaled_by_weights_that_are_not_divided(bench):
    tensors = [torch.randn(20, dtype=torch.float64)] * 2
    made = bench.operate(step(*given(bench, tensors), weights=[1, 2], normalize=False))["w"]
    torch.testing.assert_close(made, tensors[0] * 3, rtol=1e-15, atol=0)


def test_length_is_the_mean_length(bench):
    tensors = relatives(3, torch.float64)
    made = bench.operate(step(*given(bench, tensors)))["w"]
    mean = sum(tensor.norm() for tensor in tensors) / 3
    torch.testing.assert_close(made.norm(), mean, rtol=1e-13, atol=0)


@pytest.mark.parametrize("apart", [1e-7, 1e-3])
def test_small_task_vectors_have_directions_too(bench, apart):
    """Unlike in mergekit 0.1.5, which adds 1e-8 to norms."""
    tensors = relatives(3, torch.float64, size=20, apart=apart)
    made = bench.operate(step(*given(bench, tensors), relative=True))["w"]
    expected = naive(tensors, [1, 1], relative=True)
    torch.testing.assert_close(made - tensors[0], expected - tensors[0], rtol=1e-7, atol=1e-16)


@pytest.mark.parametrize("factor", [-1.0, -2.5])
def test_directions_that_cancel_are_added_up(bench, factor):
    a = torch.randn(50, dtype=torch.float64)
    made = bench.operate(step(*given(bench, [a, factor * a])))["w"]
    torch.testing.assert_close(made, a * (1 + factor) / 2, rtol=1e-12, atol=1e-15)


def test_zero_vectors_count_with_their_length_alone(bench):
    a = torch.randn(50, dtype=torch.float64)
    made = bench.operate(step(*given(bench, [a, torch.zeros_like(a)])))["w"]
    torch.testing.assert_close(made, a / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (100,)])
def test_merging_with_itself_returns_it_to_the_bit(bench, relative, shape):
    state = torch.randn(shape, dtype=torch.float64)
    merge = step(*given(bench, [state] * 3), relative=relative,
                 weights=[1, 3] if relative else [1, 2, 4])  # fmt: skip
    assert_identical(bench.operate(merge).tensors, {"w": state})


def test_order_of_models_does_not_matter(bench):
    base, a, b = relatives(3, torch.bfloat16)
    bench.given({"w": base}, a={"w": a}, b={"w": b})
    first = bench.operate(step("a", "b", weights=[1, 2, 3])).tensors
    assert_identical(bench.operate(step("b", "a", weights=[1, 3, 2])).tensors, first)


def test_weights_that_add_up_to_zero_are_an_error(bench):
    names = given(bench, relatives(3, torch.float32, size=3))
    with pytest.raises(PlanError, match="add up to zero"):
        bench.plan(step(*names, weights=[1, -1, 0]))


@pytest.mark.parametrize("relative", [False, True])
def test_wrong_number_of_weights_is_an_error(bench, relative):
    names = given(bench, relatives(3, torch.float32, size=3))
    count = 2 if relative else 3
    with pytest.raises(PlanError, match=f"weights has 4 entries for {count} points"):
        bench.plan(step(*names, weights=[1, 1, 1, 1], relative=relative))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_operand_is_an_error(bench, value):
    names = given(bench, [torch.ones(2), torch.ones(2), torch.tensor([1.0, value])])
    with pytest.raises(PlanError, match="'w' in model 'c' holds NaN or Inf"):
        bench.operate(step(*names, weights=[1, 1, 0]))
