"""fisher: against naive loops in float64."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.merges.compare import FLOATS, assert_rounded, given, numbers, relatives, tensor_of
from tests.network import assert_identical, write


def step(models, **parameters):
    return {"op": "fisher", "models": models, "importances": ["fa", *(f"f{m}" for m in models)],
            **parameters}  # fmt: skip


def naive(tensors, importances, weights):
    found = []
    for row in zip(*map(numbers, [*tensors, *importances]), strict=True):
        values, shares = row[: len(tensors)], row[len(tensors) :]
        shares = [w * f for w, f in zip(weights, shares, strict=True)]
        shares = shares if sum(shares) else weights
        found.append(sum(s * x for s, x in zip(shares, values, strict=True)) / sum(shares))
    return tensor_of(found, tensors[0])


def collected(bench, importances, name="w"):
    """Write the Fisher checkpoints of the state (a) and of models b, c, ..."""
    for i, tensor in enumerate(importances):
        model = f"f{chr(ord('a') + i)}"
        bench.models[model] = str(write(bench.folder / f"{model}.safetensors", {name: tensor}))


def squares(count, size=200, dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(size, generator=generator).to(dtype) ** 2 for _ in range(count)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [[1, 1], [1, 2, 0.5]])
def test_each_value_counts_as_much_as_its_model_depends_on_it(bench, dtype, weights):
    tensors, importances = relatives(len(weights), dtype), squares(len(weights))
    models = given(bench, tensors)
    collected(bench, importances)
    made = bench.operate(step(models, weights=weights))["w"]
    assert_rounded(made, naive(tensors, importances, weights))


def test_equal_importances_are_an_average(bench):
    tensors = relatives(3, torch.bfloat16)
    models = given(bench, tensors)
    collected(bench, squares(1) * 3)
    assert_rounded(bench.operate(step(models))["w"], sum(t.double() for t in tensors) / 3)


def test_tiny_importances_count_by_their_ratio(bench):
    tensors, importances = relatives(2, torch.float64), [f.double() * 1e-200 for f in squares(2)]
    models = given(bench, tensors)
    collected(bench, importances)
    made = bench.operate(step(models))["w"]
    assert_rounded(made, naive(tensors, [f * 1e200 for f in importances], [1, 1]))


def test_values_that_matter_to_no_model_are_averaged(bench):
    models = given(bench, [torch.tensor([1.0, 1.0]), torch.tensor([4.0, 4.0])])
    collected(bench, [torch.tensor([0.0, 0.0]), torch.tensor([0.0, 5.0])])
    assert bench.operate(step(models, weights=[1, 2]))["w"].tolist() == [3.0, 4.0]


def test_tensors_without_importances_are_averaged_and_reported(bench):
    bench.given({"w": torch.zeros(2), "v": torch.zeros(2)}, b={"w": torch.ones(2),
                                                               "v": torch.ones(2)})  # fmt: skip
    collected(bench, [torch.ones(2), torch.full((2,), 3.0)])
    made = bench.operate(step(["b"]))
    assert [made["w"].tolist(), made["v"].tolist()] == [[0.75, 0.75], [0.5, 0.5]]
    assert made.notes == ["fisher: there is nothing in model 'fa', 'fb' for 'v': averaged"]


def test_importances_of_other_names_are_an_error(bench):
    models = given(bench, relatives(2, torch.float32))
    collected(bench, squares(2), name="other.w")
    with pytest.raises(PlanError, match="there is nothing in model 'fa', 'fb' for 'w'"):
        bench.plan(step(models))


def test_importances_that_one_model_lacks_are_an_error(bench):
    models = given(bench, relatives(2, torch.float32))
    collected(bench, squares(2))
    write(bench.folder / "fb.safetensors", {"other": torch.zeros(1)})
    with pytest.raises(PlanError, match="'w' is not in model 'fb'"):
        bench.plan(step(models))


def test_wrong_number_of_importances_is_an_error(bench):
    models = given(bench, relatives(3, torch.float32))
    collected(bench, squares(2))
    with pytest.raises(PlanError, match="'importances' names 2 models for 3 operands"):
        bench.plan({**step(models), "importances": ["fa", "fb"]})


def test_negative_importances_are_an_error(bench):
    models = given(bench, relatives(2, torch.float32, size=2))
    collected(bench, [torch.ones(2), torch.tensor([1.0, -1e-9])])
    with pytest.raises(PlanError, match="'w' has negative Fisher values"):
        bench.operate(step(models))


@pytest.mark.parametrize("weights", [0, [0, 0]])
def test_weights_that_add_up_to_zero_are_an_error(bench, weights):
    models = given(bench, relatives(2, torch.float32, size=2))
    collected(bench, squares(2, 2))
    with pytest.raises(PlanError, match="add up to zero"):
        bench.plan(step(models, weights=weights))


def test_negative_weights_are_an_error(bench):
    models = given(bench, relatives(2, torch.float32, size=2))
    collected(bench, squares(2, 2))
    with pytest.raises(UsageError, match="weights"):
        bench.plan(step(models, weights=-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["b", "fa"])
def test_nonfinite_operand_is_an_error(bench, value, place):
    broken = torch.tensor([1.0, value])
    models = given(bench, [torch.ones(2), broken if place == "b" else torch.ones(2)])
    collected(bench, [broken if place == "fa" else torch.ones(2), torch.zeros(2)])
    with pytest.raises(PlanError, match=f"'w' in model '{place}' holds NaN or Inf"):
        bench.operate(step(models))


def test_merging_with_itself_returns_it_to_the_bit(bench):
    state = torch.cat([torch.randn(198, dtype=torch.float64), torch.tensor([-0.0, 0.0])])
    models = given(bench, [state] * 3)
    collected(bench, squares(3))
    assert_identical(bench.operate(step(models, weights=[1, 0.3, 0.7])).tensors, {"w": state})
