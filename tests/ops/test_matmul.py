"""matmul: products against torch's in float64."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded


def step(target, from_, **parameters):
    return {"op": "matmul", "target": target, "from": from_, **parameters}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("side", "ours", "theirs"),
    [("right", (4, 6), (6, 9)), ("left", (6, 5), (3, 6)), ("left", (6,), (3, 6)),
     ("right", (300, 40), (40, 301)), ("right", (0, 3), (3, 2))],
)  # fmt: skip
def test_products_are_those_of_torch(bench, dtype, side, ours, theirs):
    weight, factor = normal(*ours).to(dtype), normal(*theirs).to(torch.float32)
    made = bench.given({"w": weight, "f": factor}).operate(step("w", "f", side=side))
    a, b = (factor, weight) if side == "left" else (weight, factor)
    assert_identical(
        made.tensors, {"w": correctly_rounded(a.double() @ b.double(), dtype), "f": factor}
    )


def test_two_linear_layers_become_one(bench):
    first, second = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)
    old = {
        "a.weight": first.weight,
        "a.bias": first.bias,
        "b.weight": second.weight,
        "b.bias": second.bias,
    }
    steps = [
        step("b.weight", "a.weight"),
        step("a.bias", "b.weight", side="left", model="two"),
        {"op": "add", "target": "b.bias", "from": "a.bias"},
    ]
    old = {name: tensor.detach() for name, tensor in old.items()}
    made = bench.given(old, two=old).operate(*steps)
    inputs = normal(9, 5)
    with torch.no_grad():
        one = torch.nn.functional.linear(inputs, made["b.weight"], made["b.bias"])
        torch.testing.assert_close(one, second(first(inputs)))


def test_tied_names_are_multiplied_once_and_stay_tied(bench):
    made = bench.given({"a": 2 * torch.eye(2)}, {"b": "a"}).operate(step("(a|b)", "a"))
    assert_identical(made.tensors, {"a": 4 * torch.eye(2), "b": 4 * torch.eye(2)})


@pytest.mark.parametrize(
    ("target", "from_", "problem"),
    [
        ("w", "f", "4 columns do not meet 3 rows; 'side' may be left"),
        ("w", "g", "4 columns do not meet 5 rows"),
        ("v", "f", "matrices (rank 2) are multiplied"),
        ("w", "v", "matrices (rank 2) are multiplied"),
        ("w", "x", "there is no 'x' in the state for 'w'"),
    ],
)
def test_what_does_not_fit_is_an_error(bench, target, from_, problem):
    bench.given({"w": normal(3, 4), "f": normal(3, 3), "g": normal(5, 5), "v": normal(3)})
    with pytest.raises(PlanError) as raised:
        bench.plan(step(target, from_))
    assert problem in str(raised.value)


def test_what_is_not_finite_is_told(bench):
    bench.given({"w": torch.full((2, 2), float("nan"))})
    with pytest.raises(PlanError, match="'w' holds NaN or Inf"):
        bench.operate(step("w", "w"))
