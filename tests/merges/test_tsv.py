"""tsv: against the published algorithm with torch's linear algebra."""

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
    return {"op": "tsv", "models": list(models), **parameters}


def naive(tensors, factor=1.0):
    base, *models = (tensor.double() for tensor in tensors)
    deltas = [model - base for model in models]
    kept = min(base.shape) // len(models) if base.dim() == 2 else 0
    if not kept:
        return base + factor * sum(deltas) / len(deltas)
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = polar(torch.cat([u[:, :kept] for u, _, _ in parts], dim=1))
    right = polar(torch.cat([v[:kept].T for _, _, v in parts], dim=1))
    values = torch.cat([s[:kept] for _, s, _ in parts])
    return base + factor * left @ torch.diag(values) @ right.T


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", [(10, 20), (20, 10), (14, 14)])
def test_matrices_keep_their_main_directions_apart(bench, count, shape):
    tensors = shaped(families(count + 1, size=shape[0] * shape[1]), *shape)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


@pytest.mark.parametrize("shape", [(200,), (5, 4, 2, 5), (1, 200), (2, 100)])
def test_other_tensors_take_the_mean(bench, shape):
    tensors = shaped(families(4), *shape)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


@pytest.mark.parametrize("shape", [(10, 20), (200,)])
def test_lambda_scales_what_is_added(bench, shape):
    tensors = [t.view(shape) for t in relatives(3, torch.bfloat16)]
    made = bench.operate(step(*given(bench, tensors), **{"lambda": 0.3}))["w"]
    assert_rounded(made, naive(tensors, 0.3))


def test_one_model_alone_stays_as_it_is(bench):
    base, model = (t.view(10, 20) for t in relatives(2, torch.float32))
    made = bench.operate(step(*given(bench, [base, model])))["w"]
    torch.testing.assert_close(made, model, rtol=1e-6, atol=1e-7)


def test_equal_models_share_their_directions(bench):
    """Their stacked vectors have half the rank that they seem to have."""
    base, model = (t.view(10, 20) for t in relatives(2, torch.float64))
    made = bench.operate(step(*given(bench, [base, model, model])))["w"]
    u, s, v = torch.linalg.svd(model - base, full_matrices=False)
    expected = base + u[:, :5] @ torch.diag(s[:5]) @ v[:5]
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-12)


def test_interference_is_gone(bench):
    """Of two changes with overlapping directions, each model's own is kept whole."""
    base = torch.zeros(4, 4, dtype=torch.float64)
    a, b = base.clone(), base.clone()
    a[0, 0], b[1, 1] = 1.0, 2.0
    made = bench.operate(step(*given(bench, [base, a, b])))["w"]
    torch.testing.assert_close(made, a + b, rtol=1e-14, atol=1e-15)


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
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_nonfinite_operand_is_an_error(bench, value, shape):
    broken = torch.tensor([1.0, value, 1.0, 1.0]).view(shape)
    names = given(bench, [torch.ones(shape), torch.zeros(shape), broken])
    with pytest.raises(PlanError, match="'w' in model 'c' holds NaN or Inf"):
        bench.operate(step(*names))
    bench.operate(step(*names, nonfinite="allow"))
