"""Mistakes that people make, and what they are told of them."""

import json

import pytest
import torch

from surgeon.base.errors import CheckpointError, PlanError, SurgeonError, UsageError
from surgeon.formats import open_checkpoint
from surgeon.recipe import load
from surgeon.recipe.locations import bind_models

NET = {"fc.weight": torch.zeros(3, 2), "body.0.weight": torch.zeros(2, 2)}
GROW = {"op": "widen", "target": "fc", "rows": 1}
RENAME = {"op": "rename", "from": "fc", "to": "head"}


def problems(recipe):
    with pytest.raises(UsageError) as caught:
        load(recipe, {})
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"steps": []}, ["'surgeon' is missing; say \"surgeon\": 1"]),
        ({"surgeon": 2, "steps": []}, ["surgeon: 2 is unknown; known is 1"]),
        ({"surgeon": 1, "steps": [], "stages": []},
         ["'stages' is unknown; it belongs in 'training'"]),
        ({"surgeon": 1, "steps": [{**GROW, "training": {}}]},
         ["steps[0]: 'training' is unknown; it belongs at the top of the recipe, beside 'steps'"]),
        ({"surgeon": 1, "steps": [{**GROW, "params": {}}]},
         ["steps[0]: 'params' is unknown; what it would hold stands beside 'op'"]),
        ({"surgeon": 1, "steps": [{"widen": {"target": "fc"}}]},
         ["steps[0]: 'op' is missing",
          'steps[0]: an op is named so: {"op": "widen", ...}']),
        ({"surgeon": 1, "steps": [], "training": {"stages": [{"name": "a", "lr": 1}]}},
         ["training.stages[0]: 'lr' is unknown; it belongs in a group of a stage's 'groups', or in "
          "optimizer.args"]),
        ({"surgeon": 1, "steps": [], "training": {"optimizer": {"class": "AdamW"}}},
         ['training.optimizer.class: "AdamW" is not the import path of a class, such as '
          "torch.optim.AdamW"]),
        ({"surgeon": 1, "steps": [{"op": "cast", "target": "a", "dtype": "quad"}]},
         ["steps[0].dtype: there is no dtype 'quad'; such as float32, float16, bfloat16"]),
    ],
)  # fmt: skip
def test_words_in_wrong_places_are_told_the_right_one(recipe, expected):
    assert problems(recipe) == [f"recipe: {line}" for line in expected]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"surgeon": 1, "steps": [],}', "no comma goes before a closing bracket"),
        ('{"surgeon": 1,\n "steps": [1, ]}', "no comma goes before a closing bracket"),
        ('{\n// grow\n"surgeon": 1}', "JSON has no comments"),
        ("{'surgeon': 1}", "strings are in double quotes"),
        ('{"surgeon": 1, "x": True}', "JSON writes true"),
        ('{"surgeon": 1, "x": None}', "JSON writes null"),
    ],
)
def test_what_is_not_json_by_habit_is_told_so(tmp_path, text, hint):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    (line,) = problems(str(path))
    assert line.startswith("recipe.json: line ")
    assert line.endswith(f"; {hint}")


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors", "folder"])
def test_a_checkpoint_in_the_recipes_place_is_told_so(bench, kind):
    path = bench.given(NET).input
    if kind in ("zip", "pickle"):
        path = bench.folder / "in.pt"
        torch.save(NET, path, _use_new_zipfile_serialization=kind == "zip")
    path = bench.folder if kind == "folder" else path
    what = "a folder" if kind == "folder" else "a checkpoint"
    assert problems(str(path)) == [
        f"{path.name}: is {what}, not a recipe; the recipe comes first, then the input"
    ]


def test_a_recipe_in_the_inputs_place_is_told_so(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"surgeon": 1, "steps": []}))
    with pytest.raises(CheckpointError, match="is a recipe, not a checkpoint; the recipe com"):
        open_checkpoint(str(path))


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([RENAME, GROW], "steps[1] (widen): no tensor matches 'fc'; steps[0] (rename) has renamed "
         "or removed it before"),
        ([{**GROW, "target": "head"}, RENAME], "steps[0] (widen): no tensor matches 'head'; "
         "steps[1] (rename) makes it, and comes later"),
        ([{**GROW, "target": "head.weight"}, RENAME], "steps[0] (widen): no tensor matches "
         "'head.weight'; steps[1] (rename) makes it, and comes later"),
        ([{**GROW, "target": "bodi.0"}], "steps[0] (widen): no tensor matches 'bodi.0'; did you "
         "mean 'body.0'?"),
        ([{"op": "rename", "from": "body.{i}", "to": "b.{j}"}], "steps[0] (rename): 'j' is neither "
         "a capture nor arithmetic with captures; there are {i}"),
    ],
)  # fmt: skip
def test_steps_in_the_wrong_order_are_told_so(bench, steps, problem):
    bench.given(NET)
    with pytest.raises(PlanError) as caught:
        bench.plan(*steps)
    assert caught.value.problems == (f"recipe.json: {problem}",)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"models": {"chat": "c.pt"}, "steps": [{"op": "average", "models": ["chatt"]}]},
         "; the steps name 'chatt': did you mean 'chat' there?"),
        ({"vars": {"n": 1}, "steps": []}, "; did you mean --set n=2?"),
        ({"steps": []}, "; leave it out, or name it there"),
    ],
)  # fmt: skip
def test_a_model_that_nothing_uses_is_told_what_was_meant(given, problem):
    extra = [] if "models" in given else ["n=2"]
    with pytest.raises(SurgeonError) as caught:
        bind_models(load({"surgeon": 1, **given}, {}), extra, {})
    assert str(caught.value).endswith(problem)


def test_a_model_that_is_not_there_is_told_how_to_give_it(bench):
    bench.given(NET)
    with pytest.raises(PlanError, match="the models are: none; --model b=PATH gives one"):
        bench.plan({"op": "average", "models": ["b"]})
