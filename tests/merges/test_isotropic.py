"""isotropic: against the published formula with torch's linear algebra."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.compare import (
    assert_all_rounded,
    assert_rounded,
    families,
    given,
    polar,
    relatives,
    shaped,
)
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "isotropic", "models": list(models), **parameters}


def naive(tensors, factor=1.0):
    """U V' by Newton's iteration; the singular values' sum is its inner product with the matrix."""
    base, *models = (tensor.double() for tensor in tensors)
    total = sum(model - base for model in models)
    if base.dim() != 2:
        return base + factor * total / len(models)
    turned = polar(total)
    return base + factor * (turned * total).sum() / min(total.shape) * turned


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", [(10, 20), (20, 10), (2, 100)])
def test_all_directions_of_a_matrix_are_equally_strong(bench, count, shape):
    tensors = shaped(families(count + 1), *shape)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


def test_spectrum_is_flat(bench):
    tensors = [t.view(10, 20) for t in relatives(3, torch.float64)]
    made = bench.operate(step(*given(bench, tensors)))["w"]
    total = sum(tensors[1:]) - 2 * tensors[0]
    expected = torch.linalg.svdvals(total).mean().expand(10)
    torch.testing.assert_close(torch.linalg.svdvals(made - tensors[0]), expected)


@pytest.mark.parametrize("shape", [(200,), (5, 4, 2, 5)])
def test_other_tensors_take_the_mean(bench, shape):
    tensors = shaped(families(4), *shape)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


@pytest.mark.parametrize("shape", [(10, 20), (200,)])
def test_lambda_scales_what_is_added(bench, shape):
    tensors = [t.view(shape) for t in relatives(3, torch.bfloat16)]
    made = bench.operate(step(*given(bench, tensors), **{"lambda": 0.3}))["w"]
    assert_rounded(made, naive(tensors, 0.3))


def test_directions_that_nothing_changed_stay_unchanged(bench):
    base, change = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    change[0, 1], change[1, 2] = 1.0, 3.0
    made = bench.operate(step(*given(bench, [base, change])))["w"]
    torch.testing.assert_close(made, change.sign() * 1.0, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 251), (502,)])
def test_merging_with_itself_returns_it_to_the_bit(bench, shape):
    state = torch.randn(shape, dtype=torch.float64)
    made = bench.operate(step(*given(bench, [state] * 3))).tensors
    assert_identical(made, {"w": state})


def test_order_of_models_does_not_matter(bench):
    base, a, b = (t.view(10, 20) for t in relatives(3, torch.bfloat16))
    bench.given({"w": base}, a={"w": a}, b={"w": b})
    first = bench.operate(step("a", "b")).tensors
    assert_identical(bench.operate(step("b", "a")).tensors, first)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_operand_is_an_error(bench, value):
    broken = torch.tensor([[1.0, value], [1.0, 1.0]])
    names = given(bench, [torch.ones(2, 2), broken])
    with pytest.raises(PlanError, match="'w' in model 'b' holds NaN or Inf"):
        bench.operate(step(*names))
