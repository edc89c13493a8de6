"""scale: every float dtype against a naive float64 product, and what is not touched."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def step(target, by, **parameters):
    return {"op": "scale", "target": target, "by": by, **parameters}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("by", [0.1, -1 / 3, 0, 2])
def test_products_are_correctly_rounded(bench, dtype, by):
    old = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    made = bench.given({"x": old}).operate(step("x", by))
    assert_identical(made.tensors, {"x": correctly_rounded(old.double() * by, dtype)})


def test_rest_stays_as_it_is(bench):
    old = {"a.weight": torch.randn(2, 2), "a.bias": torch.randn(2), "b.weight": torch.randn(2)}
    made = bench.given(old).operate(step("a", 3)).tensors
    assert_identical(made, {n: t * 3 if n.startswith("a") else t for n, t in old.items()})


def test_tied_names_are_scaled_once(bench):
    bench.given({"a": torch.ones(2)}, {"b": "a"})
    made = bench.operate(step(["a", "b"], 3))
    assert_identical(made.tensors, {"a": torch.full((2,), 3.0), "b": torch.full((2,), 3.0)})


def test_integers_and_booleans_are_kept_and_reported(bench):
    old = {"x": torch.ones(2), "n": torch.tensor([1, 2]), "m": torch.tensor([True])}
    made = bench.given(old).operate(step("**", 2))
    assert_identical(made.tensors, {**old, "x": torch.full((2,), 2.0)})
    assert "scale: 'n' and 1 more: not floating-point; kept as is" in made.notes


def test_integers_can_be_an_error(bench):
    bench.given({"n": torch.tensor([1, 2]), "m": torch.tensor([True])})
    with pytest.raises(PlanError) as raised:
        bench.plan(step("**", 2, integers="error"))
    assert [line.split(": ", 2)[2] for line in raised.value.problems] == [
        '\'n\' is I64 (2,), not floating-point; "integers": "keep" leaves it as it is',
        '\'m\' is BOOL (1,), not floating-point; "integers": "keep" leaves it as it is',
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_an_error_that_names_the_tensor(bench, bad):
    bench.given({"x": torch.tensor([1.0, bad])})
    with pytest.raises(PlanError, match="'x' holds NaN or Inf"):
        bench.operate(step("x", 2))
    assert not bench.output.exists()


def test_nan_and_inf_pass_on_demand(bench):
    bench.given({"x": torch.tensor([1.0, float("nan"), -float("inf")])})
    made = bench.operate(step("x", 2, nonfinite="allow"))["x"]
    assert torch.equal(made.nan_to_num(7), torch.tensor([2.0, 7.0, torch.finfo().min]))


def test_overflow_is_an_error(bench):
    bench.given({"x": torch.tensor([1.0, 60000.0]).half()})
    with pytest.raises(PlanError, match="'x': the result is beyond F16's largest value 65504"):
        bench.operate(step("x", 2))
