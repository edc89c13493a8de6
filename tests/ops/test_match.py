"""match: names and shapes must be exactly another model's."""

import json
import os
import re
import sys

import pytest
import torch

from surgeon import surgery
from surgeon.base.errors import CheckFailedError, PlanError, UsageError
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
    with pytest.raises(
        UsageError, match="give exactly one of 'shapes', 'like', 'module', 'transformers'"
    ):
        bench.recipe(step(**parameters))


# --- Against a module of the user's own -----------------------------------------------------------

MODULE = """
import torch

print("built")

class Net(torch.nn.Module):
    def __init__(self, classes=3, tied=True):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 2)
        self.head = torch.nn.Linear(2, 5, bias=False)
        self.fc = torch.nn.Linear(2, classes)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("cache", torch.ones(9), persistent=False)
        if tied:
            self.head.weight = self.embed.weight
        assert self.fc.weight.device.type == "meta"

def fails(**kwargs):
    raise RuntimeError("two\\nlines")

def leaves():
    raise SystemExit(7)

def number():
    return 3
"""
NET = {**OLD, "embed.weight": torch.zeros(5, 2), "scale": torch.zeros(1)}
TIED = {"head.weight": "embed.weight"}


@pytest.fixture
def planned(bench, monkeypatch, tmp_path_factory):
    """Plan a match against the module; its package is in the current directory."""
    here = tmp_path_factory.mktemp("here")
    package = f"package_{here.name}"
    (here / f"{package}.py").write_text(MODULE)
    monkeypatch.chdir(here)

    def plan(factory, *before, tensors=NET, ties=TIED, allow_code=True, **kwargs):
        bench.given(tensors, ties)
        wanted = step(module=f"{package}:{factory}", **({"kwargs": kwargs} if kwargs else {}))
        recipe = bench.recipe(*before, wanted)
        with surgery.opened(recipe, str(bench.input), {}, allow_code=allow_code):
            pass

    return plan


def test_what_a_module_is_loaded_with_matches(planned, capsys):
    before = list(sys.path)
    planned("Net")
    planned("Net", classes=3)
    assert sys.path == before
    assert capsys.readouterr() == ("", "built\n")


def test_one_name_of_tied_ones_is_enough(planned):
    planned("Net", ties={})
    planned("Net", {"op": "rename", "from": "embed", "to": "head"}, ties={})


def test_code_is_run_only_where_that_is_allowed(planned, capsys):
    with pytest.raises(UsageError, match="would be imported and run; --allow-code allows that"):
        planned("Net", allow_code=False)
    assert capsys.readouterr() == ("", "")


def test_every_difference_from_a_module_has_a_line(planned):
    tensors = {"fc.weight": torch.zeros(3, 2), "cache": torch.zeros(9), "scale": torch.zeros(1)}
    with pytest.raises(CheckFailedError) as caught:
        planned("Net", tensors=tensors, ties={}, classes=4)
    assert [problem.partition(": steps[0] (match): ")[2] for problem in caught.value.problems] == [
        "'embed.weight' (5, 2) is missing",
        "'head.weight' (5, 2) is missing",
        "expected 'fc.weight' to have shape (4, 2), found (3, 2)",
        "'fc.bias' (4,) is missing",
        "'cache' (9,) is not expected",
    ]


def test_names_are_tied_as_the_module_ties_them(planned):
    both = {**NET, "head.weight": torch.zeros(5, 2)}
    problem = "'head.weight' and 'embed.weight' are one tensor in the module; tie them"
    with pytest.raises(CheckFailedError, match=problem):
        planned("Net", tensors=both, ties={})
    with pytest.raises(CheckFailedError, match="are two tensors in the module; untie them"):
        planned("Net", tied=False)
    planned("Net", tensors=both, ties={}, tied=False)


@pytest.mark.parametrize(
    ("factory", "problem"),
    [
        ("fails", "raised RuntimeError: two lines"),
        ("leaves", "raised SystemExit: 7"),
        ("number", "returned int, expected a torch.nn.Module"),
        ("absent", "raised AttributeError: module 'package_"),
        ("Net.absent", "raised AttributeError: type object 'Net'"),
    ],
)
def test_what_goes_wrong_in_the_code_is_one_line(planned, factory, problem):
    before = list(sys.path)
    with pytest.raises(PlanError, match=re.escape(problem)) as caught:
        planned(factory)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 4
    assert sys.path == before


def test_wrong_keyword_arguments_are_one_line(planned):
    with pytest.raises(PlanError, match="raised TypeError: Net"):
        planned("Net", klasses=3)


def test_module_that_is_not_there_says_so(bench):
    bench.given(OLD)
    recipe = bench.recipe(step(module="no_such_package.net:Net"))
    with (
        pytest.raises(PlanError, match="raised ModuleNotFoundError: No module named 'no_such_pack"),
        surgery.opened(recipe, str(bench.input), {}, allow_code=True),
    ):
        pass


@pytest.mark.parametrize("module", ["package.module", "a b:c", ":Net", "package:"])
def test_module_is_a_package_and_a_factory(bench, module):
    with pytest.raises(UsageError, match=r"steps\[0\].module: "):
        bench.recipe(step(module=module))


def test_keyword_arguments_need_a_module(bench):
    bench.given(OLD)
    with pytest.raises(UsageError, match="'kwargs' are those of a 'module'"):
        bench.plan(step(shapes={}, kwargs={}))


def test_shapes_in_what_is_no_file_are_not_waited_for(bench):
    os.mkfifo(bench.folder / "shapes.json")
    with pytest.raises(UsageError, match=r"shapes\.json: not a regular file"):
        bench.given({"a": torch.ones(1)}).plan({"op": "match", "shapes": "shapes.json"})
