"""mergekit configurations become recipes; against mergekit itself see tests/conformance."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from surgeon.base import patterns
from surgeon.base.errors import UsageError
from surgeon.mergekit import imported, importer
from surgeon.mergekit.methods import METHODS
from surgeon.output.execute import Options
from surgeon.recipe import load
from surgeon.surgery import opened, write
from tests.network import read


def given(folder: Path, **config: Any) -> Path:
    path = folder / "merge.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def steps(folder: Path, **config: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = imported(given(folder, **config)).recipe["steps"]
    for step in found:
        step.pop("about", None)
    return found


def models(*paths: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": path, "parameters": parameters} for path in paths]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_becomes_a_valid_recipe(tmp_path: Path, method: str) -> None:
    entries = models("a", "b", *(["c"] if method in ("nuslerp", "model_stock") else []))
    config: dict[str, Any] = {
        "merge_method": method,
        "models": entries,
        "base_model": "a",
        "parameters": {"weight": 0.5, "t": 0.3, "density": 0.6, "epsilon": 0.1},
    }
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(imported(given(tmp_path, **config)).recipe))
    assert load(str(recipe), {}).steps[0].op == METHODS[method].op


def test_linear_takes_the_first_model_as_state(tmp_path: Path) -> None:
    config = {"models": [*models("x/a", weight=1), *models("x/b", weight=3)]}
    (step,) = steps(tmp_path, merge_method="linear", **config)
    assert step == {"op": "average", "models": ["b"], "weights": [1.0, 3.0], "normalize": True}


def test_base_model_is_the_state_and_no_model(tmp_path: Path) -> None:
    found = imported(
        given(
            tmp_path,
            merge_method="ties",
            base_model="b",
            models=models("a", "b", "c", weight=1, density=0.2),
        )
    )
    assert found.input == "b"
    assert found.recipe["models"] == {"a": "a", "c": "c"}
    assert found.recipe["steps"][0]["density"] == 0.2


def test_own_parameters_go_before_common_ones(tmp_path: Path) -> None:
    (step,) = steps(
        tmp_path,
        merge_method="task_arithmetic",
        base_model="b",
        models=[*models("a", weight=0.1), *models("c")],
        parameters={"weight": 0.7, "lambda": 0.5},
    )
    assert (step["weights"], step["lambda"], step["normalize"]) == ([0.1, 0.7], 0.5, False)


def test_a_gradient_runs_over_the_layers_alone(tmp_path: Path) -> None:
    (step,) = steps(
        tmp_path, merge_method="slerp", base_model="a", models=models("a", "b"),
        parameters={"t": [0.2, "1e-1"]},
    )  # fmt: skip
    assert step["t"] == [
        {"target": "model.layers", "value": {"by_layer": [0.2, 0.1]}},
        {"value": 0.2},
    ]


def test_layers_of_a_sequential_are_layers_too(tmp_path: Path) -> None:
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(2)))
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for path in paths:
        save_file(net.state_dict(), path)
    (step,) = steps(
        tmp_path, merge_method="slerp", base_model=paths[0], models=models(*paths),
        parameters={"t": [0.2, 0.8]},
    )  # fmt: skip
    names = ["0.weight", "1.bias", "x.0.y"]
    found = patterns.captured(step["t"][0]["target"], names)
    assert [name for name, _ in found] == names[:2]


def test_filters_are_parts_of_names_and_end_with_the_common_value(tmp_path: Path) -> None:
    own = {"weight": [{"filter": "mlp.up", "value": 0.5}]}
    (step,) = steps(
        tmp_path, merge_method="linear", models=[*models("a", **own), *models("b")],
        parameters={"weight": 2},
    )  # fmt: skip
    rules = [{"target": "re:.*mlp\\.up.*", "value": 0.5}, {"value": 2.0}]
    assert step["weights"] == [rules, 2.0]


def test_density_of_one_keeps_outliers_too(tmp_path: Path) -> None:
    config = {"base_model": "a", "models": models("a", "b", weight=1)}
    assert steps(tmp_path, merge_method="breadcrumbs", **config)[0] == {
        "op": "task_arithmetic", "models": ["b"], "weights": 1.0, "lambda": 1.0, "normalize": False,
    }  # fmt: skip
    (step,) = steps(tmp_path, merge_method="della", **config)
    assert (step["op"], step["density"], step["normalize"]) == ("ties", 1.0, True)


def slices(*parts: tuple[str, int, int], **parameters: Any) -> list[dict[str, Any]]:
    return [
        {"sources": [{"model": m, "layer_range": [a, b], "parameters": parameters}]}
        for m, a, b in parts
    ]


def test_stacked_slices_are_layers(tmp_path: Path) -> None:
    found = steps(
        tmp_path, merge_method="passthrough", slices=slices(("a", 0, 3), ("b", 1, 4), ("a", 2, 4))
    )
    assert found == [
        {
            "op": "layers",
            "container": "model.layers",
            "take": ["0:3", {"model": "b", "range": "1:4"}, "2:4"],
        }
    ]


def test_what_lies_behind_the_layers_comes_from_the_last_model(tmp_path: Path) -> None:
    for name in "ab":
        tensors = {"embed.weight": torch.ones(2), "h.0.w": torch.ones(2), "head.weight":
                   torch.ones(2), "h.1.w": torch.ones(2)}  # fmt: skip
        save_file(tensors, tmp_path / f"{name}.safetensors")
    a, b = (str(tmp_path / f"{name}.safetensors") for name in "ab")
    found = steps(tmp_path, merge_method="passthrough", slices=slices((a, 0, 1), (b, 1, 2)))
    assert found[0]["container"] == "h"
    assert found[1:] == [
        {"op": "delete", "target": ["head"], "optional": True},
        {"op": "copy", "from": "head.{rest**}", "to": "head.{rest**}", "model": "b-safetensors",
         "optional": True},
    ]  # fmt: skip


def test_a_scale_becomes_steps_of_the_new_layers(tmp_path: Path) -> None:
    scale = [{"filter": "o_proj", "value": 0}, {"value": 1}]
    parts = [*slices(("a", 0, 1)), *slices(("a", 3, 5), scale=scale), *slices(("a", 0, 1))]
    found = steps(tmp_path, merge_method="passthrough", slices=parts)
    assert found[1:] == [
        {"op": "scale", "target": [r"re:(?=.*o_proj)(model\.layers\.(1|2)\.).*"], "by": 0.0,
         "optional": True}
    ]  # fmt: skip


def test_slices_that_are_merged_have_gradients_of_their_own(tmp_path: Path) -> None:
    parts = [
        {
            "sources": [{"model": m, "layer_range": [a, a + 2]} for m in "ab"],
            "parameters": {"t": [start, start + 0.1]},
        }
        for a, start in ((0, 0.0), (2, 0.5))
    ]
    first, second = steps(tmp_path, merge_method="slerp", base_model="a", slices=parts)
    assert first["target"] == ["**", r"!re:model\.layers\.(2|3)\..*", "!model.norm", "!lm_head"]
    assert second["target"] == [r"re:model\.layers\.(2|3)\..*", "model.norm", "lm_head"]
    assert [rule["value"] for rule in second["t"]] == [0.5, 0.6, 0.5]


def network(folder: Path, name: str, *, layers: int = 1, dtype: torch.dtype = torch.float32) -> str:
    """Write a model of few tensors; returns its path."""
    names = ["embed.weight", *(f"h.{layer}.w" for layer in range(layers)), "head.weight"]
    path = folder / f"{name}.safetensors"
    save_file({name: torch.ones(2, dtype=dtype) for name in names}, path)
    return str(path)


def test_a_scale_holds_for_what_lies_before_and_behind_the_layers(tmp_path: Path) -> None:
    a = network(tmp_path, "a", layers=2)
    parts = [*slices((a, 0, 1), scale=2), *slices((a, 0, 1), scale=3), *slices((a, 1, 2), scale=4)]
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(imported(given(
        tmp_path, merge_method="passthrough", slices=parts)).recipe))  # fmt: skip
    with opened(load(str(recipe), {}), a, {}) as found:
        write(found, tmp_path / "out.safetensors", Options(), force=True)
    made = {name: tensor[0].item() for name, tensor in read(tmp_path / "out.safetensors").items()}
    expected = {"embed.weight": 2, "h.0.w": 2, "h.1.w": 3, "h.2.w": 4, "head.weight": 4}
    assert made == expected


def test_a_gradient_over_one_layer_is_its_last_value(tmp_path: Path) -> None:
    a, b = network(tmp_path, "a"), network(tmp_path, "b")
    (step,) = steps(
        tmp_path, merge_method="slerp", base_model=a, models=models(a, b), parameters={"t": [0, 1]}
    )
    assert step["t"] == [{"target": r"re:h\.(0)\..*", "value": 1.0}, {"value": 0.0}]


@pytest.mark.parametrize("words", [{"dtype": "float32"}, {"dtype": "bfloat16", "out_dtype": "F32"}],
                         ids=str)  # fmt: skip
def test_a_wider_dtype_is_the_output_s_alone(tmp_path: Path, words: dict[str, str]) -> None:
    a = network(tmp_path, "a", dtype=torch.bfloat16)
    found = imported(
        given(tmp_path, merge_method="linear", models=models(a, "b", weight=1), **words)
    ).recipe
    assert [step["op"] for step in found["steps"]] == ["average"]
    assert found["output"] == {"dtype": "F32"}


def test_a_base_that_is_no_source_of_a_slice_is_left_out(tmp_path: Path) -> None:
    parts = [{"sources": [{"model": m, "layer_range": [0, 2]} for m in "ab"]}]
    found = imported(
        given(tmp_path, merge_method="linear", base_model="c", slices=parts,
              parameters={"weight": 1})
    )  # fmt: skip
    assert (found.input, found.recipe["models"]) == ("a", {"b": "b"})


def test_iterations_are_a_whole_number(tmp_path: Path) -> None:
    (step,) = steps(
        tmp_path, merge_method="karcher", models=models("a", "b"), parameters={"max_iter": "2e1"}
    )
    assert (step["max_iterations"], type(step["max_iterations"])) == (20, int)


def test_a_list_without_values_says_nothing(tmp_path: Path) -> None:
    (step,) = steps(
        tmp_path, merge_method="linear", models=models("a", "b", weight=[]),
        parameters={"weight": 3},
    )  # fmt: skip
    assert step["weights"] == 3.0


def test_layers_that_are_left_out_of_a_merge_are_left_out_of_each_model(tmp_path: Path) -> None:
    a, b = network(tmp_path, "a", layers=3), network(tmp_path, "b", layers=3)
    parts = [{"sources": [{"model": m, "layer_range": [0, 2]} for m in (a, b)]}]
    others, own, merge = steps(
        tmp_path, merge_method="linear", slices=parts, parameters={"weight": 1}
    )
    assert (others["take"], others["into"]) == (["0:2"], "arranged-1")
    assert own == {"op": "layers", "container": "h", "take": ["0:2"]}
    assert merge["models"] == ["arranged-1"]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"merge_method": "tis", "models": models("a")}, "'tis' is not imported; did you mean"),
        ({"merge_method": "linear"}, "give either 'models' or 'slices'"),
        ({"merge_method": "linear", "models": models("a", weight=1), "tokenizer": {
            "tokens": {"<x>": {}}}}, "tokenizer.tokens: '<x>' has no source: give one"),
        ({"merge_method": "linear", "models": models("a", weight=1), "chat_template": "llama3"},
         "'llama3' is a text of mergekit's own: give the template"),
        ({"merge_method": "linear", "modules": {"text": {}, "vision": {}}},
         "'modules' has 2 of them"),
        ({"merge_method": "breadcrumbs", "base_model": "c", "models": models(
            "a", "b", weight=1, density=[0, 0.5])}, "a density that is 0 in places"),
        ({"merge_method": "linear", "models": models("a", "b")}, "parameter 'weight' is missing"),
        ({"merge_method": "ties", "models": models("a", "b", weight=1)}, "'base_model' is missing"),
        ({"merge_method": "linear", "models": models("a", "b", weight="much")},
         "parameter 'weight' is 'much', not a number"),
        ({"merge_method": "ties", "base_model": "a", "models": models("b", weight=1),
          "parameters": {"rescale": True}}, "'rescale: true' has no counterpart"),
        ({"merge_method": "passthrough", "models": models("a", "b")}, "takes one model"),
        ({"merge_method": "karcher", "models": models("a", "b"), "parameters": {"tol": [0, 1]}},
         "parameter 'tol' is one number here"),
        ({"merge_method": "ties", "base_model": "c", "slices": [{"sources": [
            {"model": m, "layer_range": [0, 1], "parameters": {"weight": 1}} for m in "ab"]}]},
         "'base_model' must be among the sources"),
        ({"merge_method": "passthrough", "slices": slices(
            ("a", 2, 3), scale=[{"filter": "layers.2", "value": 2}, {"value": 1}])},
         "a number of a layer that moves"),
        ({"merge_method": "slerp", "slices": slices(("a", 0, 1))}, "passthrough or linear"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_with_a_reason(
    tmp_path: Path, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError) as caught:
        imported(given(tmp_path, **config))
    assert problem in str(caught.value)
    assert all(line.startswith("merge.yml: ") for line in caught.value.problems)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"models": "a"}, "models: \"a\" is not of type array"),
        ({"models": [5]}, "models[0]: 5 is not of type object"),
        ({"models": [{"weight": 1}]}, "models[0]: 'model' is missing"),
        ({"models": models("a", "b"), "parameters": [1]}, "parameters: [1] is not of type object"),
        ({"slices": [{"parameters": {}}]}, "slices[0]: 'sources' is missing"),
        ({"slices": [{"sources": []}]}, "slices[0].sources: [] "),
        ({"slices": slices(("a", 0, "x"))}, 'layer_range[1]: "x" is not of type integer'),
        ({"slices": slices(("a", 0, 10**20))}, "is greater than the maximum"),
        ({"models": models("a", "b", weight=[1, {"value": 2}])}, "mixes numbers and filters"),
        ({"dtype": date(2026, 1, 1)}, 'dtype: "2026-01-01" is not of type'),
    ],
)  # fmt: skip
def test_what_has_another_shape_is_refused_with_its_place(
    tmp_path: Path, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError) as caught:
        imported(given(tmp_path, **{"merge_method": "linear", **config}))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a0: &a0 [x]" + "".join(f"\na{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
         "its aliases stand for more than 200,000 values"),
        ("models: &m [*m]", "its aliases stand for more than 200,000 values"),
        ("models: 2024-99-99", "not YAML: month must be in 1..12"),
        ("#" * 1_000_001, "longer than 1,000,000 bytes"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: .inf}}]", "Out of range"),
    ],
)  # fmt: skip
def test_what_stands_for_too_much_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "merge.yml").write_text(text)
    with pytest.raises(UsageError, match=rf"^merge\.yml: .*{problem}"):
        imported(tmp_path / "merge.yml")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        imported(given(tmp_path, merge_method="tis"))
    assert len(caught.value.problems) == 2


def test_words_that_mergekit_reads_over_are_said(tmp_path: Path) -> None:
    entry = {"model": "a", "revision": "main", "parameters": {"weight": 1}}
    found = imported(given(tmp_path, merge_method="linear", models=[entry], dtyp="float16"))
    assert found.notes[-2:] == (
        "'dtyp' in the configuration means nothing to mergekit, and is left out; did you mean "
        "'dtype'?",
        "'revision' in models[0] means nothing to mergekit, and is left out",
    )


def tokenizer(folder: Path, name: str, *tokens: str, rows: int = 2) -> str:
    """Write a model of an embedding with a tokenizer beside it; returns its path."""
    (folder / name).mkdir()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = {"model": {"type": "WordLevel", "vocab": vocabulary}}
    (folder / name / "tokenizer.json").write_text(json.dumps(model))
    tensors = {"model.embed_tokens.weight": torch.ones(rows, 2)}
    save_file(tensors, folder / name / "model.safetensors")
    return str(folder / name)


@pytest.mark.parametrize(
    ("tokens", "rows", "words", "said"),
    [
        ("ab", 2, {}, "one vocabulary, which nothing changes"),
        ("ab", 2, {"pad_to_multiple_of": 2}, "one vocabulary, which nothing changes"),
        ("ab", 3, {}, "rows have no token, or lack one: the op vocabulary brings all models to"),
        ("ba", 2, {}, "vocabularies differ ('a' is 0 and 1): the op vocabulary brings all models"),
        ("abc", 2, {}, "differ ('c' is nothing and 2)"),
        ("", 2, {}, "no vocabulary is found beside"),
    ],
)  # fmt: skip
def test_vocabularies_are_held_to_one_another(
    tmp_path: Path, tokens: str, rows: int, words: dict[str, int], said: str
) -> None:
    paths = [tokenizer(tmp_path, "a", "a", "b", rows=rows), tokenizer(tmp_path, "b", *tokens)]
    config = given(tmp_path, merge_method="linear", models=models(*paths, weight=1),
                   tokenizer={"source": "union", **words})  # fmt: skip
    assert said in "\n".join(imported(config).notes)


@pytest.mark.parametrize(("text", "said"), [("[" * 100_000, "nested"), ('{"a": 1, "a": 2}', "'a'")])
def test_a_tokenizer_that_is_no_json_is_refused(tmp_path: Path, text: str, said: str) -> None:
    paths = [tokenizer(tmp_path, name, "a", "b") for name in "ab"]
    (tmp_path / "b" / "tokenizer.json").write_text(text)
    config = given(tmp_path, merge_method="linear", models=models(*paths, weight=1),
                   tokenizer_source="union")  # fmt: skip
    with pytest.raises(UsageError, match=f"b/tokenizer.json: .*{said}"):
        imported(config)


@pytest.mark.parametrize(
    ("tokenizer", "step"),
    [
        ("union", {"from": "union"}),
        ("base", {"from": "input"}),
        ("b", {"from": "b"}),
        ({"source": "elsewhere", "pad_to_multiple_of": 8},
         {"from": "elsewhere", "pad_to_multiple_of": 8}),
        ({"tokens": {"<x>": {"source": "b"}, "<y>": {"source": {"kind": "zero"}, "force": True},
                     "<z>": {"source": {"kind": "model_token", "model": "a", "token": "q"}}}},
         {"from": "union", "missing": {"otherwise": "zeros", "tokens": {
             "<x>": {"model": "b"}, "<y>": {"zeros": True, "always": True},
             "<z>": {"model": "input", "token": "q"}}}}),
    ],
)  # fmt: skip
def test_vocabularies_that_are_not_here_are_brought_to_one_by_a_step(
    tmp_path: Path, tokenizer: Any, step: dict[str, Any]
) -> None:
    word = "tokenizer_source" if isinstance(tokenizer, str) else "tokenizer"
    config = {"models": models("a", "b", weight=1), word: tokenizer}
    first, *_ = imported(given(tmp_path, merge_method="linear", **config)).recipe["steps"]
    assert first == {"op": "vocabulary", "models": ["b"], "missing": {"otherwise": "zeros"}} | step


def test_parameters_without_a_meaning_are_left_out_and_said(tmp_path: Path) -> None:
    found = imported(
        given(tmp_path, merge_method="linear", models=models("a", "b", weight=1, density=0.5))
    )
    assert "parameter 'density' means nothing to this method; left out" in found.notes


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "!!python/object:os.system {}"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(text)
    with pytest.raises(UsageError):
        imported(path)


def test_without_yaml_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = given(tmp_path, merge_method="linear")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UsageError, match=r"pip install 'surgeon-checkpoints\[mergekit\]'"):
        imported(path)


def test_command_prints_the_recipe_and_says_what_to_apply_it_to(tmp_path: Path) -> None:
    path = given(
        tmp_path, merge_method="linear", models=models("a", "b", weight=1), dtype="bfloat16"
    )
    command = [sys.executable, "-m", "surgeon", "import", "mergekit", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout) == imported(path).recipe
    assert json.loads(done.stdout)["output"] == {"dtype": "BF16"}
    assert "note: apply it to a" in done.stderr


def test_model_plus_adapter_is_both(tmp_path: Path) -> None:
    config = {"merge_method": "linear", "models": models("a+lora", "b+other", weight=1)}
    found = importer.Importer(config, "x.yml").result()
    first, second = found.recipe["steps"]
    assert (found.input, first) == ("a", {"op": "lora_merge", "adapter": "lora"})
    assert second["models"] == [{"model": "b", "adapter": "other"}]
