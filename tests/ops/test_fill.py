"""fill: one value, in every dtype that has it."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical


def step(value, target="**"):
    return {"op": "fill", "target": target, "value": value}


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [0, 1, -0.1, 3.0000001])
def test_floats_get_the_rounded_value(bench, dtype, value):
    made = bench.given({"x": torch.randn(3, 4).to(dtype)}).operate(step(value))
    assert_identical(made.tensors, {"x": torch.full((3, 4), value, dtype=torch.float64).to(dtype)})


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.int64, 2**60 + 1), (torch.int8, -128), (torch.uint8, 255), (torch.bool, 1)],
)
def test_integers_and_booleans_get_it_exactly(bench, dtype, value):
    made = bench.given({"x": torch.zeros(3, dtype=dtype)}).operate(step(value))
    assert_identical(made.tensors, {"x": torch.full((3,), value, dtype=dtype)})


def test_every_tensor_of_a_module_is_filled(bench):
    old = {"a.weight": torch.randn(2, 2), "a.bias": torch.randn(2), "b": torch.randn(2)}
    made = bench.given(old).operate(step(7, "a"))
    expected = {"a.weight": torch.full((2, 2), 7.0), "a.bias": torch.full((2,), 7.0)}
    assert_identical(made.tensors, {**old, **expected})


def test_tied_names_stay_tied(bench):
    bench.given({"a": torch.ones(2)}, {"b": "a"})
    made = bench.operate(step(0, "b"))
    assert_identical(made.tensors, {"a": torch.zeros(2), "b": torch.zeros(2)})
    assert made.manifest["ties"] == {"b": "a"}


def test_values_count_as_new(bench):
    made = bench.given({"x": torch.ones(2)}).operate(step(0))
    assert made.lineage("x") == [{"step": "0", "op": "fill", "new": ["x"], "init": "constant"}]


def test_every_dtype_that_cannot_hold_the_value_is_listed(bench):
    bench.given(
        {"b": torch.tensor([True]), "h": torch.ones(2).half(), "n": torch.ones(2).to(torch.int8),
         "x": torch.ones(2)}
    )  # fmt: skip
    with pytest.raises(PlanError) as raised:
        bench.plan(step(70000.5))
    assert [line.split(": ", 2)[2] for line in raised.value.problems] == [
        "'h' is F16 (2,): values up to 70000.5 do not fit into F16",
        "'n' is I8 (2,): 70000.5 is not a value of I8",
        "'b' is BOOL (1,): 70000.5 is not a value of BOOL",
    ]
