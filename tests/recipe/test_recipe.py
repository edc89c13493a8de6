"""Reading recipes: variables, and every mistake at once with its place."""

from __future__ import annotations

import json
import time

import pytest

from surgeon.base.errors import SurgeonError, UsageError
from surgeon.recipe import find, load, read_json, ready_made
from surgeon.recipe.variables import TypedNumber

WIDEN = {"op": "widen", "target": "fc", "rows": 1}


@pytest.fixture
def written(tmp_path):
    """Write recipe.json from text, bytes or steps and the other sections; returns its path."""

    def write(*steps, raw=None, **rest):
        path = tmp_path / "recipe.json"
        text = raw if raw is not None else json.dumps({"surgeon": 1, "steps": steps, **rest})
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def problems(path, **overrides):
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    assert all("\n" not in line for line in caught.value.problems)
    return list(caught.value.problems)


# --- What is not JSON -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"surgeon": 1,\n "steps": [}', "recipe.json: line 2, column 12: Expecting value"),
        ("", "recipe.json: line 1, column 1: Expecting value"),
        ('{"surgeon": 1} x', "recipe.json: line 1, column 16: Extra data"),
        ("{'surgeon': 1}", "recipe.json: line 1, column 2: Expecting property name"),
        ('{"a": 1, "a": 2}', "recipe.json: 'a' is there twice in one object"),
        ('{"a": {"x": 1, "x": 1, "y": 1, "y": 2}}', "recipe.json: 'x', 'y' is there twice"),
        ('{"a": NaN}', "recipe.json: NaN is not JSON"),
        ('{"a": -Infinity}', "recipe.json: -Infinity is not JSON"),
        (b'\xef\xbb\xbf{"surgeon": 1}', "recipe.json: "),
        (b'{"a": "\xff"}', "recipe.json: not UTF-8 at byte 7"),
        ('{"surgeon": 1}'.encode("utf-16"), "recipe.json: not UTF-8"),
        ("[" * 100_000, "recipe.json: nested too deeply"),
        ('{"a":' * 100_000, "recipe.json: nested too deeply"),
        ('{"a": 1e999}', "recipe.json: 1e999 is beyond the largest number"),
        ('{"a": "\\ud800"}', "recipe.json: half of a surrogate pair is not Unicode"),
        (
            '{"seed": ' + "9" * 5000 + "}",
            "recipe.json: 99999999999999999999... is beyond",
        ),
    ],
)
def test_malformed_json_is_one_line_with_its_place(raw, expected, written):
    (line,) = problems(written(raw=raw))[:1]
    assert line.startswith(expected)


def test_byte_order_mark_is_refused(written):
    raw = b'\xef\xbb\xbf{"surgeon": 1, "steps": []}'
    assert problems(written(raw=raw))


@pytest.mark.parametrize("raw", ["[]", "1", '"widen"', "null", "true"])
def test_what_is_not_an_object_is_refused(raw, written):
    (line,) = problems(written(raw=raw))
    assert line == f"recipe.json: {raw} is not of type object"


def test_missing_file_is_one_line(tmp_path):
    assert problems(str(tmp_path / "none.json"))


def test_folder_is_one_line(tmp_path):
    (line,) = problems(str(tmp_path))
    assert "is a folder, not a recipe" in line


def test_unknown_ready_made_recipe_is_one_line():
    with pytest.raises(UsageError, match="nosuch: no such recipe file"):
        find("nosuch")


@pytest.mark.parametrize("name", ready_made())
def test_ready_made_recipe_is_found_by_name(name):
    assert find(name).stem == name


# --- The frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, ["'surgeon' is missing; say \"surgeon\": 1", "'steps' is missing"]),
        ({"surgeon": 1}, ["'steps' is missing"]),
        ({"surgeon": 2, "steps": []}, ["surgeon: 2 is unknown; known is 1"]),
        ({"surgeon": "1", "steps": []}, ['surgeon: "1" is unknown; known is 1']),
        ({"surgeon": 1, "steps": {}}, ["steps: {} is not of type array"]),
        ({"surgeon": 1, "steps": ["widen"]}, ['steps[0]: "widen" is not of type object']),
        ({"surgeon": 1, "steps": [{}]}, ["steps[0]: 'op' is missing"]),
        ({"surgeon": 1, "steps": [{"op": 3}]}, ["steps[0].op: 3 is not of type string"]),
        ({"surgeon": 1, "steps": [], "step": []}, ["'step' is unknown; did you mean 'steps'?"]),
        ({"surgeon": 1, "steps": [], "seed": -1}, ["seed: -1 is less than the minimum of 0"]),
        ({"surgeon": 1, "steps": [], "seed": 0.5}, ["seed: 0.5 is not of type integer"]),
        ({"surgeon": 1, "steps": [], "seed": True}, ["seed: true is not of type integer"]),
        ({"surgeon": 1, "steps": [], "models": {"a": 1}},
         ["models.a: 1 is not of type string or null"]),
        ({"surgeon": 1, "steps": [], "models": ["a"]}, ['models: ["a"] is not of type object']),
        ({"surgeon": 1, "steps": [], "output": {"dtype": "bfloat"}},
         ["output.dtype: there is no dtype 'bfloat'; did you mean 'bfloat16'?"]),
        ({"surgeon": 1, "steps": [], "output": {"shard_size": "5XB"}},
         ["output.shard_size: '5XB' is not a size like 512MB, 5GB or 256MiB"]),
        ({"surgeon": 1, "steps": [], "output": {"metadata": {"a": 1}}},
         ["output.metadata.a: 1 is not of type string"]),
        ({"surgeon": 1, "steps": [], "training": {"stages": []}},
         ["training.stages: [] should be non-empty"]),
    ],
)  # fmt: skip
def test_mistake_in_the_frame_is_named_with_its_place(text, expected, written):
    assert problems(written(raw=json.dumps(text))) == [f"recipe.json: {line}" for line in expected]


# --- Steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({**WIDEN, "rows": 0}, "steps[0].rows: 0 is less than the minimum of 1"),
        ({**WIDEN, "rows": "x"}, 'steps[0].rows: "x" is not of type integer'),
        ({**WIDEN, "rows": 1.5}, "steps[0].rows: 1.5 is not of type integer"),
        ({**WIDEN, "rows": True}, "steps[0].rows: true is not of type integer"),
        ({**WIDEN, "row": 1}, "steps[0]: 'row' is unknown; did you mean 'rows'?"),
        ({**WIDEN, "to": 3}, "steps[0]: give exactly one of 'rows', 'columns', 'to'"),
        ({"op": "widen", "target": "fc"}, "steps[0]: give exactly one of 'rows', 'columns', 'to'"),
        ({"op": "widen", "rows": 1}, "steps[0]: 'target' is missing"),
        ({"op": "widne"}, "steps[0].op: there is no op 'widne'; did you mean 'widen'?"),
        ({"op": "qqqq"}, "steps[0].op: there is no op 'qqqq'; `surgeon ops` lists them"),
        ({"op": "delete", "target": []}, "steps[0].target: [] should be non-empty"),
        ({"op": "delete", "target": ""}, "steps[0].target: '' should be non-empty"),
        ({"op": "delete", "target": [1]}, "steps[0].target[0]: 1 is not of type string"),
        ({"op": "delete", "target": 1}, "steps[0].target: 1 is not of type string or array"),
        ({"op": "delete", "target": "a.(b"}, "steps[0].target: 'a.(b': '(' without a ')'"),
        ({"op": "delete", "target": ["a", "re:("]},
         "steps[0].target[1]: 're:(' is not a regular expression: "),
        ({"op": "delete", "target": "@old"}, "steps[0].target: '@old' is unknown"),
        ({"op": "rename", "from": "a", "to": "b.*"}, "steps[0].to: 'b.*': '*' has no meaning"),
        ({"op": "cast", "target": "a", "dtype": "bf61"},
         "steps[0].dtype: there is no dtype 'bf61'; did you mean 'bf16'?"),
        ({"op": "cast", "target": "a", "dtype": "F32", "overflow": "saturated"},
         "steps[0].overflow: 'saturated' is unknown; did you mean 'saturate'?"),
        ({**WIDEN, "init": "kaiming_unifrom"},
         "steps[0].init: 'kaiming_unifrom' is unknown; did you mean 'kaiming_uniform'"),
        ({**WIDEN, "init": {"name": "normal", "sdt": 1}},
         "steps[0].init: 'sdt' is unknown; did you mean 'std'?"),
        ({**WIDEN, "init": {"std": 1}}, "steps[0].init: 'name' is missing"),
        ({**WIDEN, "init": 3}, "steps[0].init: 3 is not of type string or object"),
        ({**WIDEN, "id": "1a"}, "steps[0].id: '1a' does not match"),
        ({**WIDEN, "optional": "yes"}, 'steps[0].optional: "yes" is not of type boolean'),
        ({"op": "rebasin", "models": ["a"], "t": 1.5},
         "steps[0].t: 1.5 is greater than the maximum of 1"),
        ({"op": "rebasin", "models": ["a"], "t": {"by_layer": [0, 2]}},
         "steps[0].t.by_layer[1]: 2 is greater than the maximum of 1"),
        ({"op": "slerp", "models": ["a"], "t": {"by_layr": [0]}},
         "steps[0].t: 'by_layr' is unknown; did you mean 'by_layer'?"),
        ({"op": "slerp", "models": ["a"], "t": [{"valu": 1}]},
         "steps[0].t[0]: 'valu' is unknown; did you mean 'value'?"),
        ({"op": "slerp", "models": ["a"]}, "steps[0]: 't' is missing"),
        ({"op": "average", "models": []}, "steps[0].models: [] should be non-empty"),
        ({"op": "average", "models": "b"}, "steps[0].models: "),
        ({"op": "average", "models": ["b"], "weights": ["1"]},
         'steps[0].weights[0]: "1" is not of type number or object or array'),
    ],
)  # fmt: skip
def test_mistake_in_a_step_is_named_with_its_place(step, expected, written):
    found = problems(written(step))
    assert any(line.startswith(f"recipe.json: {expected}") for line in found), found


def test_all_mistakes_are_reported_at_once(written):
    steps = [WIDEN, {"op": "widne"}, {**WIDEN, "rows": 0, "init": "nrmal"}, {"op": "delete"}]
    found = problems(written(*steps, seed=-1, sed=1))
    assert [line.removeprefix("recipe.json: ").partition(":")[0] for line in found] == [
        "'sed' is unknown; did you mean 'seed'?",
        "seed",
        "steps[1].op",
        "steps[2].init",
        "steps[2].rows",
        "steps[3]",
    ]


def test_more_than_ten_steps_are_reported_in_their_order(written):
    found = problems(written(*({**WIDEN, "rows": 0} for _ in range(12))))
    assert [line.partition(".rows")[0] for line in found] == [
        f"recipe.json: steps[{index}]" for index in range(12)
    ]


def test_duplicate_ids_name_the_first(written):
    steps = [{**WIDEN, "id": "grow"}, WIDEN, {**WIDEN, "id": "grow"}]
    (line,) = problems(written(*steps))
    assert line == "recipe.json: steps[2].id: 'grow' is the id of steps[0] already"


def test_place_of_a_step_holds_its_id(written):
    recipe = load(written(WIDEN, {**WIDEN, "id": "grow"}), {})
    assert [step.place for step in recipe.steps] == ["steps[0] (widen)", "steps[1] (widen 'grow')"]


# --- Variables ------------------------------------------------------------------------------------


def step_of(recipe):
    return dict(recipe.steps[0].parameters)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("count", 2),
        ("target", "x"),
        ("target", ["x", "y"]),
        ("finite", True),
        ("shape", [1, None]),
        ("equal_to", ["other"]),
    ],
)
def test_whole_string_takes_the_variables_json_value(parameter, value, written):
    step = {"op": "expect", "target": "fc", parameter: "${v}"}
    assert step_of(load(written(step, vars={"v": value}), {}))[parameter] == value


def test_object_is_a_value_too(written):
    step = {"op": "reinit", "target": "fc", "init": "${v}"}
    value = {"name": "normal", "std": 0.5}
    assert step_of(load(written(step, vars={"v": value}), {}))["init"] == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [("lin3", "lin3.weight"), (3, "3.weight"), (True, "true.weight"), (0.5, "0.5.weight")],
)
def test_inside_a_string_a_variable_is_inserted_as_text(value, expected, written):
    recipe = load(written({"op": "delete", "target": "${v}.weight"}, vars={"v": value}), {})
    assert step_of(recipe)["target"] == expected


def test_several_variables_in_one_string(written):
    variables = {"a": "h", "b": 3}
    recipe = load(written({"op": "delete", "target": "${a}.${b}.${a}"}, vars=variables), {})
    assert step_of(recipe)["target"] == "h.3.h"


def test_list_variable_is_a_list(written):
    path = written({"op": "delete", "target": "${names}"}, vars={"names": ["a", "b"]})
    assert step_of(load(path, {}))["target"] == ["a", "b"]


def test_variable_inside_a_list_and_an_object(written):
    step = {**WIDEN, "target": ["${t}", "x"], "init": {"name": "normal", "std": "${s}"}}
    recipe = load(written(step, vars={"t": "fc", "s": 0.02}), {})
    assert step_of(recipe)["target"] == ["fc", "x"]
    assert step_of(recipe)["init"] == {"name": "normal", "std": 0.02}


def test_variables_work_in_every_section(written):
    recipe = load(
        written(
            models={"other": "${run}/model.safetensors"},
            seed="${seed}",
            output={"dtype": "${dtype}", "metadata": {"run": "${run}"}},
            training={"stages": [{"name": "${run}", "groups": [
                {"name": "g", "params": ["fc"], "lr": "${lr}"}]}]},
            vars={"run": "r1", "seed": 7, "dtype": "bfloat16", "lr": 0.1},
        ),
        {},
    )  # fmt: skip
    assert recipe.models == {"other": "r1/model.safetensors"}
    assert recipe.seed == 7
    assert recipe.output == {"dtype": "bfloat16", "metadata": {"run": "r1"}}
    assert recipe.training["stages"][0]["groups"][0]["lr"] == 0.1


def test_variables_value_is_not_substituted_again(written):
    path = written({"op": "delete", "target": "${a}"}, vars={"a": "${b}", "b": "x"})
    assert step_of(load(path, {}))["target"] == "${b}"


@pytest.mark.parametrize(
    ("target", "value", "count"),
    [
        ("${a}", "x" * 100_000, 101),
        ("${a}" * 101, "x" * 100_000, 1),
        ("${a}", ["x" * 100] * 1000, 99),
    ],
)
def test_variables_add_so_much_and_no_more(written, target, value, count):
    step = {"op": "delete", "target": target}
    assert problems(written(*[step] * count, vars={"a": value})) == [
        "recipe.json: its variables add more than 10,000,000 characters to it"
    ]


def test_wrong_value_of_a_variable_is_an_error_where_it_is_used(written):
    (line,) = problems(written({**WIDEN, "rows": "${n}"}, vars={"n": "many"}))
    assert line == 'recipe.json: steps[0].rows: "many" is not of type integer; give --set n=3'


def test_override_replaces_the_declared_value(written):
    path = written({**WIDEN, "rows": "${n}"}, vars={"n": 1})
    assert step_of(load(path, {"n": 5}))["rows"] == 5
    assert load(path, {"n": 5}).variables == {"n": 5}


def test_null_variable_must_be_set(written):
    path = written({**WIDEN, "rows": "${n}"}, vars={"n": None})
    assert problems(path) == ["recipe.json: vars.n: must be set; give --set n=3"]
    assert step_of(load(path, {"n": 2}))["rows"] == 2


LAYERS = {"op": "layers", "container": "${c}", "take": "${t}"}
HERE = {"c": "h", "t": 0}


@pytest.mark.parametrize(
    ("step", "given", "key", "expected"),
    [
        ({"op": "delete", "target": "${x}"}, 2, "target", "2"),
        ({"op": "delete", "target": ["a", "${x}"]}, 2, "target", ["a", "2"]),
        ({"op": "delete", "target": "${x}"}, [2, "b"], "target", ["2", "b"]),
        ({"op": "delete", "target": "${x}"}, True, "target", "true"),
        ({"op": "delete", "target": "${x}.w"}, 1.5, "target", "1.5.w"),
        ({**WIDEN, "rows": "${x}"}, 2, "rows", 2),
        ({**WIDEN, "target": "${x}"}, TypedNumber("1.10"), "target", "1.10"),
        ({**WIDEN, "target": "${x}.w"}, TypedNumber("1.10"), "target", "1.10.w"),
        ({**LAYERS, "container": "h", "take": "${x}"}, "0:4", "take", ["0:4"]),
        ({**LAYERS, "container": "h", "take": "${x}"}, 3, "take", [3]),
        ({**LAYERS, "container": "h", "take": "${x}"}, {"range": 1}, "take", [{"range": 1}]),
        ({"op": "layers", "container": "h", "take": [{"range": 0, "zero": "${x}"}]}, 7, "take",
         [{"range": 0, "zero": ["7"]}]),
        ({"op": "narrow", "target": "a", "keep": "${x}"}, "0:4", "keep", "0:4"),
        ({"op": "narrow", "target": "a", "keep": "${x}"}, 4, "keep", 4),
    ],
)  # fmt: skip
def test_a_variable_takes_the_form_that_its_place_wants(written, step, given, key, expected):
    recipe = load(written(step, vars={"x": None}), {"x": given})
    assert step_of(recipe)[key] == expected
    assert recipe.variables == {"x": given}


def test_each_place_takes_a_form_of_its_own(written):
    steps = [{"op": "delete", "target": "${x}"}, {**WIDEN, "rows": "${x}"},
             {**LAYERS, "container": "${x}", "take": "${x}"}]  # fmt: skip
    recipe = load(written(*steps, vars={"x": 2}), {})
    found = [step.parameters for step in recipe.steps]
    assert (found[0]["target"], found[1]["rows"]) == ("2", 2)
    assert (found[2]["container"], found[2]["take"]) == ("2", [2])


@pytest.mark.parametrize(
    ("step", "given", "problem"),
    [
        ({**WIDEN, "rows": "${x}"}, "2", 'rows: "2" is not of type integer; give --set x=3'),
        ({**WIDEN, "rows": "${x}"}, [2], "rows: [2] is not of type integer; give --set x=3"),
        ({**WIDEN, "rows": "${x}"}, True, "rows: true is not of type integer; give --set x=3"),
        ({"op": "delete", "target": "${x}"}, {"a": 1},
         'target: {"a": 1} is not of type string or array; give --set x=NAME'),
        ({**LAYERS, "container": "h", "take": "${x}"}, "a:b", "take[0]: 'a:b' is not an index"),
        ({"op": "scale", "target": "a", "by": "${x}"}, "half",
         'by: "half" is not of type number; give --set x=0.5'),
    ],
)  # fmt: skip
def test_a_variable_of_no_form_that_fits_is_told_one(written, step, given, problem):
    (line,) = problems(written(step, vars={"x": None}), x=given)
    assert line.startswith(f"recipe.json: steps[0].{problem}")


def test_variables_that_must_be_set_are_told_their_forms(written):
    step = {**LAYERS, "about": "${a}", "take": "${t}"}
    training = {"stages": [{"name": "s", "freeze": "${f}"}]}
    unset = dict.fromkeys(("a", "c", "t", "f", "nowhere"))
    forms = {"a": "NAME", "c": "NAME", "t": """'["a", "b"]'""", "f": "NAME", "nowhere": "VALUE"}
    assert problems(written(step, vars=unset, training=training)) == [
        f"recipe.json: vars.{name}: must be set; give --set {name}={form}"
        for name, form in forms.items()
    ]


def test_setting_an_undeclared_variable_names_the_nearest(written):
    path = written(WIDEN, vars={"layer": "fc"})
    assert problems(path, layr="x") == [
        "recipe.json: --set layr: the recipe declares no variable of that name; "
        "did you mean 'layer'?"
    ]


def test_setting_a_variable_of_a_recipe_without_any(written):
    (line,) = problems(written(WIDEN), x=1)
    assert line.endswith("; it declares none")


def test_undeclared_variable_is_named_with_its_place(written):
    path = written(WIDEN, {**WIDEN, "target": ["a", "${layr}"]}, vars={"layer": "fc"})
    assert problems(path) == [
        "recipe.json: steps[1].target[1]: '${layr}' is not declared under 'vars'; "
        "did you mean 'layer'?"
    ]


def test_all_undeclared_variables_are_listed(written):
    path = written({**WIDEN, "target": "${a}.${b}"}, {**WIDEN, "rows": "${c}"})
    assert [line.partition("'$")[2][1:2] for line in problems(path)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["1a", "a-b", "", "a b"])
def test_variables_have_plain_names(name, written):
    (line,) = problems(written(WIDEN, vars={name: 1}))
    assert line.startswith("recipe.json: vars: ")


def test_text_that_only_looks_like_a_variable_stays(written):
    recipe = load(written({"op": "delete", "target": "a$b", "about": "$x {y} ${1}"}), {})
    assert step_of(recipe)["target"] == "a$b"


# --- The rest -------------------------------------------------------------------------------------


def test_hash_depends_on_meaning_only(written):
    spaced = '{ "steps" : [ {"op":"delete", "target":"x"} ],\n\n "surgeon":1}'
    first = load(written(raw=spaced), {}).sha256
    assert load(written({"op": "delete", "target": "x"}), {}).sha256 == first
    assert load(written({"op": "delete", "target": "y"}), {}).sha256 != first


def test_hash_depends_on_the_variables_values(written):
    path = written({**WIDEN, "rows": "${n}"}, vars={"n": 1})
    assert load(path, {"n": 2}).sha256 != load(path, {}).sha256


def test_schema_word_and_about_are_allowed(written):
    raw = {"$schema": "recipe.schema.json", "surgeon": 1, "about": "x", "steps": []}
    assert load(written(raw=json.dumps(raw)), {}).about == "x"


def test_huge_recipe_is_read_in_seconds(written):
    steps = [{**WIDEN, "about": "x" * 10_000}] * 999 + [{**WIDEN, "rows": 0}]
    start = time.perf_counter()
    found = problems(written(*steps))
    assert found == ["recipe.json: steps[999].rows: 0 is less than the minimum of 1"]
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("place", ["'{'", "'[1,'", "'\"'"])
def test_huge_malformed_recipe_is_one_line(place, written):
    (line,) = problems(written(raw=place.strip("'") * 5_000_000))
    assert len(line) < 200


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_deep_nesting_is_one_line(depth, written):
    nested = '{"name":' * depth + "1" + "}" * depth
    step = f'{{"op": "reinit", "target": "a", "init": {nested}}}'
    raw = f'{{"surgeon": 1, "steps": [{step}]}}'
    with pytest.raises(SurgeonError) as caught:
        load(written(raw=raw), {})
    assert all(len(line) < 300 for line in caught.value.problems)


def test_long_values_are_shortened_in_errors(written):
    (line,) = problems(written({**WIDEN, "rows": "x" * 10_000}))
    assert len(line) < 150


def test_read_json_names_the_label(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"^shapes: line 1, column 2: "):
        read_json(path, "shapes")
