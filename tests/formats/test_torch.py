"""Torch files: byte-exact against torch.load, and nothing of a file is ever executed."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint, open_contents
from surgeon.lazy import Scratch, Stored, Strided
from surgeon.numeric.dtypes import DTYPES

DTYPE_NAMES = [row.torch for row in DTYPES.values() if row.bits >= 8]


def values(tensor):
    return np.array(tensor.elements(0, tensor.spec.count, Scratch())).tobytes()


def expected(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def assert_same(path, state):
    checkpoint = open_checkpoint(str(path))
    assert list(checkpoint.tensors) == list(state)
    for name, tensor in state.items():
        lazy = checkpoint.tensors[name]
        assert lazy.spec.shape == tuple(tensor.shape)
        assert f"torch.{DTYPES[lazy.spec.dtype].torch}" == str(tensor.dtype)
        assert values(lazy) == expected(tensor), name
    checkpoint.close()
    return checkpoint


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path)).close()
    assert all("\n" not in line and line.startswith(str(path)) for line in caught.value.problems)
    return str(caught.value)


def rewritten(source, target, change=None, **options):
    """Copy a torch archive member by member; `change` maps inner names to new bytes or None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            data = (change or {}).get(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_dtype_is_byte_exact(tmp_path, dtype):
    codes = torch.arange(64, dtype=torch.uint8)
    codes = codes % 2 if dtype == "bool" else codes
    state = {"x": codes.view(getattr(torch, dtype)).reshape(2, -1)}
    torch.save(state, tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt", state)


BASE = torch.arange(24.0).reshape(4, 6)
LAYOUTS = {
    "contiguous": BASE,
    "transposed": BASE.t(),
    "permuted": BASE.reshape(2, 3, 4).permute(2, 0, 1),
    "rows": BASE[1:3],
    "columns": BASE[:, 2:5],
    "strided": BASE[::2, ::3],
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 3),
    "overlapping": torch.arange(6.0).as_strided((4, 3), (1, 1)),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "empty view": BASE[4:],
    "one row": BASE[3:4].t(),
    "parameter": torch.nn.Parameter(BASE),
    "buffer": torch.nn.Buffer(BASE),
    "channels last": torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_byte_exact(tmp_path, layout, legacy):
    path = tmp_path / "a.pt"
    torch.save({"x": LAYOUTS[layout]}, path, _use_new_zipfile_serialization=not legacy)
    assert_same(path, {"x": LAYOUTS[layout]})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    torch.save({"x": BASE, "y": BASE.t()}, tmp_path / "a.pt", pickle_protocol=protocol)
    assert_same(tmp_path / "a.pt", {"x": BASE, "y": BASE.t()})


def test_a_contiguous_view_is_stored_and_others_reach_only_what_they_need(tmp_path):
    torch.save({"rows": BASE[1:3], "column": BASE[:, 1]}, tmp_path / "a.pt")
    tensors = open_checkpoint(str(tmp_path / "a.pt")).tensors
    assert isinstance(tensors["rows"], Stored)
    assert isinstance(tensors["column"], Strided)
    assert tensors["column"].storage.spec.count == 19


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_equal_views_are_tied_and_different_views_are_not(tmp_path, legacy):
    state = {"a": BASE, "b": BASE.view(4, 6), "c": BASE[:2], "d": BASE.clone()}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    tensors = open_checkpoint(str(tmp_path / "a.pt")).tensors
    assert tensors["a"] is tensors["b"]
    assert len({id(tensor) for tensor in tensors.values()}) == 3


def test_module_state_dict_opens(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    assert not assert_same(tmp_path / "a.pt", module.state_dict()).notes


def test_records_state_the_checksum_of_each_storage_used_once(tmp_path):
    torch.save({"model": {"a": BASE, "b": BASE.t()}, "optimizer": [BASE + 1]}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(str(tmp_path / "a.pt"))
    (record,) = checkpoint.records
    data = checkpoint.tensors["a"].file.read(record.offset, record.size_bytes)
    assert zlib.crc32(data) == record.crc32


def test_checksums_that_torch_was_told_not_to_make_are_not_stated(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": BASE}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not assert_same(tmp_path / "a.pt", {"a": BASE}).records


def test_zip_and_safetensors_open_without_torch(tmp_path):
    from safetensors.torch import save_file

    torch.save({"model": {"x": BASE}}, tmp_path / "a.pt")
    save_file({"x": BASE}, tmp_path / "a.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from surgeon.formats import open_checkpoint\n"
        "for path in sys.argv[1:]: print(list(open_checkpoint(path).tensors))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.pt", tmp_path / "a.safetensors"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["['x']", "['x']"]


def test_training_checkpoint_with_harmless_objects_opens(tmp_path):
    extras = {
        "args": argparse.Namespace(lr=0.1), "path": pathlib.PurePosixPath("x"),
        "when": datetime.datetime(2024, 1, 1), "loss": np.float64(0.5), "array": np.arange(3),
        "random": torch.get_rng_state(), "dtype": torch.float32, "device": torch.device("cpu"),
        "size": torch.Size([1, 2]), "counter": collections.Counter("aab"), "bytes": b"\x00\xff",
        "default": collections.defaultdict(list, a=[1]), "set": {1, 2}, "complex": 1j,
        "numpy state": np.random.RandomState(0).get_state(), "deque": collections.deque([1]),
    }  # fmt: skip
    for protocol in (2, 4):
        torch.save({"model": {"x": BASE}, **extras}, tmp_path / "a.pt", pickle_protocol=protocol)
        checkpoint = open_checkpoint(str(tmp_path / "a.pt"))
        assert list(checkpoint.tensors) == ["x"]
        assert checkpoint.notes == ("took the tensors in 'model'",)


def test_contents_give_an_optimizer_state(tmp_path):
    parameter = torch.nn.Parameter(BASE.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    parameter.sum().backward()
    optimizer.step()
    torch.save({"opt": optimizer.state_dict(), "step": 3}, tmp_path / "a.pt")
    contents = open_contents(tmp_path / "a.pt")
    assert contents.value["step"] == 3
    assert contents.value["opt"]["param_groups"][0]["lr"] == 0.5
    moment = contents.value["opt"]["state"][0]["exp_avg"]
    assert values(moment) == expected(optimizer.state[parameter]["exp_avg"])
    contents.close()


class Runs:
    """A pickle that calls something when it is loaded the usual way."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["inside", "beside"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (torch.load, "load")],
    ids=["system", "eval", "load"],
)
def test_code_in_a_pickle_is_refused_by_name_and_never_runs(
    tmp_path, function, name, nested, legacy
):
    trace = tmp_path / "trace"
    arguments = {
        "system": (f"touch {trace}",), "eval": (f"open({str(trace)!r}, 'w')",),
        "load": (str(trace),),
    }[name]  # fmt: skip
    bad = Runs(function, *arguments)
    state = {"model": {"x": BASE}, "y": bad} if nested else {"x": BASE, "y": bad}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    message = error_of(tmp_path / "a.pt")
    assert f".{name}" in message or f" {name}" in message
    assert "state_dict()" in message
    assert not trace.exists()


UNUSABLE = {
    "sparse": (lambda: BASE.to_sparse(), "sparse"),
    "quantised": (lambda: torch.quantize_per_tensor(BASE, 0.1, 0, torch.qint8), "quantised"),
    "complex128": (lambda: BASE.to(torch.complex128), "complex128"),
    "meta": (lambda: BASE.to("meta"), "meta device"),
    "conjugated": (lambda: BASE.to(torch.complex64).conj(), "conjugate"),
    "numpy": (lambda: np.arange(3.0), "NumPy array"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.filterwarnings("ignore")
def test_unusable_tensors_are_refused_by_name_in_the_chosen_dict_only(tmp_path, case):
    make, reason = UNUSABLE[case]
    torch.save({"w": BASE, "x": make()}, tmp_path / "a.pt")
    message = error_of(tmp_path / "a.pt")
    assert "tensor 'x'" in message
    assert reason in message
    torch.save({"model": {"w": BASE}, "other": make()}, tmp_path / "b.pt")
    open_checkpoint(str(tmp_path / "b.pt")).close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BASE, "no dict of tensors; it holds a tensor F32 (4, 6)"),
        (lambda: {"epoch": 3}, "no dict of tensors; it holds 'epoch' (int)"),
        (lambda: {}, "empty dict"),
        (lambda: [BASE], "it holds a list"),
        (lambda: {"__metadata__": BASE}, "cannot be a tensor's name"),
    ],
)
def test_what_is_no_dict_of_tensors_is_named(tmp_path, make, words):
    torch.save(make(), tmp_path / "a.pt")
    assert words in error_of(tmp_path / "a.pt")


def tensor_pickle(offset=0, shape=(4, 6), strides=(6, 1), numel=24, key="0", kind="FloatStorage"):
    """Write the pickle of {'x': tensor} with whatever numbers are asked for."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", getattr(torch, kind), key, "cpu", numel)
            return None

    class Tensor:
        def __reduce__(self):
            arguments = (Storage(), offset, shape, strides, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"x": Tensor()})
    return stream.getvalue()


# Shared tuples in tuples: small to write, endless to hash or to show.
DEEP = ()
for _ in range(60):
    DEEP = (DEEP, DEEP)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.pt"
    torch.save({"x": BASE}, path)
    return path


def test_hand_written_pickle_opens(good, tmp_path):
    rewritten(good, tmp_path / "a.pt", {"data.pkl": tensor_pickle()})
    assert_same(tmp_path / "a.pt", {"x": BASE})


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"offset": 1}, "reach element 25 of its storage, expected at most 24"),
        ({"offset": -1}, "expected 0 or more"),
        ({"strides": (7, 1)}, "reach element 27"),
        ({"strides": (-6, 1)}, "expected 0 or more"),
        ({"strides": (6,)}, "strides (6,) for shape (4, 6)"),
        ({"strides": (6, 1.0)}, "found 1.0, expected whole numbers"),
        ({"strides": (6, True)}, "found True, expected whole numbers"),
        ({"shape": "ab"}, "found 'a', expected whole numbers"),
        ({"shape": (4, DEEP)}, "found tuple, expected whole numbers"),
        ({"strides": (DEEP, 1)}, "found tuple, expected whole numbers"),
        ({"offset": DEEP}, "found tuple, expected whole numbers"),
        ({"key": DEEP}, "cannot stand there"),
        ({"numel": DEEP}, "cannot stand there"),
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "fits in 64 bits"),
        ({"shape": (-4, 6)}, "-4 in its shape"),
        ({"shape": (True, 6)}, "found True, expected whole numbers"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "40 dimensions"),
        ({"numel": 25}, "found 96 bytes in its storage 'data/0', expected 100"),
        ({"numel": 1 << 62}, "found 96 bytes in its storage"),
        ({"numel": 2}, "found 96 bytes in its storage"),
        ({"key": "7"}, "storage 'data/7' is missing"),
        ({"key": "../data.pkl"}, "missing"),
        ({"kind": "Tensor"}, "cannot stand there"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else ",".join(value),
)
def test_tensors_that_lie_about_their_storage_are_refused(good, tmp_path, lie, words):
    rewritten(good, tmp_path / "a.pt", {"data.pkl": tensor_pickle(**lie)})
    assert words in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot stand there"),
        (b".", "0 values at its end"),
        (b"\x80\x09.", "protocol 9"),
        (b"\x80\x02X\xff\xff\xff\xff.", "found a length of 4294967295"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "found a length of"),
        (b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".", "no dict of tensors"),
        (b"\x80\x02\x8b\x00\x01\x00\x00" + b"\x01" * 256 + b".", "integer of 256 bytes"),
        (b"\x80\x02j\xff\xff\xff\xff.", "cannot stand there"),
        (b"\x80\x02r\xff\xff\xff\xff.", "cannot stand there"),
        (b"\x80\x02(((.", "inside a tuple"),
        (b"\x80\x02}]K\x01s.", "cannot stand there"),
        (b"\x80\x02}(K\x01u.", "key without a value"),
        (b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00xtR.", "found 'os.system'"),
        (b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.", "opcode b'i'"),
        (b"\x80\x02cargparse\nNamespace\n)R}b(.", "inside a tuple"),
        (b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", "found 'a\\nb.c'"),
        (b"\x80\x02\x82\x01.", "opcode b'\\x82'"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "it holds a list"),
        (b"\x80\x02)" + b"\x85" * 100_000 + b".", "it holds a tuple"),
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.", "tuple of tuples as a key"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "no dict of tensors"),
    ],
)
def test_malformed_pickles_are_refused_at_once(good, tmp_path, data, words):
    rewritten(good, tmp_path / "a.pt", {"data.pkl": data})
    assert words in error_of(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data/0": None}, "storage 'data/0' is missing"),
        ({"data/0": b"short"}, "found 5 bytes in its storage"),
        ({"byteorder": b"big"}, "byte order 'big'"),
        ({"data.pkl": None}, "holds no data.pkl"),
    ],
    ids=str,
)
def test_damaged_archives_are_refused(good, tmp_path, change, words):
    rewritten(good, tmp_path / "a.pt", change)
    assert words in error_of(tmp_path / "a.pt")


def test_compressed_members_are_refused(good, tmp_path):
    rewritten(good, tmp_path / "a.pt", compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in error_of(tmp_path / "a.pt")


def test_members_of_one_name_are_refused(good, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/data.pkl", b"")
    assert "is there twice" in error_of(tmp_path / "a.pt")


def test_zip64_members_open(good, tmp_path):
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as member:
                member.write(old.read(name))
    assert_same(tmp_path / "a.pt", {"x": BASE})


def directory_field(data, member, field):
    """Return where a field of a member's central directory entry lies."""
    at = data.index(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(member)] != member:
        at = data.index(b"PK\x01\x02", at + 4)
    return at + {"flags": 8, "crc": 16, "stored": 20, "size": 24, "offset": 42}[field]


@pytest.mark.parametrize(
    ("field", "form", "value", "words"),
    [
        ("flags", "<H", 1, "encrypted"),
        ("size", "<L", 95, "96 bytes stored of 95"),
        ("offset", "<L", 0, "something else lies"),
        ("offset", "<L", 1 << 30, "member 'good/data/0': found"),
        ("crc", "<L", 1, "in its local header"),
    ],
)
def test_members_that_lie_in_the_directory_are_refused(good, tmp_path, field, form, value, words):
    rewritten(good, tmp_path / "b.pt")
    data = bytearray((tmp_path / "b.pt").read_bytes())
    place = directory_field(data, b"good/data/0", field)
    data[place : place + struct.calcsize(form)] = struct.pack(form, value)
    (tmp_path / "a.pt").write_bytes(data)
    assert words in error_of(tmp_path / "a.pt")


def test_members_longer_than_their_place_are_refused(good, tmp_path):
    data = bytearray(good.read_bytes())
    for field in ("stored", "size"):
        place = directory_field(data, b"good/data/0", field)
        data[place : place + 4] = struct.pack("<L", 4096)
    (tmp_path / "a.pt").write_bytes(data)
    assert "expected them to end by byte" in error_of(tmp_path / "a.pt")


def test_a_damaged_pickle_is_found_by_its_checksum(good, tmp_path):
    data = good.read_bytes()
    (tmp_path / "a.pt").write_bytes(data.replace(b"FloatStorage", b"FloatStoraga"))
    assert "the file is damaged" in error_of(tmp_path / "a.pt")


def test_npz_and_other_zips_are_refused(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=np.arange(3))
        assert "NumPy .npz archive; save its arrays with" in error_of(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"{}")
    assert "this is a Keras model" in error_of(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", b"")
    assert "no data.pkl" in error_of(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (pickle.dumps({"x": 1}), "a plain pickle"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x1f\x8b\x08" + bytes(700_000), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03\x00\x00\x00\xff", "GGUF header is cut off"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"a" * 257 + b"ustar\x0000", "tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "markup"),
        (b"\xff" * 32, "unknown bytes"),
    ],
)
def test_other_formats_are_named(tmp_path, start, words):
    (tmp_path / "a.bin").write_bytes(start)
    assert words in error_of(tmp_path / "a.bin")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """Bytes of small files, the checksum of the pickle taken out so that damage gets through."""
    folder = tmp_path_factory.mktemp("fuzz")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"x": BASE, "y": BASE.t()}, "optimizer": [1.5, "a"]}, folder / "a.pt")
        torch.save({"ema": torch.nn.BatchNorm1d(3), "f": argparse.Namespace(a=1)}, folder / "b.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    from safetensors.torch import save_file

    save_file({"x": BASE, "y": BASE + 1}, folder / "a.safetensors", {"format": "pt"})
    legacy = {"model": {"x": BASE, "y": BASE.t()}, "e": torch.nn.Linear(2, 2)}
    torch.save(legacy, folder / "c.pt", _use_new_zipfile_serialization=False)
    return folder / "fuzz", [path.read_bytes() for path in sorted(folder.iterdir())]


@settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_never_raises_anything_but_a_checkpoint_error(fuzzed, data):
    path, sources = fuzzed
    damaged = bytearray(data.draw(st.sampled_from(sources)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged) * 2))])
    try:
        checkpoint = open_checkpoint(str(path))
    except CheckpointError:
        return
    for tensor in checkpoint.tensors.values():
        tensor.elements(0, tensor.spec.count, Scratch())
    checkpoint.close()


def test_a_missing_file_a_fifo_and_a_device_are_one_line(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "no such file" in error_of(tmp_path / "none.pt")
    assert "not a regular file" in error_of(tmp_path / "fifo")
    assert "not a regular file" in error_of(Path("/dev/zero"))
