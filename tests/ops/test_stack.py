"""stack: one tensor of several, along a new dimension."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

EXPERTS = {
    f"h.{layer}.e.{expert}.{leaf}": torch.randn(*shape)
    for layer in range(2)
    for expert in range(11)
    for leaf, shape in (("w", (2, 3)), ("b", (2,)))
}


def step(source, into, **rest):
    return {"op": "stack", "from": source, "into": into, **rest}


def stacked(dim):
    return {
        f"h.{layer}.e.{leaf}": torch.stack(
            [EXPERTS[f"h.{layer}.e.{expert}.{leaf}"] for expert in range(11)], dim
        )
        for layer in range(2)
        for leaf in "wb"
    }


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_experts_are_stacked_in_the_order_of_their_numbers(bench, dim):
    made = bench.given(EXPERTS).operate(step("h.{i}.e.{e}", "h.{i}.e", dim=dim, expect=11))
    assert_identical(made.tensors, stacked(dim))


def test_listed_entries_keep_their_order(bench):
    made = bench.given({"a": torch.tensor(1), "b": torch.tensor(2)}).operate(step(["b", "a"], "c"))
    assert_identical(made.tensors, {"c": torch.tensor([2, 1])})


def test_stacking_and_back_is_the_same_file(bench):
    back = {"op": "unstack", "from": "h.{i}.e.{leaf}", "into": "h.{i}.e.{e}.{leaf}", "expect": 11}
    made = bench.given(EXPERTS).operate(step("h.{i}.e.{e}", "h.{i}.e"), back)
    assert_identical(made.tensors, EXPERTS)


def test_stacked_entries_are_copied_not_computed(bench):
    plan = bench.given(EXPERTS).plan(step("h.{i}.e.{e}", "h.{i}.e"))
    pieces = [*plan.tensors["h.0.e.w"].pieces(0, 66)]
    assert [type(piece).__name__ for piece in pieces] == ["ByteRange"] * 11


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (step("e.{i}.w", "e.w"), "'e.w' lacks a part between 'e.1.w' and 'e.3.w'"),
        (
            step(["a", "b"], "w"),
            "'b' is F32 (3,) but 'a' is F32 (2,); parts have one dtype and one",
        ),
        (step(["a", "e.0.w"], "w"), "'e.0.w' is F16 (2,) but 'a' is F32 (2,)"),
        (step("a", "w", dim=2), "'a' is F32 (2,), and has no dimension 2"),
        (step("a", "w", expect=2), "'w' has 1 parts, but expected 2"),
    ],
)
def test_impossible_stack_says_why(bench, given, problem):
    half = {f"e.{i}.w": torch.ones(2).half() for i in (0, 1, 3)}
    bench.given({"a": torch.ones(2), "b": torch.ones(3), **half})
    with pytest.raises(PlanError) as caught:
        bench.plan(given)
    assert str(caught.value).startswith(f"recipe.json: steps[0] (stack): {problem}")
