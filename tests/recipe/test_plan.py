"""Plans: lineage through chains of steps, errors with their step, nothing read."""

import json

import pytest
import torch

from surgeon.base.documents import as_json
from surgeon.base.errors import CheckFailedError, PlanError
from surgeon.lazy import Stored
from surgeon.manifest.build import change_as_json, change_entry
from tests.network import TIES, example_tensors

FC = {"fc.weight": torch.randn(3, 2), "fc.bias": torch.randn(3)}
GROW = {"op": "widen", "target": "classifier", "rows": 1, "init": "mean"}
WIDEN = {"op": "widen", "target": "fc", "rows": 1}


def changes(plan, name):
    found = [change_as_json(change) for change in plan.lineage[name]]
    assert found == [as_json(change_entry(change)) for change in plan.lineage[name]]
    return found


# --- Lineage --------------------------------------------------------------------------------------


def test_untouched_tensors_have_no_lineage(bench):
    plan = bench.given({**FC, "x": torch.ones(1)}).plan(WIDEN)
    assert plan.lineage["x"] == ()


def test_lineage_follows_rename_widen_rename(bench):
    steps = [
        {"op": "rename", "from": "fc", "to": "head"},
        {"id": "grow", "op": "widen", "target": "head", "rows": 2, "init": "zeros"},
        {"op": "rename", "from": "head.weight", "to": "classifier.weight"},
    ]
    plan = bench.given(FC).plan(*steps)
    assert changes(plan, "classifier.weight") == [
        {"step": "0", "op": "rename", "from": ["fc.weight"]},
        {"step": "grow", "op": "widen", "new": ["classifier.weight[3:5]"], "init": "zeros"},
        {"step": "2", "op": "rename", "from": ["head.weight"]},
    ]
    assert plan.tensors["classifier.weight"].new_regions() == (((3, 5), (0, 2)),)


def test_widening_after_a_merge_keeps_both(bench):
    plan = bench.given(FC, b=FC).plan({"op": "average", "models": ["b"]}, WIDEN)
    assert changes(plan, "fc.weight") == [
        {"step": "0", "op": "average", "from": ["b:fc.weight"],
         "parameters": {"weights": [1, 1], "normalize": True}},
        {"step": "1", "op": "widen", "new": ["fc.weight[3:4]"], "init": "default"},
    ]  # fmt: skip


def test_merging_after_widening_keeps_what_is_new(bench):
    wide = {name: torch.cat([t, t[:1]]) for name, t in FC.items()}
    plan = bench.given(FC, b=wide).plan(WIDEN, {"op": "average", "models": ["b"]})
    assert [change["op"] for change in changes(plan, "fc.weight")] == ["widen", "average"]
    assert changes(plan, "fc.weight")[0]["new"] == ["fc.weight[3:4]"]


def test_merge_through_a_named_result_names_its_operands(bench):
    plan = bench.given(FC, b=FC, c=FC).plan(
        {"op": "average", "models": ["b"], "into": "mean"},
        {"op": "average", "models": ["mean", "c"]},
    )
    inner, outer = changes(plan, "fc.weight")
    equal = {"weights": [1.0, 1.0], "normalize": True}
    assert inner == {"step": "0", "op": "average", "into": "mean",
                     "from": ["fc.weight", "b:fc.weight"], "parameters": equal}  # fmt: skip
    assert outer["from"] == ["mean:fc.weight", "c:fc.weight"]
    assert "into" not in outer


def test_named_results_of_named_results_are_told_in_the_order_of_the_steps(bench):
    plan = bench.given(FC, b=FC, c=FC).plan(
        {"id": "m", "op": "average", "models": ["b"], "into": "m"},
        {"id": "s", "op": "scale", "target": "fc", "by": 2},
        {"id": "k", "op": "slerp", "models": ["m"], "t": 0.5, "into": "k"},
        {"id": "last", "op": "average", "models": ["k", "m"]},
        {"id": "copy", "op": "copy", "from": "fc.weight", "to": "x.weight", "model": "k"},
    )
    steps = {name: [change["step"] for change in changes(plan, name)] for name in plan.tensors}
    assert steps["fc.weight"] == ["m", "s", "k", "last"]
    assert steps["x.weight"] == ["m", "s", "k", "copy"]
    assert [change.get("into") for change in changes(plan, "fc.bias")] == ["m", None, "k", None]


def test_what_a_named_result_leaves_alone_has_the_state_s_lineage(bench):
    plan = bench.given(FC, b=FC).plan(
        {"op": "scale", "target": "fc.bias", "by": 2},
        {"op": "average", "models": ["b"], "target": "fc.weight", "into": "m"},
        {"op": "scale", "target": "fc", "by": 3},
        {"op": "average", "models": ["m"]},
    )
    assert [change["step"] for change in changes(plan, "fc.bias")] == ["0", "2", "3"]
    assert [change["step"] for change in changes(plan, "fc.weight")] == ["1", "2", "3"]


def test_result_that_nobody_uses_leaves_no_trace(bench):
    plan = bench.given(FC, b=FC).plan({"op": "average", "models": ["b"], "into": "m"})
    assert changes(plan, "fc.weight") == []


def test_copied_then_widened(bench):
    steps = [
        {"op": "copy", "from": "fc", "to": "aux"},
        {"op": "widen", "target": "aux", "rows": 1, "init": "mean"},
    ]
    plan = bench.given(FC).plan(*steps)
    assert changes(plan, "aux.bias") == [
        {"step": "0", "op": "copy", "from": ["fc.bias"], "new": ["aux.bias"]},
        {"step": "1", "op": "widen", "new": ["aux.bias[3:4]"], "init": "mean"},
    ]
    assert changes(plan, "fc.bias") == []


def test_swapped_names_each_know_their_source(bench):
    old = {"a": torch.ones(1), "b": torch.ones(1)}
    plan = bench.given(old).plan({"op": "rename", "from": ["a", "b"], "to": ["b", "a"]})
    assert changes(plan, "a") == [{"step": "0", "op": "rename", "from": ["b"]}]
    assert changes(plan, "b") == [{"step": "0", "op": "rename", "from": ["a"]}]


def test_tied_names_have_one_history_each(bench):
    plan = bench.given({"a": torch.ones(2, 2)}, {"b": "a"}).plan(
        {"op": "widen", "target": "a", "rows": 1, "init": "ones"}
    )
    expected = {"step": "0", "op": "widen", "init": "ones"}
    assert changes(plan, "a") == [{**expected, "new": ["a[2:3]"]}]
    assert changes(plan, "b") == [{**expected, "new": ["b[2:3]"]}]


def test_replaced_tensor_is_new_all_over(bench):
    steps = [WIDEN, {"op": "replace", "target": "fc", "rows": 2}]
    plan = bench.given(FC).plan(*steps)
    assert changes(plan, "fc.weight")[-1]["new"] == ["fc.weight"]


def test_reinitialised_after_widening_is_new_all_over(bench):
    plan = bench.given(FC).plan(WIDEN, {"op": "reinit", "target": "fc"})
    assert changes(plan, "fc.weight")[-1]["new"] == ["fc.weight"]


def test_cast_keeps_what_is_new(bench):
    plan = bench.given(FC).plan(WIDEN, {"op": "cast", "target": "fc", "dtype": "F16"})
    assert [change["op"] for change in changes(plan, "fc.weight")] == ["widen", "cast"]
    assert plan.tensors["fc.weight"].new_regions() == (((3, 4), (0, 2)),)


# --- @new and @vectors ----------------------------------------------------------------------------


def test_new_selects_whole_tensors_that_were_created(bench):
    plan = bench.given(FC).plan(
        {"op": "copy", "from": "fc", "to": "aux"}, {"op": "delete", "target": "@new"}
    )
    assert set(plan.tensors) == set(FC)


def test_new_with_parts_of_tensors_is_an_error_that_names_them(bench):
    bench.given(FC)
    with pytest.raises(PlanError) as caught:
        bench.plan(WIDEN, {"op": "reinit", "target": "@new"})
    assert "'@new' holds parts of" in str(caught.value)
    assert "'fc.weight'" in str(caught.value)


def test_new_before_anything_is_created_is_an_error(bench):
    bench.given(FC)
    with pytest.raises(PlanError, match="'@new' matches nothing: this recipe has created nothing"):
        bench.plan({"op": "reinit", "target": "@new"})


def test_vectors_are_tensors_of_rank_at_most_one(bench):
    bench.given({**FC, "scale": torch.tensor(1.0)})
    plan = bench.plan({"op": "keep", "target": "@vectors"})
    assert set(plan.tensors) == {"fc.bias", "scale"}


# --- Errors and summaries -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "place"),
    [
        ([{"op": "delete", "target": "x"}], "steps[0] (delete)"),
        ([WIDEN, {"op": "delete", "target": "x"}], "steps[1] (delete)"),
        ([WIDEN, {"id": "gone", "op": "delete", "target": "x"}], "steps[1] (delete 'gone')"),
    ],
)
def test_error_names_the_step(bench, steps, place):
    bench.given(FC)
    with pytest.raises(PlanError) as caught:
        bench.plan(*steps)
    assert str(caught.value) == f"recipe.json: {place}: no tensor matches 'x'"


def test_samples_of_the_style_guide_are_spelled_that_way(bench):
    bench.given({"fc.weight": torch.zeros(4, 3)}, b={"fc.weight": torch.zeros(5, 3)})
    with pytest.raises(PlanError) as misspelt:
        bench.plan({**WIDEN, "target": "fc.wieght"})
    with pytest.raises(PlanError) as uneven:
        bench.plan({"op": "average", "models": ["b"]})
    assert str(misspelt.value) == (
        "recipe.json: steps[0] (widen): no tensor matches 'fc.wieght'; did you mean 'fc.weight'?"
    )
    assert str(uneven.value) == (
        "recipe.json: steps[0] (average): 'fc.weight' is F32 (4, 3) here but F32 (5, 3) "
        "in model 'b'"
    )


def test_error_keeps_its_exit_code(bench):
    bench.given(FC)
    with pytest.raises(CheckFailedError) as caught:
        bench.plan({"op": "expect", "target": "fc", "count": 9})
    assert caught.value.exit_code == 1


def test_summaries_say_what_each_step_did(bench):
    plan = bench.given(FC).plan(
        {"op": "copy", "from": "fc.bias", "to": "b"}, WIDEN, {"op": "delete", "target": "b"}
    )
    assert [(s.added, s.changed, s.removed) for s in plan.steps] == [
        (("b",), (), ()),
        ((), ("fc.bias", "fc.weight"), ()),
        ((), (), ("b",)),
    ]
    assert plan.dropped == ()


def test_planning_reads_no_tensor(bench, monkeypatch):
    bench.given(example_tensors(), TIES, other=example_tensors(1))
    monkeypatch.setattr(Stored, "elements", refuse)
    plan = bench.plan({"op": "slerp", "models": ["other"], "t": 0.5, "target": "encoder"}, GROW)
    assert plan.tensors["classifier.weight"].spec.shape == (8, 8)


def refuse(*arguments):
    raise AssertionError("tensor data is read while planning")


def test_metadata_of_the_recipe_is_added(bench):
    bench.given(FC)
    plan = bench.plan(output={"metadata": {"stage": "2", "format": "mine"}})
    assert plan.metadata["stage"] == "2"
    assert plan.metadata["format"] == "mine"
    assert json.loads(plan.metadata["surgeon"])["version"]


def test_new_rows_are_where_they_are_in_the_result(bench):
    """Three parts of 7 rows get a row each; as one again, rows 7, 15 and 23 are new."""
    old = {"qkv.weight": torch.zeros(21, 2)}
    parts = ["a.weight", "b.weight", "c.weight"]
    plan = bench.given(old).plan(
        {"op": "widen", "target": "qkv", "columns": 1, "init": "ones"},
        {"op": "split", "target": "qkv.weight", "dim": 0, "parts": 3, "into": parts},
        {"id": "grow", "op": "widen", "target": ["a", "b", "c"], "rows": 1, "init": "zeros"},
        {"op": "concat", "from": parts, "dim": 0, "into": "qkv.weight"},
        {"op": "narrow", "target": "qkv.weight", "keep": ["0:23", 23]},
    )
    made = {change["step"]: change.get("new") for change in changes(plan, "qkv.weight")}
    assert made["grow"] == ["qkv.weight[7:8]", "qkv.weight[15:16]", "qkv.weight[23:24]"]


def test_new_rows_that_move_are_told_where_they_went(bench):
    plan = bench.given(FC).plan(
        {"op": "widen", "target": "fc", "rows": 1, "init": "zeros"},
        {"op": "narrow", "target": "fc", "keep": [3, 0, 2]},
    )
    assert changes(plan, "fc.weight")[0]["new"] == ["fc.weight[0:1]"]
