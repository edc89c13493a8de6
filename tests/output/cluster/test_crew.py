"""Outputs that workers of a cluster write: the bytes of one machine, whatever happens."""

import errno
import json
import os
import time

import pytest
import torch

import surgeon
from surgeon.base.errors import CheckpointError, PlanError, UsageError, WriteError
from surgeon.lazy import Blockwise
from surgeon.output.cluster import crowd, work
from surgeon.recipe import OPS
from tests.network import example_bench, write_recipe

HANDFUL = ["ties", "slerp", "rebasin", "reinit", "model_stock", "dare", "cast", "lora_merge"]
EVERY = [name if name in HANDFUL else pytest.param(name, marks=pytest.mark.slow) for name in OPS]


def contents(folder):
    """Every file of a folder, temporaries among them, with its bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def model_folder(path, seed=0):
    """Write a model folder of two shards with tensors that are split over tasks."""
    path.mkdir()
    generator, shards = torch.Generator().manual_seed(seed), {}
    for number in (1, 2):
        tensors = {f"layer.{number}.{i}.weight": torch.randn(20, 30, generator=generator)
                   for i in range(3)}  # fmt: skip
        name = f"model-{number:05d}-of-00002.safetensors"
        save(tensors, path / name)
        shards |= dict.fromkeys(tensors, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return path


def save(tensors, path):
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})


@pytest.fixture
def folders(tmp_path):
    """A recipe, three model folders, and what one machine makes of them."""
    places = [model_folder(tmp_path / name, seed) for seed, name in enumerate(["a", "b", "c"])]
    models = {"b": str(places[1]), "c": str(places[2])}
    ties = {"op": "ties", "models": ["b", "c"], "density": 0.3}
    recipe = write_recipe(tmp_path, ties, models=models, output={"shard_size": "5KB"})
    surgeon.apply(recipe, places[0], tmp_path / "expected")
    return recipe, places[0], tmp_path / "out", contents(tmp_path / "expected")


# --- The bytes of one machine ---------------------------------------------------------------------


def used(bench, text):
    return {name: place for name, place in bench.models.items() if f'"{name}"' in text}


@pytest.mark.parametrize("checksums", ["crc32", "sha256"])
@pytest.mark.parametrize("op", EVERY)
def test_bytes_are_those_of_one_machine(op, checksums, client, small_tasks, tmp_path):
    bench, step = example_bench(tmp_path, op), {"op": op, **OPS[op].example}
    recipe = write_recipe(tmp_path, step, models=used(bench, json.dumps(step)))
    made = []
    for name, cluster in ("one", None), ("many", client):
        (tmp_path / name).mkdir()
        output = tmp_path / name / "out.safetensors"
        surgeon.apply(recipe, bench.input, output, checksums=checksums, cluster=cluster)
        made.append(contents(tmp_path / name))
    assert made[0] == made[1]


@pytest.mark.parametrize("task_bytes", [1 << 8, 1 << 11, 1 << 30])
def test_folders_are_those_of_one_machine(folders, client, monkeypatch, task_bytes):
    recipe, given, output, expected = folders
    monkeypatch.setattr("surgeon.output.cluster.tasks.TASK_BYTES", task_bytes)
    monkeypatch.setattr("surgeon.output.units.UNIT", 1 << 10)
    seen = []
    surgeon.apply(recipe, given, output, cluster=client, progress=seen.append)
    assert contents(output) == expected
    assert sum(seen) == 6 * 20 * 30 * 4
    assert {path.name for path in output.parent.iterdir()} >= {"out", "expected"}
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


def test_linked_shards_are_linked(folders, client, tmp_path):
    _, given, output, _ = folders
    step = {"op": "reinit", "target": "layer.1.**", "init": "zeros"}
    recipe = write_recipe(tmp_path, step)
    surgeon.apply(recipe, given, tmp_path / "one", link=True)
    found = surgeon.apply(recipe, given, output, link=True, cluster=client)
    assert contents(output) == contents(tmp_path / "one")
    assert found.linked_bytes == 3 * 20 * 30 * 4


def test_a_statistic_of_a_split_tensor_is_found_once(folders, client, small_tasks, monkeypatch):
    recipe, given, output, expected = folders
    found, find = [], Blockwise._known
    monkeypatch.setattr(Blockwise, "_known", lambda *a: found.append(1) or find(*a))
    surgeon.apply(recipe, given, output, cluster=client)
    assert contents(output) == expected
    assert len(found) == 6


# --- What goes wrong ------------------------------------------------------------------------------


def remains(output):
    return {path.name for path in output.parent.iterdir() if path.name.startswith(".")}


@pytest.fixture
def full_disk(monkeypatch):
    """Have the disk full for the first so many files that workers begin."""
    allocate, left = work.allocate, []

    def fail(descriptor, size_bytes):
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, size_bytes)

    monkeypatch.setattr(work, "allocate", fail)
    monkeypatch.setattr("surgeon.output.cluster.tasks.TASK_BYTES", 1 << 12)
    return left


def test_what_one_worker_has_no_room_for_another_writes(folders, client, full_disk):
    recipe, given, output, expected = folders
    full_disk.append(1)
    surgeon.apply(recipe, given, output, cluster=client)
    assert contents(output) == expected
    assert not full_disk


def test_a_disk_that_is_full_for_all_leaves_nothing(folders, client, full_disk):
    recipe, given, output, _ = folders
    full_disk.extend([1] * 99)
    with pytest.raises(WriteError, match=r"out: model-.*: no space left on device"):
        surgeon.apply(recipe, given, output, cluster=client)
    assert not output.exists()
    assert not remains(output)


def test_a_value_that_is_refused_is_refused_in_the_same_words(client, tmp_path):
    save({"layer.1.0.weight": torch.full((20, 30), torch.nan)}, tmp_path / "nan.safetensors")
    save({"layer.1.0.weight": torch.ones(20, 30)}, tmp_path / "ones.safetensors")
    average = {"op": "average", "models": ["b"]}
    recipe = write_recipe(tmp_path, average, models={"b": str(tmp_path / "nan.safetensors")})
    said = []
    for cluster in None, client:
        with pytest.raises(PlanError) as failed:
            surgeon.apply(recipe, tmp_path / "ones.safetensors", tmp_path / "o.safetensors",
                          cluster=cluster)  # fmt: skip
        said.append(str(failed.value))
    assert said[0] == said[1]
    assert "NaN" in said[0]


def test_other_software_and_other_files_are_told_apart():
    here = work.Sight("surgeon 1", {"a": (10, 5, "x"), "b": (1, 1, "y"), "c": (2, 2, "z")})
    there = work.Sight("surgeon 2", {"a": (10, 6, "x"), "b": "no such file", "c": (2, 2, "z")})
    assert list(crowd._differences("tcp://w", here, there)) == [
        "tcp://w: has surgeon 2, and here is surgeon 1",
        "tcp://w: a is another file there: time (ns) 6 there, 5 here",
        "tcp://w: b cannot be read there: no such file; all need it at the same path",
    ]


def test_a_task_refuses_another_software(client):
    found = work._answered(work.written, b"", "crc32", [], "surgeon 0.0")
    assert (found.failed, found.problems[0][:15]) == (CheckpointError, "this worker has")


def test_a_worker_without_room_is_refused(client):
    with pytest.raises(UsageError, match=r"may use .*, and 1 tasks at a time need 99.0 TB"):
        crowd.require_alike(client, [], 99 * 10**12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cluster": "local:0"}, "say local:4"),
        ({"cluster": "tcp://127.0.0.1:1"}, "no scheduler can be reached"),
        ({"resume": True}, "--resume goes on with a run on a cluster"),
        ({"cluster": "local:2", "workers": 2}, "--workers is for this machine"),
    ],
)
def test_what_cannot_be_meant_is_refused(folders, options, said, monkeypatch):
    monkeypatch.setattr(crowd, "_CONNECTING_SECONDS", 0.5)
    recipe, given, output, _ = folders
    with pytest.raises(UsageError, match=said):
        surgeon.apply(recipe, given, output, **options)


# --- Going on -------------------------------------------------------------------------------------


class InterruptedRunError(Exception):
    pass


def interrupted_after(tasks):
    seen = []

    def progress(size_bytes):
        seen.append(size_bytes)
        if len(seen) == tasks:
            raise InterruptedRunError

    return progress


def noted(output):
    """The files of what a run has written down as complete, once for each part of one."""
    lines = output.with_name(f".{output.name}.journal.surgeon-unfinished").read_text().splitlines()
    return [file for line in map(json.loads, lines) for file in line.get("files", [])]


@pytest.fixture
def begun(folders, client, monkeypatch, request):
    """A run that got halfway, and a list of what the next one writes anew."""
    recipe, given, output, _ = folders
    monkeypatch.setattr("surgeon.output.cluster.tasks.TASK_BYTES", request.param)
    monkeypatch.setattr("surgeon.output.units.UNIT", 1 << 9)
    with pytest.raises(InterruptedRunError):
        surgeon.apply(recipe, given, output, cluster=client, resume=True,
                      progress=interrupted_after(2))  # fmt: skip
    assert not output.exists()
    # What the workers had begun is not in the next one's list.
    while any(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()):
        time.sleep(0.01)
    anew, by_units = [], work._by_units
    monkeypatch.setattr(work, "_by_units", lambda *a: anew.append(1) or by_units(*a))
    return anew


SHARDS, PARTS = 1 << 12, 1 << 10


@pytest.mark.parametrize("begun", [SHARDS, PARTS], indirect=True)
def test_a_run_goes_on_from_what_is_complete(folders, client, begun):
    recipe, given, output, expected = folders
    complete = len(noted(output))
    surgeon.apply(recipe, given, output, cluster=client, resume=True)
    assert contents(output) == expected
    missing = len(begun)
    assert not remains(output)
    surgeon.apply(recipe, given, output.with_name("again"), cluster=client)
    everything = len(begun) - missing
    assert 0 < missing == everything - complete < everything


@pytest.mark.parametrize("begun", [SHARDS, PARTS], indirect=True)
def test_what_does_not_have_its_checksum_is_written_again(folders, client, begun):
    recipe, given, output, expected = folders
    for path in (output.parent / ".out.surgeon-unfinished").iterdir():
        with path.open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\xff" * 8)
    surgeon.apply(recipe, given, output, cluster=client, resume=True)
    assert contents(output) == expected


@pytest.mark.parametrize("begun", [SHARDS, PARTS], indirect=True)
def test_another_recipe_goes_on_with_nothing_of_it(folders, client, begun, tmp_path):
    recipe, given, output, _ = folders
    text = json.loads(recipe.read_text())
    text["steps"][0]["density"] = 0.4
    recipe.write_text(json.dumps(text))
    surgeon.apply(recipe, given, tmp_path / "one")
    surgeon.apply(recipe, given, output, cluster=client, resume=True)
    assert contents(output) == contents(tmp_path / "one")


@pytest.mark.parametrize("begun", [PARTS], indirect=True)
def test_without_resuming_what_was_left_goes(folders, client, begun):
    recipe, given, output, expected = folders
    surgeon.apply(recipe, given, output, cluster=client)
    assert contents(output) == expected
    assert not remains(output)
