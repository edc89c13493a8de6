"""Which files of a model folder go along: its own, regular ones, of bounded size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.cli.test_cli import run
from tests.network import Bench, write, write_recipe


@pytest.fixture
def model(bench: Bench) -> Path:
    """A model folder beside a file that is not its own, and a recipe that copies."""
    folder = bench.folder / "model"
    (folder / "sub").mkdir(parents=True)
    write(folder / "model.safetensors", {"x": torch.ones(2)})
    (folder / "sub" / "vocab.txt").write_text("a")
    (bench.folder / "secret").write_text("secret")
    bench.input = folder
    return folder


def carried(bench: Bench) -> list[str]:
    """Apply nothing to the folder; return its files but for the weights and the manifest."""
    out = bench.folder / "out"
    bench.operate(to=out)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    return sorted(files - {"model.safetensors", "surgeon.manifest.json"})


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("tokenizer.json", "../secret", "a link that leaves the folder"),
        ("sub/deep.json", "../../secret", "a link that leaves the folder"),
        ("zero", "/dev/zero", "a link that leaves the folder"),
        ("around", "around", "a link that leads nowhere"),
        ("up", "..", "a link that leaves the folder"),
        ("sub/here", ".", "a link to a folder"),
    ],
)
def test_links_that_lead_out_or_round_are_left_out(
    bench: Bench, model: Path, name: str, target: str, said: str
) -> None:
    (model / name).symlink_to(target)
    assert carried(bench) == ["sub/vocab.txt"]
    made = bench.operate(to=bench.folder / "again")
    assert f"{name} ({said}" in made.notes[-1]


def test_a_fifo_is_left_out_with_a_note(bench: Bench, model: Path) -> None:
    os.mkfifo(model / "pipe")
    assert carried(bench) == ["sub/vocab.txt"]
    assert bench.operate(to=bench.folder / "again").notes == [
        "not carried along: 'pipe (no regular file)'"
    ]


def test_links_within_the_folder_become_files(bench: Bench, model: Path) -> None:
    (model / "vocab.txt").symlink_to("sub/vocab.txt")
    (model / "sub" / "same.txt").symlink_to("vocab.txt")
    assert carried(bench) == ["sub/same.txt", "sub/vocab.txt", "vocab.txt"]
    assert not (bench.folder / "out" / "vocab.txt").is_symlink()


def test_links_of_a_hub_cache_lead_into_its_blobs(bench: Bench, model: Path) -> None:
    hub = bench.folder / "models--org--name"
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "abc").write_text("{}")
    bench.input = hub / "snapshots" / "1234"
    bench.input.parent.mkdir()
    model.rename(bench.input)
    (bench.input / "tokenizer.json").symlink_to("../../blobs/abc")
    (bench.input / "stolen.json").symlink_to("../../../secret")
    assert carried(bench) == ["sub/vocab.txt", "tokenizer.json"]


@pytest.mark.parametrize(
    ("option", "expected"),
    [("none", []), ("small", ["a", "sub/vocab.txt"]), ("all", ["a", "big", "sub/vocab.txt"])],
)
def test_what_is_large_is_carried_where_that_is_asked_for(
    bench: Bench, model: Path, option: str, expected: list[str]
) -> None:
    (model / "a").write_text("a")
    with (model / "big").open("wb") as file:
        file.truncate(100_000_001)
    recipe, out = write_recipe(bench.folder), bench.folder / "out"
    planned = run("plan", recipe, model, "-o", out, "--carry", option, "--json")
    assert json.loads(planned.stdout)["carried"] == expected
    text = run("plan", recipe, model, "-o", out, "--carry", option).stdout
    assert all(f"'{name}'" in text for name in expected)
    done = run("apply", recipe, model, out, "--carry", option)
    assert done.exit_code == 0
    assert (out / "big").exists() is ("big" in expected)
    told = "'big (100.0 MB)', which are large; --carry all takes them along" in done.stderr
    assert told is (option == "small")


def test_all_together_are_bounded(bench: Bench, model: Path) -> None:
    for number in range(11):
        with (model / f"part-{number:02}").open("wb") as file:
            file.truncate(95_000_000)
    recipe, out = write_recipe(bench.folder), bench.folder / "out"
    planned = json.loads(run("plan", recipe, model, "-o", out, "--json").stdout)
    assert planned["carried"] == [f"part-{number:02}" for number in range(10)] + ["sub/vocab.txt"]
    assert any("'part-10 (95.0 MB)'" in note for note in planned["notes"])
