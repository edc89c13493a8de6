"""Outputs appear complete or not at all."""

import errno
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surgeon.base.errors import UsageError, WriteError
from surgeon.formats import swapping
from surgeon.output import publish
from tests.network import assert_identical, example_tensors, read, write

STEP = {"op": "rename", "from": "classifier", "to": "head2"}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- One file -------------------------------------------------------------------------------------


def test_file_appears_when_it_is_published(tmp_path):
    target = tmp_path / "out"
    with publish.file(target) as (descriptor, publish_it):
        os.write(descriptor, b"new")
        assert names(tmp_path) == [".out.surgeon-unfinished"]
        publish_it()
        assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_file_that_is_never_published_leaves_nothing(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    with publish.file(tmp_path / "out") as (descriptor, _):
        os.write(descriptor, b"new")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_error_in_the_body_leaves_the_old_file(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), publish.file(tmp_path / "out"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, make):
    make(tmp_path / "out")
    before = (tmp_path / "out").stat()
    with pytest.raises(WriteError, match="is no regular file, and not replaced"):
        publish.file(tmp_path / "out").__enter__()
    assert (tmp_path / "out").stat() == before
    assert names(tmp_path) == ["out"]


def test_debris_of_a_killed_run_is_used_again(tmp_path):
    debris = publish.temporary_beside(tmp_path / "out")
    debris.write_bytes(b"unfinished" * 100)
    with publish.file(tmp_path / "out") as (descriptor, publish_it):
        os.write(descriptor, b"new")
        publish_it()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"new"


def test_link_at_the_temporary_s_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    publish.temporary_beside(tmp_path / "out").symlink_to(victim)
    with pytest.raises(WriteError, match="is a link, or no file"), publish.file(tmp_path / "out"):
        pass
    assert victim.read_text() == "mine"
    assert names(tmp_path) == [".out.surgeon-unfinished", "victim"]


def test_file_of_several_names_is_not_written_to(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    publish.temporary_beside(tmp_path / "out").hardlink_to(victim)
    with publish.file(tmp_path / "out") as (descriptor, publish_it):
        os.write(descriptor, b"new")
        publish_it()
    assert (tmp_path / "out").read_bytes() == b"new"
    assert victim.read_text() == "mine"


def test_link_at_the_temporary_folder_s_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    publish.temporary_beside(tmp_path / "out").symlink_to(victim)
    with pytest.raises(WriteError, match="is a link, or no file"), publish.folder(tmp_path / "out"):
        pass
    assert (victim / "file").read_text() == "mine"
    assert names(tmp_path) == [".out.surgeon-unfinished", "victim"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_another_user_s_temporary_is_left_alone(tmp_path, monkeypatch, kind):
    debris = publish.temporary_beside(tmp_path / "out")
    {"file": Path.touch, "folder": Path.mkdir}[kind](debris)
    monkeypatch.setattr(os, "geteuid", lambda: debris.stat().st_uid + 1)
    opening = getattr(publish, kind)
    with pytest.raises(WriteError, match="is another user's"), opening(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.surgeon-unfinished"]


def test_fifo_at_the_temporary_s_name_is_refused(tmp_path):
    os.mkfifo(publish.temporary_beside(tmp_path / "out"))
    with pytest.raises(WriteError, match="no file or folder"), publish.file(tmp_path / "out"):
        pass


def test_locked_file_is_refused(tmp_path):
    with (
        publish.file(tmp_path / "out"),
        pytest.raises(WriteError, match="another run is writing this output"),
        publish.file(tmp_path / "out"),
    ):
        pass
    assert names(tmp_path) == []


def test_names_cannot_be_guessed_where_others_may_write(tmp_path):
    tmp_path.chmod(0o1777)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    publish.temporary_beside(tmp_path / "out").symlink_to(victim)
    with publish.file(tmp_path / "out") as (descriptor, publish_it):
        os.write(descriptor, b"new")
        (name,) = {*names(tmp_path)} - {"victim", ".out.surgeon-unfinished"}
        assert re.fullmatch(r"\.out\.surgeon-unfinished-[0-9a-f]{16}", name)
        publish_it()
    assert victim.read_text() == "mine"
    assert names(tmp_path) == [".out.surgeon-unfinished", "out", "victim"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_others_put_into_a_shared_folder_is_left_alone(tmp_path, monkeypatch, kind):
    tmp_path.chmod(0o1777)
    theirs, ours = (publish.temporary_beside(tmp_path / "out", f"-{digit * 16}") for digit in "ab")
    for debris in (theirs, ours):
        {"file": Path.touch, "folder": Path.mkdir}[kind](debris)
    monkeypatch.setattr("surgeon.output.temporaries.is_ours", lambda path: path == ours)
    with getattr(publish, kind)(tmp_path / "out"):
        assert not ours.exists()
    assert names(tmp_path) == [theirs.name]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("kind", ["out.safetensors", "model"])
def test_modes_are_those_that_the_umask_gives(example, umask, kind):
    before = os.umask(umask)
    try:
        example.operate(to=example.folder / kind)
    finally:
        os.umask(before)
    target = example.folder / kind
    found = [target, *target.iterdir()] if target.is_dir() else [
        target, example.folder / "out.manifest.json"
    ]  # fmt: skip
    for path in found:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask


def modes(*paths):
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def test_private_files_stay_private_where_they_are_replaced(example):
    example.input.chmod(0o600)
    made = example.operate(to=example.input, force=True).path
    assert modes(made, made.with_suffix(".manifest.json")) == [0o600, 0o600]
    made.chmod(0o640)
    example.operate(to=made, force=True)
    assert modes(made, made.with_suffix(".manifest.json")) == [0o640, 0o600]


def test_private_folders_stay_private_where_they_are_replaced(example):
    made = example.operate(to=example.folder / "model").path
    (made / "model.safetensors").chmod(0o600)
    made.chmod(0o700)
    example.operate(to=made, force=True)
    assert modes(made, made / "model.safetensors") == [0o700, 0o600]


def test_link_is_followed_and_stays_a_link(example):
    real = example.folder / "real.safetensors"
    real.write_bytes(b"old")
    link = example.folder / "link.safetensors"
    link.symlink_to(real)
    example.operate(to=link, force_any=True)
    assert link.is_symlink()
    assert read(real).keys() >= example_tensors().keys()


@pytest.mark.parametrize("kind", ["none/out.safetensors", "none/model"])
def test_missing_folder_is_one_line(example, kind):
    with pytest.raises(WriteError) as caught:
        example.operate(to=example.folder / kind)
    assert str(caught.value).startswith(f"{example.folder / kind}: there is no folder ")


@pytest.mark.parametrize(("kind", "made"), [("out.safetensors", Path.mkdir), ("model", Path.touch)])
def test_wrong_kind_of_output_is_refused(example, kind, made):
    made(example.folder / kind)
    with pytest.raises(UsageError, match="which replaces none; name another output"):
        example.operate(to=example.folder / kind)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_line(example):
    folder = example.folder / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(WriteError, match="cannot be written: permission denied"):
        example.operate(to=folder / "out.safetensors")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_what_the_system_refuses_is_one_line(tmp_path, number):
    with pytest.raises(WriteError) as caught, publish.writing(tmp_path / "out"):
        raise OSError(number, os.strerror(number), str(tmp_path / "in"))
    reason = os.strerror(number).lower()
    assert caught.value.problems == (
        f"{tmp_path / 'out'}: cannot be written: {reason} ({tmp_path / 'in'})",
    )


# --- Folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(example):
    """The example network as a model folder with other files."""
    made = example.folder / "input"
    made.mkdir()
    shutil.copy(example.input, made / "model.safetensors")
    (made / "config.json").write_text('{"hidden": 8}')
    (made / "tokenizer").mkdir()
    (made / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    (made / ".cache").mkdir()
    example.input = made
    return example


def test_other_files_are_carried_along(folder):
    target = folder.folder / "model"
    folder.operate(STEP, to=target)
    assert names(target) == [
        "config.json", "model.safetensors", "surgeon.manifest.json", "tokenizer",
    ]  # fmt: skip
    assert (target / "config.json").read_text() == '{"hidden": 8}'
    assert (target / "tokenizer" / "vocab.txt").read_text() == "a\nb\n"


def test_folder_is_replaced_as_a_unit(folder):
    target = folder.folder / "model"
    folder.operate(STEP, to=target)
    (target / "special_tokens_map.json").write_text("{}")
    folder.operate(STEP, to=target)
    assert "special_tokens_map.json" not in names(target)
    assert not list(folder.folder.glob(".*"))


def test_fewer_shards_leave_none_of_the_old_ones(folder):
    target = folder.folder / "model"
    folder.operate(to=target, output={"shard_size": 300})
    assert len(list(target.glob("*.safetensors"))) > 2
    folder.operate(to=target)
    assert [path.name for path in target.glob("*.safetensors")] == ["model.safetensors"]
    assert not (target / "model.safetensors.index.json").exists()


def test_manifest_of_the_input_is_not_carried_along(folder):
    first, second = folder.folder / "first", folder.folder / "second"
    folder.operate(STEP, to=first)
    folder.input = first
    made = folder.operate({"op": "rename", "from": "head2", "to": "head3"}, to=second)
    assert made.manifest["tensors"]["head3.weight"]["lineage"][0]["from"] == ["head2.weight"]


def test_old_weights_are_not_carried_along(bench):
    source = bench.folder / "input"
    source.mkdir()
    torch.save({"x": torch.ones(2)}, source / "pytorch_model.bin")
    bench.input = source
    bench.operate(to=bench.folder / "model")
    assert names(bench.folder / "model") == ["model.safetensors", "surgeon.manifest.json"]


def test_file_as_input_carries_nothing_along(example):
    (example.folder / "notes.txt").write_text("mine")
    example.operate(to=example.folder / "model")
    assert names(example.folder / "model") == ["model.safetensors", "surgeon.manifest.json"]


def test_replaced_folder_is_complete_at_every_moment(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    seen = []
    original = publish.flush
    monkeypatch.setattr(publish, "flush", lambda path: (seen.append(names(target)), original(path)))
    with publish.folder(target, {"old"}) as (temporary, publish_it):
        (temporary / "new").write_text("new")
        publish_it()
    assert {tuple(state) for state in seen} == {("old",), ("new",)}
    assert names(tmp_path) == ["model"]


def test_folders_are_swapped_without_the_system_call_too(tmp_path, monkeypatch):
    monkeypatch.setattr(swapping.ctypes, "CDLL", lambda *arguments, **keywords: object())
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with publish.folder(target, {"old"}) as (temporary, publish_it):
        (temporary / "new").write_text("new")
        publish_it()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["new"]


def test_locked_folder_is_refused(tmp_path):
    with (
        publish.folder(tmp_path / "model"),
        pytest.raises(WriteError, match="another run is writing this output"),
        publish.folder(tmp_path / "model"),
    ):
        pass
    assert names(tmp_path) == []


def test_debris_of_a_killed_run_is_not_published(tmp_path):
    debris = publish.temporary_beside(tmp_path / "model")
    (debris / "deep").mkdir(parents=True)
    (debris / "deep" / "half").write_text("half")
    with publish.folder(tmp_path / "model") as (temporary, publish_it):
        (temporary / "new").write_text("new")
        publish_it()
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


def test_library_reads_every_shard(folder):
    target = folder.folder / "model"
    folder.operate(to=target, output={"shard_size": 300})
    found = {}
    for path in target.glob("*.safetensors"):
        found |= load_file(path)
    assert_identical(found, example_tensors())


def test_checkpoint_in_another_folder_is_untouched(example, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = write(elsewhere / "out.safetensors", {"x": torch.ones(1)})
    example.operate()
    assert_identical(read(other), {"x": torch.ones(1)})
