"""Writing: bytes copied or computed, whatever fails leaves what was there, and says why."""

import errno
import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file

from surgeon import lazy, surgery
from surgeon.base.errors import CheckpointError, PlanError, UsageError, WriteError
from surgeon.output import units
from surgeon.output.execute import Options
from surgeon.output.layout import lay_out_shards
from tests.network import TIES, assert_identical, example_tensors, raw_bytes, read, write

# Small integers, whose averages are exact.
BIG = {f"layer.{i}.weight": torch.randint(-99, 99, (300, 1000)).float() for i in range(6)}
AVERAGE = {"op": "average", "models": ["other"]}
REINIT = {"op": "reinit", "target": "**", "init": "normal"}


def contents(folder):
    """Every file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def work_is_shared_from_the_first_byte_on(monkeypatch):
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    monkeypatch.setattr(units, "UNIT", 1 << 20)


@pytest.fixture
def big(bench):
    return bench.given(BIG, other={name: tensor + 1 for name, tensor in BIG.items()})


# --- Bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksums", ["crc32", "sha256", "none"])
@pytest.mark.parametrize("workers", [1, 3])
def test_copied_and_computed_bytes_are_counted(big, checksums, workers):
    options = Options(workers=workers, checksums=checksums)
    step = {"op": "reinit", "target": "layer.0", "init": "ones"}
    made = big.operate(step, options=options)
    expected = {**BIG, "layer.0.weight": torch.ones(300, 1000)}
    assert_identical(made.tensors, expected)


def test_totals_are_reported(big):
    step = {"op": "reinit", "target": "layer.0", "init": "ones"}
    with surgery.opened(big.recipe(step), str(big.input), {}) as opened:
        written = surgery.write(opened, big.output, Options(), force=True).written
    assert written.computed_bytes == 300 * 1000 * 4
    assert written.copied_bytes == 5 * 300 * 1000 * 4


def test_progress_adds_up_to_all_bytes(big):
    seen = []
    big.operate(AVERAGE, options=Options(progress=seen.append))
    assert sum(seen) == 6 * 300 * 1000 * 4


def test_tensors_larger_than_a_unit_are_joined(bench, monkeypatch):
    monkeypatch.setattr(units, "UNIT", 1 << 16)
    tensors = {"x": torch.randn(200_000), "y": torch.randn(3).bfloat16()}
    made = bench.given(tensors).operate(options=Options(workers=3))
    assert_identical(made.tensors, tensors)


@pytest.mark.parametrize("rows", [1, 3])
def test_widened_columns_interleave(bench, rows):
    old = {"x": torch.randn(500, 7)}
    init = {"name": "constant", "val": 5}
    step = {"op": "widen", "target": "x", "columns": rows, "init": init}
    expected = torch.cat([old["x"], torch.full((500, rows), 5.0)], 1)
    assert_identical(bench.given(old).operate(step).tensors, {"x": expected})


def test_kernel_copies_are_used_without_checksums(big, monkeypatch):
    calls = []
    original = os.copy_file_range

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(os, "copy_file_range", counted)
    options = Options(workers=1, checksums="none")
    assert_identical(big.operate(options=options).tensors, BIG)
    assert calls


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_copies_across_file_systems_fall_back_to_reading(big, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert_identical(big.operate(options=Options(checksums="none")).tensors, BIG)


def test_short_writes_are_continued(big, monkeypatch):
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: original(fd, bytes(data)[:100_001], at))
    assert_identical(big.operate(AVERAGE).tensors, {n: t + 0.5 for n, t in BIG.items()})


def test_input_that_shrinks_meanwhile_is_an_error_that_names_it(big, monkeypatch):
    with surgery.opened(big.recipe(), str(big.input), {}) as opened:
        os.truncate(big.input, big.input.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=r"in\.safetensors: was changed while"):
            surgery.write(opened, big.output, Options(), force=True)
    assert not big.output.exists()


# --- Failures -------------------------------------------------------------------------------------


def failing_at(call, error):
    """Return a function that works until it is called for the n-th time, then raises for good."""
    calls = [0]

    def wrapped(original):
        def run(*arguments, **keywords):
            calls[0] += 1
            if calls[0] >= call:
                raise error
            return original(*arguments, **keywords)

        return run

    return wrapped


def fail(monkeypatch, where, name, call, error):
    monkeypatch.setattr(where, name, failing_at(call, error)(getattr(where, name)))


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))
FAILURES = [
    pytest.param(os, "pwrite", 1, NO_SPACE, "no space left on device", id="first-write"),
    pytest.param(os, "pwrite", 4, NO_SPACE, "no space left on device", id="a-later-write"),
    pytest.param(os, "posix_fallocate", 1, NO_SPACE, "no space left", id="allocation"),
    pytest.param(os, "fsync", 1, BROKEN, "input/output error", id="first-flush"),
    pytest.param(os, "fsync", 2, BROKEN, "input/output error", id="second-flush"),
]


@pytest.mark.parametrize(("where", "name", "call", "error", "reason"), FAILURES)
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["out.safetensors", "model"])
def test_failure_leaves_the_old_output_and_no_debris(
    big, monkeypatch, where, name, call, error, reason, workers, kind
):
    target = big.folder / kind
    big.operate(to=target)
    before = contents(big.folder)
    fail(monkeypatch, where, name, call, error)
    with pytest.raises(WriteError) as caught:
        big.operate(AVERAGE, to=target, options=Options(workers=workers))
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(f"{target}: cannot be written: {reason}")
    monkeypatch.undo()
    assert contents(big.folder).keys() - {"recipe.json"} == before.keys() - {"recipe.json"}
    assert all(
        contents(big.folder)[name] == before[name] for name in before if "recipe" not in name
    )


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("force", [True, False])
def test_kernel_that_fails_halfway_leaves_nothing(big, monkeypatch, workers, force):
    error = PlanError("the kernel failed")
    fail(monkeypatch, lazy.Blockwise, "elements", 2, error)
    with pytest.raises(PlanError, match="the kernel failed"):
        big.operate(AVERAGE, options=Options(workers=workers), force=force)
    assert sorted(path.name for path in big.folder.iterdir()) == [
        "in.safetensors", "other.safetensors", "recipe.json",
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [1, 4])
def test_initialiser_that_fails_halfway_leaves_the_old_output(big, monkeypatch, workers):
    big.operate()
    before = big.output.read_bytes()
    fail(monkeypatch, lazy.Fresh, "elements", 5, PlanError("the initialiser failed"))
    with pytest.raises(PlanError, match="the initialiser failed"):
        big.operate(REINIT, options=Options(workers=workers))
    assert big.output.read_bytes() == before
    assert not list(big.folder.glob(".*"))


def test_bug_in_a_kernel_leaves_the_old_output_too(big, monkeypatch):
    big.operate()
    before = big.output.read_bytes()
    fail(monkeypatch, lazy.Blockwise, "elements", 3, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        big.operate(AVERAGE)
    assert big.output.read_bytes() == before
    assert not list(big.folder.glob(".*"))


def test_interrupt_leaves_the_old_output(big, monkeypatch):
    big.operate()
    before = big.output.read_bytes()
    fail(monkeypatch, lazy.Blockwise, "elements", 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        big.operate(AVERAGE)
    assert big.output.read_bytes() == before
    assert not list(big.folder.glob(".*"))


def test_first_failure_is_the_one_that_is_told(big, monkeypatch):
    fail(monkeypatch, lazy.Blockwise, "elements", 2, PlanError("the first"))
    for _ in range(5):
        with pytest.raises(PlanError, match="the first"):
            big.operate(AVERAGE, options=Options(workers=4))


# --- In place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksums", ["crc32", "none"])
def test_output_may_be_the_input(big, checksums):
    made = big.operate(AVERAGE, to=big.input, options=Options(checksums=checksums))
    assert_identical(made.tensors, {name: tensor + 0.5 for name, tensor in BIG.items()})


def test_output_that_is_the_input_survives_a_failure(big, monkeypatch):
    before = big.input.read_bytes()
    fail(monkeypatch, os, "pwrite", 4, NO_SPACE)
    with pytest.raises(WriteError):
        big.operate(AVERAGE, to=big.input)
    assert big.input.read_bytes() == before
    assert not list(big.folder.glob(".*"))


def test_folder_may_be_its_own_output(bench):
    folder = bench.folder / "model"
    folder.mkdir()
    write(folder / "model.safetensors", BIG)
    (folder / "config.json").write_text("{}")
    bench.input = folder
    step = {"op": "rename", "from": "layer.0", "to": "first"}
    bench.operate(step, to=folder)
    assert "first.weight" in read(folder / "model.safetensors")
    assert (folder / "config.json").read_text() == "{}"


def test_existing_output_needs_force(big):
    big.operate()
    before = big.output.read_bytes()
    with pytest.raises(UsageError, match="exists; --force replaces it"):
        big.operate(AVERAGE, force=False)
    assert big.output.read_bytes() == before


# --- Damaged inputs -------------------------------------------------------------------------------


@pytest.fixture
def torch_file(bench):
    """A .pt whose storages' bytes are where zip members say."""
    bench.input = bench.folder / "in.pt"
    torch.save({name: tensor.clone() for name, tensor in BIG.items()}, bench.input)
    return bench


def flip_a_byte(path, member_suffix, at):
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(member_suffix))
        with archive.open(info) as member:
            data = member.read()
    content = bytearray(path.read_bytes())
    start = content.find(data[:64], info.header_offset)
    content[start + at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("checksums", ["crc32", "sha256", "none"])
@pytest.mark.parametrize("member", ["data/0", "data/3"])
def test_damaged_storage_is_found_and_nothing_is_written(torch_file, checksums, member):
    flip_a_byte(torch_file.input, member, 100_000)
    with pytest.raises(CheckpointError) as caught:
        torch_file.operate(options=Options(checksums=checksums))
    assert str(caught.value).startswith(f"{torch_file.input}: damaged: ")
    assert not torch_file.output.exists()
    assert not list(torch_file.folder.glob(".*"))


def test_damaged_storage_that_is_computed_with_is_found(torch_file):
    flip_a_byte(torch_file.input, "data/0", 5)
    cast = {"op": "cast", "target": "**", "dtype": "BF16"}
    with pytest.raises(CheckpointError, match="damaged"):
        torch_file.operate(cast)
    assert not torch_file.output.exists()


def test_damaged_storage_that_nothing_needs_does_not_matter(torch_file):
    flip_a_byte(torch_file.input, "data/0", 5)
    made = torch_file.operate({"op": "delete", "target": "layer.0"}).tensors
    assert len(made) == 5


def test_torch_file_becomes_safetensors(torch_file):
    assert_identical(torch_file.operate().tensors, BIG)


# --- Killed ---------------------------------------------------------------------------------------

SLOWLY = """
import sys, time
from surgeon import lazy, recipe, surgery
from surgeon.output.execute import Options
original = lazy.Blockwise.elements
def slow(self, *arguments):
    time.sleep(0.05)
    return original(self, *arguments)
lazy.Blockwise.elements = slow
path, source, other, target = sys.argv[1:]
with surgery.opened(recipe.load(path, {}), source, {"other": other}) as opened:
    print("started", flush=True)
    surgery.write(opened, __import__("pathlib").Path(target), Options(), force=True)
"""


def started_slowly(bench, target):
    bench.recipe(AVERAGE)
    command = [sys.executable, "-c", SLOWLY, bench.folder / "recipe.json", bench.input,
               bench.models["other"], target]  # fmt: skip
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE)
    process.stdout.readline()
    temporary = target.with_name(f".{target.name}.surgeon-unfinished")
    while not temporary.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    return process, temporary


@pytest.mark.parametrize("kind", ["out.safetensors", "model"])
def test_killed_run_leaves_one_temporary_that_the_next_removes(big, kind):
    target = big.folder / kind
    big.operate(to=target)
    before = contents(target) if target.is_dir() else target.read_bytes()
    process, temporary = started_slowly(big, target)
    process.kill()
    process.communicate()
    assert [path.name for path in big.folder.glob(".*")] == [temporary.name]
    assert (contents(target) if target.is_dir() else target.read_bytes()) == before
    big.operate(AVERAGE, to=target)
    assert not list(big.folder.glob(".*"))


@pytest.mark.parametrize("kind", ["out.safetensors", "model"])
def test_two_runs_into_one_output_are_one_too_many(big, kind):
    target = big.folder / kind
    process, _ = started_slowly(big, target)
    try:
        with pytest.raises(WriteError, match="another run is writing this output"):
            big.operate(to=target)
    finally:
        assert process.wait(60) == 0
        process.communicate()
    weights = target / "model.safetensors" if target.is_dir() else target
    assert_identical(read(weights), {name: tensor + 0.5 for name, tensor in BIG.items()})


# --- Shards ---------------------------------------------------------------------------------------


def sizes_of(folder):
    return {
        path.name: sum(t.nbytes for t in read_file(path).values())
        for path in sorted(folder.glob("*.safetensors"))
    }


def read_file(path):
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@pytest.mark.parametrize("limit", [1, 1_200_000, 2_400_000, 3_000_000, "5GB", "2.4MB"])
def test_no_shard_is_larger_than_allowed(big, limit):
    folder = big.folder / "model"
    big.operate(to=folder, output={"shard_size": limit})
    tensor = 300 * 1000 * 4
    per_shard = {1: 1, 1_200_000: 1, 2_400_000: 2, 3_000_000: 2, "5GB": 6, "2.4MB": 2}[limit]
    assert list(sizes_of(folder).values()) == [per_shard * tensor] * (6 // per_shard)


def test_shards_hold_every_tensor_once(example):
    folder = example.folder / "model"
    example.operate(to=folder, output={"shard_size": 300})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {name: path.name for path in folder.glob("*.safetensors") for name in read_file(path)}
    assert index["weight_map"] == found
    assert found.keys() == example_tensors().keys()
    total = sum(tensor.nbytes for tensor in example_tensors().values())
    assert index["metadata"] == {"total_size": total}


def test_shards_are_numbered_as_transformers_does(example):
    folder = example.folder / "model"
    example.operate(to=folder, output={"shard_size": 600})
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    count = len(names)
    expected = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert count > 1
    assert names == expected


def test_folder_has_the_metadata_that_transformers_wants(bench):
    save_file({"x": torch.ones(1)}, bench.input)
    bench.operate(to=bench.folder / "model")
    with safe_open(bench.folder / "model" / "model.safetensors", "pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_sharded_folder_is_read_again(example):
    folder = example.folder / "model"
    example.operate(to=folder, output={"shard_size": 300})
    example.input = folder
    again = example.operate()
    assert again.manifest["ties"] == TIES
    expected = {**example_tensors(), "head.weight": example_tensors()["embed.weight"]}
    assert_identical(again.tensors, expected)


def test_one_file_has_no_shard_size(example):
    with pytest.raises(UsageError, match=r"output.shard_size is for model folders"):
        example.operate(output={"shard_size": "1GB"})


def test_tied_names_share_a_shard(example):
    plan = example.plan()
    for file in lay_out_shards(plan.tensors, {}, 100):
        names = {placed.name for placed in file.tensors}
        assert "head.weight" not in names


# --- What libraries make of it --------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5)
        self.head.weight = self.embed.weight


def test_library_loads_a_tied_output_into_a_model(bench):
    model = Tied()
    bench.given({"embed.weight": torch.ones(5, 4), "head.bias": torch.ones(5)},
                {"head.weight": "embed.weight"}).operate()  # fmt: skip
    assert load_model(model, bench.output) == (set(), [])
    assert model.head.weight is model.embed.weight
    assert model.head.weight.eq(1).all()


def test_widened_tied_output_loads_into_a_wider_model(bench):
    bench.given({"embed.weight": torch.ones(4, 4), "head.bias": torch.ones(4)},
                {"head.weight": "embed.weight"})  # fmt: skip
    bench.operate({"op": "widen", "target": "embed", "rows": 1, "init": "zeros"})
    model = Tied()
    load_model(model, bench.output)
    assert model.head.weight[4].eq(0).all()
    assert model.embed.weight[:4].eq(1).all()


def test_tensor_data_is_aligned(example):
    content = example.operate().path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 8 == 0
    header = json.loads(content[8 : 8 + length])
    for name, tensor in example_tensors().items():
        assert header[name]["data_offsets"][0] % max(tensor.element_size(), 1) == 0


def test_bytes_of_a_tensor_are_where_the_header_says(example):
    content = example.operate().path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, tensor in example_tensors().items():
        begin, end = header[name]["data_offsets"]
        assert content[8 + length + begin : 8 + length + end] == raw_bytes(tensor)
