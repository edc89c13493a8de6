"""reinit: fresh values in the same shapes."""

import pytest
import torch
from torch import nn

from surgeon.base.errors import PlanError
from tests.network import assert_identical


def step(target, **parameters):
    return {"op": "reinit", "target": target, **parameters}


def state(**modules):
    return nn.ModuleDict(modules).state_dict()


def test_shapes_and_dtypes_stay(bench):
    old = {name: t.bfloat16() for name, t in state(fc=nn.Linear(5, 3)).items()}
    made = bench.given(old).operate(step("fc")).tensors
    assert {n: (t.shape, t.dtype) for n, t in made.items()} == {
        n: (t.shape, t.dtype) for n, t in old.items()
    }


def test_no_old_value_is_left(bench):
    old = state(fc=nn.Linear(50, 3))
    made = bench.given(old).operate(step("fc")).tensors
    assert not torch.isin(made["fc.weight"], old["fc.weight"]).any()


def test_batch_norm_is_as_torch_makes_it(bench):
    layer = nn.BatchNorm2d(4)
    layer(torch.randn(2, 4, 3, 3))
    made = bench.given(state(bn=layer)).operate(step("bn")).tensors
    assert_identical(made, state(bn=nn.BatchNorm2d(4)))


def test_init_is_for_weight_and_bias_of_a_module(bench):
    bench.given(state(fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3)))
    made = bench.operate(step(["fc", "bn"], init="ones")).tensors
    expected = state(fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3))
    ones = {name: torch.ones_like(expected[name]) for name in expected if "bias" in name}
    assert_identical(made, {**expected, **ones, "fc.weight": torch.ones(3, 4)})


def test_bias_init_goes_before_init(bench):
    bench.given(state(fc=nn.Linear(4, 3)))
    made = bench.operate(step("fc", init="ones", bias_init="zeros")).tensors
    assert_identical(made, {"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)})


def test_tensor_named_by_itself_gets_the_init(bench):
    old = state(fc=nn.Linear(4, 3))
    made = bench.given(old).operate(step("fc.bias", init="ones")).tensors
    assert_identical(made, {**old, "fc.bias": torch.ones(3)})


def test_wildcards_reach_every_layer(bench):
    bench.given(state(a=nn.Linear(4, 3), b=nn.Linear(2, 2)))
    made = bench.operate(step("**.bias", init="zeros")).tensors
    expected = {"a.bias": torch.zeros(3), "b.bias": torch.zeros(2)}
    assert_identical({name: made[name] for name in expected}, expected)


def test_tied_names_stay_tied(bench):
    bench.given({"embed.weight": torch.randn(5, 4)}, {"head.weight": "embed.weight"})
    made = bench.operate(step("head", init="ones"))
    expected = torch.ones(5, 4)
    assert_identical(made.tensors, {"embed.weight": expected, "head.weight": expected})
    assert made.manifest["ties"] == {"head.weight": "embed.weight"}


def test_all_of_it_is_new(bench):
    made = bench.given(state(fc=nn.Linear(4, 3))).operate(step("fc.weight", init="eye"))
    assert made.lineage("fc.weight") == [
        {"step": "0", "op": "reinit", "new": ["fc.weight"], "init": "eye"}
    ]


@pytest.mark.parametrize("init", ["zeros", {"name": "constant", "val": 0.0}])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore")
def test_direction_without_length_is_an_error(bench, init, norm):
    """torch divides by the direction's length: zeros give NaN."""
    bench.given(state(fc=norm(nn.Linear(4, 3))))
    with pytest.raises(PlanError, match=r"is the direction of a weight norm .* would be NaN"):
        bench.plan(step("**.(weight_v|original1)", init=init))
    assert bench.plan(step("**.(weight_v|original1)", init="ones"))
