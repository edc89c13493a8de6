"""The manifest: what it holds, and that it holds nothing of this machine or this moment."""

import hashlib
import json
import zlib

import pytest
import torch

from surgeon import __version__
from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.network import TIES, example_tensors, raw_bytes

WIDEN = {"id": "grow", "op": "widen", "target": "classifier", "rows": 1}
AVERAGE = {"op": "average", "models": ["other"], "target": "encoder"}


def header_of(path):
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_sections_are_these(example):
    manifest = example.operate(WIDEN).manifest
    assert list(manifest) == [
        "surgeon_manifest", "checkpoint", "recipe", "inputs", "surgeon", "tensors", "ties",
        "stages",
    ]  # fmt: skip
    assert manifest["surgeon_manifest"] == 1
    assert manifest["surgeon"] == __version__


def test_checkpoint_is_pinned_by_its_header(example):
    made = example.operate(WIDEN)
    assert made.manifest["checkpoint"] == {
        "file": "out.safetensors",
        "bytes": made.path.stat().st_size,
        "header_sha256": hashlib.sha256(header_of(made.path)).hexdigest(),
    }


def test_inputs_are_pinned_by_their_headers(example):
    example.models = {"other": example.models["other"]}
    made = example.operate(AVERAGE, models={"other": None})
    assert made.manifest["inputs"] == {
        name: {
            "file": path.name,
            "bytes": path.stat().st_size,
            "header_sha256": hashlib.sha256(header_of(path)).hexdigest(),
        }
        for name, path in [
            ("input", example.input),
            ("other", example.folder / "other.safetensors"),
        ]
    }


def test_recipe_is_kept_with_its_variables(example):
    step = {**WIDEN, "rows": "${n}"}
    recipe = example.operate(step, vars={"n": 2}).manifest["recipe"]
    assert recipe["vars"] == {"n": 2}
    assert recipe["text"] == {"surgeon": 1, "steps": [step], "vars": {"n": 2}}
    assert len(recipe["sha256"]) == 64


def test_hash_of_the_recipe_is_the_one_in_the_checkpoint(example):
    made = example.operate(WIDEN)
    ours = json.loads(json.loads(header_of(made.path))["__metadata__"]["surgeon"])
    assert ours["recipe_sha256"] == made.manifest["recipe"]["sha256"]


def checksum(tensor, algorithm):
    data = raw_bytes(tensor)
    return f"{zlib.crc32(data):08x}" if algorithm == "crc32" else hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("algorithm", ["crc32", "sha256"])
@pytest.mark.parametrize("workers", [1, 4])
def test_checksums_are_those_of_the_written_bytes(example, algorithm, workers):
    options = Options(workers=workers, checksums=algorithm)
    made = example.operate(WIDEN, AVERAGE, options=options)
    found = {name: entry[algorithm] for name, entry in made.manifest["tensors"].items()}
    assert found == {name: checksum(t, algorithm) for name, t in made.tensors.items()}


def test_checksum_of_a_tensor_of_many_units(bench):
    big = torch.randn(9_000_000)
    made = bench.given({"x": big}, b={"x": -big}).operate(
        {"op": "average", "models": ["b"], "weights": [1, 0]}
    )
    assert made.manifest["tensors"]["x"]["crc32"] == f"{zlib.crc32(raw_bytes(big)):08x}"


def test_no_checksums_on_demand(example):
    made = example.operate(WIDEN, options=Options(checksums="none"))
    keys = {key for entry in made.manifest["tensors"].values() for key in entry}
    assert keys == {"shape", "dtype", "lineage"}


def test_tensors_are_described(example):
    entry = example.operate(WIDEN).manifest["tensors"]["classifier.weight"]
    del entry["crc32"]
    assert entry == {
        "shape": [8, 8],
        "dtype": "F32",
        "lineage": [
            {"step": "grow", "op": "widen", "new": ["classifier.weight[7:8]"], "init": "default"}
        ],
    }


def test_aliases_have_the_checksum_of_their_owner(example):
    manifest = example.operate().manifest
    assert manifest["ties"] == TIES
    assert manifest["tensors"]["head.weight"] == manifest["tensors"]["embed.weight"]


def test_same_recipe_and_inputs_give_the_same_manifest(example):
    first = example.operate(WIDEN, AVERAGE)
    text = first.path.with_suffix(".manifest.json").read_bytes()
    example.operate(WIDEN, AVERAGE, options=Options(workers=7))
    assert first.path.with_suffix(".manifest.json").read_bytes() == text


def test_manifest_does_not_depend_on_the_folder(example, tmp_path_factory):
    first = example.operate(WIDEN, AVERAGE)
    text = first.path.with_suffix(".manifest.json").read_text()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "out.safetensors"
    example.operate(WIDEN, AVERAGE, to=elsewhere)
    assert elsewhere.with_suffix(".manifest.json").read_text() == text
    assert str(example.folder) not in text


# --- Optimizer and teacher ------------------------------------------------------------------------


def operate(example, *steps, **training):
    return example.operate(*steps, training=training).manifest


def test_optimizer_is_passed_on(example):
    wanted = {"class": "torch.optim.AdamW", "args": {"lr": 0.001, "betas": [0.9, 0.95]}}
    assert operate(example, optimizer=wanted)["optimizer"] == wanted


def test_optimizer_without_arguments(example):
    made = operate(example, optimizer={"class": "torch.optim.Adafactor"})
    assert made["optimizer"] == {"class": "torch.optim.Adafactor", "args": {}}


def test_teacher_is_the_input_and_gives_the_old_outputs(example):
    teacher = operate(example, WIDEN, teacher={"model": "input"})["teacher"]
    assert teacher == {
        "file": "in.safetensors",
        "sha256": hashlib.sha256(example.input.read_bytes()).hexdigest(),
        "outputs": teacher["outputs"],
        "temperature": 2.0,
        "weight": 1.0,
    }
    assert sorted(teacher["outputs"]) == ["classifier.bias[0:7]", "classifier.weight[0:7]"]


def test_teacher_may_be_a_model_with_its_own_settings(example):
    wanted = {
        "model": "other",
        "outputs": ["classifier.bias[0:3]"],
        "temperature": 1,
        "weight": 0.5,
    }
    teacher = operate(example, teacher=wanted)["teacher"]
    assert teacher["file"] == "other.safetensors"
    assert teacher["outputs"] == ["classifier.bias[0:3]"]
    assert (teacher["temperature"], teacher["weight"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("teacher", "problem"),
    [
        ({"model": "othr"}, "teacher.model: there is no model 'othr'"),
        ({"model": "input"}, "teacher.outputs: no layer was widened; name the old outputs"),
    ],
)
def test_impossible_teacher_says_why(example, teacher, problem):
    with pytest.raises(PlanError, match=rf"recipe.json: training: {problem}"):
        operate(example, teacher=teacher)


def test_contradictions_stop_the_plan_before_anything_is_written(example):
    with pytest.raises(PlanError):
        operate(example, stages=[{"name": "a", "train": ["none"]}])
    assert not example.output.exists()


# --- Model folders --------------------------------------------------------------------------------


def test_shards_are_pinned_together_and_each(example):
    folder = example.folder / "model"
    manifest = example.operate(WIDEN, to=folder, output={"shard_size": 600}).manifest
    checkpoint = manifest["checkpoint"]
    assert checkpoint["file"] == "model.safetensors.index.json"
    hashes = []
    for part in checkpoint["files"]:
        path = folder / part["file"]
        hashes.append(hashlib.sha256(header_of(path)).hexdigest())
        assert part == {
            "file": path.name, "bytes": path.stat().st_size, "header_sha256": hashes[-1]
        }  # fmt: skip
    assert checkpoint["header_sha256"] == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_manifest_of_a_folder_lies_inside(example):
    folder = example.folder / "model"
    made = example.operate(to=folder)
    assert made.manifest["checkpoint"]["file"] == "model.safetensors"
    assert (folder / "surgeon.manifest.json").exists()


def test_example_network_has_every_kind_of_tensor():
    assert len({tensor.dtype for tensor in example_tensors().values()}) >= 7
