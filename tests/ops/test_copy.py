"""copy: tensors under a second name, from here or from another model."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

OLD = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3), "h.0.w": torch.randn(2)}
OTHER = {"a.weight": torch.randn(3, 2).bfloat16(), "x.0.w": torch.ones(1), "x.1.w": torch.ones(2)}


def step(source, to, **parameters):
    return {"op": "copy", "from": source, "to": to, **parameters}


def test_copy_holds_the_same_bits(bench):
    made = bench.given(OLD).operate(step("a", "b")).tensors
    assert_identical(made, {**OLD, "b.weight": OLD["a.weight"], "b.bias": OLD["a.bias"]})


def test_copy_is_no_tie(bench):
    made = bench.given(OLD).operate(step("a", "b"))
    assert made.manifest["ties"] == {}
    assert "b.weight" in made.path.read_bytes().decode("latin-1")


def test_copy_from_a_model_keeps_its_dtype(bench):
    made = bench.given(OLD, other=OTHER).operate(step("a.weight", "b.w", model="other"))
    assert_identical({"b.w": made["b.w"]}, {"b.w": OTHER["a.weight"]})
    assert made.lineage("b.w") == [
        {"step": "0", "op": "copy", "from": ["other:a.weight"], "new": ["b.w"]}
    ]


def test_captures_renumber_copies(bench):
    made = bench.given(OLD, other=OTHER).operate(step("x.{i}", "h.{i+1}", model="other")).tensors
    assert_identical(made, {**OLD, "h.1.w": OTHER["x.0.w"], "h.2.w": OTHER["x.1.w"]})


def test_copies_of_tied_names_are_tied_to_each_other(bench):
    bench.given({"a.w": torch.ones(2)}, {"b.w": "a.w"})
    made = bench.operate(step(["a", "b"], ["c", "d"]))
    assert made.manifest["ties"] == {"b.w": "a.w", "d.w": "c.w"}


def test_copy_of_a_copy_is_traced(bench):
    made = bench.given(OLD).operate(step("a.bias", "b"), step("b", "c"))
    assert [change.get("from") for change in made.lineage("c")] == [["a.bias"], ["b"]]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("a.bias", "a.weight"), "'a.weight' and 'a.bias' would both be 'a.weight'"),
        (("a.*", "b"), "'a.bias' and 'a.weight' would both be 'b'"),
        (("c", "d"), "no tensor matches 'c'"),
    ],
)
def test_impossible_copy_says_why(bench, given, problem):
    bench.given(OLD)
    with pytest.raises(PlanError) as caught:
        bench.plan(step(*given))
    assert str(caught.value).startswith(f"recipe.json: steps[0] (copy): {problem}")


def test_unknown_model_names_those_that_there_are(bench):
    bench.given(OLD, other=OTHER)
    with pytest.raises(PlanError, match="there is no model 'othr'; did you mean 'other'"):
        bench.plan(step("a", "b", model="othr"))


def test_pattern_is_looked_up_in_the_model(bench):
    bench.given(OLD, other=OTHER)
    with pytest.raises(PlanError, match=r"no tensor matches 'h.0.w'; did you mean 'x.0.w'"):
        bench.plan(step("h.0.w", "h.1.w", model="other"))
