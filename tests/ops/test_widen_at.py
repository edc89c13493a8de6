"""widen with `at`: new rows among the old ones, against naive insertion by NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.base.errors import PlanError
from tests.manifest.test_optimizer_state import both, kept, operate, trained
from tests.network import assert_identical

ONES = "ones"


def step(target, **parameters):
    return {"op": "widen", "target": target, **parameters}


def inserted(old, at, count, dim=0, value=1.0):
    """What numpy.insert makes, new entries before each of the old ones that `at` lists."""
    places = np.repeat(at, count)
    return torch.from_numpy(np.insert(old.numpy(), places, value, axis=dim))


@pytest.mark.parametrize(
    ("size", "given", "before"),
    [
        (7, {"rows": 1, "at": 0}, [0]),
        (7, {"rows": 2, "at": 6}, [6]),
        (7, {"rows": 1, "at": -1}, [6]),
        (7, {"rows": 3, "at": 7}, [7]),
        (7, {"to": 9, "at": -7}, [0]),
        (21, {"rows": 1, "at": {"every": 7}}, [7, 14, 21]),
        (21, {"rows": 2, "at": {"every": 7}}, [7, 14, 21]),
        (21, {"to": 27, "at": {"every": 7}}, [7, 14, 21]),
        (21, {"rows": 1, "at": {"every": 7, "at": -1}}, [6, 13, 20]),
        (6, {"rows": 1, "at": {"every": 3, "at": 0}}, [0, 3]),
        (6, {"rows": 4, "at": {"every": 6}}, [6]),
    ],
)
def test_new_rows_lie_where_numpy_inserts_them(bench, size, given, before):
    old = {"fc.weight": torch.randn(size, 3), "fc.bias": torch.randn(size)}
    made = bench.given(old).operate(step("fc", init=ONES, **given))
    count = given.get("rows") or (given["to"] - size) // len(before)
    assert_identical(made.tensors, {name: inserted(t, before, count) for name, t in old.items()})
    rows = [f"{b + i * count}:{b + (i + 1) * count}" for i, b in enumerate(before)]
    assert made.lineage("fc.bias")[0]["new"] == [f"fc.bias[{row}]" for row in rows]


def test_new_columns_lie_where_numpy_inserts_them(bench):
    old = {"conv.weight": torch.randn(4, 6, 2), "conv.bias": torch.randn(4)}
    given = {"columns": 2, "at": {"every": 3, "at": 1}}
    made = bench.given(old).operate(step("conv", init=ONES, **given)).tensors
    wanted = inserted(old["conv.weight"], [1, 4], 2, dim=1)
    assert_identical(made, {**old, "conv.weight": wanted})


def test_columns_of_consumers_lie_as_the_rows_do(bench):
    old = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(2, 8)}
    consumers = [{"target": "b", "block": 2, "init": "ones"}]
    made = bench.given(old).operate(step("a", rows=1, at=1, init=ONES, consumers=consumers)).tensors
    assert_identical(made, {"a.weight": inserted(old["a.weight"], [1], 1),
                            "b.weight": inserted(old["b.weight"], [2], 2, dim=1)})  # fmt: skip


@pytest.mark.parametrize("at", [1, {"every": 2}])
def test_net2wider_keeps_the_function_wherever_rows_come(bench, at):
    torch.manual_seed(0)
    old = {"a": nn.Linear(3, 4), "b": nn.Linear(4, 5)}
    bench.given(nn.ModuleDict(old).double().state_dict())
    made = bench.operate(step("a", rows=2, at=at, consumers="b", init="net2wider")).tensors
    inputs = torch.randn(20, 3).double()
    hidden = torch.tanh(nn.functional.linear(inputs, made["a.weight"], made["a.bias"]))
    found = nn.functional.linear(hidden, made["b.weight"], made["b.bias"])
    torch.testing.assert_close(found, old["b"](torch.tanh(old["a"](inputs))), rtol=0, atol=1e-14)


def test_values_at_random_are_those_that_would_come_behind(bench):
    bench.given({"fc.weight": torch.randn(6, 3)})
    behind, among = (bench.operate(step("fc", rows=2, init="normal", **at))["fc.weight"]
                     for at in ({}, {"at": 2}))  # fmt: skip
    assert torch.equal(among, torch.cat([behind[:2], behind[6:], behind[2:6]]))


def test_rows_of_an_identity_are_those_of_their_places(bench):
    bench.given({"fc.weight": torch.zeros(4, 6)})
    made = bench.operate(step("fc", rows=1, at={"every": 2}, init="eye"))["fc.weight"]
    assert torch.equal(made[[2, 5]], torch.eye(6)[[2, 5]])


def test_copies_are_counted_block_by_block(bench):
    old = torch.randn(6, 3)
    init = {"name": "copy", "rows": "2::3"}
    made = bench.given({"fc.weight": old}).operate(step("fc", rows=1, at={"every": 3}, init=init))
    assert torch.equal(made["fc.weight"], old[[0, 1, 2, 2, 3, 4, 5, 5]])


def test_later_steps_know_the_new_rows(bench):
    bench.given({"fc.weight": torch.randn(4, 3)})
    steps = [step("fc", rows=1, at={"every": 2}), step("fc", rows=1, at=0),
             {"op": "narrow", "target": "fc", "drop": [1, 3]}]  # fmt: skip
    made = bench.operate(*steps, training={"stages": [{"name": "a", "train": ["@new"]}]})
    assert [c.get("new") for c in made.lineage("fc.weight")] == [
        ["fc.weight[4:5]"], ["fc.weight[0:1]"], None
    ]  # fmt: skip
    assert made.manifest["stages"][0]["groups"][0]["params"] == [
        "fc.weight[0:1]", "fc.weight[4:5]"
    ]  # fmt: skip


def test_weight_align_scales_the_rows_in_between(bench):
    old = torch.randn(4, 3)
    made = bench.given({"fc.weight": old}).operate(
        step("fc", rows=1, at=1, init=ONES), {"op": "weight_align", "target": "fc"}
    )["fc.weight"]
    assert torch.equal(made[[0, 2, 3, 4]], old)
    torch.testing.assert_close(made[1].norm(), old.norm(dim=1).mean())


def test_moments_stay_with_their_rows(tmp_path):
    model, optimizer = trained()
    made = operate(tmp_path, both(model, optimizer), step("fc", rows=1, at=-1))
    for name in ("fc.weight", "fc.bias"):
        moment = kept(model, optimizer, name)["exp_avg"]
        assert torch.equal(made.tensors[f"{name}/exp_avg"], inserted(moment, [6], 1, value=0.0))
    assert [b for b in made.blocks if b.startswith("fc.bias")] == ["fc.bias[0:6]", "fc.bias[7:8]"]


def test_more_blocks_than_a_manifest_can_tell_are_refused(bench):
    bench.given({"fc.weight": torch.ones(257, 1)})
    with pytest.raises(PlanError, match="257 rows in 257 blocks, and new ones go into at most"):
        bench.plan(step("fc", rows=1, at={"every": 1}))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"rows": 1, "at": 8}, "'fc' has 7 rows, and no place 8: there are 0 to 7, and -7 to -1"),
        ({"rows": 1, "at": -8}, "'fc' has 7 rows, and no place -8"),
        ({"columns": 1, "at": 4}, "'fc' has 3 columns, and no place 4"),
        ({"rows": 1, "at": {"every": 2}}, "'fc' has 7 rows, which make no blocks of 2"),
        ({"rows": 1, "at": {"every": 7, "at": 9}}, "'fc' has blocks of 7 rows, and no place 9"),
        ({"to": 9, "at": {"every": 1}}, "'fc' has 7 rows in 7 blocks; 9 would not give each as"),
    ],
)
def test_places_that_there_are_not_are_refused(bench, given, problem):
    bench.given({"fc.weight": torch.ones(7, 3)})
    with pytest.raises(PlanError) as caught:
        bench.plan(step("fc", **given))
    assert str(caught.value).startswith(f"recipe.json: steps[0] (widen): {problem}")
