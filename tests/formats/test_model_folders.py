"""What a model folder is taken for: hub caches, weights in several formats, files named inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint

X = torch.arange(6.0)
STRAYS = (
    "consolidated.00.pth", "consolidated.safetensors", "model-00001-of-00002.safetensors",
    "model-q4.gguf", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "model.onnx",
)  # fmt: skip
STRAY_FOLDERS = ("original", "onnx", "checkpoint-500", "global_step500")
KEPT = ("config.json", "tokenizer.json", "optimizer.pt", "modeling_x.py", "1_Pooling")


def error_of(location):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(location)).close()
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    save_file({"w": X}, made / "model.safetensors")
    (made / "config.json").write_text("{}")
    return made


@pytest.fixture
def snapshot(tmp_path):
    """As huggingface_hub lays a cache out: links of a snapshot into the repository's blobs."""
    cache = tmp_path / "hub" / "models--a--b"
    revision = cache / "snapshots" / "4d1c"
    revision.mkdir(parents=True)
    (cache / "blobs").mkdir()
    save_file({"w": X}, cache / "blobs" / "5f3a")
    (cache / "blobs" / "c0").write_text("{}")
    (revision / "model.safetensors").symlink_to("../../blobs/5f3a")
    (revision / "config.json").symlink_to("../../blobs/c0")
    return revision


@pytest.mark.parametrize("word", ["", "model.safetensors"])
def test_snapshot_of_a_hub_cache_opens(snapshot, word):
    checkpoint = open_checkpoint(str(snapshot / word))
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.folder == snapshot


def test_subfolder_of_a_snapshot_opens(snapshot):
    (snapshot / "unet").mkdir()
    (snapshot / "unet" / "model.safetensors").symlink_to("../../../blobs/5f3a")
    assert list(open_checkpoint(str(snapshot / "unet")).tensors) == ["w"]


@pytest.mark.parametrize("kind", ["another cache", "a link in blobs", "no snapshot"])
def test_links_elsewhere_are_refused(snapshot, tmp_path, kind):
    save_file({"w": X}, tmp_path / "secret")
    blobs = snapshot.parent.parent / "blobs"
    (snapshot / "model.safetensors").unlink()
    if kind == "another cache":
        (tmp_path / "blobs").mkdir()
        (tmp_path / "secret").rename(tmp_path / "blobs" / "secret")
        (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / "secret")
    elif kind == "a link in blobs":
        (blobs / "evil").symlink_to(tmp_path / "secret")
        (snapshot / "model.safetensors").symlink_to("../../blobs/evil")
    else:
        (snapshot / "model.safetensors").symlink_to("../../blobs/5f3a")
        snapshot = snapshot.rename(blobs.parent / "other")
    assert "a link that leaves the folder" in error_of(snapshot)


def test_safetensors_are_taken_where_there_are_both(folder):
    torch.save({"w": X + 1}, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(str(folder))
    assert [path.name for path in checkpoint.weight_files] == ["model.safetensors"]
    assert checkpoint.left_behind == ("pytorch_model.bin",)
    assert checkpoint.notes == ("left behind, since they are other weights: 'pytorch_model.bin'",)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_weight_file_that_is_named_keeps_its_folder(folder, name):
    torch.save({"w": X + 1}, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(str(folder / name))
    assert checkpoint.folder == folder
    assert checkpoint.path == folder / name
    other = {"model.safetensors", "pytorch_model.bin"} - {name}
    assert set(checkpoint.left_behind) == other


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "consolidated.safetensors"])
def test_a_part_and_other_weights_that_are_named_are_files(folder, name):
    save_file({"w": X}, folder / name)
    assert open_checkpoint(str(folder / name)).folder is None


def test_a_file_beside_no_config_is_a_file(tmp_path):
    save_file({"w": X}, tmp_path / "model.safetensors")
    assert open_checkpoint(str(tmp_path / "model.safetensors")).folder is None


def test_other_weights_are_left_behind_and_the_rest_is_not(folder):
    for name in STRAYS:
        (folder / name).write_bytes(b"x")
    for name in (*STRAY_FOLDERS, "1_Pooling"):
        (folder / name).mkdir()
    for name in KEPT[1:-1]:
        (folder / name).touch()
    checkpoint = open_checkpoint(str(folder))
    assert set(checkpoint.left_behind) == {*STRAYS, *STRAY_FOLDERS}
    assert len(checkpoint.notes) == 1


def test_a_folder_that_cannot_be_listed_is_one_line(folder, monkeypatch):
    def refuse(place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("surgeon.formats.folders.names_in", refuse)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a Path would be opened)
    assert (
        error_of(folder / "model.safetensors") == f"{folder}: cannot be listed: Permission denied"
    )
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert Path(folder).exists()
