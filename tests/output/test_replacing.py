"""What an output may replace, and that everything else stays."""

import os
import shutil

import pytest
import torch

from surgeon import recipe as recipes
from surgeon import surgery
from surgeon.base.errors import UsageError, WriteError
from surgeon.inspection import verify
from surgeon.output import keeping, publish
from surgeon.output.execute import Options
from tests.network import read, write

STEP = {"op": "rename", "from": "classifier", "to": "head2"}
OTHERS = ("notes.txt", ".git/HEAD", "checkpoint-500/model.safetensors", "tokenizer/mine.txt")


def listing(folder):
    """Every path in a folder, with the bytes of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


def with_others(folder):
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"mine: {name}")


@pytest.fixture
def folder(example):
    """The example network as a model folder that holds a tokenizer."""
    made = example.folder / "input"
    (made / "tokenizer").mkdir(parents=True)
    (made / "tokenizer" / "vocab.txt").write_text("a")
    shutil.copy(example.input, made / "model.safetensors")
    example.input = made
    return example


@pytest.mark.parametrize("place", [".", "", "..", "/"])
def test_a_path_without_a_name_is_refused(example, monkeypatch, place):
    inside = example.folder / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    before = listing(example.folder)
    with pytest.raises(UsageError, match="is no name for an output"):
        example.operate(STEP, to=type(inside)(place), force_any=True)
    assert listing(example.folder).keys() - before.keys() == {"recipe.json"}


@pytest.mark.parametrize(
    "name",
    [".m.surgeon-unfinished", ".m.safetensors.surgeon-replaced",
     ".m.surgeon-unfinished-0123456789abcdef"],
)  # fmt: skip
def test_a_name_that_a_later_run_would_clear_is_refused(example, name):
    with pytest.raises(UsageError, match="is a name of what a killed run leaves"):
        example.operate(STEP, to=example.folder / name, force_any=True)
    assert not (example.folder / name).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.manifest.json", "is a name for a manifest"),
        ("config.json", "is a name for a manifest, an index or a config"),
        ("m.optimizer.safetensors", "is a name for the optimizer's state that goes with m;"),
        ("surgeon.safetensors", "has surgeon.manifest.json as its manifest"),
    ],
)
def test_a_name_that_means_something_beside_an_output_is_refused(example, name, message):
    with pytest.raises(UsageError, match=message):
        example.operate(STEP, to=example.folder / name, force_any=True)
    assert not (example.folder / name).exists()


def test_a_state_that_no_manifest_names_is_not_removed(example):
    example.operate(STEP)
    state = example.folder / "out.optimizer.safetensors"
    state.write_text("mine")
    with pytest.raises(UsageError, match="exists, and no surgeon manifest names it; --force-any"):
        example.operate(STEP, force=True)
    assert state.read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("held", "holds the input"),
        ("models", "holds model 'other'"),
        ("models/other.safetensors", "is model 'other'"),
        ("work", "is the current folder"),
        ("around", "holds the current folder"),
        ("held/input/new", "lies inside the input"),
        ("held/input/tokenizer/out.safetensors", "lies inside the input"),
        ("held/input/model.safetensors", "lies inside the input"),
    ],
)
def test_what_a_run_reads_or_stands_in_is_not_replaced(folder, monkeypatch, output, message):
    top = folder.folder
    for name in ("held", "models", "work", "around/work"):
        (top / name).mkdir(parents=True)
    folder.input = folder.input.rename(top / "held" / "input")
    other = write(top / "models" / "other.safetensors", {"x": torch.ones(1)})
    folder.models = {"other": str(other)}
    monkeypatch.chdir(top / ("work" if output == "work" else "around/work"))
    with pytest.raises(UsageError, match=message):
        folder.operate(STEP, to=top / output, force_any=True)
    assert len(listing(top / "held")) == 4
    assert other.exists()


def test_a_recipe_is_not_replaced_by_the_manifest_beside_the_output(example):
    example.recipe(STEP)
    recipe = (example.folder / "recipe.json").rename(example.folder / "out.manifest.json")
    loaded = recipes.load(str(recipe), {})
    with (
        surgery.opened(loaded, str(example.input), {}) as opened,
        pytest.raises(UsageError, match="is the recipe"),
    ):
        surgery.write(opened, example.output, Options(), force_any=True)


@pytest.mark.parametrize("is_in_place", [True, False])
def test_what_surgeon_did_not_write_stays(folder, is_in_place):
    target = folder.input if is_in_place else folder.folder / "model"
    if not is_in_place:
        folder.operate(to=target)
    with_others(target)
    made = folder.operate(STEP, to=target)
    assert "head2.weight" in read(target / "model.safetensors")
    for name in OTHERS:
        assert (target / name).read_text() == f"mine: {name}"
    assert "since surgeon did not write it: '.git'" in made.notes[-1]
    assert verify.verify(target, 1).mismatches == []
    assert not list(folder.folder.glob(".*"))


def test_a_folder_that_surgeon_did_not_write_needs_another_option(folder):
    target = folder.folder / "model"
    shutil.copytree(folder.input, target)
    with_others(target)
    with pytest.raises(UsageError, match=r"no surgeon manifest stands in it; --force-any"):
        folder.operate(STEP, to=target)
    folder.operate(STEP, to=target, force_any=True)
    assert "head2.weight" in read(target / "model.safetensors")
    assert (target / "notes.txt").exists()


def test_a_folder_that_is_no_model_s_is_never_replaced(folder):
    target = folder.folder / "pictures"
    with_others(target)
    before = listing(target)
    with pytest.raises(UsageError, match="is no model folder"):
        folder.operate(STEP, to=target, force_any=True)
    assert listing(target) == before


def test_a_foreign_file_of_a_name_that_is_needed_is_named(folder):
    target = folder.folder / "model"
    folder.operate(to=target, output={"shard_size": 300})
    (target / "model.safetensors").write_text("mine")
    with pytest.raises(UsageError, match=r"'model\.safetensors': surgeon did not write them"):
        folder.operate(STEP, to=target)
    assert (target / "model.safetensors").read_text() == "mine"
    folder.operate(STEP, to=target, force_any=True)
    assert [path.name for path in target.glob("model*")] == ["model.safetensors"]


def test_the_input_may_be_replaced_by_a_file_without_a_manifest(example):
    example.operate(STEP, to=example.input)
    assert "head2.weight" in read(example.input)


def test_what_was_carried_goes_with_the_output_that_it_came_with(folder):
    (folder.input / "unusual.txt").write_text("carried")
    target = folder.folder / "model"
    made = folder.operate(STEP, to=target)
    assert made.manifest["carried"] == ["tokenizer/vocab.txt", "unusual.txt"]
    (target / "mine.txt").write_text("mine")
    (folder.input / "unusual.txt").unlink()
    folder.operate(STEP, to=target)
    assert not (target / "unusual.txt").exists()
    assert (target / "mine.txt").read_text() == "mine"


def test_what_lay_in_a_folder_that_was_changed_in_place_stays_the_user_s(folder):
    (folder.input / "mine.txt").write_text("mine")
    made = folder.operate(STEP, to=folder.input)
    assert "carried" not in made.manifest
    other = folder.folder / "other"
    other.mkdir()
    shutil.copy(folder.input / "model.safetensors", other)
    target, folder.input = folder.input, other
    folder.operate(to=target)
    assert (target / "mine.txt").read_text() == "mine"


def test_kept_files_are_links_where_there_are_such(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    with_others(old)
    (old / "link").symlink_to("notes.txt")
    os.mkfifo(old / "pipe")
    new.mkdir()
    keeping.keep(old, new, {"tokenizer/vocab.txt"})
    assert (old / "notes.txt").samefile(new / "notes.txt")
    assert (new / "link").readlink().name == "notes.txt"
    (old / "pipe").unlink()
    shutil.rmtree(new)
    new.mkdir()
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1)))
    keeping.keep(old, new, ())
    assert listing(new) == listing(old)


def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with publish.folder(target) as (temporary, publish_it):
        (temporary / "new").write_text("new")
        (target / "new").write_text("mine")
        with pytest.raises(WriteError, match="file exists"), publish.writing(target):
            publish_it()
    assert (target / "new").read_text() == "mine"
