"""permute: the dimensions in another order."""

import itertools

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.network import assert_identical

TENSOR = torch.randn(2, 3, 4, 5)


def step(target, order):
    return {"op": "permute", "target": target, "order": order}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_every_order_is_that_of_torch(bench, dtype):
    tensor = TENSOR.to(dtype)
    bench.given({f"{i}": tensor.clone() for i in range(24)})
    orders = [list(order) for order in itertools.permutations(range(4))]
    made = bench.operate(*(step(str(i), order) for i, order in enumerate(orders))).tensors
    assert_identical(made, {f"{i}": tensor.permute(order) for i, order in enumerate(orders)})


def test_permuting_back_is_the_same_file(bench):
    made = bench.given({"w": TENSOR}).operate(step("w", [2, 3, 1, 0]), step("w", [3, 2, 0, 1]))
    assert_identical(made.tensors, {"w": TENSOR})


def test_the_order_that_there_is_changes_nothing(bench):
    made = bench.given({"w": TENSOR}).operate(step("w", [0, 1, 2, 3]))
    assert made.lineage("w") == []


def test_tied_names_are_permuted_together(bench):
    made = bench.given({"a": torch.randn(2, 3)}, {"b": "a"}).operate(step("a", [1, 0]))
    assert made.manifest["ties"] == {"b": "a"}
    assert made["b"].shape == (3, 2)


def test_a_tensor_of_other_rank_is_refused(bench):
    bench.given({"m.a": TENSOR, "m.b": torch.ones(3), "m.c": torch.ones(2, 2)})
    with pytest.raises(PlanError) as caught:
        bench.plan(step("m", [3, 2, 1, 0]))
    assert [line.partition("permute): ")[2] for line in caught.value.problems] == [
        "'m.b' is F32 (3,) and has 1 dimensions, but order [3, 2, 1, 0] is of 4",
        "'m.c' is F32 (2, 2) and has 2 dimensions, but order [3, 2, 1, 0] is of 4",
    ]


def test_an_order_names_each_dimension_once(bench):
    bench.given({"w": TENSOR})
    with pytest.raises(PlanError, match=r"order \[0, 2\] is no order of the dimensions 0 to 1"):
        bench.plan(step("w", [0, 2]))
    with pytest.raises(UsageError, match=r"order: .* non-unique"):
        bench.plan(step("w", [0, 1, 1, 2]))
