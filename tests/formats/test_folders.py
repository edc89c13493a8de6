"""Model folders and containers: the one set of tensors that is meant, or an error that says why."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint
from surgeon.lazy import Scratch

X = torch.arange(6.0)
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def error_of(location):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(location)).close()
    path = str(location).partition("#")[0]
    assert all("\n" not in line and line.startswith(path) for line in caught.value.problems)
    return str(caught.value)


def sharded(folder, shards=None, weight_map=None, **metadata):
    shards = shards or {A: {"a": X}, B: {"b": X + 1, "c": X + 2}}
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    weight_map = weight_map or {t: name for name, tensors in shards.items() for t in tensors}
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_open_as_one(tmp_path):
    checkpoint = open_checkpoint(str(sharded(tmp_path, total_size=72)))
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert checkpoint.shards == {"a": A, "b": B, "c": B}
    assert [file.name for file in checkpoint.weight_files][1:] == [A, B]
    assert checkpoint.folder == checkpoint.path == tmp_path
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.size_bytes == sum((tmp_path / name).stat().st_size for name in (A, B))
    assert checkpoint.tensors["c"].elements(0, 6, Scratch()).view("f4")[0] == 2
    checkpoint.close()


def test_an_index_file_opens_as_its_folder_does(tmp_path):
    path = sharded(tmp_path) / "model.safetensors.index.json"
    index, folder = open_checkpoint(str(path)), open_checkpoint(str(tmp_path))
    assert index.header_sha256 == folder.header_sha256
    assert index.folder == tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_weight_file_opens(tmp_path, name):
    save_file({"a": X}, tmp_path / name) if "safe" in name else torch.save(
        {"a": X}, tmp_path / name
    )
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(str(tmp_path))
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.folder == tmp_path
    assert checkpoint.weight_files == (tmp_path / name,)
    assert not checkpoint.shards


def test_torch_shards_open_and_keep_ties_inside_a_shard(tmp_path):
    torch.save({"a": X, "tied": X}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": X + 1}, tmp_path / "pytorch_model-2.bin")
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    index = {"metadata": {"total_size": 48}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.tensors["a"] is checkpoint.tensors["tied"]
    assert len(checkpoint.records) == 2


DIFFERENCES = {
    "missing shard": ({}, {"a": A, "b": B, "c": B, "d": "none.safetensors"},
                      ["shard 'none.safetensors': it is named in the index but missing"]),
    "unknown tensor": ({}, {"a": A, "b": B}, [f"tensor 'c': found in shard {B}, but not in"]),
    "missing tensor": ({}, {"a": A, "b": B, "c": B, "d": A}, [f"'d': expected in {A}, found"]),
    "wrong shard": ({}, {"a": B, "b": B, "c": B}, []),
    "two shards": ({A: {"a": X}, B: {"a": X, "b": X + 1}}, {"a": A, "b": B},
                   [f"tensor 'a': found in shards {A} and {B}"]),
    "all at once": ({}, {"a": A, "b": A, "d": B, "e": "../e"},
                    [f"'b': found in {B}, expected in {A}", "'c': found in shard", "'d': expected",
                     "shard '../e': found a path"]),
    "parent": ({}, {"a": A, "b": B, "c": B, "d": "../x.safetensors"}, ["found a path"]),
    "absolute": ({}, {"a": A, "b": B, "c": B, "d": "/etc/passwd"}, ["found a path"]),
    "empty name": ({}, {"a": A, "b": B, "c": B, "d": ""}, ["found a path"]),
    "dots": ({}, {"a": A, "b": B, "c": B, "d": ".."}, ["found a path"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENCES)
def test_all_differences_between_index_and_shards_are_listed(tmp_path, case):
    shards, weight_map, lines = DIFFERENCES[case]
    message = error_of(sharded(tmp_path, shards, weight_map))
    for line in lines:
        assert line in message


def test_a_wrong_total_size_is_refused(tmp_path):
    message = error_of(sharded(tmp_path, total_size=71))
    assert "found total_size 71, expected 72" in message


@pytest.mark.parametrize("sharding", [True, False])
def test_links_out_of_the_folder_are_refused(tmp_path, sharding):
    folder = tmp_path / "model"
    folder.mkdir()
    name = B if sharding else "model.safetensors"
    if sharding:
        sharded(folder)
        (folder / name).rename(tmp_path / "blob")
    else:
        save_file({"a": X}, tmp_path / "blob")
    (folder / name).symlink_to("../blob")
    assert "a link that leaves the folder" in error_of(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "no 'weight_map' of names to files"),
        ('{"weight_map": {"a": "x", "a": "x"}}', "'a' is there twice"),
        ('{"weight_map": {}, "metadata": {"total_size": "9"}}', "total_size '9'"),
        ('{"weight_map": NaN}', "NaN is not JSON"),
        ('{"weight_map": ', "Expecting value"),
    ],
)
def test_malformed_indexes_are_refused(tmp_path, text, words):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert words in error_of(tmp_path)


def test_shards_that_are_damaged_are_all_named(tmp_path):
    sharded(tmp_path)
    for name in (A, B):
        (tmp_path / name).write_bytes(b"short")
    message = error_of(tmp_path)
    assert A in message
    assert B in message


def test_folders_that_are_not_clear_list_what_they_hold(tmp_path):
    assert "it holds nothing" in error_of(tmp_path)
    (tmp_path / "adapter.safetensors").touch()
    assert "it holds 'adapter.safetensors'" in error_of(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").touch()
    assert "found model.safetensors and model.safetensors.index.json" in error_of(tmp_path)
    assert "a folder has no containers" in error_of(f"{tmp_path}#model")


STATE = {"w": X, "b": X + 1}
OPTIMIZER = {"state": {"0": {"exp_avg": X, "exp_avg_sq": X}}, "param_groups": []}


def saved(tmp_path, value):
    torch.save(value, tmp_path / "in.pt")
    return tmp_path / "in.pt"


@pytest.mark.parametrize(
    ("value", "inner", "note"),
    [
        (STATE, "", ()),
        ({"model": STATE, "optimizer": OPTIMIZER, "epoch": 3}, "", "took the tensors in 'model'"),
        ({"model": STATE, "loss": X}, "", "took the tensors in 'model'"),
        ({"a": {"b": {"c": STATE}}}, "", "took the tensors in 'a.b.c'"),
        ({"a": {"b": {"c": STATE}}}, "a.b", "took the tensors in 'a.b.c'"),
        ({"model": STATE, "ema": {"w": X, "b": X}}, "ema", ()),
        ({"m": {"x.y": STATE, "x": {"y": {"z": X}}}}, "m.x.y", ()),
        ({"m": {"x.y": {"q": 1}, "x": {"y": {"z": STATE}}}}, "m.x.y.z", ()),
        ({"model": STATE, "same": STATE}, "", ()),
        ({"model": STATE, "rng": {"cpu": X.byte()}}, "", "took the tensors in 'model'"),
        ({"few": {"w": X, "p": 1, "q": 2, "r": 3}}, "few", ()),
    ],
)  # fmt: skip
def test_the_dict_of_tensors_is_found(tmp_path, value, inner, note):
    path = saved(tmp_path, value)
    checkpoint = open_checkpoint(f"{path}#{inner}" if inner else str(path))
    assert "w" in checkpoint.tensors
    assert not note or note in checkpoint.notes


def test_two_dicts_of_tensors_are_listed(tmp_path):
    path = saved(tmp_path, {"model": STATE, "ema": {"w": X}, "optimizer": OPTIMIZER})
    lines = error_of(path).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{path}#model", f"{path}#ema"]


def test_a_name_that_is_not_there_gets_the_nearest(tmp_path):
    path = saved(tmp_path, {"model": {"ema": STATE}, "epoch": 3})
    assert "did you mean 'model'" in error_of(f"{path}#modle")
    assert "it holds 'model' (dict of 1), 'epoch' (int)" in error_of(f"{path}#zzz")


def test_entries_that_are_no_tensors_are_left_out_with_a_note(tmp_path):
    value = {**STATE, "fc._extra_state": {"scale": 1}, "version": 2}
    checkpoint = open_checkpoint(str(saved(tmp_path, value)))
    assert list(checkpoint.tensors) == ["w", "b"]
    (note,) = checkpoint.notes
    assert note.startswith("left out 2 entries that are not tensors: ")
    assert "fc._extra_state (dict of 1)" in note
    assert "version (int)" in note


def test_cycles_and_shared_dicts_are_walked_once(tmp_path):
    value = {"model": STATE}
    value["self"] = value
    for _ in range(60):
        value = {"a": value, "b": value}
    assert "w" in open_checkpoint(str(saved(tmp_path, value))).tensors


def test_prefixes_are_removed_from_aliases_and_shards_too(tmp_path):
    shards = {A: {"module.a": X}, B: {"module.b": X}}
    checkpoint = open_checkpoint(str(sharded(tmp_path, shards)))
    assert checkpoint.shards == {"a": A, "b": B}
    save_file({"module.a": X}, tmp_path / "tied", {"module.c": "module.a"})
    tensors = open_checkpoint(str(tmp_path / "tied")).tensors
    assert tensors["a"] is tensors["c"]


def test_a_path_with_a_hash_that_exists_is_taken_as_it_is(tmp_path):
    folder = tmp_path / "v#1"
    folder.mkdir()
    path = saved(folder, {"model": STATE}).rename(folder / "a#model.pt")
    assert open_checkpoint(str(path)).path == path
    assert open_checkpoint(f"{path}#model").path == path


def test_a_container_of_a_safetensors_file_is_refused(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    assert "only torch files have containers" in error_of(f"{tmp_path}/a.safetensors#model")


def test_a_missing_file_with_a_container_is_named(tmp_path):
    assert error_of(f"{tmp_path}/none.pt#model") == f"{tmp_path}/none.pt: no such file"
    assert Path(tmp_path).exists()


def test_an_index_by_its_name_lists_what_is_missing(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "missing.safetensors"}}))
    assert "'missing.safetensors': it is named in the index but missing" in error_of(index)
