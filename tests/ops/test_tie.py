"""tie: two names, one tensor."""

import pytest
import torch
from safetensors.torch import load_file

from surgeon.base.errors import PlanError
from tests.network import assert_identical, read

W = torch.randn(3, 2)
OLD = {
    "embed.weight": W,
    "head.weight": W.clone(),
    "odd.weight": W + 1,
    "small.weight": torch.randn(2, 2),
    "half.weight": W.half(),
}


def step(target, to, **parameters):
    return {"op": "tie", "target": target, "to": to, **parameters}


@pytest.mark.parametrize(
    ("target", "to"),
    [("head.weight", "embed.weight"), ("head", "embed"), ("(head).{x}", "embed.{x}"),
     (["head"], "embed"), ("re:head\\.(?P<x>.*)", "embed.{x}")],
)  # fmt: skip
def test_equal_tensors_are_tied(bench, target, to):
    made = bench.given(OLD).operate(step(target, to))
    assert made.manifest["ties"] == {"head.weight": "embed.weight"}
    assert_identical(made.tensors, OLD)


def test_tied_tensor_is_stored_once(bench):
    bench.given(OLD)
    before = bench.operate().path.stat().st_size
    after = bench.operate(step("head", "embed")).path.stat().st_size
    assert before - after > W.nbytes - 100


def test_tie_comes_back_when_read_again(bench):
    bench.given(OLD).operate(step("head", "embed"))
    bench.input.write_bytes(bench.output.read_bytes())
    made = bench.operate({"op": "expect", "target": ["head", "embed"], "tied": True})
    assert made.manifest["ties"] == {"head.weight": "embed.weight"}


@pytest.mark.parametrize("target", ["a", "b", ["a", "c"]])
def test_the_name_tied_to_is_the_one_that_is_stored(bench, target):
    bench.given({"a": W, "b": W.clone(), "c": W.clone(), "z": W.clone(), "zz": W.clone()})
    made = bench.operate(step(target, "z"), {"op": "rename", "from": "zz", "to": "0"})
    assert made.manifest["ties"] == dict.fromkeys(target, "z")
    assert set(load_file(made.path)) == {"a", "b", "c", "z", "0"} - set(target)
    bench.input.write_bytes(bench.output.read_bytes())
    assert bench.operate().manifest["ties"] == made.manifest["ties"]


def test_differing_values_are_refused_before_anything_is_written(bench):
    bench.given(OLD)
    with pytest.raises(PlanError) as caught:
        bench.operate(step("odd", "embed"))
    assert str(caught.value) == (
        "recipe.json: steps[0] (tie): 'odd.weight' and 'embed.weight' differ; "
        '"when": "always" ties them all the same'
    )
    assert not bench.output.exists()


def test_always_takes_the_values_of_the_other_name(bench):
    made = bench.given(OLD).operate(step("odd", "embed", when="always"))
    assert_identical(made.tensors, {**OLD, "odd.weight": W})


def test_tied_names_are_widened_together_afterwards(bench):
    grow = {"op": "widen", "target": "head", "rows": 1, "init": "ones"}
    made = bench.given(OLD).operate(step("head", "embed"), grow).tensors
    expected = torch.cat([W, torch.ones(1, 2)])
    assert_identical(made, {**OLD, "embed.weight": expected, "head.weight": expected})


def test_lineage_names_the_owner(bench):
    made = bench.given(OLD).operate(step("odd", "embed", when="always"))
    assert made.lineage("odd.weight") == [{"step": "0", "op": "tie", "from": ["embed.weight"]}]


@pytest.mark.parametrize(
    ("target", "to", "problem"),
    [
        ("small", "embed", "'small.weight' is F32 (2, 2) but 'embed.weight' is F32 (3, 2)"),
        ("half", "embed", "'half.weight' is F16 (3, 2) but 'embed.weight' is F32 (3, 2)"),
        ("head", "embd", "no tensor matches 'embd.weight'; did you mean 'embed.weight'?"),
        ("head.weight", "embed", "'embed' is a module; tie 'head.weight' to a tensor"),
        ("heed", "embed", "no tensor matches 'heed'; did you mean 'head'"),
    ],
)
def test_impossible_tie_says_why(bench, target, to, problem):
    bench.given(OLD)
    with pytest.raises(PlanError) as caught:
        bench.plan(step(target, to))
    assert problem in str(caught.value)


def test_tie_of_a_tie_keeps_one_owner(bench):
    bench.given({"a": W, "b": W.clone(), "c": W.clone()})
    made = bench.operate(step("b", "a"), step("c", "b"))
    assert made.manifest["ties"] == {"b": "a", "c": "a"}
    assert_identical(read(made.path), {"a": W, "b": W, "c": W})


def test_optional_tie_of_what_is_tied_already_is_done_and_said(bench):
    bench.given({"embed.weight": W})
    made = bench.operate(step("head.weight", "embed.weight", optional=True))
    assert "'head.weight' is not stored, so nothing is tied to 'embed.weight'" in made.notes[0]
    assert_identical(made.tensors, {"embed.weight": W})
