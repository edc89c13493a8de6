"""Checkpoints that are read from URLs: the same answers, for few requests."""

import hashlib
import json
import os
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file

import surgeon
from surgeon.base.errors import CheckpointError, UsageError
from surgeon.remote import cache
from tests.remote.conftest import folder_bytes, run, write_model, write_recipe
from tests.remote.servers import Fault

pytest.importorskip("obstore")
pytestmark = pytest.mark.slow


@pytest.fixture
def model(web, request):
    """A model folder of two shards that a web server has."""
    folder = web.folder / request.node.name
    return write_model(folder), f"{web.url}/{folder.name}"


def test_the_header_of_a_file_costs_one_request(web, model):
    folder, url = model
    name = "model-00001-of-00002.safetensors"
    local = surgeon.inspect(folder / name)
    found = surgeon.inspect(f"{url}/{name}")
    assert found.tensors == local.tensors
    headers = [one for one in web.state.asked if one.path.endswith(name)]
    assert [one.range for one in headers] == ["bytes=0-65535"]


def test_a_long_header_costs_two(web):
    from safetensors.numpy import save_file

    tensors = {f"a.long.name.of.tensor.{n}": np.zeros(1, np.float32) for n in range(1500)}
    save_file(tensors, web.folder / "long.safetensors")
    assert len(surgeon.inspect(f"{web.url}/long.safetensors").tensors) == 1500
    headers = [one for one in web.state.asked if one.path == "/long.safetensors"]
    assert len(headers) == 2


def test_a_file_of_torch_is_read_by_its_directory(web):
    import torch

    tensors = {f"t{n}": torch.randn(300, 300) for n in range(5)}
    torch.save(tensors, web.folder / "in.pt")
    with surgeon.open(f"{web.url}/in.pt") as found:
        assert web.state.sent_bytes < (web.folder / "in.pt").stat().st_size / 4
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name].torch(), tensor, rtol=0, atol=0)


def test_one_of_several_dicts_of_a_file_is_named(web):
    import torch

    torch.save({"a": {"x": torch.ones(2)}, "b": {"x": torch.zeros(2)}}, web.folder / "two.pt")
    with surgeon.open(f"{web.url}/two.pt#b") as found:
        assert found["x"].numpy().tolist() == [0, 0]


def test_a_folder_of_the_web_gives_what_it_gives_here(web, model, tmp_path):
    folder, url = model
    recipe = write_recipe(tmp_path / "r.json", {"op": "scale", "target": "layers.0.*", "by": 2.0})
    surgeon.apply(recipe, folder, tmp_path / "here")
    surgeon.apply(recipe, f"{url}/", tmp_path / "there")
    assert folder_bytes(tmp_path / "here") == folder_bytes(tmp_path / "there")
    assert surgeon.diff(f"{url}/", folder).equal


def test_a_merge_of_models_elsewhere_is_that_of_models_here(bucket, tmp_path):
    folders = [write_model(tmp_path / f"m{n}", seed=n) for n in range(3)]
    urls = [bucket.upload(folder) for folder in folders]
    step = {"op": "ties", "models": ["1", "2"], "density": 0.5, "target": "*"}
    text = {"surgeon": 1, "models": {"1": None, "2": None}, "steps": [step]}
    surgeon.apply(text, folders[0], tmp_path / "here", models=folders[1:])
    surgeon.apply(text, urls[0], tmp_path / "there", models=urls[1:], workers=2)
    assert folder_bytes(tmp_path / "here") == folder_bytes(tmp_path / "there")
    shards = surgeon.compare(*urls).as_json(), surgeon.compare(*folders).as_json()
    assert shards[0]["layers"] == shards[1]["layers"]


def test_a_recipe_and_an_adapter_may_be_elsewhere(bucket, tmp_path):
    from safetensors.numpy import save_file

    base = write_model(tmp_path / "base", shards=1)
    (tmp_path / "adapter").mkdir()
    random = np.random.default_rng(5)
    factors = {f"base_model.model.layers.0.a.lora_{k}.weight": random.standard_normal(s, np.float32)
               for k, s in (("A", (4, 64)), ("B", (64, 4)))}  # fmt: skip
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["a"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (base / "model-00001-of-00001.safetensors").rename(base / "model.safetensors")
    (base / "model.safetensors.index.json").unlink()
    adapter = bucket.upload(tmp_path / "adapter")
    text = {"op": "lora_merge", "adapter": adapter}
    recipe = bucket.upload(write_recipe(tmp_path / "r.json", text))
    weights = load_file(base / "model.safetensors")
    save_file({f"{n}.weight": t for n, t in weights.items()}, base / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    surgeon.apply(recipe, base, tmp_path / "out")
    a, b = (one.astype(np.float64) for one in factors.values())
    expected = weights["layers.0.a"].astype(np.float64) + 2 * b @ a
    found = load_file(tmp_path / "out" / "model.safetensors")["layers.0.a.weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_model_of_many_shards_costs_its_index_and_its_headers(hub):
    pytest.importorskip("huggingface_hub")
    write_model(hub.folder / "org" / "large", shards=1000, rows=1)
    found = surgeon.inspect("hf://org/large")
    assert len(found.tensors) == 2000
    asked = [one.path for one in hub.state.asked]
    assert sum("/api/models/" in path for path in asked) == 1
    assert sum(path.endswith("index.json") for path in asked) == 1
    assert sum(path.endswith(".safetensors") for path in asked) == 1000
    assert len(asked) == 1002
    hub.state.clear()
    one = surgeon.inspect("hf://org/large", "layers.7.*")
    assert {*one.tensors} == {name for name in found.tensors if name.startswith("layers.7.")}
    assert len(hub.state.asked) == 3
    assert "opened 1 of 1000 shards" in str(one.as_json()["notes"])


def test_a_revision_and_a_path_of_a_repository_are_read(hub, tmp_path):
    pytest.importorskip("huggingface_hub")
    write_model(hub.folder / "org" / "small", shards=1)
    (hub.folder / "org" / "small" / "model-00001-of-00001.safetensors").rename(
        hub.folder / "org" / "small" / "weights.safetensors"
    )
    local = surgeon.inspect(hub.folder / "org" / "small" / "weights.safetensors")
    found = surgeon.inspect("hf://org/small@main/weights.safetensors")
    assert found.tensors == local.tensors
    with pytest.raises(CheckpointError, match="no such model"):
        surgeon.inspect("hf://org/nothing")


def test_what_is_kept_is_not_fetched_again(web, model, tmp_path):
    _, url = model
    recipe = write_recipe(tmp_path / "r.json", {"op": "scale", "target": "*", "by": 2.0})
    kept_in = tmp_path / "cache"
    assert run("apply", recipe, f"{url}/", tmp_path / "a", "--cache", kept_in).returncode == 0
    first, state = web.state.sent_bytes, web.state
    kept = [path for path in kept_in.rglob("*") if path.is_file()]
    kept[0].write_bytes(b"damaged" + kept[0].read_bytes()[7:])
    state.asked.clear()
    assert run("apply", recipe, f"{url}/", tmp_path / "b", "--cache", kept_in).returncode == 0
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    assert len(kept) > 1
    assert state.sent_bytes < first


@pytest.mark.parametrize("kind", ["FIFO", "link to a copy", "link to a device"])
def test_what_others_put_into_the_cache_is_not_taken(web, model, tmp_path, kind):
    _, url = model
    recipe = write_recipe(tmp_path / "r.json", {"op": "scale", "target": "*", "by": 2.0})
    kept_in = tmp_path / "cache"
    assert run("apply", recipe, f"{url}/", tmp_path / "a", "--cache", kept_in).returncode == 0
    kept = [path for path in kept_in.rglob("*") if path.is_file()]
    assert kept
    for number, path in enumerate(kept):
        copy = path.rename(tmp_path / f"copy-{number}")
        if kind == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to(copy if kind == "link to a copy" else "/dev/zero")
    assert run("apply", recipe, f"{url}/", tmp_path / "b", "--cache", kept_in).returncode == 0
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    assert all(path.is_file() and not path.is_symlink() for path in kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_what_is_another_users_in_the_cache_is_fetched_again(tmp_path):
    path = tmp_path / "kept"
    path.write_bytes(hashlib.sha256(b"poison").digest() + b"poison")
    assert cache._kept(path, 6) == b"poison"
    os.chown(path, 65534, 65534)
    assert cache._kept(path, 6) is None


def test_a_server_without_ranges_is_refused(web, monkeypatch):
    from tests.remote.servers import FileHandler

    (web.folder / "x.safetensors").write_bytes(b"0" * 100_000)
    original = FileHandler._give
    monkeypatch.setattr(
        FileHandler, "_give",
        lambda self, asked, data, fault: original(
            self, type(asked)(asked.method, asked.path, ""), data, fault
        ),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="gives no byte ranges"):
        surgeon.inspect(f"{web.url}/x.safetensors")


def test_fewer_ranges_are_held_within_a_bound(web, tmp_path):
    from safetensors.numpy import save_file

    data = np.arange(12 << 20, dtype=np.float32)
    save_file({"w": data}, web.folder / "large.safetensors")
    step = {"op": "scale", "target": "*", "by": 2.0}
    for bound in ("32MB", None):
        surgeon.apply({"surgeon": 1, "steps": [step]}, f"{web.url}/large.safetensors",
                      tmp_path / f"{bound}.safetensors", max_memory=bound)  # fmt: skip
        found = load_file(tmp_path / f"{bound}.safetensors")["w"]
        np.testing.assert_array_equal(found, 2 * data)
    with pytest.raises(surgeon.SurgeonError, match="for one worker"):
        surgeon.apply({"surgeon": 1, "steps": [step]}, f"{web.url}/large.safetensors",
                      tmp_path / "no.safetensors", max_memory="10MB")  # fmt: skip


def test_several_ranges_are_on_their_way_at_a_time(web, tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(12 << 20, np.float32)}, web.folder / "wide.safetensors")
    together, arrived, waited = threading.Event(), [], []

    def wait(asked):
        if asked.range and not asked.range.startswith("bytes=0-"):
            arrived.append(asked)
            waited.append(together.wait(5) if len(arrived) == 1 else together.set())
        return False

    web.state.faults.append(Fault(where=wait))
    surgeon.apply({"surgeon": 1, "steps": []}, f"{web.url}/wide.safetensors",
                  tmp_path / "out.safetensors", workers=1)  # fmt: skip
    assert True in waited, "the second range was asked for only once the first had come"


def test_nothing_is_written_to_the_web(web, model, tmp_path):
    with pytest.raises(UsageError, match="takes no output"):
        surgeon.plan({"surgeon": 1, "steps": []}, model[0], f"{web.url}/out")
