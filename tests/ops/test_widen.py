"""widen: old values keep their bits; new ones are what the layer's final size asks for."""

import math
import time

import pytest
import torch
from torch import nn

from surgeon.base.errors import PlanError
from tests.network import assert_identical, raw_bytes


def step(target, **parameters):
    return {"op": "widen", "target": target, **parameters}


def state(**modules):
    torch.manual_seed(0)
    return nn.ModuleDict(modules).state_dict()


def norm(width=4):
    layer = nn.BatchNorm1d(width)
    layer.train()(torch.randn(16, width))
    return layer


# --- What is old ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_widen_keeps_old_rows(bench, dtype):
    old = {name: tensor.to(dtype) for name, tensor in state(fc=nn.Linear(5, 3)).items()}
    made = bench.given(old).operate(step("fc", rows=2)).tensors
    assert {name: t.dtype for name, t in made.items()} == dict.fromkeys(old, dtype)
    assert_identical({name: tensor[:3] for name, tensor in made.items()}, old)


def test_widen_keeps_old_columns(bench):
    old = state(fc=nn.Linear(5, 3))
    made = bench.given(old).operate(step("fc", columns=2)).tensors
    assert made["fc.weight"].shape == (3, 7)
    found = {"fc.weight": made["fc.weight"][:, :5], "fc.bias": made["fc.bias"]}
    assert_identical(found, old)


@pytest.mark.parametrize("word", ["rows", "to"])
def test_rows_to_append_and_rows_to_have(bench, word):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", **{word: {"rows": 4, "to": 7}[word]})).tensors
    assert made["fc.weight"].shape == (7, 5)
    assert made["fc.bias"].shape == (7,)


def test_other_tensors_stay(bench):
    old = state(fc=nn.Linear(5, 3), head=nn.Linear(3, 3))
    made = bench.given(old).operate(step("fc", rows=1)).tensors
    kept = {name: old[name] for name in ("head.weight", "head.bias")}
    assert_identical({name: made[name] for name in kept}, kept)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(2, 3, 5), nn.Conv1d(2, 3, 5), nn.Conv3d(1, 3, 2), nn.Embedding(3, 4)]
)
def test_layers_of_any_rank_grow(bench, layer):
    old = state(layer=layer)
    made = bench.given(old).operate(step("layer", rows=2, init="normal")).tensors
    assert made["layer.weight"].shape == (5, *old["layer.weight"].shape[1:])
    assert_identical({name: tensor[:3] for name, tensor in made.items()}, old)


def test_columns_of_a_convolution_are_its_input_channels(bench):
    old = state(conv=nn.Conv2d(2, 3, 5))
    made = bench.given(old).operate(step("conv", columns=1, init="zeros")).tensors
    expected = torch.cat([old["conv.weight"], torch.zeros(3, 1, 5, 5)], 1)
    assert_identical(made, {**old, "conv.weight": expected})


# --- What is new ----------------------------------------------------------------------------------


def test_default_is_within_the_bound_of_the_final_size(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", rows=400)).tensors
    new = torch.cat([made["fc.weight"][3:].flatten(), made["fc.bias"][3:]])
    bound = 1 / math.sqrt(5)
    assert 0.98 * bound < new.abs().max() <= bound
    assert abs(new.mean()) < 0.05


def test_fan_counts_the_final_columns(bench):
    bench.given(state(fc=nn.Linear(4, 200)))
    made = bench.operate(step("fc", columns=12)).tensors["fc.weight"][:, 4:]
    assert 0.98 / 4 < made.abs().max() <= 1 / 4


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("zeros", torch.zeros(2, 5)),
        ("ones", torch.ones(2, 5)),
        ({"name": "constant", "val": 0.5}, torch.full((2, 5), 0.5)),
    ],
)
def test_init_fills_the_weight(bench, init, expected):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", rows=2, init=init)).tensors
    torch.testing.assert_close(made["fc.weight"][3:], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("init", "random"), [("zeros", False), ("xavier_uniform", True)])
def test_init_speaks_for_the_bias_where_it_can(bench, init, random):
    made = bench.given(state(fc=nn.Linear(5, 3))).operate(step("fc", rows=2, init=init))
    assert bool(made["fc.bias"][3:].any()) == random
    assert made.lineage("fc.bias")[-1]["init"] == ("default" if random else init)


def test_bias_init_fills_the_bias(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", rows=2, bias_init={"name": "constant", "val": -2})).tensors
    torch.testing.assert_close(made["fc.bias"][3:], torch.full((2,), -2.0), rtol=0, atol=0)


def test_mean_is_the_mean_of_the_old_rows(bench):
    old = state(fc=nn.Linear(5, 3))
    made = bench.given(old).operate(step("fc", rows=2, init="mean")).tensors
    for name in old:
        expected = old[name].double().mean(0).to(torch.float32).expand_as(made[name][3:])
        torch.testing.assert_close(made[name][3:], expected, rtol=0, atol=0)


def test_copy_takes_old_rows(bench):
    old = state(fc=nn.Linear(5, 3))
    init = {"name": "copy", "rows": [2, 0]}
    made = bench.given(old).operate(step("fc", rows=2, init=init)).tensors
    assert_identical(made, {name: torch.cat([t, t[[2, 0]]]) for name, t in old.items()})


def test_seed_changes_new_values_only(bench):
    old = state(fc=nn.Linear(5, 3))
    first = bench.given(old).operate(step("fc", rows=2), seed=1)["fc.weight"]
    second = bench.operate(step("fc", rows=2), seed=2)["fc.weight"]
    assert raw_bytes(first[:3]) == raw_bytes(second[:3])
    assert not torch.equal(first[3:], second[3:])


def test_new_values_follow_the_id_of_the_step_not_its_position(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    grow = {**step("fc", rows=2), "id": "grow"}
    first = bench.operate(grow)["fc.weight"]
    second = bench.operate({"op": "expect", "target": "fc"}, grow)["fc.weight"]
    assert torch.equal(first, second)


def test_new_values_of_two_layers_differ(bench):
    bench.given(state(a=nn.Linear(5, 3), b=nn.Linear(5, 3)))
    made = bench.operate(step("*", rows=2)).tensors
    assert not torch.equal(made["a.weight"][3:], made["b.weight"][3:])


# --- Modules --------------------------------------------------------------------------------------


def test_batch_norm_grows_with_its_statistics(bench):
    old = state(bn=norm())
    made = bench.given(old).operate(step("bn", rows=2)).tensors
    one, zero = torch.ones(2), torch.zeros(2)
    new = {"weight": one, "bias": zero, "running_mean": zero, "running_var": one}
    expected = {f"bn.{leaf}": torch.cat([old[f"bn.{leaf}"], tail]) for leaf, tail in new.items()}
    assert_identical(made, {**old, **expected})


def test_what_has_another_size_stays(bench):
    old = {"m.weight": torch.randn(4, 3), "m.bias": torch.randn(4), "m.scale": torch.randn(1)}
    made = bench.given(old).operate(step("m", rows=1)).tensors
    assert made["m.bias"].shape == (5,)
    assert made["m.scale"].shape == (1,)


def test_tensor_named_by_itself_grows_alone(bench):
    old = state(fc=nn.Linear(5, 3))
    made = bench.given(old).operate(step("fc.weight", rows=1)).tensors
    assert made["fc.weight"].shape == (4, 5)
    assert made["fc.bias"].shape == (3,)


def test_wildcards_grow_each_layer(bench):
    old = state(a=nn.Linear(5, 3), b=nn.Linear(2, 7), c=nn.Linear(2, 2))
    made = bench.given(old).operate(step("(a|b)", rows=1)).tensors
    assert [made[f"{m}.bias"].shape[0] for m in "abc"] == [4, 8, 2]


def test_to_grows_each_layer_to_one_size(bench):
    bench.given(state(a=nn.Linear(5, 3), b=nn.Linear(2, 7)))
    made = bench.operate(step("*", to=8)).tensors
    assert [made[f"{m}.bias"].shape[0] for m in "ab"] == [8, 8]


def test_module_of_modules_is_an_error_that_lists_its_parts(bench):
    block = nn.ModuleDict({"q": nn.Linear(2, 2), "k": nn.Linear(2, 2)})
    bench.given(state(attn=block))
    with pytest.raises(PlanError) as caught:
        bench.plan(step("attn", rows=1))
    assert str(caught.value) == (
        "recipe.json: steps[0] (widen): 'attn' has no tensors of its own; "
        "its parts are 'attn.k', 'attn.q'"
    )


def test_tensor_without_a_module_grows(bench):
    old = {"position": torch.randn(3, 2), "fc.weight": torch.randn(2, 2)}
    made = bench.given(old).operate(step("position", rows=1, init="zeros")).tensors
    assert_identical(made, {**old, "position": torch.cat([old["position"], torch.zeros(1, 2)])})


# --- Ties -----------------------------------------------------------------------------------------


def test_tied_names_grow_together(bench):
    old = {"embed.weight": torch.randn(5, 4)}
    bench.given(old, {"head.weight": "embed.weight"})
    made = bench.operate(step("embed", rows=2, init="zeros"))
    expected = torch.cat([old["embed.weight"], torch.zeros(2, 4)])
    assert_identical(made.tensors, {"embed.weight": expected, "head.weight": expected})
    assert made.manifest["ties"] == {"head.weight": "embed.weight"}


def test_bias_of_a_tied_layer_grows_along(bench):
    old = {"embed.weight": torch.randn(5, 4), "head.bias": torch.randn(5)}
    bench.given(old, {"head.weight": "embed.weight"})
    made = bench.operate(step("embed", rows=2, init="zeros")).tensors
    assert made["head.weight"].shape == (7, 4)
    assert made["head.bias"].shape == (7,)
    assert_identical({"head.bias": made["head.bias"][:5]}, {"head.bias": old["head.bias"]})


def test_tied_layer_that_is_named_too_grows_once(bench):
    old = {"embed.weight": torch.randn(5, 4), "head.bias": torch.randn(5)}
    bench.given(old, {"head.weight": "embed.weight"})
    made = bench.operate(step(["embed", "head"], rows=2)).tensors
    assert {name: t.shape[0] for name, t in made.items()} == dict.fromkeys(made, 7)


def test_columns_of_tied_weights_leave_biases_alone(bench):
    old = {"embed.weight": torch.randn(4, 4), "head.bias": torch.randn(4)}
    bench.given(old, {"head.weight": "embed.weight"})
    made = bench.operate(step("embed", columns=2)).tensors
    assert made["embed.weight"].shape == made["head.weight"].shape == (4, 6)
    assert_identical({"head.bias": made["head.bias"]}, {"head.bias": old["head.bias"]})


def test_tie_between_layers_of_both_directions(bench):
    old = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "b.bias": torch.randn(4)}
    bench.given(old, {"b.weight": "a.weight"})
    made = bench.operate(step("b", rows=1)).tensors
    assert {name: t.shape[0] for name, t in made.items()} == dict.fromkeys(made, 5)


# --- Lineage and mistakes -------------------------------------------------------------------------


def test_lineage_names_the_new_rows(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate({**step("fc", rows=2, init="normal"), "id": "grow"})
    entry = {"step": "grow", "op": "widen"}
    assert made.lineage("fc.weight") == [{**entry, "new": ["fc.weight[3:5]"], "init": "normal"}]
    assert made.lineage("fc.bias") == [{**entry, "new": ["fc.bias[3:5]"], "init": "normal"}]


def test_lineage_names_the_new_columns(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", columns=2))
    assert made.lineage("fc.weight")[0]["new"] == ["fc.weight[:,5:7]"]
    assert made.lineage("fc.bias") == []


def test_widening_twice_names_each_steps_rows(bench):
    bench.given(state(fc=nn.Linear(5, 3)))
    made = bench.operate(step("fc", rows=2), step("fc", rows=1))
    new = [change["new"] for change in made.lineage("fc.weight")]
    assert new == [["fc.weight[3:5]"], ["fc.weight[5:6]"]]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"target": "fc", "to": 3}, "'fc' has 3 rows already, not under 3"),
        ({"target": "fc", "to": 2}, "'fc' has 3 rows already, not under 2"),
        ({"target": "fc.bias", "columns": 1}, "'fc.bias' has no columns: it is F32 (3,)"),
        ({"target": "scalar", "rows": 1}, "'scalar' has no rows: it is F32 ()"),
        ({"target": "fcc", "rows": 1}, "no tensor matches 'fcc'; did you mean 'fc'?"),
        ({"target": "ids", "rows": 1, "init": "normal"}, "'normal' cannot make int values"),
    ],
)
def test_impossible_widening_says_why(bench, parameters, problem):
    extra = {"scalar": torch.tensor(1.0), "ids": torch.arange(3)}
    bench.given({**state(fc=nn.Linear(5, 3)), **extra})
    with pytest.raises(PlanError) as caught:
        bench.plan({"op": "widen", **parameters})
    assert str(caught.value).startswith("recipe.json: steps[0] (widen): ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("op", ["widen", "narrow"])
def test_a_module_whose_outputs_are_its_columns_is_not_taken_for_a_linear_one(bench, op):
    old = {"c.weight": torch.randn(4, 6), "c.bias": torch.randn(6), "d.weight": torch.randn(4, 6)}
    words = {"widen": {"rows": 1}, "narrow": {"drop": [0]}}[op]
    with pytest.raises(PlanError, match=r"its bias has 6 entries.*'dim': 1 says so"):
        bench.given(old).plan({"op": op, "target": "c", **words})
    made = bench.given(old).operate({"op": op, "target": "c", "dim": 1, **words}).tensors
    assert len(made["c.bias"]) == made["c.weight"].shape[1] == {"widen": 7, "narrow": 5}[op]
    made = bench.given(old).operate({"op": op, "target": ["c.weight", "d"], **words}).tensors
    assert [len(made[name]) for name in old] == {"widen": [5, 6, 5], "narrow": [3, 6, 3]}[op]


def test_optional_widening_of_nothing_does_nothing(bench):
    old = state(fc=nn.Linear(5, 3))
    made = bench.given(old).operate({**step("none", rows=1), "optional": True})
    assert_identical(made.tensors, old)


def test_thousands_of_layers_are_planned_in_seconds(bench):
    old = {f"h.{i}.{leaf}": torch.ones(2) for i in range(2000) for leaf in ("weight", "bias")}
    bench.given(old)
    start = time.perf_counter()
    bench.plan(step("h.*", rows=1))
    bench.plan({"op": "replace", "target": "h.*", "rows": 1})
    assert time.perf_counter() - start < 10


def test_tensor_that_no_file_can_hold_is_an_error(bench):
    bench.given({"fc.weight": torch.ones(2, 3)})
    with pytest.raises(PlanError, match=r"'fc\.weight' would be F32 "):
        bench.plan({"op": "widen", "target": "fc", "rows": 10**20})
