"""Everything has a page: ready-made recipes, a recipe's training section, initialisations."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from surgeon import recipe
from surgeon.base.ready_made import ready_made
from surgeon.cli import word_pages
from surgeon.cli.commands import commands
from surgeon.initialisers import INITIALISERS
from surgeon.recipe.frame import TRAINING


def run(*words: str) -> Result:
    return CliRunner().invoke(commands, list(words))


@pytest.mark.parametrize("name", ready_made())
def test_a_recipe_explains_its_variables(name: str) -> None:
    document = json.loads(run("recipes", name, "--json").stdout)
    assert [row["name"] for row in document["variables"]] == list(document["recipe"]["vars"])
    for row in document["variables"]:
        assert row["type"]
        assert len(row["meaning"].split()) > 1  # more than the key where it is used
        assert row["example"] is not None
    assert document["recipe"].get("help", {}).keys() <= document["recipe"]["vars"].keys()
    assert recipe.load(name, document["recipe"].get("example", {})).label


def test_piped_a_recipe_is_its_json_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(run("recipes", "ties").stdout)
    assert (tmp_path / "mine.json").read_bytes() == ready_made()["ties"].read_bytes()


def test_on_a_terminal_a_recipe_is_a_page() -> None:
    reader, terminal = pty.openpty()
    words = [sys.executable, "-m", "surgeon", "recipes", "replace-head"]
    subprocess.run(words, stdout=terminal, check=True, timeout=60)
    shown = os.read(reader, 65536).decode()
    assert "the layer to replace" in shown
    assert "must be set" in shown
    assert "surgeon apply replace-head in.safetensors" in shown


def test_a_recipe_that_is_misspelt_is_wrong_usage() -> None:
    found = run("recipes", "replace-haed")
    assert found.exit_code == 2
    assert "did you mean 'replace-head'" in found.stderr


def keys(schema: dict[str, Any]) -> set[str]:
    named = schema.get("properties", {})
    inner = [*named.values(), *([schema["items"]] if "items" in schema else [])]
    return set(named).union(*(keys(part) for part in inner))


def test_the_training_page_explains_every_key() -> None:
    rows = list(word_pages.training_rows())
    assert {place.split(".")[-1].removesuffix("[]") for place, *_ in rows} >= keys(TRAINING)
    assert all(about for *_, about in rows)
    assert all(place in run("ops", "training").stdout for place, *_ in rows)


def test_the_training_pages_example_is_valid() -> None:
    text = {"surgeon": 1, "steps": [], "training": word_pages.as_json("training")["example"]}
    assert recipe.load(text, {}).training


@pytest.mark.parametrize("name", sorted(set(INITIALISERS) - {"copy"}))  # which is an op too
def test_an_initialisation_has_a_page(name: str) -> None:
    shown = run("ops", name).stdout
    assert INITIALISERS[name].about in shown
    assert recipe.load({"surgeon": 1, "steps": [word_pages.as_json(name)["example"]]}, {}).steps
