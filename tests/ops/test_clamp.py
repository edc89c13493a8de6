"""clamp: against min and max in plain Python."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded

INF, NAN = float("inf"), float("nan")


def step(**parameters):
    return {"op": "clamp", "target": "**", **parameters}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("limits", [{"min": -0.3}, {"max": 0.7}, {"min": -0.3, "max": 0.7}])
def test_values_are_within_limits(bench, dtype, limits):
    old = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    low, high = limits.get("min", -INF), limits.get("max", INF)
    within = [min(max(value, low), high) for value in old.double().flatten().tolist()]
    expected = torch.tensor(within, dtype=torch.float64).view(5, 300)
    made = bench.given({"x": old}).operate(step(**limits))
    assert_identical(made.tensors, {"x": correctly_rounded(expected, dtype)})


def test_infinities_are_clamped(bench):
    bench.given({"x": torch.tensor([-INF, 1.0, INF])})
    assert bench.operate(step(min=-2, max=3))["x"].tolist() == [-2, 1, 3]


def test_infinity_on_the_open_side_is_an_error(bench):
    bench.given({"x": torch.tensor([-INF, INF])})
    with pytest.raises(PlanError, match="'x' holds NaN or Inf"):
        bench.operate(step(min=0))


def test_nan_is_an_error_or_stays(bench):
    bench.given({"x": torch.tensor([NAN, 5.0])})
    with pytest.raises(PlanError, match="'x' holds NaN or Inf"):
        bench.operate(step(max=1))
    assert str(bench.operate(step(max=1, nonfinite="allow"))["x"].tolist()) == "[nan, 1.0]"


def test_limit_beyond_the_dtype_is_an_error_where_it_is_met(bench):
    bench.given({"x": torch.tensor([1.0]).half()})
    with pytest.raises(PlanError, match="beyond F16's largest"):
        bench.operate(step(min=1e6))


def test_integers_are_kept_or_an_error(bench):
    old = {"n": torch.tensor([1, 2])}
    made = bench.given(old).operate(step(max=1))
    assert_identical(made.tensors, old)
    assert "clamp: 'n': not floating-point; kept as is" in made.notes
    with pytest.raises(PlanError, match="'n' is I64"):
        bench.plan(step(max=1, integers="error"))


def test_limits_that_contradict_each_other_are_an_error(bench):
    bench.given({"x": torch.ones(2)})
    with pytest.raises(PlanError, match="min 2 is above max 1"):
        bench.plan(step(min=2, max=1))
    with pytest.raises(PlanError, match="'min', 'max' or both must be given"):
        bench.plan(step())
