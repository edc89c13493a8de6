"""reshape: the same elements under another shape."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical


def step(target, shape):
    return {"op": "reshape", "target": target, "shape": shape}


@pytest.mark.parametrize(
    "shape", [[24], [-1], [4, 6], [2, -1, 2], [1, 24, 1], [2, 3, 4], [-1, 2, 3, 4]], ids=str
)
def test_elements_keep_their_order(bench, shape):
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    made = bench.given({"w": tensor}).operate(step("w", shape)).tensors
    assert_identical(made, {"w": tensor.reshape(shape)})


def test_scalars_and_empty_tensors_have_shapes_too(bench):
    bench.given({"one": torch.tensor([[3.0]]), "none": torch.ones(0, 3)})
    made = bench.operate(step("one", []), step("none", [5, 0])).tensors
    assert_identical(made, {"one": torch.tensor(3.0), "none": torch.ones(5, 0)})


def test_bytes_are_copied(bench):
    plan = bench.given({"w": torch.randn(6, 4)}).plan(step("w", [3, -1]))
    assert [type(p).__name__ for p in plan.tensors["w"].pieces(0, 24)] == ["ByteRange"]


def test_new_columns_are_new_heads(bench):
    grow = {"op": "widen", "target": "w", "columns": 2, "init": "zeros"}
    training = {"stages": [{"name": "new", "train": ["@new"]}]}
    bench.given({"w": torch.ones(3, 4)})
    made = bench.operate(grow, step("w", [3, 3, 2]), training=training)
    assert made.manifest["stages"][0]["groups"][0]["params"] == ["w[:,2:3]"]


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ([5, 5], "'w' is F32 (4, 6): 24 elements do not fit shape [5, 5]"),
        ([5, -1], "'w' is F32 (4, 6): 24 elements do not fit shape [5, -1]"),
        ([0, -1], "'w' is F32 (4, 6): 24 elements do not fit shape [0, -1]"),
        ([-1, -1], "shape [-1, -1] has more than one -1"),
    ],
)
def test_impossible_reshape_says_why(bench, shape, problem):
    bench.given({"w": torch.ones(4, 6)})
    with pytest.raises(PlanError) as caught:
        bench.plan(step("w", shape))
    assert str(caught.value) == f"recipe.json: steps[0] (reshape): {problem}"


def test_new_columns_in_thousands_of_pieces_are_refused(bench):
    bench.given({"w": torch.ones(5000, 1)})
    grow = {"op": "widen", "target": "w", "columns": 1, "init": "zeros"}
    with pytest.raises(
        PlanError, match=r"\(reshape\): 'w': what is new of it in shape \(5000, 2\)"
    ):
        bench.plan(grow, step("w", [-1]))
