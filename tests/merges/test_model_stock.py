"""model_stock: against naive loops in float64."""

import itertools

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
    relatives,
    tensor_of,
)
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "model_stock", "models": list(models), **parameters}


def naive(tensors):
    base, *models = [numbers(tensor) for tensor in tensors]
    deltas, count = [minus(model, base) for model in models], len(models)
    cosines = [
        dot(a, b) / (norm(a) * norm(b)) if norm(a) * norm(b) else 0.0
        for a, b in itertools.combinations(deltas, 2)
    ]
    cosine = sum(cosines) / len(cosines)
    t = count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0
    factors = [1 - min(t, 1.0)] + [min(t, 1.0) / count] * count
    return tensor_of(combined(factors, [base, *models]), tensors[0])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("apart", [0.01, 0.3])
def test_mean_moves_towards_the_state(bench, count, apart):
    tensors = families(count + 1, apart=apart)
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_all_rounded(made, naive, tensors)


@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 3, 2), (3, 5000), (200,), (1, 200)])
def test_every_row_has_its_own_angle(bench, shape):
    size = torch.Size(shape).numel()
    tensors = [t.view(shape) for t in relatives(4, torch.bfloat16, size=size)]
    made = bench.operate(step(*given(bench, tensors), granularity="row"))["w"]
    rows = zip(*tensors, strict=True) if len(shape) > 1 else [tensors]
    assert_rounded(made, torch.stack([naive(row) for row in rows]).view(shape))


@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-12])
def test_small_task_vectors_have_angles_too(bench, size):
    """Unlike in mergekit 0.1.5, which takes products of norms below 1e-6 for 1e-6."""
    zero, *models = (t * size for t in relatives(4, torch.float64))
    tensors = [torch.zeros_like(zero), *models]
    made = bench.operate(step(*given(bench, tensors)))["w"]
    torch.testing.assert_close(made / size, naive(tensors) / size, rtol=1e-12, atol=1e-13)
    assert made.norm() > 0.5 * (sum(models) / 3).norm()


@pytest.mark.parametrize("angle", ["right", "obtuse"])
def test_models_that_agree_on_nothing_keep_the_state(bench, angle):
    """Unlike in mergekit 0.1.5, where t may be negative."""
    base = torch.randn(3, dtype=torch.float64)
    first = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    second = torch.tensor([0.0 if angle == "right" else -0.5, 1.0, 0.0], dtype=torch.float64)
    tensors = [torch.zeros_like(base), first, second]
    made = bench.operate(step(*given(bench, tensors))).tensors
    assert_identical(made, {"w": torch.zeros_like(base)})


def test_models_that_agree_give_their_mean(bench):
    base, model = relatives(2, torch.float32)
    made = bench.operate(step(*given(bench, [base, model, model]))).tensors
    assert_identical(made, {"w": model})


def test_unchanged_model_has_cosine_zero(bench):
    base, a, b = relatives(3, torch.float64)
    tensors = [base, a, base.clone(), b]
    made = bench.operate(step(*given(bench, tensors)))["w"]
    assert_rounded(made, naive(tensors))


def test_published_interpolation_ratio(bench):
    """Two models at cos θ = 1/2: t = 2 cos θ / (1 + cos θ) = 2/3 (equation 4)."""
    base = torch.zeros(2, dtype=torch.float64)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([0.5, 3**0.5 / 2], dtype=torch.float64)
    made = bench.operate(step(*given(bench, [base, a, b])))["w"]
    torch.testing.assert_close(made, (a + b) / 2 * 2 / 3, rtol=1e-14, atol=0)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_merging_with_itself_returns_it_to_the_bit(bench, granularity):
    state = torch.cat([torch.randn(500, dtype=torch.float64), torch.tensor([-0.0, 0.0])])
    names = given(bench, [state.view(2, 251)] * 4)
    made = bench.operate(step(*names, granularity=granularity)).tensors
    assert_identical(made, {"w": state.view(2, 251)})


def test_order_of_models_does_not_matter(bench):
    base, a, b, c = relatives(4, torch.bfloat16)
    bench.given({"w": base}, a={"w": a}, b={"w": b}, c={"w": c})
    first = bench.operate(step("a", "b", "c")).tensors
    assert_identical(bench.operate(step("c", "a", "b")).tensors, first)


def test_one_model_is_too_few(bench):
    names = given(bench, relatives(2, torch.float32, size=3))
    with pytest.raises(PlanError, match=r"takes 2 or more other model\(s\), not 1"):
        bench.plan(step(*names))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_nonfinite_operand_is_an_error(bench, value, granularity):
    broken = torch.tensor([[1.0, 2.0], [1.0, value]])
    names = given(bench, [torch.zeros(2, 2), torch.ones(2, 2), broken])
    with pytest.raises(PlanError, match="'w' in model 'c' holds NaN or Inf"):
        bench.operate(step(*names, granularity=granularity))
