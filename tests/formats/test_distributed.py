"""Torch distributed checkpoints: put together byte for byte, and never believed."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from shutil import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.base.errors import CheckpointError, SurgeonError
from surgeon.formats import open_checkpoint, open_optimizer
from surgeon.output.execute import Options
from surgeon.recipe import OPS
from tests.late import Late
from tests.network import Bench, assert_identical, example_tensors, write

dcp, names, files, format_utils = (
    Late(f"torch.distributed.checkpoint{name}")
    for name in ("", ".metadata", ".filesystem", ".format_utils")
)

DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64,
    torch.uint8, torch.bool,
)  # fmt: skip

SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def saved(folder, state):
    """Save as torch does on one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def archive(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


class Handmade:
    """A checkpoint of several files, laid out as ranks that hold blocks of tensors would."""

    def __init__(self, files=2):
        self.blobs = [bytearray() for _ in range(files)]
        self.metadata = names.Metadata({}, {}, {}, version="1.0.0")

    def add(self, name, tensor, splits=(), path=None):
        """Add a tensor cut at `splits[dim]` in each dimension, in blocks that alternate files."""
        cuts = [[0, *split, size] for split, size in zip(splits, tensor.shape, strict=False)]
        cuts += [[0, size] for size in tensor.shape[len(cuts) :]]
        blocks = [()]
        for cut in cuts:
            blocks = [(*b, edges) for b in blocks for edges in pairwise(cut)]
        chunks = []
        for number, block in enumerate(blocks):
            part = tensor[tuple(slice(a, e) for a, e in block)].clone()
            offsets = torch.Size(a for a, _ in block)
            chunks.append(names.ChunkStorageMetadata(offsets, part.shape))
            self._store(names.MetadataIndex(name, offsets), archive(part), number)
        properties = names.TensorProperties(dtype=tensor.dtype)
        described = names.TensorStorageMetadata(properties, tensor.shape, chunks)
        return self._describe(name, described, path)

    def add_value(self, name, value, path=None):
        self._store(names.MetadataIndex(name), archive(value), 0)
        return self._describe(name, names.BytesStorageMetadata(), path)

    def _describe(self, name, described, path):
        self.metadata.state_dict_metadata[name] = described
        self.metadata.planner_data[name] = path or (name,)
        return self

    def _store(self, index, data, number):
        number %= len(self.blobs)
        blob = self.blobs[number]
        self.metadata.storage_data[index] = files._StorageInfo(
            f"__{number}_0.distcp", len(blob), len(data)
        )
        blob += data

    def write(self, folder):
        folder.mkdir(exist_ok=True)
        for number, blob in enumerate(self.blobs):
            (folder / f"__{number}_0.distcp").write_bytes(blob)
        (folder / ".metadata").write_bytes(pickle.dumps(self.metadata))
        return folder


def read(folder, output, inner=""):
    """Return what surgeon copies into a safetensors file."""
    bench = Bench(output.parent)
    bench.input = Path(f"{folder}{inner}")
    return bench.operate(to=output).tensors


def by_torch(folder, output):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        format_utils.dcp_to_torch_save(folder, output)
    return torch.load(output, weights_only=True)


def error_of(location):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(location)).close()
    return "\n".join(caught.value.problems)


# --- What torch writes ----------------------------------------------------------------------------


def test_state_of_every_dtype_is_read_byte_for_byte(tmp_path):
    state = {str(dtype): torch.randn(5, 3).mul(3).to(dtype) for dtype in DTYPES}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.ones(0, 4), "conv": torch.randn(2, 1, 3)}
    saved(tmp_path / "ck", state)
    assert_identical(read(tmp_path / "ck", tmp_path / "out.safetensors"), state)


def test_model_beside_other_values_is_found(tmp_path):
    model = {"fc.weight": torch.randn(3, 2), "fc.bias": torch.randn(3)}
    saved(tmp_path / "ck", {"model": model, "step": 5, "name": "a run", "rates": [0.1, 0.2]})
    for inner in ("", "#model"):
        assert_identical(read(tmp_path / "ck", tmp_path / "out.safetensors", inner), model)


def test_indices_may_be_any(tmp_path):
    """Nothing is as long as an index says."""
    made = handmade().add_value("late", 1, ("other", 1 << 40)).add_value("late2", 2, ("other", -3))
    assert_identical(
        read(made.write(tmp_path / "ck"), tmp_path / "out.safetensors"),
        {"w": torch.arange(12.0).view(4, 3), "b": torch.ones(4)},
    )


def test_one_of_two_models_has_to_be_named(tmp_path):
    first, second = {"w": torch.randn(3)}, {"w": torch.randn(3)}
    saved(tmp_path / "ck", {"model": first, "ema": second})
    message = error_of(tmp_path / "ck")
    assert f"{tmp_path}/ck#model" in message
    assert f"{tmp_path}/ck#ema" in message
    assert_identical(read(tmp_path / "ck", tmp_path / "out.safetensors", "#ema"), second)


def test_prefixes_of_wrappers_are_removed(tmp_path):
    saved(tmp_path / "ck", {"module.w": torch.ones(2), "module.b": torch.zeros(2)})
    found = read(tmp_path / "ck", tmp_path / "out.safetensors")
    assert_identical(found, {"w": torch.ones(2), "b": torch.zeros(2)})


def test_folder_of_a_model_that_holds_one_besides_is_the_model_s(tmp_path):
    saved(tmp_path / "ck", {"w": torch.ones(2)})
    write(tmp_path / "ck" / "model.safetensors", {"w": torch.zeros(2)})
    assert_identical(read(tmp_path / "ck", tmp_path / "out.safetensors"), {"w": torch.zeros(2)})


def test_nothing_of_the_folder_is_carried_along(tmp_path):
    saved(tmp_path / "ck", {"w": torch.ones(2)})
    bench = Bench(tmp_path)
    bench.input = tmp_path / "ck"
    bench.operate(to=tmp_path / "model")
    there = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert there == ["model.safetensors", "surgeon.manifest.json"]


def test_commands_need_no_torch(tmp_path):
    Handmade().add("w", torch.randn(4, 3), [[1, 3]]).write(tmp_path / "ck")
    blocked = (
        "import sys; sys.modules['torch'] = None; from surgeon.cli.commands import main; main()"
    )
    for words in (["inspect", "ck", "--stats"],
                  ["apply", "convert-to-safetensors", "ck", "out.safetensors"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", blocked, *words], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


# --- Tensors in several parts ---------------------------------------------------------------------

GRIDS = {
    "rows": ((7, 3), [[4]]),
    "uneven rows": ((7, 3), [[1, 2, 6]]),
    "columns": ((4, 9), [[], [2, 7]]),
    "a grid": ((6, 5), [[2, 3], [1, 4]]),
    "three dimensions": ((4, 3, 5), [[2], [1], [2, 3]]),
    "a vector": ((9,), [[5]]),
    "with an empty rank": ((3, 2), [[1, 3, 3]]),
    "whole": ((3, 2), []),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_parts_are_put_together(grid, tmp_path):
    shape, splits = GRIDS[grid]
    tensor = torch.randn(shape).to(torch.bfloat16)
    folder = Handmade().add("x.weight", tensor, splits).write(tmp_path / "ck")
    assert_identical(by_torch(folder, tmp_path / "oracle.pt"), {"x.weight": tensor})
    assert_identical(read(folder, tmp_path / "out.safetensors"), {"x.weight": tensor})


@given(st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_grid_is_put_together(tmp_path, data):
    shape = data.draw(st.lists(st.integers(0, 6), max_size=4).map(tuple))
    splits = [sorted(data.draw(st.lists(st.integers(0, size), max_size=3))) for size in shape]
    tensor = torch.randn(shape)
    folder = Handmade(3).add("x", tensor, splits).write(tmp_path / "ck")
    assert_identical(read(folder, tmp_path / "out.safetensors"), {"x": tensor})


def test_rows_are_copied_columns_computed(tmp_path):
    tensor = torch.randn(8, 6)
    bench = Bench(tmp_path)
    bench.input = (
        Handmade().add("r", tensor, [[3]]).add("c", tensor, [[], [2]]).write(tmp_path / "ck")
    )
    found = {name: list(t.pieces(0, t.spec.count)) for name, t in bench.plan().tensors.items()}
    kinds = {name: {type(piece).__name__ for piece in pieces} for name, pieces in found.items()}
    assert kinds == {"r": {"ByteRange"}, "c": {"Computed"}}


@pytest.mark.parametrize("op", [pytest.param(op, id=name) for name, op in OPS.items()])
def test_every_op_makes_the_same_of_parts(op, example):
    plain = example_tensors()
    handmade = Handmade()
    for name, tensor in plain.items():
        handmade.add(name, tensor, [[len(tensor) // 2]] if tensor.dim() and len(tensor) > 1 else [])
    torch.save(plain, example.folder / "in.pt")
    folder = handmade.write(example.folder / "ck")
    copy(example.folder / "tokenizer.json", folder)
    step = {"op": op.name, **op.example}

    def outcome(source):
        example.input = source
        try:
            made = example.operate(step, options=Options(workers=1))
        except SurgeonError as error:
            return [problem.replace(str(source), "") for problem in error.problems], {}
        described = {key: made.manifest[key] for key in ("tensors", "ties", "stages")}
        return described, made.tensors

    expected, tensors = outcome(example.folder / "in.pt")
    found, same = outcome(folder)
    assert found == expected
    assert_identical(same, tensors)


# --- The optimizer's state ------------------------------------------------------------------------


def trained():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


WIDEN = {"op": "widen", "target": "2", "rows": 1}
CARRY = {"optimizer": {"class": "torch.optim.AdamW"},
         "stages": [{"name": "on", "optimizer_state": "carry"}]}  # fmt: skip


def state_after(bench, source):
    bench.input = source
    made = bench.operate(WIDEN, training=CARRY)
    path = bench.output.with_suffix(".optimizer.safetensors")
    return made.manifest["optimizer_state"]["parameters"], path.read_bytes()


def test_state_goes_through_the_surgery_as_that_of_a_torch_file(bench):
    model, optimizer = trained()
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(whole, bench.folder / "in.pt")
    saved(bench.folder / "ck", whole)
    assert state_after(bench, bench.folder / "ck") == state_after(bench, bench.folder / "in.pt")


def test_state_in_parts_goes_through_the_surgery(bench):
    model, optimizer = trained()
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(whole, bench.folder / "in.pt")
    handmade = Handmade()
    for name, tensor in model.state_dict().items():
        handmade.add(f"model.{name}", tensor, [[2]], ("model", name))
    for number, kept in optimizer.state_dict()["state"].items():
        for key, tensor in kept.items():
            path = ("optimizer", "state", str(number), key)
            handmade.add(".".join(path), tensor, [[1]] if tensor.dim() else [], path)
    for key, value in optimizer.state_dict()["param_groups"][0].items():
        handmade.add_value(f"g.{key}", value, ("optimizer", "param_groups", 0, key))
    folder = handmade.write(bench.folder / "ck")
    assert state_after(bench, folder) == state_after(bench, bench.folder / "in.pt")


def test_state_of_another_folder_is_given(bench):
    model, optimizer = trained()
    torch.save(model.state_dict(), bench.folder / "in.pt")
    saved(bench.folder / "ck", {"optim": optimizer.state_dict()})
    recipe = bench.folder / "r.json"
    recipe.write_text(json.dumps({"surgeon": 1, "steps": [WIDEN], "training": CARRY}))
    words = ["apply", "r.json", "in.pt", "out.safetensors", "--optimizer", "ck#optim"]
    command = [sys.executable, "-m", "surgeon", *words]
    done = subprocess.run(command, cwd=bench.folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    given = (bench.folder / "out.optimizer.safetensors").read_bytes()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, bench.folder / "both.pt"
    )
    assert state_after(bench, bench.folder / "both.pt")[1] == given


# --- What is wrong --------------------------------------------------------------------------------


def handmade():
    return Handmade().add("w", torch.arange(12.0).view(4, 3), [[2]]).add("b", torch.ones(4))


def described(made, name="w"):
    return made.metadata.state_dict_metadata[name]


def info(made, name="w", offset=(0, 0)):
    return made.metadata.storage_data[names.MetadataIndex(name, torch.Size(offset))]


def _moved(row):
    def change(made):
        described(made).chunks[1].offsets = torch.Size([row, 0])
        places = made.metadata.storage_data
        stored = places.pop(names.MetadataIndex("w", torch.Size([2, 0])))
        places[names.MetadataIndex("w", torch.Size([row, 0]))] = stored

    return change


def _two_at_one_place(made):
    described(made).chunks.append(described(made).chunks[0])


def _set(name, **values):
    def change(made):
        for key, value in values.items():
            setattr(described(made, name), key, value)

    return change


def _info(**values):
    def change(made):
        for key, value in values.items():
            object.__setattr__(info(made), key, value)

    return change


def _set_dtype(name, dtype):
    return lambda made: _set(name, properties=names.TensorProperties(dtype=dtype))(made)


def _planned(*path):
    def change(made):
        made.metadata.planner_data["w"] = path

    return change


WRONG = {
    "a hole": (_moved(3), "'w': found nothing from 2 on in dimension 0"),
    "an overlap": (_moved(1), "'w': found two chunks from 1 on in dimension 0"),
    "two at one place": (_two_at_one_place, r"'w': found 2 chunks at \(0, 0\)"),
    "no chunks": (_set("w", chunks=[]), r"'w': found no chunk of a tensor F32 \(4, 3\)"),
    "a larger tensor": (_set("w", size=torch.Size([5, 3])), "chunks up to 4 in dimension 0, expec"),
    "another rank": (_set("w", size=torch.Size([12])), r"found a chunk \(2, 3\) at \(0, 0\) of a"),
    "another dtype": (
        _set_dtype("w", torch.float16),
        r"found F32 \(2, 3\) at \(0, 0\), expected F16 \(2, 3\)",
    ),
    "a dtype of torch's own": (
        _set_dtype("b", torch.complex128),
        "'b': found dtype 'torch.complex128'",
    ),
    "sizes that are no numbers": (_set("w", size=(4, "x")), "that are no whole numbers"),
    "a path": (_info(relative_path="../w.distcp"), r"found the path '\.\./w\.distcp'"),
    "an absolute path": (_info(relative_path="/etc/passwd"), "found the path '/etc/passwd'"),
    "a missing file": (_info(relative_path="__9_0.distcp"), "__9_0.distcp: cannot be opened"),
    "the folder": (_info(relative_path=""), "found the path '', expected a file"),
    "an offset past the end": (_info(offset=1 << 40), "bytes at 1099511627776 of __0_0.distcp"),
    "an offset before the start": (_info(offset=-1), "bytes at -1 of __0_0.distcp"),
    "a length past the end": (_info(length=1 << 40), "found 1099511627776 bytes at 0"),
    "no archive": (_info(length=100), "'w': the zip archive is cut off or damaged"),
    "the other's archive": (_info(offset=1 << 10), "'w': "),
    "something compressed": (
        _info(transform_descriptors=["ZStandard"]),
        "transformed, such as compressed, on writing; convert it with torch.distributed",
    ),
    "nothing stored": (
        lambda made: made.metadata.storage_data.clear(),
        r"'w': found nothing that says where its data at \(0, 0\) is",
    ),
    "a path through a tensor": (
        lambda made: made.metadata.planner_data.update(b=("w", "x")),
        r"'b': found a path \('w', 'x'\) that leads through a value",
    ),
    "a path to what is there": (_planned("b"), "found two values at its path"),
    "no path": (_planned(), "'w': found a path of 0 keys, expected 1 to 100"),
    "a path without end": (_planned(*"x" * 101), "'w': found a path of 101 keys"),
    "a path of something else": (_planned(("w",)), "not made of keys and indices"),
    "storage that is no dict": (
        lambda made: setattr(made.metadata, "storage_data", [1]),
        "found Metadata.storage_data that is list",
    ),
    "an entry that describes nothing": (
        lambda made: made.metadata.state_dict_metadata.update(w=5),
        "found an entry 'w' that does not describe",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_contradicts_itself_is_refused(case, tmp_path):
    change, message = WRONG[case]
    made = handmade()
    change(made)
    made.write(tmp_path / "ck")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(tmp_path / "ck")).close()
    assert all(problem.startswith(str(tmp_path / "ck")) for problem in caught.value.problems)


def test_one_archive_for_many_tensors_is_refused_at_once(tmp_path):
    """100 000 of them would be read for as long as that takes."""
    made = handmade()
    place = made.metadata.storage_data[names.MetadataIndex("b", torch.Size([0]))]
    for n in range(3000):
        made.metadata.storage_data[names.MetadataIndex(f"b{n}", torch.Size([0]))] = place
        made.metadata.state_dict_metadata[f"b{n}"] = described(made, "b")
    message = error_of(made.write(tmp_path / "ck"))
    assert "'b0': found it at byte" in message
    assert message.endswith("and 981 more problems")


def test_archives_with_one_pickle_are_told_apart(tmp_path):
    """Their tensors have equal shapes, so that one description serves them all."""
    state = {f"w{n}": torch.randn(4, 3) for n in range(6)} | {"v": torch.randn(6, 4)[1:3]}
    made = Handmade()
    for name, tensor in state.items():
        made.add(name, tensor, [[1, 2]])
    assert_identical(read(made.write(tmp_path / "ck"), tmp_path / "out.safetensors"), state)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_metadata_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / ".metadata").write_bytes(pickle.dumps(_Evil()))
    assert "posix.system', which is not looked up" in error_of(tmp_path / "ck")
    assert not (tmp_path / "evil").exists()


def test_value_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handmade().add_value("extra", _Evil()).write(tmp_path / "ck")
    assert "'extra': data.pkl: byte" in error_of(tmp_path / "ck")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04.", pickle.dumps({"w": 1}), b"{}", b"\x80\x04N."]
)
def test_other_files_called_metadata_are_refused(content, tmp_path):
    (tmp_path / ".metadata").write_bytes(content)
    assert f"{tmp_path}/.metadata: " in error_of(tmp_path)


def test_damaged_bytes_are_found_by_their_checksum(tmp_path):
    tensor = torch.randn(64, 64)
    folder = Handmade().add("w", tensor, [[40]]).write(tmp_path / "ck")
    path = folder / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    at = content.find(tensor[50].numpy().tobytes())
    assert at > 0
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read(folder, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_metadata_never_ends_in_a_traceback(tmp_path, data):
    folder = handmade().add_value("step", 5).write(tmp_path / "ck")
    content = bytearray((folder / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / ".metadata").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with suppress(CheckpointError):
        open_checkpoint(str(folder)).close()


@pytest.mark.parametrize("inner", ["", "#nothing"])
def test_no_file_stays_open_where_opening_fails(inner, tmp_path):
    saved(tmp_path / "ck", {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for open_it in (open_checkpoint, open_optimizer):
        with pytest.raises(CheckpointError):
            open_it(f"{tmp_path}/ck{inner}")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
