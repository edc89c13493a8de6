"""Outputs in object storage: the bytes of local ones, and complete or not there."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save_file

import surgeon
from surgeon.base.errors import UsageError, WriteError
from tests.remote.conftest import folder_bytes, write_model, write_recipe
from tests.remote.servers import Fault

pytest.importorskip("obstore")
pytestmark = pytest.mark.slow

_SCALE = {"op": "scale", "target": "layers.0.*", "by": 2.0}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "r.json", _SCALE, output={"shard_size": "40KB"})


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_folder_has_the_bytes_of_a_local_one(bucket, model, recipe, tmp_path, where):
    surgeon.apply(recipe, model, tmp_path / "out")
    source = bucket.upload(model) if where == "elsewhere" else model
    done = surgeon.apply(recipe, source, f"{bucket.url}/out", workers=2)
    assert str(done.output) == f"{bucket.url}/out"
    assert bucket.contents("out/") == folder_bytes(tmp_path / "out")
    assert len(bucket.contents("out/")) > 5
    assert surgeon.verify(f"{bucket.url}/out").verified


@pytest.mark.parametrize("checksums", ["crc32", "sha256", "none"])
def test_a_large_file_streams_in_parts_to_the_same_bytes(bucket, tmp_path, checksums):
    random = np.random.default_rng(0)
    tensors = {f"w{n}": random.standard_normal((1024, 3000), np.float32) for n in range(4)}
    save_file(tensors, tmp_path / "in.safetensors")
    step = {"op": "scale", "target": "w0", "by": 2.0}
    text = {"surgeon": 1, "steps": [step, {"op": "transpose", "target": "w1"}]}
    for out in (tmp_path / "out.safetensors", f"{bucket.url}/out.safetensors"):
        surgeon.apply(text, tmp_path / "in.safetensors", out, checksums=checksums, workers=2)
    there = bucket.contents("out.")
    assert there["safetensors"] == (tmp_path / "out.safetensors").read_bytes()
    assert there["manifest.json"] == (tmp_path / "out.manifest.json").read_bytes()
    parts = [one for one in bucket.proxy.state.asked if "partNumber" in one.path]
    assert len(parts) == 6
    assert bucket.uploads() == []


def test_the_index_and_then_the_manifest_are_put_last(bucket, model, recipe):
    surgeon.apply(recipe, model, f"{bucket.url}/out")
    put = [one.path.partition("?")[0].rpartition("/")[2] for one in bucket.proxy.state.asked
           if one.method == "PUT"]  # fmt: skip
    assert put[-2:] == ["model.safetensors.index.json", "surgeon.manifest.json"]


def test_an_output_that_is_there_is_replaced_if_asked(bucket, model, recipe, tmp_path):
    for name in ("0", "1"):
        surgeon.apply(recipe, model, f"{bucket.url}/{name}")
    bucket.client.put_object(Bucket=bucket.name, Key="0/notes.txt", Body=b"mine")
    with pytest.raises(UsageError, match="--force replaces it"):
        surgeon.apply(recipe, model, f"{bucket.url}/0")
    whole = write_recipe(tmp_path / "whole.json", {"op": "scale", "target": "*", "by": 3.0})
    surgeon.apply(whole, model, tmp_path / "whole")
    done = surgeon.apply(whole, model, f"{bucket.url}/0", force=True)
    assert "stays" in done.text
    assert bucket.contents("0/") == folder_bytes(tmp_path / "whole") | {"notes.txt": b"mine"}
    surgeon.apply(recipe, model, f"{bucket.url}/0", force=True)
    assert bucket.contents("0/") == bucket.contents("1/") | {"notes.txt": b"mine"}


def test_the_input_may_be_replaced_in_place(bucket, model, recipe, tmp_path):
    source = bucket.upload(model)
    surgeon.apply(recipe, source, source, force=True)
    surgeon.apply(recipe, model, model, force=True)
    assert bucket.contents("model/") == folder_bytes(model)


@pytest.mark.parametrize("part", ["model-00002-of-00002", "surgeon.manifest"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_run_leaves_what_was_there(bucket, model, recipe, part, is_there):
    if is_there:
        surgeon.apply(recipe, model, f"{bucket.url}/out")
    before = bucket.contents()
    bucket.proxy.state.faults.append(
        Fault(status=403, where=lambda one: one.method in ("PUT", "POST") and part in one.path)
    )
    with pytest.raises(WriteError, match=r"cannot be written: access is denied \(status 403\)"):
        surgeon.apply(recipe, model, f"{bucket.url}/out", force=True)
    if is_there and part == "surgeon.manifest":  # by then the shards have their new bytes
        assert bucket.contents().keys() >= before.keys()
    else:
        assert bucket.contents() == before
    assert bucket.uploads() == []


def test_a_refused_part_of_a_large_file_aborts_its_upload(bucket, tmp_path):
    save_file({"w": np.zeros((1024, 10_000), np.float32)}, tmp_path / "in.safetensors")
    bucket.proxy.state.faults.append(
        Fault(status=403, where=lambda one: "partNumber=3" in one.path)
    )
    with pytest.raises(WriteError, match="access is denied"):
        surgeon.apply({"surgeon": 1, "steps": []}, tmp_path / "in.safetensors",
                      f"{bucket.url}/out.safetensors")  # fmt: skip
    assert bucket.contents() == {}
    assert bucket.uploads() == []


def test_linked_shards_are_copied_by_the_storage(bucket, model, tmp_path):
    source = bucket.upload(model)
    recipe = write_recipe(tmp_path / "r.json", {"op": "scale", "target": "layers.1.*", "by": 2.0})
    surgeon.apply(recipe, model, tmp_path / "out", link=True)
    bucket.proxy.state.clear()
    surgeon.apply(recipe, source, f"{bucket.url}/out", link=True, checksums="none")
    assert bucket.contents("out/").keys() == folder_bytes(tmp_path / "out").keys()
    shard = "model-00001-of-00002.safetensors"
    assert bucket.contents("out/")[shard] == (model / shard).read_bytes()
    fetched = [o for o in bucket.proxy.state.asked if o.method == "GET" and shard in o.path]
    assert [one.range for one in fetched] == ["bytes=0-65535"]


def test_what_cannot_be_linked_is_copied(bucket, model, tmp_path):
    recipe = write_recipe(tmp_path / "r.json", {"op": "scale", "target": "layers.1.*", "by": 2.0})
    surgeon.apply(recipe, model, tmp_path / "linked", link=True)
    done = surgeon.apply(recipe, bucket.upload(model), tmp_path / "here", link=True)
    surgeon.apply(recipe, model, f"{bucket.url}/there", link=True)
    assert "cannot be linked here, so copied" in done.text
    expected = folder_bytes(tmp_path / "linked")
    assert folder_bytes(tmp_path / "here") == bucket.contents("there/") == expected


def test_a_state_of_an_optimizer_goes_along(bucket, tmp_path):
    import torch

    net = torch.nn.Linear(8, 4)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "in.pt")
    stage = {"name": "next", "optimizer_state": "carry"}
    text = {"surgeon": 1, "steps": [], "training": {"stages": [stage]}}
    places = [tmp_path / "out.safetensors", f"{bucket.url}/out.safetensors"]
    for place in places:
        surgeon.apply(text, f"{tmp_path / 'in.pt'}#model", place,
                      optimizer=f"{tmp_path / 'in.pt'}#optimizer")  # fmt: skip
    names = ("safetensors", "optimizer.safetensors", "manifest.json")
    assert bucket.contents("out.") == {n: (tmp_path / f"out.{n}").read_bytes() for n in names}
    assert surgeon.verify(places[1]).verified


def test_memory_holds_what_a_program_writes_there(tmp_path):
    """In a process of its own, since from then on requests are made where the memory is."""
    import subprocess
    import sys

    model = write_model(tmp_path / "model")
    program = (
        "import surgeon\n"
        f"text = {{'surgeon': 1, 'steps': [{_SCALE!r}]}}\n"
        f"surgeon.apply(text, {str(model)!r}, 'memory://here/out', workers=2)\n"
        "assert surgeon.verify('memory://here/out').verified\n"
        f"assert not surgeon.diff({str(model)!r}, 'memory://here/out').equal\n"
        "print(len(surgeon.inspect('memory://here/out').tensors))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=100, check=False)  # fmt: skip
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_what_a_plan_says_of_an_output_elsewhere_is_what_apply_finds(bucket, model, recipe):
    surgeon.apply(recipe, model, f"{bucket.url}/out")
    with pytest.raises(UsageError, match="--force replaces it"):
        surgeon.plan(recipe, model, f"{bucket.url}/out")
    plan = surgeon.plan(recipe, model, f"{bucket.url}/new")
    assert json.loads(json.dumps(plan.as_json()))["files"]
    assert load(bucket.contents("out/")["model-00001-of-00002.safetensors"])
