"""expect: stop the run unless the state is as it should be."""

import pytest
import torch

from surgeon.base.errors import CheckFailedError
from tests.network import assert_identical

OLD = {
    "a.weight": torch.randn(3, 2),
    "a.bias": torch.randn(3),
    "b.weight": torch.randn(4, 2).half(),
    "n": torch.tensor(3),
}
TIES = {"c.weight": "a.weight"}


def step(target, **parameters):
    return {"op": "expect", "target": target, **parameters}


@pytest.fixture
def checked(bench):
    return bench.given(OLD, TIES, same=OLD, other={**OLD, "a.bias": OLD["a.bias"] + 1})


@pytest.mark.parametrize(
    "parameters",
    [
        {"target": "a"},
        {"target": "a", "exists": True},
        {"target": "x", "exists": False},
        {"target": "x", "count": 0},
        {"target": "**", "count": 5},
        {"target": "**.weight", "count": 3},
        {"target": "a.weight", "shape": [3, 2]},
        {"target": "*.weight", "shape": [None, 2]},
        {"target": "n", "shape": []},
        {"target": "a", "dtype": "F32"},
        {"target": "b", "dtype": "float16"},
        {"target": "a.weight", "tied": True},
        {"target": "a.bias", "tied": False},
        {"target": "**", "finite": True},
        {"target": "a.bias", "equal_to": "same"},
        {"target": ["a.weight", "n"], "equal_to": ["same", "other"]},
    ],
)
def test_what_holds_lets_the_run_go_on(checked, parameters):
    made = checked.operate({"op": "expect", **parameters})
    assert_identical(made.tensors, {**OLD, "c.weight": OLD["a.weight"]})


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"target": "x"}, "no tensor matches 'x'"),
        ({"target": "x", "exists": True}, "no tensor matches 'x'"),
        ({"target": "a", "exists": False}, "expected no tensor to match 'a', found 'a.bias'"),
        ({"target": "a", "count": 3}, "expected 3 tensors to match 'a', found 2"),
        ({"target": "a", "count": 0}, "expected 0 tensors to match 'a', found 2"),
        ({"target": "a.bias", "shape": [4]}, "expected 'a.bias' to have shape (4), found (3,)"),
        ({"target": "a.bias", "shape": [3, 1]}, "to have shape (3, 1), found (3,)"),
        ({"target": "b.weight", "shape": [None, 3]}, "shape (any, 3), found (4, 2)"),
        ({"target": "a.bias", "dtype": "BF16"}, "expected 'a.bias' to be BF16, found F32"),
        ({"target": "a.bias", "tied": True}, "expected 'a.bias' to be tied"),
        ({"target": "c.weight", "tied": False}, "expected 'c.weight' not to be tied"),
        ({"target": "c.weight", "equal_to": "same"}, "'c.weight' is not in model 'same'"),
    ],
)
def test_what_does_not_hold_stops_the_plan(checked, parameters, problem):
    with pytest.raises(CheckFailedError) as caught:
        checked.plan({"op": "expect", **parameters})
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith("recipe.json: steps[0] (expect): ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"equal_to": "other", "target": "a.bias"},
         "expected 'a.bias' to be equal in model 'other'; the values differ"),
        ({"finite": False, "target": "a.bias"}, "expected 'a.bias' to hold NaN or Inf"),
    ],
)  # fmt: skip
def test_values_that_do_not_hold_stop_the_run_before_it_writes(checked, parameters, problem):
    with pytest.raises(CheckFailedError, match=problem):
        checked.operate({"op": "expect", **parameters})
    assert not checked.output.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(bench, dtype, value):
    tensor = torch.ones(300_000, dtype=dtype)
    tensor[200_000] = value
    bench.given({"x": tensor})
    with pytest.raises(CheckFailedError, match="expected 'x' to hold only finite values"):
        bench.operate(step("x", finite=True))


def test_large_finite_values_are_finite(bench):
    bench.given({"x": torch.full((100,), 3e38)})
    bench.operate(step("x", finite=True))


def test_plan_does_not_look_at_values(checked):
    plan = checked.plan(step("a.bias", equal_to="other"))
    assert [place for place, _ in plan.checks] == ["recipe.json: steps[0] (expect)"]


def test_all_differences_are_listed(checked):
    with pytest.raises(CheckFailedError) as caught:
        checked.plan(step("a", dtype="F16", tied=True))
    assert len(caught.value.problems) == 3


def test_values_are_those_at_that_step(checked):
    zero = {"op": "reinit", "target": "a.bias", "init": "zeros"}
    same = step("a.bias", equal_to="same")
    checked.operate(same, zero)
    with pytest.raises(CheckFailedError, match=r"steps\[1\] \(expect\)"):
        checked.operate(zero, same)


def test_equality_is_of_the_specs_too(bench):
    bench.given({"x": torch.ones(2)}, other={"x": torch.ones(2).half()})
    with pytest.raises(
        CheckFailedError, match="'x' is F32 \\(2,\\) here but F16 \\(2,\\) in 'other'"
    ):
        bench.plan(step("x", equal_to="other"))
