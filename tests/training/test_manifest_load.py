"""Reading a manifest: where it may lie, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small import HEAD, group, loaded, network, saved, stage

from surgeon.base.errors import CheckpointError, SurgeonError
from surgeon.inspection.verify import verify
from surgeon.training import Manifest, ManifestError

WARM_UP = stage("warm-up", group("head", HEAD, lr=0.5), duration={"epochs": 5})


@pytest.mark.parametrize("given", ["out.manifest.json", "out.safetensors"])
def test_load_finds_the_manifest_beside_its_checkpoint(tmp_path: Path, given: str) -> None:
    path = saved(network(), tmp_path, WARM_UP)
    assert Manifest.load(tmp_path / given).path == path
    assert Manifest.load(str(tmp_path / given)).path == path


def test_load_finds_the_manifest_in_a_model_folder(tmp_path: Path) -> None:
    path = saved(network(), tmp_path, WARM_UP).rename(tmp_path / "surgeon.manifest.json")
    assert Manifest.load(tmp_path).path == path
    assert Manifest.load(tmp_path / "model.safetensors").path == path


def test_load_returns_the_stages_as_data(tmp_path: Path) -> None:
    manifest = loaded(network(), tmp_path, WARM_UP, stage("joint", group("all", HEAD)))
    warm_up, joint = manifest.stages
    assert (warm_up.name, warm_up.duration, joint.duration) == ("warm-up", {"epochs": 5}, {})
    assert (warm_up.groups[0].name, warm_up.groups[0].settings) == ("head", {"lr": 0.5})
    assert warm_up.groups[0].params == ("fc.bias", "fc.weight")
    assert manifest.tensors["fc.weight"].shape == (8, 6)
    assert manifest.optimizer is not None
    assert manifest.optimizer.args["momentum"] == 0.9


def test_load_returns_the_teacher(tmp_path: Path) -> None:
    teacher = {"file": "in.pt", "sha256": "0", "outputs": ["fc.weight[0:7]"], "temperature": 2.0}
    manifest = loaded(network(), tmp_path, WARM_UP, teacher={**teacher, "weight": 1})
    assert manifest.teacher is not None
    assert manifest.teacher.outputs == ("fc.weight[0:7]",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"surgeon_manifest": 2}, "is manifest version 2, and this surgeon reads up to 1; upgrade"),
        ({"surgeon_manifest": "1"}, "not a surgeon manifest"),
        ({"stages": [WARM_UP, WARM_UP]}, "there are two stages 'warm-up'"),
        ({"stages": [{"groups": []}]}, r"stages\[0\].name: is missing"),
        ({"stages": {}}, "stages: {} is not an array"),
        (
            {"tensors": {"a": {"shape": [True], "dtype": "F32"}}},
            r"tensors.a.shape\[0\]: True is not an",
        ),
        (
            {"stages": [{**WARM_UP, "optimizer_state": "carri"}]},
            r"stages\[0\].optimizer_state: 'carri' is unknown; did you mean 'carry'\?",
        ),
        ({"checkpoint": {"file": "../a"}}, "'../a' is not the name of a file beside the manifest"),
    ],
)
def test_load_refuses(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    path = saved(network(), tmp_path, WARM_UP, **changes)
    with pytest.raises(ManifestError, match=problem) as raised:
        Manifest.load(path)
    assert str(raised.value).startswith(str(path))
    assert isinstance(raised.value, SurgeonError)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[]", "{", "\udcff"])
def test_load_refuses_what_is_not_strict_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.manifest.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ManifestError, match=r"out\.manifest\.json: "):
        Manifest.load(path)


def test_load_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"out\.manifest\.json: cannot be read: it is not there"
    ):
        Manifest.load(tmp_path / "out.safetensors")


def test_load_ignores_what_later_manifests_add(tmp_path: Path) -> None:
    path = saved(network(), tmp_path, WARM_UP)
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert Manifest.load(path).stages[0].name == "warm-up"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.manifest.json")
    with pytest.raises(ManifestError, match=r"out\.manifest\.json: not a regular file"):
        Manifest.load(tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"out\.manifest\.json: not a regular file"):
        verify(tmp_path / "out.safetensors", 1)
