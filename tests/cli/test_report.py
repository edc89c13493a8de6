"""What inspect, plan, diff, verify, ops and schema find and say."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.numpy import save_file

from surgeon.base.errors import CheckpointError, PlanError, UsageError
from surgeon.base.tables import json_text, table
from surgeon.cli import catalogue, recipe_pages
from surgeon.draft.registry import OPS
from surgeon.formats import open_checkpoint
from surgeon.initialisers import INITIALISERS
from surgeon.inspection import diff
from surgeon.inspection import inspect as inspection
from surgeon.inspection.verify import verify
from surgeon.lazy import BLOCK, Scratch
from surgeon.manifest.model import manifest_schema
from surgeon.output import memory, report
from surgeon.output.execute import Options
from surgeon.recipe import load, ready_made
from surgeon.recipe.editor_schema import recipe_schema
from surgeon.surgery import opened, output_plan
from surgeon.surgery import write as write_output
from tests.network import Bench, example_tensors, write, write_recipe

RECIPES = Draft202012Validator(recipe_schema())
MANIFESTS = Draft202012Validator(manifest_schema())


# tables


def test_columns_without_cells_are_left_out() -> None:
    text = table(("a", "b", "c"), [("1", "", "x"), ("10", "", "y")], right=("a",))
    assert text.splitlines() == [" a  c", " 1  x", "10  y"]


@pytest.mark.parametrize("document", [{}, [], {"a": {"b": [1, {"c": "ü\n"}]}, "d": []}, [[1], 2]])
def test_json_text_is_the_document(document: Any) -> None:
    assert json.loads(json_text(document)) == document


# inspect


def found_in(path: Path, *pattern: str, stats: bool = False) -> list[inspection.Entry]:
    checkpoint = open_checkpoint(str(path))
    try:
        return inspection.inspected(checkpoint.tensors, pattern, stats=stats)
    finally:
        checkpoint.close()


def test_tied_names_say_so_and_count_once(example: Bench) -> None:
    entries = found_in(example.input)
    tied = {entry.name: entry.owner for entry in entries if entry.owner}
    totals = inspection.totals(entries)
    assert tied == {"head.weight": "embed.weight"}
    assert totals["BF16"] == {"tensors": 1, "elements": 40, "bytes": 80}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8])
@pytest.mark.parametrize("count", [1, BLOCK, 2 * BLOCK + 17])
def test_statistics_are_those_of_a_float64_loop(tmp_path: Path, dtype: Any, count: int) -> None:
    values = (np.random.default_rng(0).normal(3, 20, count) + 40).astype(dtype)
    values[::5] = 0
    save_file({"a": values}, tmp_path / "a.safetensors")
    found = statistics_of(tmp_path / "a.safetensors")
    wide = values.astype(np.float64)
    expected = (wide.min(), wide.max(), wide.mean(), wide.std(), np.linalg.norm(wide))
    assert (found.minimum, found.maximum) == expected[:2]
    np.testing.assert_allclose((found.mean, found.std, found.norm), expected[2:], rtol=1e-12)
    assert found.zeros == np.mean(values == 0)


def statistics_of(path: Path) -> inspection.Statistics:
    checkpoint = open_checkpoint(str(path))
    try:
        (tensor,) = checkpoint.tensors.values()
        found = inspection.statistics(tensor, Scratch())
    finally:
        checkpoint.close()
    assert found is not None
    return found


def test_statistics_of_bfloat16_are_those_of_torch(tmp_path: Path) -> None:
    values = torch.randn(1000, dtype=torch.bfloat16)
    found = statistics_of(write(tmp_path / "a.safetensors", {"a": values}))
    assert found.mean == pytest.approx(values.double().mean().item(), rel=1e-12)
    assert found.maximum == values.max().item()


def test_statistics_are_of_finite_values_and_count_the_others(tmp_path: Path) -> None:
    values = np.array([1, np.nan, -np.inf, 3, np.nan, 0], np.float32)
    save_file({"a": values}, tmp_path / "a.safetensors")
    found = statistics_of(tmp_path / "a.safetensors")
    assert (found.nan, found.inf, found.minimum, found.maximum) == (2, 1, 0, 3)
    assert found.zeros == 1 / 6
    save_file({"a": np.full(3, np.nan)}, tmp_path / "b.safetensors")
    assert statistics_of(tmp_path / "b.safetensors").mean is None


def test_statistics_of_opaque_dtypes_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": torch.zeros(3, dtype=torch.complex64)})
    assert found_in(path, stats=True)[0].statistics is None


def names_in(nodes: list[inspection.Node]) -> dict[str, Any]:
    return {node.name: (node.copies, names_in(node.children)) for node in nodes}


def test_alike_numbered_modules_become_one_node(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.w": np.zeros((2, 3), np.float32) for i in range(12)}
    tensors |= {"layers.12.w": np.zeros((9, 3), np.float32), "fc.w": np.zeros(1, np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    nodes = inspection.tree(found_in(tmp_path / "a.safetensors"))
    inside = {"{0-11}": (12, {"w": (1, {})}), "12": (1, {"w": (1, {})})}
    assert names_in(nodes) == {"layers": (1, inside), "fc": (1, {"w": (1, {})})}
    assert {node.name: node.elements for node in nodes} == {"layers": 12 * 6 + 27, "fc": 1}


def test_the_tree_shows_figures_of_one_and_how_many(tmp_path: Path) -> None:
    tensors = {f"net.layers.{i}.w": np.zeros((2, 3), np.float32) for i in (0, 1, 2, 5)}
    save_file(tensors, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "a.safetensors"))
    text = inspection.as_text(checkpoint, found_in(tmp_path / "a.safetensors"), as_tree=True)
    checkpoint.close()
    row = "net.layers.{0-2,5}.w  F32 (2, 3)     4 x 6  4 x 24 B"
    assert text.splitlines()[1] == row


def test_a_name_of_many_dots_is_no_problem(tmp_path: Path) -> None:
    names = [".".join("a" * 5000), "9" * 5000 + ".x", "a", "a.b", ".", ""]
    save_file({name: np.zeros(1, np.float32) for name in names}, tmp_path / "a.safetensors")
    entries = found_in(tmp_path / "a.safetensors")
    assert sum(node.elements for node in inspection.tree(entries)) == len(names)


# plan


def plan_text(bench: Bench, *steps: Any, **rest: Any) -> list[str]:
    recipe = load(str(write_recipe(bench.folder, *steps, **rest)), {})
    with opened(recipe, str(bench.input), bench.models) as made:
        return report.planned(output_plan(made, None)).splitlines()


@pytest.mark.parametrize(
    ("step", "row"),
    [
        (
            {"op": "widen", "target": "classifier.weight", "rows": 2, "init": "kaiming_uniform"},
            "classifier.weight F32 (7, 8) -> (9, 8) rows 7:9 new (kaiming_uniform)",
        ),
        (
            {"op": "widen", "target": "classifier.weight", "columns": 2, "init": "zeros"},
            "classifier.weight F32 (7, 8) -> (7, 10) columns 8:10 new (zeros)",
        ),
        (
            {"op": "rename", "from": "stem", "to": "root"},
            "root.weight F16 (4, 2, 3, 3) renamed from stem.weight",
        ),
        ({"op": "delete", "target": "stem"}, "stem.weight F16 (4, 2, 3, 3) dropped"),
        (
            {"op": "reinit", "target": "stem", "init": "zeros"},
            "stem.weight F16 (4, 2, 3, 3) new (zeros)",
        ),
        (
            {"op": "cast", "target": "classifier.bias", "dtype": "F16"},
            "classifier.bias F32 -> F16 (7,) cast",
        ),
        (
            {"op": "average", "models": ["other"], "target": "classifier.bias"},
            "classifier.bias F32 (7,) average with other:classifier.bias "
            "(weights [1.0, 1.0], normalize true)",
        ),
    ],
)
def test_plan_says_what_becomes_of_a_tensor(example: Bench, step: Any, row: str) -> None:
    assert row in [" ".join(line.split()) for line in plan_text(example, step)]


def test_plan_sums_up_what_stays(example: Bench) -> None:
    lines = plan_text(example, {"op": "delete", "target": "classifier"})
    assert any(line.startswith("19 tensors (") and line.endswith("as they are") for line in lines)


def test_plan_names_the_checks_that_apply_will_make(example: Bench) -> None:
    lines = plan_text(example, {"op": "expect", "target": "classifier", "finite": True})
    assert "  recipe.json: steps[0] (expect): 2 checks" in lines


def test_plan_does_not_compare_a_copy_with_what_had_its_name(example: Bench) -> None:
    """The name is one that was renamed away: what the input has there is another tensor."""
    away = {"op": "rename", "from": "classifier.{x}", "to": "old.{x}"}
    anew = {"op": "copy", "from": "encoder.0.{x}", "to": "classifier.{x}"}
    rows = [line.split() for line in plan_text(example, away, anew)]
    (row,) = (row for row in rows if row[:1] == ["classifier.weight"])
    assert "->" not in row


def test_plan_and_apply_say_where_a_result_went_that_is_no_output(example: Bench) -> None:
    step = {"op": "average", "models": ["other"], "into": "mean"}
    last = {"op": "slerp", "models": ["mean"], "t": 0.5}
    recipe = load(str(write_recipe(example.folder, step, last)), {})
    with opened(recipe, str(example.input), example.models) as found:
        assert report.planned_as_json(output_plan(found, None))["steps"][0]["into"] == "mean"
        done = write_output(found, example.output, Options(), force=True)
    assert "[0] average: its result is the model 'mean'" in report.applied(done, 1.0)


# diff


def differing(tmp_path: Path, a: Any, b: Any, *pattern: str) -> diff.Difference:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, tensors in zip(paths, (a, b), strict=True):
        write(path, {name: values.clone() for name, values in tensors.items()})
    return diff.compare(str(paths[0]), str(paths[1]), pattern)


def test_diff_tells_added_removed_and_reshaped(tmp_path: Path) -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    found = differing(tmp_path, {"a": one, "b": one, "c": one}, {"b": two, "c": one, "d": one})
    assert (list(found.added), list(found.removed), list(found.reshaped)) == (["d"], ["a"], ["b"])
    assert (found.changed, found.equal) == ({}, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_distances_are_those_of_a_float64_computation(tmp_path: Path, dtype: torch.dtype) -> None:
    a = torch.randn(2 * BLOCK + 5).to(dtype)
    b = a.clone()
    b[::7] += torch.randn(len(b[::7])).to(dtype)
    far = differing(tmp_path, {"a": a}, {"a": b}).changed["a"]
    x, y = a.double(), b.double()
    assert far.max_abs == (y - x).abs().max().item()
    assert far.relative == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-12)
    assert far.cosine == pytest.approx((x @ y / (x.norm() * y.norm())).item(), rel=1e-12)
    assert far.differing == int((x != y).sum())


def test_equal_bytes_are_equal_also_where_they_are_nan(tmp_path: Path) -> None:
    values = {"a": torch.tensor([1.0, float("nan")])}
    assert differing(tmp_path, values, values).equal


def test_nan_spoils_no_distance(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    a, b = torch.tensor([1.0, nan, inf, 2.0]), torch.tensor([nan, nan, inf, 4.0])
    far = differing(tmp_path, {"a": a}, {"a": b}).changed["a"]
    assert (far.max_abs, far.differing, far.nonfinite) == (2.0, 2, 1)
    assert far.cosine == 1.0


def test_integers_do_not_wrap_around(tmp_path: Path) -> None:
    a, b = torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([255, 0], dtype=torch.uint8)
    assert differing(tmp_path, {"a": a}, {"a": b}).changed["a"].max_abs == 255


def test_the_same_file_is_not_read(example: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("surgeon.lazy.Stored.elements", fail)
    assert diff.compare(str(example.input), str(example.input), ()).equal


def test_diff_looks_into_containers(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}, path)
    assert list(diff.compare(f"{path}#model", f"{path}#ema", ()).changed) == ["w"]


def test_diff_patterns_select_in_either(tmp_path: Path) -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert differing(tmp_path, {"a": one, "b": one}, {"b": one, "c": two}, "b").equal
    with pytest.raises(UsageError, match="no tensor matches 'd'"):
        differing(tmp_path, {"a": one}, {"a": one}, "d")


# verify


def test_verify_finds_the_output_by_file_folder_and_manifest(example: Bench) -> None:
    example.operate()
    assert not verify(example.output, 2).mismatches
    assert not verify(example.output.with_suffix(".manifest.json"), 2).mismatches
    with pytest.raises(CheckpointError, match="no manifest"):
        verify(example.input, 2)


def test_verify_of_a_renamed_output(example: Bench) -> None:
    example.operate()
    renamed = example.folder / "new.safetensors"
    example.output.rename(renamed)
    example.output.with_suffix(".manifest.json").rename(renamed.with_suffix(".manifest.json"))
    assert not verify(renamed, 1).mismatches


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "gone", "other"])
def test_verify_notices_damage(example: Bench, damage: str) -> None:
    example.operate()
    content = example.output.read_bytes()
    if damage == "gone":
        example.output.unlink()
    elif damage == "other":
        write(example.output, example_tensors(5))
    else:
        changed = {"cut": content[:-1], "empty": b"", "header": content.replace(b"F16", b"I16")}
        example.output.write_bytes(changed[damage])
    assert verify(example.output, 1).mismatches


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", '{"surgeon_manifest": 1, "checkpoint": {}, "tensors": {}}', "[" * 100000],
)
def test_verify_of_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.manifest.json"
    path.write_text(text)
    with pytest.raises(CheckpointError):
        verify(path, 1)


def test_verify_never_leaves_the_folder(example: Bench) -> None:
    manifest = example.operate().manifest
    manifest["checkpoint"]["file"] = "../out.safetensors"
    path = example.folder / "moved.manifest.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is not the name of a file beside the manifest"):
        verify(path, 1)


def test_verify_of_shards_looks_at_every_file_and_the_index(example: Bench) -> None:
    recipe = load(str(write_recipe(example.folder, output={"shard_size": "300B"})), {})
    folder = example.folder / "model"
    with opened(recipe, str(example.input), {}) as made:
        write_output(made, folder, Options(), force=False)
    assert not verify(folder, 2).mismatches
    last = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert len(verify(folder, 2).mismatches) == 1
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "y"}}')
    assert len(verify(folder, 2).mismatches) == 2


def test_without_checksums_verify_says_that_it_saw_the_header_only(example: Bench) -> None:
    example.operate(options=Options(checksums="none"))
    found = verify(example.output, 1)
    assert (found.checked, found.mismatches) == ("header", [])
    assert "only the header" in found.as_text()


# ops, recipes


def test_an_ops_page_names_all_its_parameters() -> None:
    for name, op in OPS.items():
        page, document = catalogue.page(name), catalogue.one_as_json(name)
        assert op.summary in page
        assert all(f"\n  {word} " in page for word in op.parameters["properties"])
        assert document["example"]["op"] == name


def test_every_initialisation_is_explained() -> None:
    assert all(row.about in catalogue.page("widen") for row in INITIALISERS.values())
    assert all(name in catalogue.table_of_ops() for name in INITIALISERS)


def test_an_unknown_op_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="did you mean 'widen'"):
        catalogue.page("wden")


def test_recipes_are_listed_with_their_variables() -> None:
    rows = recipe_pages.recipes()
    assert [row["name"] for row in rows] == list(ready_made())
    assert all(row["about"] in recipe_pages.table_of_recipes() for row in rows)


# schema


@pytest.mark.parametrize("schema", [recipe_schema(), manifest_schema()])
def test_published_schemas_are_valid(schema: Any) -> None:
    Draft202012Validator.check_schema(schema)


def test_ready_made_recipes_validate() -> None:
    for path in ready_made().values():
        RECIPES.validate(json.loads(path.read_text()))


def test_steps_validate_with_and_without_variables() -> None:
    """All at once: a validation goes through the schemas of all ops."""
    steps = [{"op": name, **op.example} for name, op in OPS.items()]
    RECIPES.validate({"surgeon": 1, "steps": steps})
    with_variables = [
        {word: f"${{{word}}}" for word in step} | {"op": step["op"]} for step in steps
    ]
    RECIPES.validate({"surgeon": 1, "vars": {}, "steps": with_variables})
    wrong = [{**step, "wrong_word": 1} for step in steps]
    problems = RECIPES.iter_errors({"surgeon": 1, "steps": wrong})
    places = [list(problem.absolute_path) for problem in problems]
    assert places == [["steps", index] for index in range(len(steps))]


@pytest.mark.parametrize(
    "change",
    [
        {"step": []},
        {"surgeon": 2},
        {"seed": -1},
        {"seed": "one"},
        {"steps": [{"op": "widn"}]},
        {"steps": [{"op": "widen", "target": "a", "rows": 0}]},
        {"steps": [{"op": "widen", "target": "a", "rows": 1, "init": {"name": "zerus"}}]},
        {"output": {"dtyp": "BF16"}},
        {"training": {"stages": [{"name": "a", "freeze": 1}]}},
    ],
)
def test_wrong_recipes_do_not_validate(change: Any) -> None:
    assert not RECIPES.is_valid({"surgeon": 1, "steps": []} | change)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "${seed}"},
        {"steps": [{"op": "widen", "target": "${a}.b", "rows": 1, "init": {"name": "${i}"}}]},
        {"steps": [{"op": "expect", "target": "a", "shape": ["${rows}", 8]}]},
        {"output": {"shard_size": "${size}", "metadata": {"a": "${b}"}}},
        {"training": "${training}"},
        {"training": {"stages": [{"name": "${a}", "duration": {"epochs": "${n}"}}]}},
    ],
)
def test_variables_may_stand_for_every_value(change: Any) -> None:
    RECIPES.validate({"surgeon": 1, "steps": []} | change)


def test_a_written_manifest_validates(example: Bench) -> None:
    training = {
        "optimizer": {"class": "torch.optim.SGD", "args": {"lr": 0.01}},
        "teacher": {"model": "input"},
        "stages": [{"name": "a", "train": ["@new"], "duration": {"steps": 3}}, {"name": "b"}],
    }
    step = {"op": "widen", "target": "classifier", "rows": 1}
    manifest = example.operate(step, training=training).manifest
    MANIFESTS.validate(manifest)
    assert not MANIFESTS.is_valid({**manifest, "more": 1})


def test_merges_inside_a_merge_are_told_and_fit_the_schema(example):
    steps = [
        {"op": "ties", "models": ["other", "third"], "density": 0.5, "into": "m"},
        {"op": "average", "models": ["m"], "target": "classifier.bias"},
    ]
    MANIFESTS.validate(example.operate(*steps).manifest)
    with opened(example.recipe(*steps), str(example.input), example.models) as planned:
        (line,) = [
            ln
            for ln in report.planned(output_plan(planned, None)).splitlines()
            if "classifier.bias" in ln
        ]
    inner = "m: ties of classifier.bias, other:classifier.bias, third:classifier.bias ("
    assert inner in line
    assert "density [0.5, 0.5])" in line
    assert "; average with m:classifier.bias (" in line


# memory


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [{"op": "reinit", "target": "encoder.0.weight", "init": "orthogonal"}],
        [{"op": "widen", "target": "classifier", "rows": 3, "init": "rows_normal"}],
        [{"op": "average", "models": ["other"]}],
    ],
)
def test_scratch_grows_with_what_is_computed(example: Bench, steps: Any) -> None:
    need = memory.scratch_bytes(example.plan(*steps).tensors)
    base = memory.scratch_bytes(example.plan().tensors)
    assert need.worker_bytes > base.worker_bytes or not steps


def test_fewer_workers_fit_into_less_memory(example: Bench) -> None:
    tensors = example.plan({"op": "average", "models": ["other"]}).tensors
    need = memory.scratch_bytes(tensors)
    assert memory.workers_within(need.worker_bytes * 3, tensors, 8) == 3
    assert memory.workers_within(need.worker_bytes * 30, tensors, 8) == 8
    with pytest.raises(PlanError, match="for one worker"):
        memory.workers_within(need.worker_bytes - 1, tensors, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "step",
    [
        {"op": "reinit", "init": "orthogonal"},
        {"op": "reinit", "init": "trunc_normal"},
        {"op": "reinit", "init": "zeros"},
        {"op": "widen", "rows": 200, "init": "rows_normal"},
        {"op": "average", "models": ["other"]},
        {"op": "cast", "dtype": "F16"},
        {"op": "transpose"},
    ],
)
def test_the_estimate_is_not_exceeded(tmp_path: Path, step: Any, dtype: torch.dtype) -> None:
    tensors = {"w": torch.zeros(600, 500, dtype=dtype)}
    bench = Bench(tmp_path).given(tensors, other=tensors)
    step = {"target": "w", **step}
    need = memory.scratch_bytes(bench.plan(step).tensors)
    bench.operate(step, options=Options(workers=1))  # imports and caches are no scratch
    assert peak_of(bench, step) < need.worker_bytes + 500_000


def peak_of(bench: Bench, *steps: Any) -> int:
    """Return the most that Python held, of two runs: other tests' threads hold something, too."""
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        try:
            bench.operate(*steps, options=Options(workers=1))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("levels", [3, 1 << 40])
@pytest.mark.parametrize(
    "step",
    [
        {"op": "ties", "density": 0.2},
        {"op": "breadcrumbs", "density": 0.3, "gamma": 0.1},
        {"op": "consensus", "density": 0.3, "at_least": 1},
        {"op": "sce", "select_topk": 0.2},
        {"op": "dare", "density": 0.5, "rescale": "l1"},
        {"op": "della", "density": 0.5},
        {"op": "della", "density": 0.5, "epsilon": 0.499, "rescale": "none"},
        {"op": "della_ties", "density": 0.5, "epsilon": 0.4, "rescale": "l1"},
        {"op": "fusion"},
    ],
)
def test_what_merges_hold_is_estimated(
    tmp_path: Path, step: Any, levels: int, dtype: torch.dtype
) -> None:
    """Of long rows; few levels are many equal values, many differ in float64 alone."""
    change = torch.randint(1, levels, (2, 150_000), generator=torch.Generator().manual_seed(0))
    tuned = {"w": (1 + change / (1 << 60 if levels > 3 else 8)).to(dtype)}
    bench = Bench(tmp_path).given({"w": torch.zeros_like(tuned["w"])}, other=tuned)
    step = {"models": ["other"], **step}
    need = memory.scratch_bytes(bench.plan(step).tensors)
    bench.plan({"op": "ties", "models": ["other"], "density": 0.5})  # imports are no scratch
    assert peak_of(bench, step) < need.worker_bytes + 500_000


def test_a_computed_tensor_is_transposed_within_the_estimate(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(600, 500)}
    bench = Bench(tmp_path).given(tensors, other=tensors)
    steps = {"op": "average", "models": ["other"]}, {"op": "transpose", "target": "w"}
    need = memory.scratch_bytes(bench.plan(*steps).tensors)
    bench.operate(*steps, options=Options(workers=1))  # imports and caches are no scratch
    tracemalloc.start()
    try:
        bench.operate(*steps, options=Options(workers=1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 600 * 500 * 4 < peak < need.worker_bytes + 500_000


def test_distances_of_what_has_no_values_count_elements(tmp_path: Path) -> None:
    a = torch.zeros(3, dtype=torch.complex64)
    far = differing(tmp_path, {"a": a}, {"a": a + 1j}).changed["a"]
    assert (far.max_abs, far.cosine, far.differing) == (None, None, 3)
