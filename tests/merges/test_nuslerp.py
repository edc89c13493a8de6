"""nuslerp: against naive loops in float64."""

import pytest
import torch

from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.merges.compare import (
    arc,
    assert_all_rounded,
    assert_rounded,
    families,
    given,
    minus,
    numbers,
    plus,
    relatives,
    tensor_of,
)
from tests.network import assert_identical


def step(*models, **parameters):
    return {"op": "nuslerp", "models": list(models), **parameters}


def naive(tensors, weights, relative=False):
    vectors = [numbers(tensor) for tensor in tensors]
    t = weights[1] / sum(weights)
    if not relative:
        return tensor_of(arc(t, *vectors), tensors[0])
    base, a, b = vectors
    return tensor_of(plus(base, arc(t, minus(a, base), minus(b, base))), tensors[0])


@pytest.mark.parametrize("weights", [[1, 1], [0.3, 0.7], [1, 0], [0, 2], [3, -1]])
@pytest.mark.parametrize("apart", [0.001, 0.3, 3.0])
def test_two_tensors_are_interpolated(bench, weights, apart):
    tensors = families(2, apart=apart)
    made = bench.operate(step(*given(bench, tensors), weights=weights)).tensors
    assert_all_rounded(made, lambda family: naive(family, weights), tensors)


@pytest.mark.parametrize("weights", [[1, 1], [0.3, 0.7]])
@pytest.mark.parametrize("apart", [0.01, 0.3])
def test_task_vectors_are_interpolated(bench, weights, apart):
    tensors = families(3, apart=apart)
    made = bench.operate(step(*given(bench, tensors), weights=weights, relative=True)).tensors
    assert_all_rounded(made, lambda family: naive(family, weights, relative=True), tensors)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("shape", [(7, 9), (6, 5, 2, 3), (3, 5000), (1, 300)])
def test_every_row_has_its_own_angle(bench, shape, relative):
    tensors = [t.view(shape) for t in relatives(2 + relative, torch.bfloat16,
                                                size=torch.Size(shape).numel())]  # fmt: skip
    merge = step(*given(bench, tensors), relative=relative, granularity="row")
    made = bench.operate(merge)["w"]
    rows = [naive([t[i] for t in tensors], [1, 1], relative) for i in range(shape[0])]
    assert_rounded(made, torch.stack(rows))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("shape", [(7, 9), (6, 5, 2, 3), (3000, 31)])
def test_every_column_has_its_own_angle(bench, shape, relative):
    tensors = [t.view(shape) for t in relatives(2 + relative, torch.bfloat16,
                                                size=torch.Size(shape).numel())]  # fmt: skip
    merge = step(*given(bench, tensors), relative=relative, granularity="column")
    made = bench.operate(merge)["w"]
    columns = [naive([t[:, i] for t in tensors], [1, 1], relative) for i in range(shape[1])]
    assert_rounded(made, torch.stack(columns, dim=1))


@pytest.mark.parametrize("granularity", ["row", "column"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (0, 3), (3, 0)])
def test_vectors_and_empty_tensors_turn_whole(bench, granularity, shape):
    a, b = torch.rand(shape), torch.rand(shape)
    made = bench.operate(step(*given(bench, [a, b]), granularity=granularity))["w"]
    assert_rounded(made, naive([a, b], [1, 1]))


def test_rows_may_be_zero_or_equal(bench):
    a = torch.tensor([[0.0, 0.0], [0.1, 0.7], [1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 2.0], [0.1, 0.7], [0.0, 1.0]], dtype=torch.float64)
    merge = step(*given(bench, [a, b]), weights=[0.9, 0.1], granularity="row")
    made = bench.operate(merge)["w"]
    assert made[1].tolist() == [0.1, 0.7]
    assert_rounded(made, torch.stack([naive([a[i], b[i]], [0.9, 0.1]) for i in range(3)]))


@pytest.mark.parametrize("parameters", [{}, {"granularity": "row"}, {"relative": True}])
def test_merging_with_itself_returns_it_to_the_bit(bench, parameters):
    state = torch.cat([torch.randn(500, dtype=torch.float64), torch.tensor([-0.0, 0.0])])
    models = given(bench, [state.view(2, 251)] * (3 if parameters.get("relative") else 2))
    made = bench.operate(step(*models, weights=[0.3, 0.45], **parameters)).tensors
    assert_identical(made, {"w": state.view(2, 251)})


def test_exchanging_models_and_weights_changes_nothing(bench):
    base, a, b = relatives(3, torch.float32)
    one = bench.given({"w": base}, a={"w": a}, b={"w": b})
    first = one.operate(step("a", "b", weights=[1, 3], relative=True)).tensors
    assert_identical(one.operate(step("b", "a", weights=[3, 1], relative=True)).tensors, first)


def test_near_parallel_tensors_are_mixed_on_a_straight_line(bench):
    """Unlike in mergekit 0.1.5, which keeps to the arc: here cos θ is 0.9998."""
    a, b = relatives(2, torch.float64, apart=0.015)
    found = bench.operate(step(*given(bench, [a, b])))["w"]
    torch.testing.assert_close(found, (a + b) / 2, rtol=1e-14, atol=1e-15)
    cosine = torch.dot(a, b) / a.norm() / b.norm()
    on_the_arc = (a + b) / (2 * torch.cos(torch.acos(cosine) / 2))
    assert (found - on_the_arc).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("models", "relative", "problem"),
    [(1, True, "takes two models with 'relative'"), (2, False, "takes one model without")],
)
def test_wrong_number_of_models_is_an_error(bench, models, relative, problem):
    names = given(bench, relatives(models + 1, torch.float32, size=3))
    with pytest.raises(PlanError, match=problem):
        bench.plan(step(*names, relative=relative))


@pytest.mark.parametrize("relative", [False, True])
def test_weights_are_two(bench, relative):
    names = given(bench, relatives(2 + relative, torch.float32, size=3))
    with pytest.raises(PlanError, match="weights has 3 entries for 2 points"):
        bench.plan(step(*names, weights=[1, 2, 3], relative=relative))


def test_weights_that_add_up_to_zero_are_an_error(bench):
    names = given(bench, relatives(2, torch.float32, size=3))
    with pytest.raises(PlanError, match="add up to zero"):
        bench.plan(step(*names, weights=[1, -1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("granularity", ["tensor", "row", "column"])
@pytest.mark.parametrize("weights", [[1, 1], [1, 0]])
def test_nonfinite_operand_is_an_error(bench, value, granularity, weights):
    broken = torch.tensor([[1.0, 2.0], [value, 1.0]])
    names = given(bench, [torch.ones(2, 2), broken])
    with pytest.raises(PlanError, match="'w' in model 'b' holds NaN or Inf"):
        bench.operate(step(*names, granularity=granularity, weights=weights))


@pytest.mark.parametrize("granularity", ["tensor", "row", "column"])
def test_result_does_not_depend_on_workers(bench, granularity):
    tensors = [t.view(300, 700) for t in relatives(2, torch.bfloat16, size=210_000)]
    merge = step(*given(bench, tensors), granularity=granularity)
    results = [bench.operate(merge, options=Options(workers=n)) for n in (1, 2)]
    assert results[0].path.read_bytes() == results[1].path.read_bytes()
