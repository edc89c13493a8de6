"""replace: a fresh layer of a new size."""

import math

import pytest
import torch
from torch import nn

from surgeon.base.errors import PlanError
from tests.network import assert_identical


def step(target, rows, **parameters):
    return {"op": "replace", "target": target, "rows": rows, **parameters}


def state(**modules):
    return nn.ModuleDict(modules).state_dict()


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_every_row_is_new(bench, rows):
    torch.manual_seed(0)  # of so many values two may be equal by chance
    old = state(fc=nn.Linear(400, 3))
    made = bench.given(old).operate(step("fc", rows))
    assert made["fc.weight"].shape == (rows, 400)
    assert not set(made["fc.weight"].flatten().tolist()) & set(old["fc.weight"].flatten().tolist())
    assert made.lineage("fc.weight")[0]["new"] == ["fc.weight"]
    assert made.lineage("fc.bias")[0]["new"] == ["fc.bias"]


def test_default_is_within_the_bound_of_the_new_size(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", 300, columns=16)).tensors
    for tensor in made.values():
        assert 0.95 / 4 < tensor.abs().max() <= 1 / 4


def test_columns_stay_by_default(bench):
    made = bench.given(state(fc=nn.Linear(5, 3))).operate(step("fc", 2, init="zeros")).tensors
    bias = made.pop("fc.bias")
    assert_identical(made, {"fc.weight": torch.zeros(2, 5)})
    assert bias.shape == (2,)
    assert bias.abs().max() <= 1 / math.sqrt(5)


def test_bias_init_fills_the_bias(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", 2, bias_init="ones"))
    assert_identical({"fc.bias": made["fc.bias"]}, {"fc.bias": torch.ones(2)})


def test_batch_norm_is_as_torch_makes_it(bench):
    layer = nn.BatchNorm1d(4)
    layer(torch.randn(8, 4))
    made = bench.given(state(bn=layer)).operate(step("bn", 6)).tensors
    assert_identical(made, state(bn=nn.BatchNorm1d(6)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(bench, dtype):
    bench.given({"fc.weight": torch.randn(3, 4).to(dtype)})
    assert bench.operate(step("fc", 2))["fc.weight"].dtype == dtype


def test_tensor_named_by_itself_is_replaced_alone(bench):
    old = state(fc=nn.Linear(5, 3))
    made = bench.given(old).operate(step("fc.weight", 4)).tensors
    assert made["fc.weight"].shape == (4, 5)
    assert_identical({"fc.bias": made["fc.bias"]}, {"fc.bias": old["fc.bias"]})


def test_tied_tensor_is_an_error_that_names_the_other(bench):
    bench.given({"embed.weight": torch.randn(5, 4)}, {"head.weight": "embed.weight"})
    with pytest.raises(PlanError, match=r"'head.weight' is tied to 'embed.weight'; untie it first"):
        bench.plan(step("head", 2))


def test_tied_tensor_can_be_untied_first(bench):
    old = {"embed.weight": torch.randn(5, 4)}
    bench.given(old, {"head.weight": "embed.weight"})
    made = bench.operate({"op": "untie", "target": "head"}, step("head", 2, init="ones"))
    assert_identical(made.tensors, {**old, "head.weight": torch.ones(2, 4)})


@pytest.mark.parametrize("init", ["mean", "rows_normal", {"name": "copy", "rows": [0]}])
def test_there_are_no_old_rows_to_look_at(bench, init):
    bench.given(state(fc=nn.Linear(5, 3)))
    with pytest.raises(PlanError, match="looks at old rows, and there are none"):
        bench.plan(step("fc", 2, init=init))


def test_module_of_modules_is_an_error(bench):
    bench.given(state(a=nn.ModuleDict({"b": nn.Linear(2, 2)})))
    with pytest.raises(PlanError, match="'a' has no tensors of its own"):
        bench.plan(step("a", 2))
