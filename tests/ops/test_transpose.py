"""transpose: rows for columns."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical


def step(target):
    return {"op": "transpose", "target": target}


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (0, 3), (2, 3, 4), (300, 700)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_last_two_dimensions_are_exchanged(bench, shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    made = bench.given({"w": tensor}).operate(step("w")).tensors
    assert_identical(made, {"w": tensor.transpose(-1, -2)})


def test_a_module_keeps_its_bias(bench):
    old = {"h.0.fc.weight": torch.randn(2, 3), "h.0.fc.bias": torch.randn(3)}
    made = bench.given(old).operate(step("h.*.fc")).tensors
    assert_identical(made, {**old, "h.0.fc.weight": old["h.0.fc.weight"].T})


def test_what_was_widened_stays_new_when_transposed(bench):
    grow = {"op": "widen", "target": "w", "rows": 1, "init": {"name": "constant", "val": 7}}
    training = {"stages": [{"name": "new", "train": ["@new"]}]}
    made = bench.given({"w": torch.zeros(2, 3)}).operate(grow, step("w"), training=training)
    assert made["w"].tolist() == [[0, 0, 7]] * 3
    assert made.manifest["stages"][0]["groups"][0]["params"] == ["w[:,2:3]"]


def test_a_computed_tensor_is_transposed(bench):
    a, b = torch.randn(40, 30), torch.randn(40, 30)
    bench.given({"w": a}, other={"w": b})
    made = bench.operate({"op": "average", "models": ["other"]}, step("w"))
    mean = ((a.double() + b.double()) / 2).float()
    assert_identical(made.tensors, {"w": mean.T})


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("fc.bias", "'fc.bias' is F32 (3,), and has no two dimensions to exchange"),
        ("norm", "'norm' has no tensor with two dimensions to exchange"),
        ("fcc", "no tensor matches 'fcc'; did you mean 'fc'?"),
    ],
)
def test_impossible_transpose_says_why(bench, target, problem):
    bench.given({"fc.weight": torch.ones(3, 3), "fc.bias": torch.ones(3), "norm.w": torch.ones(1)})
    with pytest.raises(PlanError) as caught:
        bench.plan(step(target))
    assert str(caught.value) == f"recipe.json: steps[0] (transpose): {problem}"
