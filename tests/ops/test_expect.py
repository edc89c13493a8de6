"""expect: stop the run unless the state is as it should be."""

import pytest
import torch

from surgeon.base.errors import CheckFailedError, PlanError
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


NEAR = {"x": torch.tensor([1.0, -2.0, 0.0]), "n": torch.tensor([1, 2])}


@pytest.mark.parametrize(
    ("other", "atol", "rtol"),
    [
        ([1.0, -2.0, 0.0], 0, 0),
        ([1.01, -2.0, 0.0], 0.01, 0),
        ([1.01, -2.0, 0.0], 0.005, 0),
        ([1.01, -2.02, 0.0], 0, 0.01),
        ([1.01, -2.02, 1e-9], 0, 0.01),
        ([1.01, -2.02, 1e-9], 1e-8, 0.01),
        ([1.0, -2.0, float("nan")], 1, 1),
        ([1.0, float("inf"), 0.0], 1, 1),
    ],
)
def test_close_is_what_torch_says_is_close(bench, other, atol, rtol):
    theirs = torch.tensor(other)
    bench.given(NEAR, other={**NEAR, "x": theirs})
    is_close = torch.allclose(NEAR["x"].double(), theirs.double(), atol=atol, rtol=rtol)
    expected = step("**", equal_to="other", atol=atol, rtol=rtol)
    if is_close:
        bench.operate(expected)
    else:
        with pytest.raises(
            CheckFailedError, match=r"'x' to be close in model 'other' .* values are not"
        ):
            bench.operate(expected)


def test_with_a_tolerance_dtypes_may_differ_and_integers_may_not(bench):
    x = torch.randn(300_000)
    bench.given({"x": x}, half={"x": x.bfloat16()})
    bench.operate(step("x", equal_to="half", rtol=2**-8))
    with pytest.raises(CheckFailedError, match="of 300000 values are not, the farthest by"):
        bench.operate(step("x", equal_to="half", rtol=2**-12))
    bench.given(NEAR, other={**NEAR, "n": torch.tensor([1, 3])})
    with pytest.raises(CheckFailedError, match="'n' to be equal in model 'other'"):
        bench.operate(step("n", equal_to="other", atol=5))
    with pytest.raises(PlanError, match="'atol' and 'rtol' are for 'equal_to'"):
        bench.plan(step("n", atol=5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_zeros_are_told_from_what_is_not(bench, dtype):
    zeros = torch.zeros(300_000).to(dtype)
    one = zeros.clone()
    one[-1] = 1
    bench.given({"zeros": zeros, "signed": -torch.zeros(3), "one": one, "none": torch.ones(0)})
    bench.operate(step(["zeros", "signed", "none"], zero=True), step("one", zero=False))
    with pytest.raises(CheckFailedError, match="expected 'one' to hold only zeros"):
        bench.operate(step("**", zero=True))
    with pytest.raises(CheckFailedError, match="expected 'zeros' to hold something besides zeros"):
        bench.operate(step("zeros", zero=False))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"dimensions": 2}, None),
        ({"dimensions": {"max": 2}, "elements": {"min": 6, "max": 6}}, None),
        ({"size": {"min": "24", "max": "1KB"}}, None),
        ({"dimensions": 1}, "expected 'w' to have 1 dimensions, found 2"),
        ({"elements": {"min": 7}}, "expected 'w' to have at least 7 elements, found 6"),
        ({"elements": {"min": 1, "max": 5}}, "at least 1 and at most 5 elements, found 6"),
        ({"size": {"max": "20B"}}, "to have at most 20 B, found 24 B (24 bytes)"),
    ],
)
def test_bounds_hold_or_stop_the_plan(bench, parameters, problem):
    bench.given({"w": torch.ones(2, 3)}, {"v": "w"})
    if problem is None:
        bench.plan(step(["w", "v"], **parameters))
    else:
        with pytest.raises(CheckFailedError) as raised:
            bench.plan(step(["w", "v"], **parameters))
        assert problem in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_rank_is_the_one_that_torch_finds(bench, dtype):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(9, 3, generator=generator), torch.randn(3, 7, generator=generator)
    matrix = (factors[0] @ factors[1]).to(dtype)
    digits = torch.finfo(dtype).eps
    found = int(torch.linalg.matrix_rank(matrix.double(), rtol=9 * digits))
    bench.given({"w": matrix, "v": torch.ones(2), "o": torch.zeros(3, 3)})
    bench.operate(step("w", matrix_rank=found), step("o", matrix_rank=0))
    with pytest.raises(CheckFailedError, match=f"'w' to have rank at least 8, found {found}"):
        bench.operate(step("w", matrix_rank={"min": 8}))
    with pytest.raises(CheckFailedError, match="expected 'v' to be a matrix of floats"):
        bench.plan(step("v", matrix_rank=1))
