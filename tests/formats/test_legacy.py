"""Files of torch before 1.6: the same bits as torch.load gives, and torch is not imported."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from surgeon.formats import open_checkpoint, open_contents
from surgeon.lazy import Stored
from tests.formats.test_torch import DTYPE_NAMES, assert_same, error_of, expected, values

LEGACY = {"_use_new_zipfile_serialization": False}
BASE = torch.arange(24.0).reshape(4, 6)
# What torch itself cannot load again out of a legacy file.
WITHOUT_STORAGE_CLASS = {
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu",
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    def save(value, **options):
        torch.save(value, tmp_path / "a.pt", **LEGACY, **options)
        return tmp_path / "a.pt"

    return save


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_NAMES) - WITHOUT_STORAGE_CLASS))
def test_every_dtype_is_byte_exact(saved, dtype):
    path = saved({"x": torch.arange(64).to(getattr(torch, dtype)).reshape(2, -1)})
    assert_same(path, torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_views_ties_and_a_training_run_beside(saved, protocol):
    model = {"w": BASE.bfloat16(), "t": BASE.t(), "s": BASE[::2, 1::3], "tied": BASE, "again": BASE}
    run = {
        "args": argparse.Namespace(lr=0.1), "path": pathlib.PurePosixPath("x"),
        "when": datetime.datetime(2024, 1, 1), "loss": np.float64(0.5), "array": np.arange(3),
        "random": torch.get_rng_state(), "default": collections.defaultdict(int, a=1),
    }  # fmt: skip
    path = saved({"model": model, **run}, pickle_protocol=protocol)
    checkpoint = assert_same(path, torch.load(path, weights_only=False)["model"])
    assert checkpoint.tensors["tied"] is checkpoint.tensors["again"]
    assert checkpoint.tensors["tied"] is not checkpoint.tensors["t"]


def test_tensors_stay_in_the_file_until_they_are_written(saved):
    checkpoint = open_checkpoint(str(saved({"x": BASE, "y": BASE[1:3]})))
    x, y = (checkpoint.tensors[name] for name in "xy")
    assert isinstance(x, Stored)
    assert (x.file, y.offset - x.offset) == (y.file, 24)


def test_many_storages_and_a_pickle_longer_than_the_first_read(saved):
    state = {f"layer.{n}.{'weight' * 20}": torch.tensor([n, n + 0.5]) for n in range(700)}
    path = saved(state)
    assert path.stat().st_size > 1 << 17
    assert_same(path, state)


def test_optimizer_state_is_there(saved):
    parameter = torch.nn.Parameter(BASE.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    parameter.sum().backward()
    optimizer.step()
    contents = open_contents(saved({"opt": optimizer.state_dict()}))
    moment = contents.value["opt"]["state"][0]["exp_avg"]
    assert values(moment) == expected(optimizer.state[parameter]["exp_avg"])
    contents.close()


def test_a_whole_module_with_the_source_of_its_class(saved):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    checkpoint = assert_same(saved(module), module.state_dict())
    assert "none of its code ran" in checkpoint.notes[0]


def test_storages_that_were_views_before_torch_0_4(saved):
    """Such files name a storage, and the part of it that a view is, in the persistent id."""
    data = saved({"x": BASE}).read_bytes()
    # ..., 24 elements, no view, a tuple of all that, persistent id -> a view: (key, 6, 12).
    old, new = b"K\x18Nt", b"K\x18X\x01\x00\x00\x00vK\x06K\x0c\x87t"
    size = b"K\x04K\x06\x86"  # shape (4, 6) -> (2, 6)
    assert data.count(old) == data.count(size) == 1
    path = saved({})
    path.write_bytes(data.replace(old, new).replace(size, b"K\x02K\x06\x86"))
    assert_same(path, torch.load(path, weights_only=False))
    assert_same(path, {"x": BASE[1:3]})


def test_no_torch_is_imported(saved, tmp_path):
    path = saved({"model": {"x": BASE}})
    blocked = (
        "import sys; sys.modules['torch'] = None; from surgeon.cli.commands import main; main()"
    )
    words = ["apply", "convert-to-safetensors", path, tmp_path / "out.safetensors"]
    done = subprocess.run([sys.executable, "-c", blocked, *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cut", [1, 40, 150, 300])
def test_files_that_are_cut_off_are_one_line(saved, cut):
    path = saved({"x": BASE, "y": BASE + 1})
    path.write_bytes(path.read_bytes()[:-cut])
    assert "legacy torch file" in error_of(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"\x18\x00\x00\x00\x00\x00\x00\x00", b"\x17" + bytes(7), "found 23 elements in its st"),
        (b"M\xe9\x03.", b"M\xe8\x03.", "does not begin as torch's do"),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "big-endian"),
        (b"K\x04K\x06\x86", b"K\x05K\x06\x86", "expected at most 24"),
    ],
    ids=["count", "protocol", "byte order", "shape"],
)
def test_files_that_contradict_themselves_are_refused(saved, old, new, words):
    path = saved({"x": BASE})
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    assert words in error_of(path)


def test_what_follows_is_left_out_with_a_note(saved):
    path = saved({"x": BASE})
    with path.open("ab") as file:
        torch.save({"y": BASE}, file, **LEGACY)
    (note,) = open_checkpoint(str(path)).notes
    assert "bytes that follow" in note


def test_zip_files_are_no_legacy_files(tmp_path):
    torch.save({"x": BASE}, tmp_path / "a.pt")
    assert zipfile.is_zipfile(tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt", {"x": BASE})
