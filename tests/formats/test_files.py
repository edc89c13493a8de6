"""Input files: more than may be open at once, and those that change while they are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint
from surgeon.lazy import Scratch

X = torch.arange(6.0)


def sharded(folder, count, add=0.0):
    folder.mkdir()
    names = {f"t{n}": f"model-{n}.safetensors" for n in range(count)}
    for n, (tensor, file) in enumerate(names.items()):
        save_file({tensor: X + n + add}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


LIMITED = (
    "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    "from surgeon.cli.commands import main\n"
    "main()"
)


def limited(soft, hard, *words):
    code = LIMITED.format(soft=soft, hard=hard)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("count", "soft", "hard"),
    [(100, 100, 100), (100, 80, 4096), pytest.param(5000, 256, 256, marks=pytest.mark.slow)],
)
def test_two_folders_of_more_shards_than_may_be_open_are_averaged(tmp_path, count, soft, hard):
    first, second = sharded(tmp_path / "a", count), sharded(tmp_path / "b", count, 2.0)
    output = tmp_path / "out.safetensors"
    recipe = tmp_path / "r.json"
    steps = [{"op": "average", "models": "*"}]
    recipe.write_text(json.dumps({"surgeon": 1, "models": {"b": str(second)}, "steps": steps}))
    done = limited(soft, hard, "apply", recipe, first, output)
    assert done.returncode == 0, done.stderr
    found = load_file(output)
    assert all(torch.equal(found[f"t{n}"], X + n + 1) for n in range(count))


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "in.safetensors"
    save_file({"a": X, "b": torch.arange(100_000.0)}, path)
    checkpoint = open_checkpoint(str(path))
    yield path, checkpoint
    checkpoint.close()


def values(checkpoint):
    for tensor in checkpoint.tensors.values():
        tensor.elements(0, tensor.spec.count, Scratch())


def test_a_file_that_shrinks_is_noticed(opened):
    path, checkpoint = opened
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="was changed while it was read: it had 4001"):
        values(checkpoint)


def test_a_file_of_the_same_size_that_is_written_to_is_noticed(opened):
    path, checkpoint = opened
    values(checkpoint)
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # a clock may be coarser than a test
    with pytest.raises(CheckpointError, match="was changed while it was read: its bytes, or when"):
        values(checkpoint)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        checkpoint.safetensors[0].check_unchanged()


def test_a_file_that_is_replaced_under_its_name_is_read_as_it_was(opened):
    path, checkpoint = opened
    save_file({"z": X}, path.with_name("new"))
    path.with_name("new").rename(path)
    values(checkpoint)


def test_a_strided_tensor_of_a_file_that_shrank_is_an_error_not_a_signal(tmp_path):
    torch.save({"x": torch.arange(1_000_000.0).view(1000, 1000).t()}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(str(tmp_path / "a.pt"))
    os.truncate(tmp_path / "a.pt", 8192)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        values(checkpoint)
    checkpoint.close()


def test_a_shard_that_was_replaced_between_two_reads_is_noticed(tmp_path):
    code = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))\n"
        "from surgeon.formats import open_checkpoint\n"
        "from surgeon.lazy import Scratch\n"
        "folder = sys.argv[1]\n"
        "checkpoint = open_checkpoint(folder)\n"
        "for n in range(40):\n"
        "    os.replace(f'{folder}/copy-{n}', f'{folder}/model-{n}.safetensors')\n"
        "for t in checkpoint.tensors.values(): t.elements(0, 6, Scratch())\n"
    )
    folder = sharded(tmp_path / "a", 40)
    for n in range(40):
        (folder / f"copy-{n}").write_bytes((folder / f"model-{n}.safetensors").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
    )
    assert "CheckpointError" in done.stderr
    assert "was changed while it was read" in done.stderr
