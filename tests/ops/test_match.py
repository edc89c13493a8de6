"""match: names and shapes must be exactly another model's."""

import json

import pytest
import torch

from surgeon.errors import CheckFailedError, PlanError, UsageError
from tests.network import write

OLD = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}


def step(**parameters):
    return {"op": "match", **parameters}


@pytest.mark.parametrize(
    "shapes",
    [
        {"fc.weight": [3, 2], "fc.bias": [3]},
        {"fc.bias": {"shape": [3]}, "fc.weight": {"shape": [3, 2], "dtype": "F32"}},
        {"fc.bias": {"shape": [3], "dtype": "torch.float32"}, "fc.weight": [3, 2]},
    ],
)
@pytest.mark.parametrize("in_a_file", [True, False])
def test_exactly_these_shapes_match(bench, shapes, in_a_file):
    bench.given(OLD)
    (bench.folder / "shapes.json").write_text(json.dumps(shapes))
    bench.plan(step(shapes="shapes.json" if in_a_file else shapes))


def test_same_names_and_shapes_as_a_model_match_whatever_the_dtype(bench):
    bench.given(OLD, other={name: tensor.half() for name, tensor in OLD.items()})
    bench.plan(step(like="other"))


def test_checkpoint_is_found_beside_the_recipe(bench):
    write(bench.given(OLD).folder / "like.safetensors", OLD)
    bench.plan(step(like="like.safetensors"))


def test_every_difference_has_a_line(bench):
    bench.given(OLD, other={"fc.wieght": torch.zeros(3, 2), "fc.bias": torch.zeros(4)})
    with pytest.raises(CheckFailedError) as caught:
        bench.plan(step(like="other"))
    assert caught.value.exit_code == 1
    place = "recipe.json: steps[0] (match): "
    assert sorted(caught.value.problems) == [
        f"{place}'fc.weight' (3, 2) is not expected",
        f"{place}'fc.wieght' (3, 2) is missing; did you mean 'fc.weight'?",
        f"{place}expected 'fc.bias' to have shape (4,), found (3,)",
    ]


def test_stated_dtype_is_compared(bench):
    bench.given({"x": torch.zeros(2)})
    with pytest.raises(CheckFailedError, match="expected 'x' to be BF16, found F32"):
        bench.plan(step(shapes={"x": {"shape": [2], "dtype": "BF16"}}))


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"x": "2"}, "shapes: 'x' has no shape such as"),
        ({"x": [2.0]}, "shapes: 'x' has no shape such as"),
        ({"x": [True]}, "shapes: 'x' has no shape such as"),
        ({"x": {"dtype": "F32"}}, "shapes: 'x' has no shape such as"),
        ({"x": {"shape": [2], "dtype": "F31"}}, "shapes: 'x' has no dtype 'F31'"),
        ({"x": {"shape": [2], "dtype": 3}}, "shapes: 'x' has no dtype 3"),
    ],
)
def test_what_is_no_list_of_shapes_says_so(bench, shapes, problem):
    bench.given({"x": torch.zeros(2)})
    with pytest.raises(PlanError, match=problem):
        bench.plan(step(shapes=shapes))


@pytest.mark.parametrize(("text", "problem"), [("[]", "not an object"), ("{", "line 1, column 2")])
def test_damaged_shapes_file_says_so(bench, text, problem):
    bench.given({"x": torch.zeros(2)})
    (bench.folder / "s.json").write_text(text)
    with pytest.raises((PlanError, UsageError), match=rf"\(match\): s.json: {problem}"):
        bench.plan(step(shapes="s.json"))


@pytest.mark.parametrize("parameters", [{"shapes": "none.json"}, {"like": "none.safetensors"}])
def test_missing_file_says_so(bench, parameters):
    bench.given({"x": torch.zeros(2)})
    with pytest.raises(Exception, match=r"none\.\w+: (cannot be read|no such file)"):
        bench.plan(step(**parameters))


@pytest.mark.parametrize("parameters", [{}, {"shapes": {}, "like": "other"}])
def test_exactly_one_side_is_given(bench, parameters):
    with pytest.raises(UsageError, match="give exactly one of 'shapes', 'like'"):
        bench.recipe(step(**parameters))
