"""unstack: a tensor for each entry of a dimension."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

STACKED = {"h.4.w": torch.randn(3, 2, 4), "h.4.b": torch.randn(3, 2).bfloat16()}


def step(source, into, **rest):
    return {"op": "unstack", "from": source, "into": into, **rest}


@pytest.mark.parametrize(("dim", "expect"), [(0, 3), (1, 2), (-1, None)])
def test_entries_are_those_of_torch(bench, dim, expect):
    rest = {"expect": expect} if expect else {}
    made = bench.given({"w": STACKED["h.4.w"]}).operate(step("w", "e.{n}", dim=dim, **rest))
    entries = STACKED["h.4.w"].unbind(dim)
    assert_identical(made.tensors, {f"e.{n}": entry for n, entry in enumerate(entries)})


def test_entries_of_a_module_are_named_by_layer_and_number(bench):
    made = bench.given(STACKED).operate(step("h.{i}", "h.{i}.e.{n}"))
    expected = {
        f"h.4.e.{number}.{leaf}": STACKED[f"h.4.{leaf}"][number]
        for number in range(3)
        for leaf in "wb"
    }
    assert_identical(made.tensors, expected)
    assert made.lineage("h.4.e.2.b") == [{"step": "0", "op": "unstack", "from": ["h.4.b"]}]


def test_entries_may_be_listed(bench):
    made = bench.given({"xy": torch.tensor([3, 4])}).operate(step("xy", ["x", "y"])).tensors
    assert_identical(made, {"x": torch.tensor(3), "y": torch.tensor(4)})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (step("h.{i}.w", "e.{n}", expect=8), "'h.4.w' is F32 (3, 2, 4): 3 entries in dimension 0"),
        (step("h.{i}.w", "e.{n}", dim=3), "'h.4.w' is F32 (3, 2, 4), and has no dimension 3"),
        (step("h.{i}.w", "e.{i}"), "'into' is 'e.{i}'; list the parts' names, or number them"),
        (step("h.{i}.w", ["x", "y"]), "'into' has 2 entries, but there are 3 parts"),
        (step("h.4.w", "h.4.{n*0}"), "'h.4.w' and 'h.4.w' and 'h.4.w' would all be 'h.4.0'"),
    ],
)
def test_impossible_unstack_says_why(bench, given, problem):
    bench.given(STACKED)
    with pytest.raises(PlanError) as caught:
        bench.plan(given)
    assert str(caught.value).startswith(f"recipe.json: steps[0] (unstack): {problem}")
