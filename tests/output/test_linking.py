"""Shards that nothing touched are shared with the input, and the output is none the different."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from shutil import copy

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from surgeon.base.errors import UsageError
from surgeon.cli.commands import commands
from surgeon.inspection.verify import verify
from surgeon.output.execute import Options
from surgeon.recipe import OPS
from tests.network import TIES, assert_identical, example_tensors, read, write_recipe

WIDEN = {"op": "widen", "target": "classifier", "rows": 1}
# Some as large as a shard, so that few tensors share one.
SHARD_BYTES = 300


@pytest.fixture
def sharded(example):
    """The example network as a folder of shards, one of which holds a pair of tied names."""
    folder = example.folder / "model"
    example.operate(to=folder, output={"shard_size": SHARD_BYTES})
    (folder / "config.json").write_text("{}")
    copy(example.folder / "tokenizer.json", folder)
    example.input = folder
    return example


def shards(folder):
    return {path.name: path for path in folder.glob("*.safetensors")}


def linked(folder, source):
    """Return the output's files that are files of the input."""
    inodes = {path.stat().st_ino for path in shards(source).values()}
    return {name for name, path in shards(folder).items() if path.stat().st_ino in inodes}


def holding(folder, *names):
    return {file for file, path in shards(folder).items() if load_file(path).keys() & set(names)}


def contents(folder):
    tensors = {}
    for path in shards(folder).values():
        tensors |= read(path)
    return tensors


def described(made):
    """What a manifest says of tensors, less where they lie."""
    return {key: made.manifest[key] for key in ("tensors", "ties", "stages", "recipe")}


# --- What is linked -------------------------------------------------------------------------------


def test_untouched_shards_are_the_input_s_files(sharded):
    out = sharded.folder / "out"
    made = sharded.operate(WIDEN, to=out, link=True)
    touched = holding(out, "classifier.weight", "classifier.bias")
    assert len(touched) < len(shards(out)) - 3
    assert linked(out, sharded.input) == shards(out).keys() - touched
    for name in linked(out, sharded.input):
        assert shards(out)[name].samefile(shards(sharded.input)[name])
    for name in shards(out):
        assert load_file(out / name).keys() == load_file(sharded.input / name).keys()
    assert (out / "config.json").stat().st_ino != (sharded.input / "config.json").stat().st_ino
    assert contents(out)["classifier.weight"].shape == (8, 8)
    assert verify(out, workers=1).mismatches == []
    assert made.notes == []


def test_without_the_option_nothing_is_linked(sharded):
    out = sharded.folder / "out"
    sharded.operate(WIDEN, to=out, output={"shard_size": SHARD_BYTES})
    assert linked(out, sharded.input) == set()


@pytest.mark.parametrize("op", [pytest.param(op, id=name) for name, op in OPS.items()])
def test_every_op_makes_the_same_with_links(op, sharded):
    step = {"op": op.name, **op.example}
    with_links, without = sharded.folder / "with", sharded.folder / "without"
    first = sharded.operate(step, to=with_links, link=True)
    second = sharded.operate(step, to=without)
    assert described(first) == described(second)
    assert_identical(contents(with_links), contents(without))
    assert verify(with_links, workers=1).mismatches == []


def test_one_file_of_a_folder_is_linked(sharded):
    sharded.operate(to=sharded.folder / "single")
    sharded.input = sharded.folder / "single"
    out = sharded.folder / "out"
    sharded.operate(to=out, link=True)
    assert linked(out, sharded.input) == {"model.safetensors"}


def test_output_may_be_the_input(sharded):
    before = {path.stat().st_ino for path in shards(sharded.input).values()}
    expected = contents(sharded.input)
    sharded.operate(WIDEN, to=sharded.input, link=True)
    after = {path.stat().st_ino for path in shards(sharded.input).values()}
    assert len(before & after) == len(after) - len(
        holding(sharded.input, "classifier.weight", "classifier.bias")
    )
    found = contents(sharded.input)
    assert torch.equal(found["classifier.weight"][:7], expected["classifier.weight"])
    assert not list(sharded.folder.glob(".*"))


def test_what_several_shards_lose_is_gathered(sharded):
    out = sharded.folder / "out"
    sharded.operate({"op": "delete", "target": "encoder.*.bias"}, to=out, link=True)
    names = sorted(shards(out))
    assert names == [
        f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {name: path.name for path in shards(out).values() for name in load_file(path)}
    assert index["weight_map"] == found
    assert linked(out, sharded.input)


def test_new_tensors_go_with_those_before_them(sharded):
    out = sharded.folder / "out"
    step = {"op": "copy", "from": "encoder.1.norm.bias", "to": "encoder.1.norm.more"}
    sharded.operate(step, to=out, link=True)
    (added,) = holding(out, "encoder.1.norm.more")
    assert linked(out, sharded.input) == shards(out).keys() - {added}


def test_shards_are_no_larger_than_they_may_be(sharded):
    out = sharded.folder / "out"
    step = {"op": "widen", "target": "classifier", "to": 30}
    sharded.operate(step, to=out, link=True, output={"shard_size": 500})
    for path in shards(out).values():
        sizes = [tensor.nbytes for tensor in load_file(path).values()]
        assert sum(sizes) <= 500 or len(sizes) == 1
    assert linked(out, sharded.input)


def test_checksums_of_linked_shards_are_taken(sharded):
    out = sharded.folder / "out"
    made = sharded.operate(to=out, link=True)
    plain = sharded.operate(to=sharded.folder / "plain")
    assert linked(out, sharded.input) == shards(out).keys()
    assert made.manifest["tensors"] == plain.manifest["tensors"]
    assert all("crc32" in entry for entry in made.manifest["tensors"].values())


def test_without_checksums_linked_shards_are_not_read(sharded, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "surgeon.output.units.blocks", lambda piece, *rest: reads.append(piece) or []
    )
    progress = []
    options = Options(checksums="none", progress=progress.append)
    made = sharded.operate(to=sharded.folder / "out", link=True, options=options)
    assert reads == []
    owned = {n: t for n, t in made.manifest["tensors"].items() if n not in TIES}
    assert sum(progress) == sum(example_tensors()[name].nbytes for name in owned)
    assert verify(sharded.folder / "out", workers=1).mismatches == []


# --- What is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "names"),
    [
        ({"op": "rename", "from": "classifier", "to": "head2"}, ["head2.weight", "head2.bias"]),
        ({"op": "untie", "target": "head.weight"}, ["embed.weight", "head.weight"]),
        ({"op": "rename", "from": "head", "to": "a"}, ["a.weight"]),
        ({"op": "tie", "target": "encoder.1.norm.weight", "to": "encoder.0.norm.weight",
          "when": "always"}, ["encoder.0.norm.weight"]),
        ({"op": "rename", "from": "encoder.{i}.bias", "to": "encoder.{1-i}.bias"},
         ["encoder.0.bias", "encoder.1.bias"]),
        ({"op": "cast", "target": "classifier", "dtype": "F16"}, ["classifier.weight"]),
    ],
)  # fmt: skip
def test_shards_with_other_names_ties_or_values_are_written(step, names, sharded):
    out = sharded.folder / "out"
    sharded.operate(step, to=out, link=True)
    assert linked(out, sharded.input).isdisjoint(holding(out, *names))
    assert linked(out, sharded.input)


def test_shard_whose_names_have_a_prefix_is_written(bench):
    bench.given({f"module.{name}": tensor for name, tensor in example_tensors().items()})
    made = bench.operate(to=bench.folder / "out", link=True)
    assert linked(bench.folder / "out", bench.folder) == set()
    assert any("wrapper 'module.'" in note for note in made.notes)


def test_file_that_transformers_would_refuse_is_written(bench):
    save_file({"x": torch.ones(2)}, bench.input)
    bench.operate(to=bench.folder / "out", link=True)
    assert linked(bench.folder / "out", bench.folder) == set()


def test_file_that_owns_a_tie_goes_on_owning_it(bench):
    save_file({"b": torch.ones(2)}, bench.input, {"format": "pt", "a": "b"})
    made = bench.operate(to=bench.folder / "out", link=True)
    assert len(linked(bench.folder / "out", bench.folder)) == 1
    assert made.manifest["ties"] == {"a": "b"}


def test_file_that_no_longer_owns_a_tie_is_written(bench):
    save_file({"b": torch.ones(2)}, bench.input, {"format": "pt", "a": "b"})
    tie = {"op": "tie", "target": "b", "to": "a"}
    made = bench.operate({"op": "untie", "target": "b"}, tie, to=bench.folder / "out", link=True)
    assert linked(bench.folder / "out", bench.folder) == set()
    assert made.manifest["ties"] == {"b": "a"}


def test_torch_files_are_written(bench):
    bench.input = bench.folder / "in.pt"
    torch.save({"x": torch.ones(2)}, bench.input)
    bench.operate(to=bench.folder / "out", link=True)
    assert_identical(contents(bench.folder / "out"), {"x": torch.ones(2)})


@pytest.mark.parametrize(
    ("rest", "target", "message"),
    [
        ({"output": {"metadata": {"stage": "2"}}}, "out", "output.metadata goes into every file"),
        ({}, "out.safetensors", "--link is for model folders, and .*out.safetensors is one file"),
    ],
)
def test_contradictions_are_refused(rest, target, message, sharded):
    with pytest.raises(UsageError, match=message):
        sharded.operate(to=sharded.folder / target, link=True, **rest)


# --- How ------------------------------------------------------------------------------------------


def test_where_nothing_can_be_linked_files_are_copied(sharded, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    out = sharded.folder / "out"
    made = sharded.operate(WIDEN, to=out, link=True)
    assert linked(out, sharded.input) == set()
    same = shards(out).keys() - holding(out, "classifier.weight", "classifier.bias")
    before = {path.read_bytes() for path in shards(sharded.input).values()}
    assert {shards(out)[name].read_bytes() for name in same} < before
    (note,) = made.notes
    assert note.startswith("cannot be linked here, so copied: 'model-0000")
    assert verify(out, workers=1).mismatches == []


def test_reflinks_come_before_hard_links(sharded, monkeypatch):
    def clone(descriptor, request, source):
        assert request == 0x40049409  # FICLONE of linux/fs.h
        os.pwrite(descriptor, os.pread(source, 1 << 20, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(os, "link", None)
    out = sharded.folder / "out"
    sharded.operate(to=out, link=True)
    assert_identical(contents(out), {**example_tensors(), **_tied()})
    assert verify(out, workers=1).mismatches == []


def _tied():
    return {alias: example_tensors()[owner] for alias, owner in TIES.items()}


def test_input_that_is_replaced_meanwhile_is_not_linked(sharded, monkeypatch):
    expected = contents(sharded.input)
    link = os.link

    def replaced(source, target):
        other = f"{source}.new"
        shutil.copyfile(source, other)
        Path(other).replace(source)
        link(source, target)

    monkeypatch.setattr(os, "link", replaced)
    out = sharded.folder / "out"
    made = sharded.operate(to=out, link=True)
    assert linked(out, sharded.input) == set()
    assert_identical(contents(out), expected)
    assert len(made.notes) == 1


def test_shard_behind_a_link_inside_the_folder_is_linked(sharded):
    name = sorted(shards(sharded.input))[0]
    (sharded.input / name).rename(sharded.input / "blob")
    (sharded.input / name).symlink_to("blob")
    out = sharded.folder / "out"
    sharded.operate(to=out, link=True)
    assert not (out / name).is_symlink()
    assert (out / name).samefile(sharded.input / "blob")


def test_command_says_what_was_linked(sharded):
    recipe = write_recipe(sharded.folder, WIDEN)
    out = sharded.folder / "out"
    arguments = ["apply", str(recipe), str(sharded.input), str(out), "--link", "--json"]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    sizes = {n: t.numel() * t.element_size() for n, t in contents(out).items() if n not in TIES}
    total = sum(sizes.values())
    assert answer["linked_bytes"] + answer["copied_bytes"] + answer["computed_bytes"] == total
    assert answer["linked_bytes"] > total // 3
    assert " linked, " in result.stderr
