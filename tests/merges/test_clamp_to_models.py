"""clamp_to_models: against min and max in plain Python."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.compare import FLOATS, given, relatives
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "clamp_to_models", "models": list(models), **parameters}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [3, 5])
def test_values_are_within_those_of_the_models(bench, dtype, count):
    tensors = relatives(count, dtype, apart=1.0)
    made = bench.operate(step(*given(bench, tensors)))["w"]
    rows = zip(*(tensor.double().tolist() for tensor in tensors), strict=True)
    expected = [min(max(base, min(others)), max(others)) for base, *others in rows]
    assert_identical({"w": made}, {"w": torch.tensor(expected, dtype=torch.float64).to(dtype)})


def test_sums_of_changes_go_no_farther_than_a_model(bench):
    start, a, b = relatives(3, torch.float32)
    bench.given({"w": start}, a={"w": a}, b={"w": b})
    steps = [{"op": "task_arithmetic", "models": ["a", "b"], "lambda": 3}, step("a", "b")]
    made = bench.operate(*steps)["w"]
    assert (made >= torch.minimum(a, b)).all()
    assert (made <= torch.maximum(a, b)).all()


def test_an_infinity_is_not_hidden(bench):
    names = given(bench, [torch.tensor([float("inf")]), torch.ones(1), torch.ones(1)])
    with pytest.raises(PlanError, match="'w' holds NaN or Inf"):
        bench.operate(step(*names))
    assert bench.operate(step(*names, nonfinite="allow"))["w"].tolist() == [1]


def test_one_model_has_nothing_between(bench):
    names = given(bench, [torch.ones(1), torch.ones(1)])
    with pytest.raises(PlanError, match="takes 2 or more other model"):
        bench.plan(step(*names))
